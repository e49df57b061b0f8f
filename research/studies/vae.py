"""The variational autoencoder study: a bound of the log-likelihood, whose two parts are metrics of layers, and how good the bound is.

Config: `research/configs/vae.py`. How likelihoods are estimated: `research/formulas/likelihood.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import layers
import loops
from research.data import datasets
from research.formulas.likelihood import Likelihood
from research.pictures import figures
from research.study import InputError, Run, Study, from_config, in_scope
from research.supervised import make_optimizer

__all__ = ["BernoulliNats", "VAETask", "binarize", "build", "make_model", "staged_rate"]


@keras.saving.register_keras_serializable("research")
class BernoulliNats(layers.Layer):
    """Adds `-log p(x | logits)` of independent binary pixels as a loss, and reports it as the metric `nats`, the mean over images.

    Call:
        x: `[B, ...]`, each pixel 0 or 1.
        logits: `[B, ...]`, of the same shape.

    Returns:
        `logits`, unchanged.

    Example:
        >>> layer = BernoulliNats(name="reconstruction")
        >>> _ = layer(np.ones([4, 10], "float32"), np.zeros([4, 10], "float32"))
        >>> round(float(layer.losses[0]), 4)  # 10 log 2
        6.9315
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.declare_metric("nats")

    def call(self, x: Any, logits: Any) -> tf.Tensor:
        by_pixel = tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits)
        nats = tf.reduce_sum(by_pixel, axis=list(range(1, by_pixel.shape.rank)))
        self.add_loss(tf.reduce_mean(nats))
        self.add_metric(nats, "nats")
        return logits

    def compute_output_shape(self, x_shape: Any, logits_shape: Any) -> Any:
        return logits_shape


def make_model(shape: Sequence[int], *, latent: int, hidden: Sequence[int], pixel_mean: np.ndarray | None = None) -> keras.Model:
    """An autoencoder of binary images with a Gaussian in the middle; its losses sum up to the negative evidence lower bound.

        x -> encoder -> (mean, log variance) -> z ~ N(mean, variance) -> decoder -> logits of the pixels

    Args:
        shape: shape of an image.
        latent: dimensions of z.
        hidden: units of the tanh layers of the encoder; the decoder has them in reverse.
        pixel_mean: mean of the training images, `shape`, each value in 0..1; the decoder begins with it. None begins with 1/2.

    Returns:
        A model that maps float32 `[B, *shape]` to logits of that shape. Its layers: "encoder" (`x -> [mean, logvar]`, each
        `[B, latent]`), "latent" (`layers.GaussianSampling`, which adds the divergence), "decoder" (`z -> logits`) and
        "reconstruction" (`BernoulliNats`).

    Example:
        >>> model = make_model((28, 28), latent=50, hidden=(200, 200))
        >>> model.get_layer("encoder").count_params(), model.get_layer("decoder").count_params()
        (217300, 207984)
    """
    pixels = int(np.prod(shape))
    mean = np.full(pixels, 0.5) if pixel_mean is None else np.clip(np.ravel(pixel_mean), 1e-3, 1 - 1e-3)
    x, z = keras.Input(tuple(shape), name="x"), keras.Input([latent], name="z")

    h = keras.layers.Flatten()(x)
    for units in hidden:
        h = keras.layers.Dense(units, activation="tanh")(h)
    moments = [keras.layers.Dense(latent, name=name)(h) for name in ("mean", "logvar")]
    encoder = keras.Model(x, moments, name="encoder")

    h = z
    for units in reversed(hidden):
        h = keras.layers.Dense(units, activation="tanh")(h)
    to_pixels = keras.layers.Dense(pixels, bias_initializer=keras.initializers.Constant(np.log(mean / (1 - mean)).tolist()))
    decoder = keras.Model(z, keras.layers.Reshape(tuple(shape))(to_pixels(h)), name="decoder")

    sampled = layers.GaussianSampling(name="latent")(*encoder(x))
    return keras.Model(x, BernoulliNats(name="reconstruction")(x, decoder(sampled)), name="vae")


def binarize(images: Any, seed: Any) -> tf.Tensor:
    """Draws each pixel as 1 with its grey value as probability.

    Args:
        images: float32, each value in 0..1.
        seed: integer pair, as in `tf.random.stateless_uniform`.

    Returns:
        float32 of the same shape, each value 0 or 1.

    References:
        Salakhutdinov & Murray 2008, On the quantitative analysis of deep belief networks.
    """
    images = tf.convert_to_tensor(images, tf.float32)
    return tf.cast(tf.random.stateless_uniform(tf.shape(images), seed) < images, tf.float32)


