"""The records that an event file consists of: `length, checksum of the length, content, checksum of the content`.

Checksums are CRC-32C, stored in TensorFlow's disguise. A register `r` that has taken in a message takes in one more byte `b` so:

    r  <-  table[(r xor b) mod 256]  xor  r div 256

which is linear over bits, so parts of a long message can be worked on side by side and joined.

References:
    Castagnoli et al. 1993, Optimization of cyclic redundancy-check codes with 24 and 32 parity bits (CRC-32C).
"""

from __future__ import annotations

import functools
import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HEADER", "Words", "added_by_bytes", "checksum", "header", "masked", "record"]

Words = npt.NDArray[np.uint32]

HEADER = 12  # bytes of a record before its content
_MASK, _POLYNOMIAL, _ONES = 0xA282EAD8, 0x82F63B78, 0xFFFFFFFF
_LONG = 4096  # from how many bytes on parts are worked on side by side


def record(content: bytes) -> bytes:
    """The record that holds `content`.

    Example:
        >>> record(b"abc").hex(" ")
        '03 00 00 00 00 00 00 00 b0 99 49 0e 61 62 63 6e 57 f1 21'
    """
    return b"".join([header(len(content)), content, _stored(checksum(content))])


def header(length: int) -> bytes:
    """What comes before a content of so many bytes."""
    packed = struct.pack("<Q", length)
    return packed + _stored(checksum(packed))


def checksum(data: bytes) -> int:
    """CRC-32C of `data`.

    Example:
        >>> hex(checksum(b"123456789"))
        '0xe3069283'
    """
    register = _ONES
    if len(data) >= _LONG:
        register, data = _after_parts(register, data)
    table = _table().tolist()
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ _ONES


def masked(crc: Any) -> Any:
    """TensorFlow's disguise for checksums that are stored beside the data they are of."""
    wide = np.asarray(crc, np.uint64)
    turned = wide >> np.uint64(15) | (wide << np.uint64(17)) & np.uint64(_ONES)
    return (turned + np.uint64(_MASK)) & np.uint64(_ONES)


def added_by_bytes(length: int) -> list[Words]:
    """For each place in a message of that length, and each byte, what that byte adds there to the checksum."""
    last = _table()
    tables = [last]
    while len(tables) < length:
        tables.append(_shifted(tables[-1]))
    return tables[::-1]


def _after_parts(register: int, data: bytes) -> tuple[int, bytes]:
    """The register after as much of a long message as can be cut into equal parts, and the rest of the message."""
    count = math.isqrt(len(data))
    length = len(data) // count
    parts = np.frombuffer(data, np.uint8, count * length).reshape(count, length)
    # A register of each part, which begins with 0; and one for each bit, which takes in zeros: what becomes of a register meanwhile.
    registers = np.concatenate([np.zeros(count, np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)])
    for column in np.ascontiguousarray(parts.T):
        registers[:count] ^= column
        registers = _shifted(registers)
    of_bits, bits = registers[count:], np.arange(32)
    for of_part in registers[:count].tolist():
        register = of_part ^ int(np.bitwise_xor.reduce(of_bits[register >> bits & 1 == 1]))
    return register, data[count * length :]


def _shifted(registers: Words) -> Words:
    """Registers that take in a zero."""
    return _table()[registers & np.uint32(0xFF)] ^ registers >> np.uint32(8)


@functools.cache
def _table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return table


def _stored(crc: int) -> bytes:
    return struct.pack("<I", int(masked(crc)))
