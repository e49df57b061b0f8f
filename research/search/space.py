"""What a search may change in a config: ranges and choices, given by flags or by a function of the config's module."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import pathlib
import re
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from research.study import InputError

__all__ = ["PRUNERS", "SAMPLERS", "Choices", "Range", "Space", "module_of", "parse", "space_of", "take_flags"]

SAMPLERS = ("tpe", "random", "grid", "cmaes")
PRUNERS = ("median", "hyperband", "none")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        name: field of the config, with dots between nested ones.
        low, high: the bounds; integers for a field that holds one.
        log: whether factors count, not differences.
    """

    name: str
    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Any) -> Any:
        """The value for a trial."""
        if isinstance(self.low, int):
            return trial.suggest_int(self.name, self.low, int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def grid(self) -> list[Any]:
        """All its values.

        Raises:
            InputError: if there are too many.
        """
        if isinstance(self.low, int) and not self.log and self.high - self.low < 100:
            return list(range(self.low, int(self.high) + 1))
        raise InputError(f"A grid needs values, but --space.{self.name} is a range; give them as --space.{self.name}=A,B,C.")


@dataclasses.dataclass(frozen=True)
class Choices:
    """A few values.

    Attributes:
        name: field of the config.
        values: what it may be.
    """

    name: str
    values: tuple[Any, ...]

    def suggest(self, trial: Any) -> Any:
        """The value for a trial."""
        return trial.suggest_categorical(self.name, self.values)

    def grid(self) -> list[Any]:
        """All its values."""
        return list(self.values)


class Space:
    """The points that a search may try.

    Args:
        parameters: ranges and choices of single fields.
        function: `search_space(trial, config)` of the config's module, which suggests values with the trial's `suggest_...` methods and
            writes them into the config. Where it suggests a value for the name of a parameter, it gets that of the parameter.
    """

    def __init__(self, parameters: Sequence[Range | Choices] = (), function: Callable[[Any, Any], Any] | None = None):
        self.parameters, self.function = tuple(parameters), function

    def apply(self, trial: Any, config: Any) -> None:
        """Writes the values for a trial into a config.

        Raises:
            InputError: if the function fails, or a value does not fit into the config.
        """
        if self.function is not None:
            try:
                self.function(_Flagged(trial, self.parameters), config)
            except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, NameError) as error:
                raise InputError(f"search_space(trial, config) fails{_where(self.function, error)}: {_said(error)}.") from error
        for parameter in self.parameters:
            _set(config, parameter.name, parameter.suggest(trial))

    def check(self, trials: Sequence[Any], config: Any) -> None:
        """Tries a few points, before anything is trained.

        Args:
            trials: what suggests them, each with an attribute `params`.
            config: the config; it stays as it is.

        Raises:
            InputError: if the space cannot be applied, or none of its points differs from the config.
        """
        found = []
        for trial in trials:
            point = copy.deepcopy(config)
            self.apply(trial, point)
            found.append(point.to_dict())
        if not any(trial.params for trial in trials):
            raise InputError(
                "search_space(trial, config) suggests nothing: let it call trial.suggest_float, suggest_int, suggest_categorical."
            )
        if all(point == config.to_dict() for point in found):
            names = ", ".join(dict.fromkeys(name for trial in trials for name in trial.params))
            raise InputError(f"No point of the space differs from the config: what is suggested ({names}) has to be written into it.")

    def grid(self) -> dict[str, list[Any]]:
        """All values of all parameters.

        Raises:
            InputError: if they cannot be listed.
        """
        if self.function is not None:
            raise InputError("A grid needs all values beforehand, which a search_space function does not tell; give --space flags instead.")
        return {parameter.name: parameter.grid() for parameter in self.parameters}

    def describe(self) -> list[str]:
        """The parameters as texts, for a search to be recognized when it is started again."""
        own = [f"{type(p).__name__}{dataclasses.astuple(p)}" for p in self.parameters]
        return own + ([f"{self.function.__module__}.{self.function.__name__}"] if self.function is not None else [])


class _Flagged:
    """A trial whose suggestions for some names are those of flags, whatever the function says of their range."""

    def __init__(self, trial: Any, parameters: Sequence[Range | Choices]):
        self._trial, self._parameters = trial, {parameter.name: parameter for parameter in parameters}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return method

        def suggest(parameter: str, *arguments: Any, **named: Any) -> Any:
            flagged = self._parameters.get(parameter)
            return method(parameter, *arguments, **named) if flagged is None else flagged.suggest(self._trial)

        return suggest