class VAETask(loops.Task):
    """Raises the evidence lower bound. Batches are grey images for training, binary ones for evaluation: `[B, ...]` in 0..1.

    Grey images are binarised each time they are shown, by seeds that follow from the step: a resumed run draws the same. Hooks can
    observe them as "binary".

    Args:
        model: what `make_model` gives.
        optimizer: a Keras optimizer.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer):
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        x = binarize(batch, self.seed())
        self.observe("binary", x)
        with tf.GradientTape() as tape:
            self.model(x, training=True)
            loss = self.losses_of(self.model)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss, **self._metrics()}

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        # As in training: the bound is about samples of z, not about its mean. The model has no other random layers.
        self.model(batch, training=True)
        return {"loss": self.losses_of(self.model), **self._metrics()}

    def predict_step(self, x: Any) -> Any:
        """Mean of z `[B, latent]`, and the probabilities of the pixels there `[B, ...]`."""
        mean, _ = self.model.get_layer("encoder")(x)
        return {"latent": mean, "pixels": tf.sigmoid(self.model.get_layer("decoder")(mean))}

    def _metrics(self) -> dict[str, keras.metrics.Metric]:
        return {metric.name: metric for metric in self.model.metrics}


def staged_rate(epoch: int, rate: float, *, first: int, growth: int) -> float:
    """Learning rate that falls tenfold in eight stages: `rate 10^(-i/7)` for `first growth^i` epochs, i = 0..7, then as in the last one.

    Args:
        epoch: index of the epoch.
        rate: learning rate of the first stage.
        first: epochs of the first stage.
        growth: how many times longer each stage is than the one before.

    References:
        Burda, Grosse & Salakhutdinov 2015, arXiv:1509.00519, section 5, where `first` is 1 and `growth` 3: 3,280 epochs.

    Example:
        >>> [float(f"{staged_rate(epoch, 0.001, first=1, growth=3):.3g}") for epoch in (0, 1, 3, 4, 3279, 5000)]
        [0.001, 0.00072, 0.00072, 0.000518, 0.0001, 0.0001]
    """
    stage, ends = 0, first
    while epoch >= ends and stage < 7:
        stage += 1
        ends += first * growth**stage
    return rate * 10 ** (-stage / 7)


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    Raises:
        InputError: if the data is not of images, or a size fits no model or batch.
    """
    data = datasets.load(config.dataset, normalization="minmax", data_dir=data_dir)
    if data.train.x.ndim < 3:
        raise InputError(f"{config.dataset} holds no images; choose digits, mnist or fashion_mnist as config.dataset.")
    if config.likelihood.samples % config.likelihood.chunk:
        raise InputError(f"config.likelihood.samples is {config.likelihood.samples}; it has to be a multiple of config.likelihood.chunk.")
    images = data.train.x
    with from_config():
        with in_scope(strategy):
            model = make_model(images.shape[1:], latent=config.latent, hidden=config.hidden, pixel_mean=images.mean(0, dtype=np.float64))
            task = VAETask(model, make_optimizer(config.optimizer))
        train = loops.ArrayFeed(images, batch_size=config.batch_size, shuffle=True, seed=seed)
    # Drawn once, by seeds of their own: every run is evaluated on the same binary images.
    val, test = (binarize(np.clip(split.x, 0, 1), [2015, i]).numpy() for i, split in enumerate((data.val, data.test)))
    rate, stages = config.optimizer.learning_rate, config.stages
    return Study(
        task=task,
        model=model,
        train=train,
        evaluate={"val": loops.ArrayFeed(val, batch_size=config.batch_size)},
        test=loops.ArrayFeed(test, batch_size=config.batch_size),
        hooks=[loops.hooks.LearningRateScheduler(lambda epoch: staged_rate(epoch, rate, **stages))],
        title=f"{config.dataset}, {config.latent} latent dimensions",
        description=f"{data.description} Binarised: training images anew whenever they are shown, the others once.",
        after=lambda run: _conclude(run, test, data.test.y, config),
    )


def _conclude(run: Run, images: np.ndarray, labels: np.ndarray, config: Any) -> list[str]:
    """Draws what the model has learnt, and estimates how likely it finds the test images."""
    model = run.study.model
    predicted = loops.PredictLoop(run.study.task).run(loops.ArrayFeed(images, batch_size=500))
    pairs = np.stack([images[:50], predicted["pixels"][:50]], 1).reshape(-1, *images.shape[1:])
    run.picture("reconstructions", figures.image_grid(pairs, columns=20, limits=(0, 1), title="Images and their reconstructions"))
    z = np.random.RandomState(0).normal(size=[100, config.latent]).astype("float32")
    drawn = tf.sigmoid(model.get_layer("decoder")(z)).numpy()
    run.picture("samples", figures.image_grid(drawn, limits=(0, 1), title="Pixel probabilities for z from the prior"))
    points, share = principal_plane(predicted["latent"])
    axes = ("z1", "z2") if config.latent == 2 else ("1st principal component", "2nd principal component")
    run.picture("latent_space", figures.scatter(points, labels, x=axes[0], y=axes[1], title="Latent means of the test images"))

    own = config.likelihood
    task = Likelihood(model.get_layer("encoder"), model.get_layer("decoder"), samples=own.samples, chunk=own.chunk)
    logs = loops.EvalLoop(task, compile=own.compile).run(loops.ArrayFeed(images, batch_size=own.batch_size))
    return [
        f"Negative log-likelihood of {len(images):,} test images: {logs['nll']:.2f} nats, from {own.samples:,} samples of z for each.",
        f"The plane of the picture latent_space holds {share:.0%} of the variance of the latent means.",
    ]


def principal_plane(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The two directions of largest variance.

    Args:
        points: `[N, D]`.

    Returns:
        Coordinates `[N, 2]` in them, and their share of the whole variance. Points of two dimensions stay as they are.

    Example:
        >>> plane, share = principal_plane(np.array([[0.0, 0, 0], [0, 2, 0], [0, 0, 1], [0, 2, 1]]))
        >>> plane.shape, round(share, 6)
        ((4, 2), 1.0)
    """
    if points.shape[1] == 2:
        return points, 1.0
    centred = points - points.mean(0)
    _, scale, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    return centred @ directions[:2].T, float(np.sum(scale[:2] ** 2) / np.sum(scale**2))
