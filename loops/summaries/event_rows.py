"""Serializes scalars of many steps for a TensorBoard event file, all steps at once.

The events of two steps differ in few bytes: wall time, step and values. So NumPy fills a byte matrix whose rows are the records (see
`records.py`). The checksum is linear, so it can be computed for all rows together:

    crc(event) = crc(event with zeros at these places)  xor  over these places p: what the byte at p adds to it

This takes a twentieth of the time that one protobuf message and one write for each step take, on cores that the training step needs. Of
what is written every few milliseconds each part has few steps, so parts with the same tags are serialized together.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from loops.summaries.records import HEADER, Words, added_by_bytes, checksum, header, masked

__all__ = ["Scalars", "records", "records_together"]

_SLOT = b"\xf1\xf2\xf3\xf4"  # marks the place of a float32; not valid UTF-8, so no tag can contain it


class Scalars:
    """Values of some tags at some steps.

    Args:
        steps: step numbers, shape [steps].
        values: tag -> values, shape [steps], written as float32. Masked entries of a masked array are left out.
        wall_times: seconds since the Unix epoch, shape [steps] or a scalar.

    Raises:
        ValueError: if a tag does not have one value for each step.
    """

    def __init__(self, steps: npt.ArrayLike, values: Mapping[str, npt.ArrayLike], wall_times: npt.ArrayLike):
        self.numbers = np.asarray(steps, np.int64).reshape(-1).view(np.uint64)  # protobuf writes a negative number as an unsigned one
        self.tags, size = tuple(values), self.numbers.size
        self.columns, self.present = np.empty((len(values), size), "<f4"), np.ones((len(values), size), bool)
        for i, (tag, column) in enumerate(values.items()):
            flat: Any = np.ma.asanyarray(column).reshape(-1)
            if flat.size != size:
                raise ValueError(f"Each tag needs one value per step; '{tag}' has {flat.size} values for {size} steps.")
            self.columns[i], self.present[i] = flat.data, ~np.ma.getmaskarray(flat)
        self.times = np.broadcast_to(np.asarray(wall_times, "<f8"), self.numbers.shape)


def records(steps: npt.ArrayLike, values: Mapping[str, npt.ArrayLike], wall_times: npt.ArrayLike) -> bytes:
    """One record for each step, with an event that holds all tags; none for a step without values. Arguments are those of `Scalars`."""
    return records_together([Scalars(steps, values, wall_times)])[0]


def records_together(parts: Sequence[Scalars]) -> list[bytes]:
    """For each part its records, one for each step with a value, in the order of its steps."""
    by_tags: dict[tuple[str, ...], list[int]] = {}
    for i, part in enumerate(parts):
        by_tags.setdefault(part.tags, []).append(i)
    made = [b""] * len(parts)
    for tags, places in by_tags.items():
        if tags:
            for i, rows in zip(places, _of_same_tags(tags, [parts[i] for i in places]), strict=True):
                made[i] = rows
    return made


def _of_same_tags(tags: tuple[str, ...], parts: Sequence[Scalars]) -> Iterator[bytes]:
    numbers, times = np.concatenate([part.numbers for part in parts]), np.concatenate([part.times for part in parts])
    columns, present = np.concatenate([part.columns for part in parts], 1), np.concatenate([part.present for part in parts], 1)
    digits = np.searchsorted(np.array([1 << 7 * n for n in range(10)], np.uint64), numbers, side="right")
    rows: Any = [b""] * len(numbers)
    if numbers.size and present.all() and digits.min() == digits.max():
        rows = _matrix(numbers, int(digits[0]), times, tags, columns)
    elif numbers.size:
        kinds, kind_of = np.unique(np.vstack([digits, present]), axis=1, return_inverse=True)
        for k, (length, *there) in enumerate(kinds.T):
            at, chosen = np.flatnonzero(kind_of.reshape(-1) == k), np.flatnonzero(there)
            if chosen.size:
                made = _matrix(numbers[at], int(length), times[at], tuple(tags[i] for i in chosen), columns[np.ix_(chosen, at)])
                for i, row in zip(at.tolist(), made, strict=True):
                    rows[i] = row.tobytes()
    end = 0
    for part in parts:
        begin, end = end, end + part.numbers.size
        yield rows[begin:end].tobytes() if isinstance(rows, np.ndarray) else b"".join(rows[begin:end])


def _matrix(
    numbers: npt.NDArray[np.uint64], digits: int, times: npt.NDArray[Any], tags: tuple[str, ...], columns: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """Records of steps that have a value for all tags, and whose numbers have `digits` digits to the base 128 (protobuf's varint)."""
    template = _template(tags, digits)
    matrix = np.tile(template.record, (len(numbers), 1))
    event = matrix[:, HEADER:-4]
    event[:, 1:9] = np.ascontiguousarray(times).view(np.uint8).reshape(-1, 8)
    for d in range(digits):
        event[:, 10 + d] = (numbers >> np.uint64(7 * d)) & np.uint64(0x7F) | np.uint64(0x80 if d < digits - 1 else 0)
    for place, column in zip(template.slots, columns, strict=True):
        event[:, place : place + 4] = np.ascontiguousarray(column).view(np.uint8).reshape(-1, 4)
    crc = np.full(len(numbers), template.crc, np.uint32)
    for place, added in template.varying.items():
        crc ^= added[event[:, place]]
    matrix[:, -4:] = masked(crc).astype("<u4").view(np.uint8).reshape(-1, 4)
    return matrix


@dataclasses.dataclass(frozen=True)
class _Template:
    """A record with zeros at the places that vary from step to step.

    Attributes:
        record: the bytes of the record.
        slots: places in the event at which the values begin.
        varying: place in the event that varies -> what each byte value adds there to the checksum, uint32 `[256]`.
        crc: checksum of the event with the zeros.
    """

    record: npt.NDArray[np.uint8]
    slots: list[int]
    varying: dict[int, Words]
    crc: int


@functools.lru_cache(maxsize=256)
def _template(tags: tuple[str, ...], digits: int) -> _Template:
    number = b"\x10" + bytes(digits) if digits else b""  # protobuf does not write a step of 0
    event = b"\x09" + bytes(8) + number + _summary(tags)
    slots = []
    for _ in tags:
        slots.append(event.index(_SLOT))
        event = event.replace(_SLOT, bytes(4), 1)
    tables = added_by_bytes(len(event))
    varying = {place: tables[place] for place in (*range(1, 9), *range(10, 10 + digits), *(s + i for s in slots for i in range(4)))}
    return _Template(np.frombuffer(header(len(event)) + event + bytes(4), np.uint8), slots, varying, checksum(event))


def _summary(tags: tuple[str, ...]) -> bytes:
    slot = tf.compat.v1.make_tensor_proto(np.float32(0.0))
    slot.ClearField("float_val")
    slot.tensor_content = _SLOT
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    values = [tf.compat.v1.Summary.Value(tag=tag, metadata=metadata, tensor=slot) for tag in tags]
    return bytes(tf.compat.v1.Event(summary=tf.compat.v1.Summary(value=values)).SerializeToString())
