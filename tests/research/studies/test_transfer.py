"""Transfer: what is frozen keeps the bits of the source, what is new is new, and few examples of each class are drawn fairly."""

from __future__ import annotations

import types

import keras
import numpy as np
import pytest

from loops.feeds import Position
from research import runner, study
from research.configs import transfer as config_file
from research.data.datasets import Split
from research.studies import transfer
from research.study import InputError


def config(**changes):
    made = config_file.get_config()
    made.update({"samples": (2,), "source_epochs": 1, "epochs": 4, "steps": 3, "batch_size": 10, "stagnation": 1, **changes})
    return made


@pytest.fixture
def source():
    keras.utils.set_random_seed(0)
    return transfer.make_model((8, 8), 5)


@pytest.mark.parametrize("method", transfer.METHODS)
def test_a_new_model_has_the_weights_of_the_source_and_shares_none(source, method):
    model = transfer.transferred(source, method)
    assert not {id(v) for v in source.variables} & {id(v) for v in model.variables}
    of_source = {_last(v): v.numpy() for v in source.variables}
    same = {_last(v) for v in model.variables if np.array_equal(v.numpy(), of_source.get(_last(v)))}
    zeros = {name for name in of_source if name.endswith("bias")}  # new ones are zero, as those of this source
    bottom = {name for name in of_source if not name.startswith("probabilities")}
    assert same - zeros == {"scratch": set(), "new_head": set(of_source)}.get(method, bottom) - zeros
    expected = {"scratch": list(of_source), "new_head": ["new_head/kernel", "new_head/bias"]}
    assert [_last(v) for v in model.trainable_variables] == expected.get(method, ["probabilities/kernel", "probabilities/bias"])


def _last(variable):
    return "/".join(variable.path.split("/")[-2:])


def test_a_new_head_stands_on_what_the_source_says(source):
    model = transfer.transferred(source, "new_head")
    x = np.random.RandomState(0).uniform(size=[6, 8, 8]).astype("float32")
    kernel, bias = model.layers[-1].get_weights()
    logits = source(x).numpy() @ kernel + bias
    np.testing.assert_allclose(model(x).numpy(), np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-4)


def test_few_of_each_are_drawn_once_and_evenly():
    y = np.repeat([0, 1, 2], [5, 9, 7]).astype("int32")
    data = Split(np.arange(len(y), dtype="float32"), y)
    drawn = transfer.few_of_each(data, 4, seed=1)
    assert np.bincount(drawn.y).tolist() == [4, 4, 4] and len(set(drawn.x)) == 12
    assert np.array_equal(y[drawn.x.astype(int)], drawn.y)
    assert set(transfer.few_of_each(data, 4, seed=2).x) != set(drawn.x)
    with pytest.raises(InputError, match="asks for 6 examples of each class; there are between 1 and 5"):
        transfer.few_of_each(data, 6, seed=0)


def test_few_examples_are_repeated_and_none_of_many_is_left_out():
    made = study.build(config(samples=(2, 20)))
    before = {"source-0": types.SimpleNamespace(study=made.make("source-0", {}, seed=0))}
    for samples, rows, often in ((2, 30, {3}), (20, 100, {1})):
        feed = made.make(f"scratch-{samples}-0", before, seed=0).train
        x, y = (np.concatenate(part) for part in zip(*_batches(feed), strict=True))
        assert len(x) == rows and np.bincount(y).tolist() == [rows // 5] * 5
        assert set(np.unique(x.reshape(rows, -1), axis=0, return_counts=True)[1]) == often


def _batches(feed):
    for block in feed.blocks(Position()):
        for i in range(block.n):
            yield tuple(np.asarray(part)[i] for part in block.tensors)


def test_frozen_weights_keep_their_bits_and_fine_tuning_changes_them_when_they_are_set_free(capsys, tmp_path):
    settings = config(methods=("last_layer", "new_head", "fine_tune"), learning_rate_factor=0.5, batch_size=100, steps=1)
    settings.optimizer.learning_rate = 1e-30  # nothing is learnt: the loss stagnates at once
    runs = runner.train(study.build(settings), settings, workdir=tmp_path, compile="eager")
    source = runs["source-0"].study.model
    for method in ("last_layer", "new_head"):
        model = runs[f"{method}-2-0"].study.model
        frozen = [layer for layer in model.layers if not layer.trainable and layer.weights]
        assert len(frozen) == (3 if method == "new_head" else 2)
        for layer in frozen:
            for a, b in zip(layer.get_weights(), source.get_layer(layer.name).get_weights(), strict=True):
                assert a.tobytes() == b.tobytes()
    assert "Frozen weights that are bitwise those of the source: 10 of 10." in capsys.readouterr().out
    logs = runs["fine_tune-2-0"].history.history
    assert logs["unfrozen_layers"] == [0, 0, 1, 2]
    np.testing.assert_allclose(np.array(logs["learning_rate"]) / 1e-30, [1, 1, 0.5, 0.25], rtol=1e-5)
    assert (tmp_path / "plots" / "samples.png").is_file()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"methods": ("scratch", "all")}, "config.methods names 'all'"),
        ({"dataset": "wine"}, "does not consist of images in ten classes"),
        ({"samples": (1000,)}, "asks for 1000 examples of each class"),
        ({"repeats": 0}, "are 1 or more"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
