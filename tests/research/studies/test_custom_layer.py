"""The custom layer study: the layer is its formula, keeps every promise that layers make, and is the same when it is loaded."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest

from layers.testing import check_layer
from research import runner, study
from research.configs import custom_layer as config_file
from research.studies import custom_layer
from research.studies.custom_layer import RadialBasis
from research.study import InputError


def config(**changes):
    made = config_file.get_config()
    made.update({"epochs": 2, "units": 20, **changes})
    return made


def by_numpy(x, centres, width):
    distances = ((x[..., :, None] - centres) ** 2).sum(-2)
    return np.exp(-np.log1p(np.exp(width)) * distances)


def test_the_layer_is_its_formula():
    x, layer = np.random.RandomState(0).normal(size=[7, 5]).astype("float32"), RadialBasis(3)
    layer(x)
    weights = [np.random.RandomState(1).normal(size=w.shape).astype("float32") for w in layer.get_weights()]
    layer.set_weights(weights)
    np.testing.assert_allclose(layer(x).numpy(), by_numpy(x, *weights), rtol=1e-4, atol=1e-6)


def test_the_layer_keeps_what_layers_promise():
    check_layer(
        functools.partial(RadialBasis, 3),
        np.random.RandomState(0).normal(size=[7, 5]).astype("float32"),
        only=["config", "build", "gradient", "output_spec", "unknown_dimensions", "policies", "checkpoint"],
    )


def test_saved_and_loaded_in_a_model_it_gives_the_same_bits(tmp_path):
    model = custom_layer.make_model((8, 8), 10, units=6)
    loaded = custom_layer.save_and_load(model, tmp_path / "model.keras")
    x = np.random.RandomState(0).uniform(size=[9, 8, 8]).astype("float32")
    np.testing.assert_array_equal(model(x).numpy(), loaded(x).numpy())
    assert loaded.get_layer("basis").get_config() == model.get_layer("basis").get_config()


def test_the_study_learns_and_says_that_the_saved_model_is_the_same(capsys):
    settings = config(epochs=8, units=100)
    run = runner.train(study.build(settings), settings, compile="graph")
    assert run.test["accuracy"] > 0.9
    said = capsys.readouterr().out
    assert "RadialBasis, 6,500 weights" in said and "on 270 test examples: the same bits." in said
    assert "(None, 100) said, (None, 100) seen" in said


@pytest.mark.parametrize("changes, said", [({"units": 0}, "config.units is 0"), ({"dataset": "diabetes"}, "regression")])
def test_what_cannot_be_built_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))


def test_loading_a_layer_whose_config_forgot_an_argument_fails():
    class Forgetful(RadialBasis):
        def get_config(self):
            return keras.layers.Layer.get_config(self)

    with pytest.raises(TypeError, match="units"):
        Forgetful.from_config(Forgetful(3).get_config())
