"""Shortens the tracebacks of errors that users see to what is theirs: frames of TensorFlow, Keras and this library are left out.

`keras.config.disable_traceback_filtering()` turns that off, as it does for Keras. What the errors say is in `reasons.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterable
from typing import NamedTuple, ParamSpec, TypeVar

import keras

from loops import _private_api

__all__ = ["Place", "is_internal", "original_errors", "shortened", "with_places"]

P = ParamSpec("P")
R = TypeVar("R")

_MOST_FRAMES = 7  # beside those that lead to the call of this library


class Place(NamedTuple):
    """A line of source code that an error passed through.

    Attributes:
        file, line, function: as in a traceback.
    """

    file: str
    line: int
    function: str


def _folders_of(*packages: str) -> tuple[str, ...]:
    specs = [importlib.util.find_spec(name) for name in packages]
    return tuple(str(pathlib.Path(spec.origin).parent) + os.sep for spec in specs if spec is not None and spec.origin is not None)


_OURS = pathlib.Path(__file__).resolve().parents[1]
#: Never shown. `layers` stands beside this package where it is installed.
_INTERNAL = (*_folders_of("tensorflow", "keras"), f"{_OURS}{os.sep}", f"{_OURS.parent / 'layers'}{os.sep}")
#: Not shown where internal code calls it.
_GLUE = (sysconfig.get_path("stdlib") + os.sep, *_folders_of("numpy", "six", "wrapt"), "<frozen")
_INSTALLED = (sysconfig.get_path("purelib") + os.sep, sysconfig.get_path("platlib") + os.sep)


def is_internal(file: str) -> bool:
    """Whether a source file is TensorFlow's, Keras's, this library's, or one that AutoGraph has written.

    Example:
        >>> is_internal(keras.__file__), is_internal("/home/me/experiment.py")
        (True, False)
    """
    return file.startswith(_INTERNAL) or "__autograph_generated_file" in file


def shortened(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that users call: an error that leaves it has only the frames in its traceback that are not internal.

    Example:
        >>> @shortened
        ... def divide(a, b):
        ...     return a // b
        >>> divide(6, 3)
        2
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _Shortening():
            return function(*args, **kwargs)

    return call


class _Shortening:
    """A context manager, and no `except`: raising the error again would add a frame."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if error is None or not keras.config.is_traceback_filtering_enabled():
            return
        seen: set[int] = set()
        chain: list[BaseException | None] = [error]
        while chain:
            one = chain.pop()
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                one.__traceback__ = _joined(_shown(one.__traceback__))
                chain += [one.__cause__, None if one.__suppress_context__ else one.__context__]


class original_errors:  # noqa: N801  # it reads as a phrase: `with original_errors():`
    """A context in which errors of a step that AutoGraph has converted are those that the user's code raised, at its own lines.

    AutoGraph raises another error in place of it, whose text is a traceback.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if error is None or not keras.config.is_traceback_filtering_enabled():
            return
        original, places = _private_api.before_autograph(error)
        if original is None:
            return
        shown = [Place(*place) for place in places if not is_internal(place[0]) and not _is_glue(place[0])]
        raise original.with_traceback(_joined(map(_fake_frame, shown))) from original.__cause__


def with_places(error: BaseException, places: Iterable[Place]) -> types.TracebackType | None:
    """The traceback of an error, with further lines below, such as those that made an operation which failed later."""
    return _joined([*_frames(error.__traceback__), *map(_fake_frame, places)])


_Frame = tuple[types.FrameType, int, int]  # frame, index of the instruction, line


def _frames(tb: types.TracebackType | None) -> list[_Frame]:
    frames = []
    while tb is not None:
        frames.append((tb.tb_frame, tb.tb_lasti, tb.tb_lineno))
        tb = tb.tb_next
    return frames


def _joined(frames: Iterable[_Frame]) -> types.TracebackType | None:
    tb: types.TracebackType | None = None
    for frame, instruction, line in reversed(list(frames)):
        tb = types.TracebackType(tb, frame, instruction, line)
    return tb


def _is_glue(file: str) -> bool:
    return file.startswith(_GLUE) and not file.startswith(_INSTALLED)


def _kept(files: Iterable[str]) -> list[bool]:
    """For the files of frames, the outermost first: whether they are shown."""
    kept, internal = [], True
    for file in files:
        internal = is_internal(file) or (internal and _is_glue(file))
        kept.append(not internal)
    return kept


def _shown(tb: types.TracebackType | None) -> list[_Frame]:
    frames = _frames(tb)
    shown = [frame for frame, kept in zip(frames, _kept(f[0].f_code.co_filename for f in frames), strict=True) if kept]
    if len(shown) > _MOST_FRAMES:  # of other libraries, the last one is enough
        shown = [frame for frame in shown if frame is shown[-1] or not frame[0].f_code.co_filename.startswith(_INSTALLED)]
    return shown


class _Marker(BaseException):
    """Raised to get a frame."""


def _fake_frame(place: Place) -> _Frame:
    """A frame that a traceback shows as the line of `place`: Python makes frames only by running code."""
    code = compile("raise marker", place.file, "exec")
    code = code.replace(co_name=place.function, co_qualname=place.function, co_firstlineno=place.line)
    try:
        exec(code, {"marker": _Marker, "__name__": place.function})
    except _Marker as marker:
        frame = list(traceback.walk_tb(marker.__traceback__))[-1][0]
    return frame, -1, place.line  # -1: no instruction, so that no column is underlined
