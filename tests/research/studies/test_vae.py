"""The variational autoencoder: its loss is the bound, its metrics are the bound's parts, and fresh pixels are drawn resumably."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import config_dict

import loops
from loops import hooks
from research import runner, study
from research.configs import vae as config_file
from research.studies import vae
from research.study import InputError

SMALL = {"epochs": 2, "hidden": (16,), "likelihood.samples": 20, "likelihood.chunk": 10}


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}})
    return made


def small_task(seed: int = 0) -> vae.VAETask:
    keras.utils.set_random_seed(seed)
    return vae.VAETask(vae.make_model((4, 4), latent=3, hidden=(8,)), keras.optimizers.Adam(0.01))


def grey_images(n: int) -> np.ndarray:
    return np.random.RandomState(0).rand(n, 4, 4).astype("float32")


def test_loss_and_metrics_are_the_bound_and_its_two_parts():
    task = small_task()
    x = (grey_images(20) < 0.5).astype("float32")
    logs = loops.EvalLoop(task).run(loops.ArrayFeed(x, batch_size=20))
    mean, logvar = (t.numpy().astype(np.float64) for t in task.model.get_layer("encoder")(x))
    kl = ((mean**2 + np.exp(logvar) - logvar - 1) / 2).sum(-1).mean()
    assert logs["latent/kl"] == pytest.approx(kl, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["latent/kl"] + logs["reconstruction/nats"], rel=1e-6)


def test_the_reconstruction_is_the_likelihood_of_the_pixels():
    layer = vae.BernoulliNats(name="reconstruction")
    x, logits = (grey_images(5) < 0.5).astype("float32"), np.random.RandomState(1).normal(size=[5, 4, 4]).astype("float32")
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    nats = -np.log(np.where(x == 1, p, 1 - p)).sum((1, 2)).mean()
    assert np.array_equal(layer(x, logits), logits)
    assert float(layer.losses[0]) == pytest.approx(nats, rel=1e-5)
    assert float(layer.metrics[0].result()) == pytest.approx(nats, rel=1e-5)


def test_the_decoder_begins_with_the_mean_of_the_pixels():
    mean = np.random.RandomState(0).rand(4, 4)
    model = vae.make_model((4, 4), latent=2, hidden=(8,), pixel_mean=mean)
    np.testing.assert_allclose(tf.sigmoid(model.get_layer("decoder")(np.zeros([1, 2])))[0], mean, rtol=1e-4)


def test_pixels_are_drawn_with_their_grey_value_as_probability():
    drawn = vae.binarize(np.broadcast_to(grey_images(3), [2_000, 3, 4, 4]), [0, 1]).numpy()
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0), grey_images(3), atol=0.06)
    assert np.array_equal(vae.binarize(np.ones([2, 2]), [0, 1]), np.ones([2, 2]))
    assert np.array_equal(vae.binarize(np.zeros([2, 2]), [0, 1]), np.zeros([2, 2]))


class Drawn(hooks.Hook):
    """Keeps the binary batch of every step."""

    every = "1 step"
    observes = {"binary"}

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def on_window_end(self, loop, window):
        self.batches.append(np.asarray(window.observed["binary"]))


def test_every_epoch_draws_anew_and_a_resumed_run_draws_the_same(tmp_path):
    def run(epochs: int, workdir=None):
        keras.utils.set_random_seed(0)
        model = vae.make_model((4, 4), latent=3, hidden=(8,))
        task, drawn = vae.VAETask(model, keras.optimizers.Adam(0.01)), Drawn()
        loop = loops.TrainLoop(task, loops.ArrayFeed(grey_images(12), batch_size=6), hooks=[drawn], workdir=workdir, compile="eager")
        loop.run(epochs=epochs)
        return drawn.batches, model.get_weights(), loop.history.history["loss"]

    whole, weights, losses = run(3)
    assert len(whole) == 6 and not np.array_equal(whole[0], whole[2]) and not np.array_equal(whole[2], whole[4])
    run(1, tmp_path / "run")
    rest, resumed, again = run(3, tmp_path / "run")
    assert np.array_equal(rest, whole[2:])
    assert all(np.array_equal(a, b) for a, b in zip(weights, resumed, strict=True)) and losses == again


def test_the_learning_rate_falls_in_the_stages_of_the_paper():
    rates = [vae.staged_rate(epoch, 0.001, first=1, growth=3) for epoch in range(3_280)]
    lengths = [rates.count(rate) for rate in sorted(set(rates), reverse=True)]
    assert lengths == [3**i for i in range(8)]
    np.testing.assert_allclose(sorted(set(rates), reverse=True), 0.001 * 10 ** (-np.arange(8) / 7))


def test_the_plane_is_that_of_the_largest_variance():
    points = np.random.RandomState(0).normal(size=[500, 4]) * [5, 0.1, 3, 0.1]
    plane, share = vae.principal_plane(points)
    assert share == pytest.approx(points.var(0)[[0, 2]].sum() / points.var(0).sum(), rel=1e-3)
    np.testing.assert_allclose(np.abs(plane).mean(0), np.abs(points - points.mean(0)).mean(0)[[0, 2]], rtol=0.01)


def test_the_study_learns_says_how_likely_the_test_images_are_and_draws(tmp_path, capsys):
    made = config(epochs=3, batch_size=420, likelihood__compile="eager")
    run = runner.train(study.build(made), made, workdir=tmp_path / "run", compile="eager")
    losses = run.history.history["loss"]
    assert losses[-1] < losses[0]
    assert {"latent/kl", "val_latent/kl", "reconstruction/nats"} <= set(run.history.history)
    said = capsys.readouterr().out
    nll = float(said.split("test images: ")[1].split()[0])
    assert 15 < nll < run.test["loss"] + 0.5
    drawn = {path.stem for path in (tmp_path / "run" / "plots").iterdir()}
    assert {"reconstructions", "samples", "latent_space", "learning_curves"} <= drawn


@pytest.mark.parametrize(
    ("changes", "said"), [({"dataset": "wine"}, "no images"), ({"likelihood__chunk": 7}, "multiple"), ({"batch_size": 0}, "batch_size")]
)
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
