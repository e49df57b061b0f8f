"""The classification study: the notes' perceptron, learning on real data, with normalisation as an option."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ml_collections import config_dict

import loops
from research import runner, study
from research.configs import classification as config_file
from research.data import datasets
from research.studies import classification
from research.study import InputError


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


def test_the_model_is_the_perceptron_of_the_notes():
    model = classification.make_model((28, 28), 10)
    assert [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)] == [300, 100, 10]
    assert model.count_params() == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    np.testing.assert_allclose(model(np.ones((2, 28, 28), "float32")).numpy().sum(-1), 1, rtol=1e-5)


def test_the_same_seed_makes_the_same_study():
    one, two = (study.build(config(), seed=3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True))


def test_it_learns_the_digits():
    made = study.build(config(optimizer__learning_rate=0.1))
    loops.TrainLoop(made.task, made.train, evaluate=made.evaluate, hooks=made.hooks).run(epochs=6)
    assert loops.EvalLoop(made.task).run(made.test)["accuracy"] > 0.93


def test_it_shows_where_it_errs(tmp_path):
    made = config(epochs=1, batch_size=420)
    run = runner.train(study.build(made), made, workdir=tmp_path, compile="eager")
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"learning_curves", "confusion_matrix", "mistakes"}
    test = datasets.load("digits", normalization="zscore").test
    predicted = run.study.model.predict(test.x, verbose=0).argmax(-1)
    (line,) = classification.show_predictions(run, test, tuple("abcdefghij"))
    true, taken = (ord(name) - ord("a") for name in (line.split(":")[1].split()[0], line.split("for ")[1][0]))
    pairs = {(a, b): np.sum((test.y == a) & (predicted == b)) for a in range(10) for b in range(10) if a != b}
    assert pairs[true, taken] == max(pairs.values()) and f" {max(pairs.values())} of {np.sum(test.y == true)} times" in line


def test_a_net_without_mistakes_and_a_table_have_less_to_show(tmp_path):
    made = config(dataset="wine", epochs=3, optimizer__learning_rate=0.1)
    run = runner.train(study.build(made), made, workdir=tmp_path, compile="eager")
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"learning_curves", "confusion_matrix"}
    test = datasets.load("wine", normalization="zscore").test
    right = datasets.Split(test.x, run.study.model.predict(test.x, verbose=0).argmax(-1))
    assert classification.show_predictions(run, right, tuple("abc")) == ["No mistake on the test set."]


def test_tables_are_classified_too():
    made = study.build(config(dataset="wine"))
    assert made.model.output_shape == (None, 3) and made.model.input_shape == (None, 13)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "minst"}, "'minst'"),
        ({"dataset": "diabetes"}, "regression"),
        ({"normalize": "z-score"}, "'z-score'"),
        ({"optimizer__name": "sdg"}, "'sdg'"),
        ({"batch_size": 0}, "batch_size"),
        ({"activation": "rleu"}, "rleu"),
        ({"hidden": (0,)}, "config cannot be built"),
    ],
)
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