def take_flags(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--space.NAME=VALUES` from the other arguments.

    Example:
        >>> take_flags(["search.py", "--space.batch_size=16,32", "--trials=3"])
        (['search.py', '--trials=3'], {'batch_size': '16,32'})
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    for argument in argv:
        match = re.fullmatch(r"--?space\.([\w.]+)=(.*)", argument)
        if match:
            found[match[1]] = match[2]
        elif argument.startswith(("--space", "-space")):
            raise InputError(f"{argument!r} is no range: write --space.FIELD=LOW:HIGH, --space.FIELD=LOW:HIGH:log or --space.FIELD=A,B,C.")
        else:
            rest.append(argument)
    return rest, found


def parse(name: str, text: str, config: Any) -> Range | Choices:
    """A range or choices as a flag gives them.

    Args:
        name: field of the config, with dots between nested ones.
        text: "LOW:HIGH", "LOW:HIGH:log" or "A,B,C".
        config: has the field; its value says what type the values have.

    Raises:
        InputError: if the field is unknown, or the values do not fit.

    Example:
        >>> from ml_collections import config_dict
        >>> parse("rate", "1e-4:1e-1:log", config_dict.ConfigDict({"rate": 0.1}))
        Range(name='rate', low=0.0001, high=0.1, log=True)
    """
    present = _get(config, name)
    if ":" in text:
        low, high, *how = text.split(":")
        if how not in ([], ["log"]):
            raise InputError(f"--space.{name}={text} is no range: write LOW:HIGH or LOW:HIGH:log.")
        if isinstance(present, bool) or not isinstance(present, int | float):
            raise InputError(f"--space.{name}={text} is a range, but config.{name} is {present!r}, which is no number; give choices A,B,C.")
        bounds = [_as(present, part, name) for part in (low, high)]
        if not all(map(math.isfinite, bounds)) or bounds[0] > bounds[1]:
            raise InputError(f"--space.{name}={text} is empty: the first bound has to be the smaller one, and both finite.")
        if how and bounds[0] <= 0:
            raise InputError(f"--space.{name}={text}: a range over factors (log) has to begin above 0.")
        return Range(name, bounds[0], bounds[1], bool(how))
    values = tuple(_as(present, part, name) for part in text.split(",") if part)
    if not values:
        raise InputError(f"--space.{name} is empty: write LOW:HIGH, LOW:HIGH:log or A,B,C.")
    return Choices(name, values)


def space_of(config_file: str | pathlib.Path, config: Any, flags: dict[str, str]) -> Space:
    """The space of a config file and flags. A flag wins over what the function does with the same field.

    Raises:
        InputError: if there is none.
    """
    function = getattr(module_of(config_file), "search_space", None)
    if function is None and not flags:
        raise InputError(
            f"There is nothing to search: {config_file} has no function search_space(trial, config), and there is no flag such as "
            "--space.optimizer.learning_rate=1e-4:1e-1:log."
        )
    return Space([parse(name, text, config) for name, text in flags.items()], function)


def module_of(config_file: str | pathlib.Path) -> ModuleType:
    """The module of a config file."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(config_file).stem, config_file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _where(function: Callable[..., Any], error: Exception) -> str:
    """The line of the user's own that failed."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" in line {lines[-1]} of {file}" if lines else ""


def _said(error: BaseException) -> str:
    inner: Any = error
    while isinstance(inner, BaseException) and inner.args:  # of a KeyError, str gives the key in quotes
        inner = inner.args[0]
    text = " ".join(str(inner).split())
    return f"{type(error).__name__}: {text if len(text) <= 160 else text[:160] + '...'}".rstrip(".")


def _get(config: Any, name: str) -> Any:
    value = config
    for part in name.split("."):
        if not hasattr(value, "keys") or part not in value:
            raise InputError(f"--space.{name} names a field that the config does not have; it has {', '.join(value.keys())}.")
        value = value[part]
    if hasattr(value, "keys"):
        raise InputError(f"--space.{name} names a group of fields; name one of them: {', '.join(f'{name}.{field}' for field in value)}.")
    return value


def _set(config: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        config = config[part]
    config[last] = value


def _as(present: Any, text: str, name: str) -> Any:
    """A text as a value of the type that the field has."""
    if isinstance(present, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif isinstance(present, str):
        return text
    elif isinstance(present, int | float):
        try:
            return type(present)(text)
        except ValueError:
            pass
    raise InputError(f"--space.{name}: {text!r} is no {type(present).__name__}, which config.{name} is.")
