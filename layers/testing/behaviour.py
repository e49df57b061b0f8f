"""Training and inference, noise and seeds, frozen layers, batches of none and of one."""

from __future__ import annotations

import numpy as np

from layers.testing.case import Case, Seen, agree

__all__ = ["empty_batch", "examples", "frozen", "inference", "seeds", "single_example"]


def inference(case: Case) -> str | None:
    """At training=False a call changes no state (by house rules not even that of seeds), and the next call gives the same."""
    layer = case.make()
    weights = {id(v) for v in layer.weights} if "quiet" not in case.rules else {id(v) for v in layer.variables}
    before = {f"state/{i} {v.name}": v.numpy() for i, v in enumerate(layer.variables) if id(v) in weights}
    first = case.measure(layer, training=False, gradients=False, keep=True)
    passing = {name for name in first if name.startswith("state/")} - {*before}
    first = {name: value for name, value in first.items() if name not in passing}
    agree(before, first, "state before and after a call at training=False", rtol=0, atol=0, only="state/")
    second = case.measure(layer, training=False, gradients=False, keep=True)
    second = {name: value for name, value in second.items() if name not in passing}
    agree(first, second, "two calls at training=False", rtol=0, atol=0)
    return None


def seeds(case: Case) -> str | None:
    """With one seed noise repeats from the start, with another it differs, and no two calls are the same."""
    if not case.stochastic:
        what = "two calls from the same state (say stochastic=True if they may differ)"
        agree(case.eager(True, gradients=False), case.measure(case.layer, gradients=False), what, rtol=0, atol=0)
        return None
    one, same = case.make(seed=1), case.make(seed=1)
    others = [case.make(seed=seed) for seed in (2, 3, 4)]  # of noise with few outcomes two may be alike by chance
    for layer in (same, *others):
        for mine, source in zip(layer.weights, one.weights, strict=True):
            mine.assign(source)
    first, *later = (case.measure(one, gradients=False, keep=True) for _ in range(4))
    for mine in (first, later[0]):
        agree(mine, case.measure(same, gradients=False, keep=True), "two layers with the same seed", rtol=0, atol=0)
    different = any(_differ(first, case.measure(layer, gradients=False, keep=True)) for layer in others)
    assert different, "layers with different seeds draw the same noise"
    assert any(_differ(first, mine) for mine in later), "two calls draw the same noise"
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
    if "empty_batches" not in case.rules:
        return "the rule was not asked for"
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


def examples(case: Case) -> str | None:
    """What becomes of an example does not depend on the others in its batch; of layers that are told about training, at training=False."""
    training = case.trainings()[-1]
    if case.stochastic and training:
        return "the layer draws noise in every call"
    size = case.axes()[0]
    whole = case.measure(case.layer, training=training, gradients=False)
    for changed in range(min(size, 6)):
        neighbour = (changed + 1) % size
        batch = case.batch.map(lambda a: np.concatenate([a[:changed], a[neighbour : neighbour + 1], a[changed + 1 :]]))  # noqa: B023
        seen = case.measure(case.layer, batch, training, gradients=False)
        for name, value in whole.items():
            if name.startswith("output/") and value.shape[:1] == (size,) == seen[name].shape[:1]:
                mine, others = (np.delete(v, changed, 0) for v in (value, seen[name]))
                agree({name: mine}, {name: others}, f"the other examples before and after example {changed} was replaced")
    return None


def _differ(one: Seen, other: Seen) -> bool:
    return any(not np.array_equal(value, other[name]) for name, value in one.items() if not name.startswith("state/"))


def _finite(seen: Seen, what: str) -> None:
    for name, value in seen.items():
        assert value.dtype.kind != "f" or np.isfinite(value).all(), f"{name} is not finite for {what}"
