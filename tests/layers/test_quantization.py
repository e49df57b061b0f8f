"""VectorQuantizer passes the battery against NumPy's nearest neighbours and the paper's moving averages; broken ones do not."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from layers import quantization
from layers.base import register
from layers.quantization import VectorQuantizer
from layers.testing import BrokenLayer
from tests.layers.house import check_layer

RANDOM = np.random.default_rng(0)
SEQUENCES = RANDOM.standard_normal((4, 6, 3))
MASK = np.arange(6) < np.array([[6], [4], [2], [6]])
CODES = 5


def nearest(layer, x):
    """By all differences, one by one."""
    distances = ((x[..., None, :] - layer.codebook.numpy()) ** 2).sum(-1)
    return distances.argmin(-1).astype("int32")


def quantized(layer, x, mask=None):
    return layer.codebook.numpy()[nearest(layer, x)]


def error(layer, x, mask=None):
    squares = (x - quantized(layer, x)) ** 2
    return squares.mean() if mask is None else squares[mask].mean()


def metrics(layer, x, mask=None):
    used = nearest(layer, x).ravel() if mask is None else nearest(layer, x)[mask]
    p = np.bincount(used, minlength=layer.codes) / len(used)
    return {"perplexity": np.prod(np.where(p > 0, p, 1) ** -p), "used": (p > 0).mean()}


SETTINGS = {
    "call_kwargs": {"mask": MASK},
    "losses": 1,
    "metrics": ["perplexity", "used"],
    "metric_oracle": metrics,
    "coefficients": ["beta"],
    "gradient_oracle": lambda layer, x, mask, upstream: upstream,
    "invalid": [{"codes": 0}, {"codes": 2.5}, {"beta": -1.0}, {"update": "sgd"}, {"decay": 1.0}, {"decay": -0.1}],
}
TRAINED = SETTINGS | {
    "oracle": quantized,
    "loss_oracle": lambda layer, x, mask=None: (1 + float(layer.beta.numpy())) * error(layer, x, mask),
    # Finite differences know no stopped gradients: the loss's are compared with the formula below.
    "differentiable": ["output"],
}
MOVING = SETTINGS | {
    "oracle": lambda layer, x, mask=None: (quantized(layer, x), nearest(layer, x)),
    "loss_oracle": lambda layer, x, mask=None: float(layer.beta.numpy()) * error(layer, x, mask),
}


def test_a_trained_codebook_keeps_its_promises(battery):
    factory = functools.partial(VectorQuantizer, codes=CODES, beta=0.7)
    check_layer(factory, SEQUENCES, **battery, **TRAINED)


def test_a_moving_codebook_keeps_its_promises(two_replicas):
    factory = functools.partial(VectorQuantizer, codes=CODES, beta=0.7, decay=0.5, update="ema", return_indices=True)
    only = ["config", "build", "output_spec", "oracle", "loss_oracle", "gradient", "function", "unknown_dimensions", "policies"]
    only += ["masking", "export", "checkpoint", "replica_state", "inference", "frozen", "empty_batch"]
    check_layer(factory, SEQUENCES, strategy=two_replicas, only=only, **MOVING)


def gradients_of_loss(layer):
    x = tf.constant(SEQUENCES, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        layer(x, mask=tf.constant(MASK), training=True)
        (loss,) = layer.losses
    return tape.gradient(loss, [x, layer.codebook.value])


def check_gradients_of_loss(layer):
    """The commitment pulls vectors to codes, the rest of the loss codes to vectors, and nothing else."""
    to_vectors, to_codes = gradients_of_loss(layer)
    away = 2 * (SEQUENCES - quantized(layer, SEQUENCES)) * MASK[..., None] / (MASK.sum() * SEQUENCES.shape[-1])
    np.testing.assert_allclose(to_vectors, float(layer.beta.numpy()) * away, rtol=1e-4, atol=1e-6)
    expected = np.zeros(layer.codebook.shape)
    np.add.at(expected, nearest(layer, SEQUENCES), -away)
    np.testing.assert_allclose(tf.convert_to_tensor(to_codes), expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_the_loss_go_where_the_paper_says():
    check_gradients_of_loss(VectorQuantizer(codes=CODES, beta=0.7))


def test_a_moving_codebook_gets_no_gradient():
    assert gradients_of_loss(VectorQuantizer(codes=CODES, update="ema"))[1] is None


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_moving_averages_are_those_of_the_paper(jit_compile):
    layer = VectorQuantizer(codes=CODES, decay=0.8, update="ema")
    layer.build(SEQUENCES.shape)
    counts, codes = np.ones(CODES), layer.codebook.numpy().astype("float64")
    sums = codes.copy()
    step = tf.function(lambda x: layer(x, mask=tf.constant(MASK), training=True), jit_compile=jit_compile)
    for i in range(4):
        x = (SEQUENCES + 0.3 * i).astype("float32")
        hits = (((x[:, :, None] - codes) ** 2).sum(-1).argmin(-1)[..., None] == np.arange(CODES)) * MASK[..., None]
        counts = 0.8 * counts + 0.2 * hits.sum((0, 1))
        sums = 0.8 * sums + 0.2 * np.einsum("btk,btd->kd", hits, x)
        codes = sums / counts[:, None]
        step(tf.constant(x))
    np.testing.assert_allclose(layer.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(layer.codebook, codes, rtol=1e-4, atol=1e-6)


def test_a_code_that_nothing_comes_near_stays_where_it_is():
    layer = VectorQuantizer(codes=2, decay=0.0, update="ema")
    layer.build([None, 1])
    layer.codebook.assign([[0.0], [100.0]])
    for _ in range(3):
        layer(np.float32([[1.0], [3.0]]), training=True)
    assert layer.codebook.numpy().tolist() == [[2.0], [100.0]]


def test_vectors_far_out_find_their_nearest_code_in_half_precision():
    layer = VectorQuantizer(codes=3, dtype="mixed_float16", return_indices=True)
    layer.build([None, 2])
    layer.codebook.assign([[300.0, 300.0], [301.0, 300.0], [299.0, 300.0]])
    x = np.float16([[301.25, 300.0], [299.25, 300.0], [300.25, 300.0]])
    y, indices = layer(x)
    assert indices.numpy().tolist() == [1, 2, 0]
    assert y.dtype == tf.float16
    np.testing.assert_array_equal(layer.lookup(indices), y)


def test_codes_that_lie_far_out_are_told_apart():
    codes = RANDOM.standard_normal((16, 8))
    x = RANDOM.standard_normal((40, 8))
    layer = VectorQuantizer(codes=16, return_indices=True)
    layer.build((None, 8))
    layer.codebook.assign(codes + 10000)
    _, found = layer(np.float32(x + 10000))
    near = np.float32(x + 10000).astype("float64")[:, None] - layer.codebook.numpy().astype("float64")
    np.testing.assert_array_equal(found, np.square(near).sum(-1).argmin(-1))
    x[3, 2] = np.nan
    outputs, _ = layer(np.float32(x + 10000))
    assert np.isnan(outputs).any(-1).nonzero()[0].tolist() == [3]


def test_a_batch_that_is_masked_altogether_moves_nothing_and_costs_nothing():
    layer = VectorQuantizer(codes=CODES, update="ema")
    layer.build(SEQUENCES.shape)
    before = layer.codebook.numpy()
    layer(SEQUENCES.astype("float32"), mask=np.zeros_like(MASK), training=True)
    np.testing.assert_array_equal(layer.codebook, before)
    assert float(layer.losses[0]) == 0


# Mutations: each has to be found by the property beside it.


@register
class FarthestCode(VectorQuantizer):
    def _nearest(self, vectors, codebook):
        return super()._nearest(-vectors, codebook)


@register
class SumInsteadOfMean(VectorQuantizer):
    def _add_losses(self, vectors, found, mask):
        super()._add_losses(vectors * vectors.shape[-1] ** 0.5, found * vectors.shape[-1] ** 0.5, mask)


@register
class MaskForgotten(VectorQuantizer):
    def _add_losses(self, vectors, found, mask):
        super()._add_losses(vectors, found, None)


MUTATIONS = [(FarthestCode, "oracle"), (SumInsteadOfMean, "loss_oracle"), (MaskForgotten, "masking")]


@pytest.mark.parametrize("kind, broken", MUTATIONS, ids=[kind.__name__ for kind, _ in MUTATIONS])
def test_a_broken_quantizer_is_caught(kind, broken):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(kind, codes=CODES, beta=0.7), SEQUENCES, only=[broken], **TRAINED)
    assert [*caught.value.broken] == [broken]


def test_a_gradient_that_is_not_stopped_is_caught(monkeypatch):
    monkeypatch.setattr(quantization.tf, "stop_gradient", tf.identity)
    with pytest.raises(AssertionError):
        check_gradients_of_loss(VectorQuantizer(codes=CODES, beta=0.7))


def test_a_codebook_that_moves_on_each_replica_for_itself_is_caught(two_replicas, monkeypatch):
    monkeypatch.setattr(quantization, "sum_over_replicas", lambda *tensors: tensors)
    factory = functools.partial(VectorQuantizer, codes=CODES, decay=0.5, update="ema", return_indices=True)
    with pytest.raises(BrokenLayer, match="against one device"):
        check_layer(factory, SEQUENCES, strategy=two_replicas, only=["replica_state"], **MOVING)
