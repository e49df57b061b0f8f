"""The records that an event file consists of: `length, checksum of the length, content, checksum of the content`.

A checksum is a CRC-32C, stored in TensorFlow's masked form. For each further byte `b` of a message, the register `r` changes by

    r  <-  table[(r xor b) mod 256]  xor  r div 256

which is linear over bits. So parts of a long message can be processed side by side, and their registers combined.

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
_LONG = 4096  # bytes from which on parts are processed side by side


def record(content: bytes) -> bytes:
    """The record that holds `content`.

    Example:
        >>> record(b"abc").hex(" ")
        '03 00 00 00 00 00 00 00 b0 99 49 0e 61 62 63 6e 57 f1 21'
    """
    return b"".join([header(len(content)), content, _stored(checksum(content))])


def header(length: int) -> bytes:
    """The bytes of a record before a content of `length` bytes."""
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
        register, data = _process_parts(register, data)
    table = _table().tolist()
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ _ONES


def masked(crc: Any) -> Any:
    """A checksum in the masked form in which TensorFlow stores it beside its data: rotated, plus a constant."""
    wide = np.asarray(crc, np.uint64)
    turned = wide >> np.uint64(15) | (wide << np.uint64(17)) & np.uint64(_ONES)
    return (turned + np.uint64(_MASK)) & np.uint64(_ONES)


def added_by_bytes(length: int) -> list[Words]:
    """For each place in a message of `length` bytes: what each byte value adds there to the checksum, uint32 `[256]`."""
    last = _table()
    tables = [last]
    while len(tables) < length:
        tables.append(_after_zero(tables[-1]))
    return tables[::-1]


def _process_parts(register: int, data: bytes) -> tuple[int, bytes]:
    """Processes as much of a long message as can be cut into equal parts. Returns the register after them, and the rest of the message."""
    count = math.isqrt(len(data))
    length = len(data) // count
    parts = np.frombuffer(data, np.uint8, count * length).reshape(count, length)
    # One register for each part, which begins with 0; and one for each bit, which reads zeros. By linearity the latter say what becomes of
    # any register over the length of a part, so that the parts can be combined afterwards.
    registers = np.concatenate([np.zeros(count, np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)])
    for column in np.ascontiguousarray(parts.T):
        registers[:count] ^= column
        registers = _after_zero(registers)
    of_bits, bits = registers[count:], np.arange(32)
    for of_part in registers[:count].tolist():
        register = of_part ^ int(np.bitwise_xor.reduce(of_bits[register >> bits & 1 == 1]))
    return register, data[count * length :]


def _after_zero(registers: Words) -> Words:
    """The registers after one more byte, a zero."""
    return _table()[registers & np.uint32(0xFF)] ^ registers >> np.uint32(8)


@functools.cache
def _table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return table


def _stored(crc: int) -> bytes:
    return struct.pack("<I", int(masked(crc)))
