"""Training and inference, noise and seeds, frozen layers, batches of none and of one."""

from __future__ import annotations

import numpy as np

from layers.testing.case import Case, Seen, agree

__all__ = ["empty_batch", "frozen", "inference", "seeds", "single_example"]


def inference(case: Case) -> str | None:
    """At training=False a call changes no state, and the next call gives the same."""
    layer = case.make()
    before = {f"state/{i} {v.name}": v.numpy() for i, v in enumerate(layer.variables)}
    first = case.measure(layer, training=False, gradients=False, keep=True)
    agree(before, first, "state before and after a call at training=False", rtol=0, atol=0, only="state/")
    second = case.measure(layer, training=False, gradients=False, keep=True)
    agree(first, second, "two calls at training=False", rtol=0, atol=0)
    return None


def seeds(case: Case) -> str | None:
    """With one seed noise repeats from the start, with another it differs, and no two calls are the same."""
    if not case.stochastic:
        what = "two calls from the same state (say stochastic=True if they may differ)"
        agree(case.eager(True, gradients=False), case.measure(case.layer, gradients=False), what, rtol=0, atol=0)
        return None
    one = case.make(seed=1)
    same, other = case.make(seed=1), case.make(seed=2)
    for layer in (same, other):
        for mine, source in zip(layer.weights, one.weights, strict=True):
            mine.assign(source)
    runs = {layer: [case.measure(layer, gradients=False, keep=True) for _ in range(2)] for layer in (one, same, other)}
    for mine, again in zip(runs[one], runs[same], strict=True):
        agree(mine, again, "two layers with the same seed", rtol=0, atol=0)
    assert _differ(runs[one][0], runs[other][0]), "two layers with different seeds draw the same noise"
    assert _differ(*runs[one]), "two calls draw the same noise"
    return None


def frozen(case: Case) -> str | None:
    """A layer with trainable=False has nothing to train, moves no state and still works."""
    layer = case.make()
    layer.trainable = False
    assert not layer.trainable_weights, f"a frozen layer trains {[w.path for w in layer.trainable_weights]}"
    before = [w.numpy() for w in layer.weights]
    seen = case.measure(layer, keep=True)
    for weight, value in zip(layer.weights, before, strict=True):
        assert np.array_equal(weight, value), f"a frozen layer changed its {weight.name}"
    assert not [name for name in seen if name.startswith("gradient/") and "input" not in name]
    return None


def empty_batch(case: Case) -> str | None:
    """A batch of no examples gives no rows, and finite losses, metrics and state."""
    full = case.eager(True)
    for training in case.trainings():
        seen = case.measure(case.layer, case.batch.take(slice(0)), training)
        size = case.axes()[0]
        for name, value in seen.items():
            if name.startswith("output/") and full[name].shape[:1] == (size,):
                assert len(value) == 0, f"{name} of an empty batch has {len(value)} rows"
        _finite(seen, f"an empty batch at training={training}")
    return None


def single_example(case: Case) -> str | None:
    """A batch of one works; at training=False it gives what the example gives in its batch, where outputs are per example."""
    one = case.batch.take(slice(1))
    seen = {training: case.measure(case.layer, one, training) for training in case.trainings()}
    for training, found in seen.items():
        _finite(found, f"a batch of one at training={training}")
    inference = case.trainings()[-1]
    alone = seen[inference]
    for name, value in case.eager(inference).items():
        if name.startswith("output/") and value.shape[:1] == (case.axes()[0],):
            agree({name: value[:1]}, {name: alone[name]}, "an example in its batch and alone")
    return None


def _differ(one: Seen, other: Seen) -> bool:
    return any(not np.array_equal(value, other[name]) for name, value in one.items() if not name.startswith("state/"))


def _finite(seen: Seen, what: str) -> None:
    for name, value in seen.items():
        assert value.dtype.kind != "f" or np.isfinite(value).all(), f"{name} is not finite for {what}"
