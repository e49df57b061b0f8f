"""Class weights raise the recall of rare classes; sample weights, a `tf.data` pipeline and Keras's own `fit` give the same numbers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ml_collections import config_dict
from sklearn.metrics import recall_score
from sklearn.utils.class_weight import compute_class_weight

from research import runner, study
from research.configs import imbalanced as config_file
from research.data import datasets
from research.studies import imbalanced
from research.study import InputError

#: Few steps: of each part of the comparison the traces take most of the time anyway.
SMALL = {"epochs": 6, "hidden": (64,), "batch_size": 128, "optimizer.learning_rate": 0.2}


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}})
    return made


@pytest.fixture(scope="module")
def trained():
    made = config()
    return runner.train(study.build(made), made, compile="graph")


def test_class_weights_raise_the_recall_of_the_rare_classes(trained):
    plain, weighted = trained["plain"].test, trained["class_weight"].test
    assert weighted["rare_recall"] > plain["rare_recall"] + 0.1
    assert weighted["accuracy"] > plain["accuracy"]


@pytest.mark.parametrize("other", ["sample_weight", "tf_data"])
def test_weights_given_in_another_way_are_the_same_weights(trained, other):
    first = trained["class_weight"]
    assert trained[other].history.history == first.history.history
    for a, b in zip(trained[other].study.model.get_weights(), first.study.model.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_keras_fit_with_validation_split_and_class_weight_gives_the_same_bits(trained):
    made = config()
    data = datasets.load(made.dataset, normalization=made.normalize)
    whole = datasets.Split(np.concatenate([data.train.x, data.val.x]), np.concatenate([data.train.y, data.val.y]))
    x, y = imbalanced.make_rare(whole, made.rare, made.keep)
    first = trained["class_weight"].study.model
    keras.utils.set_random_seed(0)
    model = imbalanced.make_model((8, 8), 10, hidden=made.hidden)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    model.optimizer.learning_rate = made.optimizer.learning_rate
    weights = imbalanced.balanced_weights(y[: int(len(x) * 0.9)])
    sizes = {"batch_size": made.batch_size, "epochs": made.epochs}
    history = model.fit(x, y, **sizes, validation_split=0.1, class_weight=weights, shuffle=False, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), first.get_weights(), strict=True))
    for name in ("loss", "val_loss"):
        assert history.history[name] == trained["class_weight"].history.history[name]


def test_weights_are_those_that_scikit_learn_calls_balanced():
    labels = np.random.RandomState(0).choice(4, 500, p=[0.7, 0.2, 0.05, 0.05])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(list(imbalanced.balanced_weights(labels).values()), expected)


def test_recall_is_that_of_scikit_learn_over_the_chosen_classes():
    random = np.random.RandomState(0)
    labels, scores = random.randint(0, 5, 200), random.rand(200, 5).astype("float32")
    metric = imbalanced.RecallOf([1, 3])
    for part in (slice(0, 70), slice(70, 200)):
        metric.update_state(labels[part], scores[part])
    expected = recall_score(labels, scores.argmax(-1), labels=[1, 3], average="micro")
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)
    weights = random.rand(200).astype("float32")
    metric.reset_state()
    metric.update_state(labels[:, None], scores, sample_weight=weights)
    expected = recall_score(labels, scores.argmax(-1), labels=[1, 3], average="micro", sample_weight=weights)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def test_only_the_rare_classes_lose_examples():
    split = datasets.Split(np.arange(300, dtype="float32"), np.repeat(np.arange(3, dtype="int32"), 100))
    rare = imbalanced.make_rare(split, [1], 0.05)
    assert np.bincount(rare.y).tolist() == [100, 5, 100]
    assert np.array_equal(np.sort(rare.x[rare.y == 1]), np.arange(100, 105))
    assert np.array_equal(rare.y, (rare.x // 100).astype("int32")) and not np.array_equal(rare.x, np.sort(rare.x))


@pytest.mark.parametrize(
    ("changes", "said"), [({"rare": (10,)}, "names class 10"), ({"keep": 0.0}, "config.keep"), ({"dataset": "diabetes"}, "0 classes")]
)
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
