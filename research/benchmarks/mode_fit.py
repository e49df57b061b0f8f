"""Fits the constants of the rule of `compile="auto"` to measured steps. `scripts/mode_choices.py --fit` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loops.engine.compile_mode import UNITS

__all__ = ["fit"]

# The ratio decides, so it counts most; a fit to it alone would leave open which of the two modes is fast, and what compiling may cost.
_WEIGHT_OF_SECONDS = 0.3
# What no measurement depends on stays near where it was.
_WEIGHT_OF_START = 0.01
# Relative errors beyond this count less than by their square: a row that the sum cannot describe must not bend all others.
_LARGE_ERROR = 0.2
_TRIES = 6


def fit(work: Sequence[dict[str, float]], seconds: np.ndarray, ratios: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The constants for which sums of work come closest to the measured times, by their logarithms.

    Args:
        work: of each model the work of a step, by the names of `UNITS`.
        seconds: `[2, models]`, of a measured step in a graph and under XLA.
        ratios: `[models]`, how many times the steps of a graph XLA does, which rounds tell better than the seconds.
        start: `[2, kinds of work]` positive, where to begin.

    Returns:
        Seconds for a unit of each kind of work, shaped and ordered as `start`.

    Example:
        >>> one = dict.fromkeys(UNITS, 0.0)
        >>> models = [{**one, "operations": 10.0}, {**one, "operations": 20.0}]
        >>> fitted = fit(models, np.array([[2e-5, 4e-5], [1e-5, 2e-5]]), np.array([2.0, 2.0]), np.full([2, len(UNITS)], 1e-6))
        >>> np.round(1e6 * fitted[:, list(UNITS).index("operations")], 2).tolist()
        [2.0, 1.0]
    """
    from scipy.optimize import least_squares

    amounts = np.array([[one[kind] / unit for kind, unit in UNITS.items()] for one in work])
    measured, began = np.log(seconds), np.log(start)

    def errors(flat: Any) -> Any:
        logarithms = flat.reshape(began.shape)
        estimated = np.log(np.exp(logarithms) @ amounts.T)
        of_ratios = estimated[0] - estimated[1] - np.log(ratios)
        of_seconds = _WEIGHT_OF_SECONDS * (estimated - measured)
        return np.concatenate([of_ratios, of_seconds.ravel(), _WEIGHT_OF_START * (logarithms - began).ravel()])

    begins = [began + np.random.default_rng(i).normal(0.0, 1.0 if i else 0.0, began.shape) for i in range(_TRIES)]
    found = [least_squares(errors, one.ravel(), loss="soft_l1", f_scale=_LARGE_ERROR) for one in begins]
    return np.exp(min(found, key=lambda one: one.cost).x).reshape(began.shape)
