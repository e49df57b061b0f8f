"""TopKRouter and MixtureOfExperts pass the battery against queues served one token at a time in Python; broken ones do not."""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp, softmax

from layers.base import masked_mean, register
from layers.experts import MixtureOfExperts, TopKRouter
from layers.testing import BrokenLayer
from tests.layers.graph_fit import graph_fit
from tests.layers.house import check_layer

RANDOM = np.random.default_rng(0)
SEQUENCES = RANDOM.standard_normal((4, 7, 5))
MASK = np.arange(7) < np.array([[7], [4], [2], [7]])


def unmasked(x, mask):
    """All examples' indices, in order, of what is not masked."""
    return [i for i in np.ndindex(*x.shape[:-1]) if mask is None or mask[i]]


def tokens(x, mask):
    """What is not masked, `[N, D]`."""
    return np.stack([x[i] for i in unmasked(x, mask)])


def route(router, x, mask=None, training=False):
    """Choices one after the other: the first ones of all tokens, then the second ones."""
    factor = router.capacity_factor if training else router.inference_capacity_factor
    served = unmasked(x, mask)
    room = len(served) if factor is None else math.ceil(factor * router.k * len(served) / router.experts)
    h = (x if mask is None else x * mask[..., None]) @ router.kernel.numpy()
    chosen = np.argsort(-h, -1, kind="stable")[..., : router.k].astype("int32")
    p = np.take_along_axis(softmax(h, -1), chosen, -1)
    gates = p if router.k == 1 else p / p.sum(-1, keepdims=True)
    positions = np.full(chosen.shape, -1, "int32")
    queues = [0] * router.experts
    for choice in range(router.k):
        for i in served:
            expert = chosen[(*i, choice)]
            if queues[expert] < room:
                positions[(*i, choice)] = queues[expert]
            queues[expert] += 1
    return np.where(positions >= 0, gates, 0), chosen, positions


def loads(router, x, mask):
    chosen = route(router, x, mask)[1]
    picked = np.concatenate([chosen[i] for i in unmasked(x, mask)])
    return np.bincount(picked, minlength=router.experts) / len(picked)


def router_loss(router, x, mask=None):
    h = tokens(x, mask) @ router.kernel.numpy()
    balance = router.experts * loads(router, x, mask) @ softmax(h, -1).mean(0)
    return float(router.balance_weight.numpy()) * balance + float(router.z_weight.numpy()) * (logsumexp(h, -1) ** 2).mean()


def router_metrics(router, x, mask=None, training=False):
    p = softmax(tokens(x, mask) @ router.kernel.numpy(), -1)
    positions = route(router, x, mask, training)[2]
    return {
        "dropped": np.mean([positions[i] < 0 for i in unmasked(x, mask)]),
        "max_load": router.experts * loads(router, x, mask).max(),
        "entropy": -(p * np.log(p)).sum(-1).mean(),
    }


def mixture(layer, x, mask=None, training=False):
    """Each token by itself through its experts."""
    gates, chosen, _ = route(layer.router, x, mask, training)
    kernel_in, bias_in, kernel_out, bias_out = (w.numpy() for w in (layer.kernel_in, layer.bias_in, layer.kernel_out, layer.bias_out))
    y = np.zeros(x.shape)
    for i in np.ndindex(*chosen.shape):
        e = chosen[i]
        hidden = np.tanh(x[i[:-1]] @ kernel_in[e] + bias_in[e, 0])
        y[i[:-1]] += gates[i] * (hidden @ kernel_out[e] + bias_out[e, 0])
    return y


def feed_forward(layer, x, mask=None):
    hidden = np.tanh(x @ layer.kernel_in.numpy()[0] + layer.bias_in.numpy()[0])
    y = hidden @ layer.kernel_out.numpy()[0] + layer.bias_out.numpy()[0]
    return y if mask is None else y * mask[..., None]


INVALID = [
    {"experts": 0},
    {"k": 0},
    {"k": 9},
    {"capacity_factor": 0.0},
    {"inference_capacity_factor": math.inf},
    {"balance_weight": -1.0},
    {"z_weight": float("nan")},
]
DROPS = dict.fromkeys(("single_example", "examples"), "tokens compete for room; without a limit it is checked below")
ROUTER = {
    "call_kwargs": {"mask": MASK},
    "oracle": route,
    "losses": 1,
    "loss_oracle": router_loss,
    "metrics": ["dropped", "max_load", "entropy"],
    "metric_oracle": router_metrics,
    "coefficients": ["balance_weight", "z_weight"],
    "invalid": INVALID,
}
MIXTURE = {
    "call_kwargs": {"mask": MASK},
    "oracle": mixture,
    "losses": 1,
    "loss_oracle": lambda layer, x, mask=None: router_loss(layer.router, x, mask),
    "metrics": ["dropped", "max_load", "entropy"],
    "metric_oracle": lambda layer, x, mask=None, training=False: router_metrics(layer.router, x, mask, training),
    "degenerate": {"one expert": ({"experts": 1, "k": 1, "capacity_factor": None}, feed_forward)},
    "invalid": [*INVALID, {"units": 0}],
}
WEIGHTS = {"balance_weight": 0.7, "z_weight": 0.3}
router_of = functools.partial(TopKRouter, experts=3, k=2, capacity_factor=0.8, inference_capacity_factor=1.0, **WEIGHTS)
mixture_of = functools.partial(
    MixtureOfExperts, experts=3, units=6, activation="tanh", k=2, capacity_factor=0.8, inference_capacity_factor=1.0, **WEIGHTS
)


def test_top_k_router_keeps_its_promises():
    only = ["constructor", "config", "build", "output_spec", "oracle", "loss_oracle", "gradient", "coefficients"]
    only += ["masking", "metric_values"]
    check_layer(router_of, SEQUENCES, only=only, **ROUTER)


def test_mixture_of_experts_keeps_its_promises(two_replicas):
    check_layer(mixture_of, SEQUENCES, strategy=two_replicas, fit=graph_fit, skip=DROPS, **MIXTURE)


def test_one_choice_without_a_limit_does_so_too():
    factory = functools.partial(mixture_of, k=1, capacity_factor=None, inference_capacity_factor=None)
    only = ["oracle", "loss_oracle", "unknown_dimensions", "masking", "metric_values", "single_example", "examples"]
    check_layer(factory, SEQUENCES, only=only, **MIXTURE)


def test_the_settings_above_drop_something():
    router = router_of()
    router.build(SEQUENCES.shape)
    assert 0 < router_metrics(router, SEQUENCES, MASK, training=True)["dropped"] < 1


def test_an_even_load_costs_one():
    router = TopKRouter(experts=4, balance_weight=1.0, z_weight=0.0)
    router.build([None, 4])
    router.kernel.assign(np.eye(4))
    router(np.float32(5 * np.eye(4)))
    np.testing.assert_allclose(router.losses[0], 1.0, rtol=1e-6)
    router(np.float32(50 * np.eye(4)[[1, 1, 1, 1]]))
    np.testing.assert_allclose(router.losses[0], 4.0, rtol=1e-6)  # all to one of four


def test_logits_of_zero_have_the_size_of_ln_e_squared():
    router = TopKRouter(experts=5, balance_weight=0.0, z_weight=1.0)
    router(np.zeros([6, 3], "float32"))
    np.testing.assert_allclose(router.losses[0], math.log(5) ** 2, rtol=1e-6)


def test_masked_tokens_take_no_room():
    router = TopKRouter(experts=2, capacity_factor=1.0, kernel_initializer="identity")
    x = np.float32([[[0.0, 9.0]] * 4])
    _, _, positions = router(x, mask=np.array([[False, True, False, True]]), training=True)
    assert positions.numpy().ravel().tolist() == [-1, 0, -1, -1]  # room for one of two
    _, _, positions = router(x, training=True)
    assert positions.numpy().ravel().tolist() == [0, 1, -1, -1]


def test_what_is_under_the_mask_may_be_anything():
    layer = mixture_of()
    spoilt = np.where(MASK[..., None], SEQUENCES, np.nan).astype("float32")
    x = tf.constant(spoilt)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(x, mask=tf.constant(MASK), training=True)) + layer.losses[0]
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in tape.gradient(total, layer.trainable_weights))


def test_dropped_tokens_get_zero():
    layer = MixtureOfExperts(experts=2, units=3, capacity_factor=0.5)
    layer.build([None, 2])
    layer.router.kernel.assign([[1.0, -1.0], [0.0, 0.0]])
    y = layer(np.float32([[1.0, 1.0]] * 4), training=True).numpy()
    assert (y[0] != 0).any()
    assert (y[1:] == 0).all()


def test_experts_begin_each_with_its_own_kernel_of_the_right_size():
    layer = MixtureOfExperts(experts=8, units=50, kernel_initializer="glorot_uniform")
    layer.build([None, 100])
    kernels = layer.kernel_in.numpy()
    np.testing.assert_allclose(kernels.std((1, 2)), math.sqrt(2 / 150), rtol=0.05)
    assert abs(np.corrcoef(kernels.reshape(8, -1)) - np.eye(8)).max() < 0.1


# Mutations: each has to be found by the property beside it.


@register
class GradientThroughLoads(TopKRouter):
    def _add_losses(self, p, scale, loads, mask):
        super()._add_losses(p, scale, masked_mean(p, mask, keep_last=True), mask)


@register
class PlainSquareOfMean(TopKRouter):
    def _add_losses(self, p, scale, loads, mask):
        super()._add_losses(p, tf.fill(tf.shape(scale), tf.reduce_mean(scale)), loads, mask)


@register
class MaskedTakeRoom(TopKRouter):
    def _queues(self, chosen, mask, training):
        return super()._queues(chosen, None, training)


@register
class LoadsTurned(TopKRouter):
    def _add_losses(self, p, scale, loads, mask):
        super()._add_losses(p, scale, 1 - loads, mask)


MUTATIONS = [
    (GradientThroughLoads, "loss_oracle"),
    (PlainSquareOfMean, "loss_oracle"),
    (LoadsTurned, "loss_oracle"),
    (MaskedTakeRoom, "masking"),
]


@pytest.mark.parametrize("kind, broken", MUTATIONS, ids=[kind.__name__ for kind, _ in MUTATIONS])
def test_a_broken_router_is_caught(kind, broken):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(kind, **router_of.keywords), SEQUENCES, only=[broken], **ROUTER)
    assert [*caught.value.broken] == [broken]


@register
class ExpertsMixedUp(MixtureOfExperts):
    def _serve(self, queues):
        return tf.reverse(super()._serve(queues), [0])


@register
class NothingActivated(MixtureOfExperts):
    def _serve(self, queues):
        return queues @ tf.convert_to_tensor(self.kernel_in) @ tf.convert_to_tensor(self.kernel_out) + self.bias_out


@pytest.mark.parametrize("kind", [ExpertsMixedUp, NothingActivated])
def test_a_broken_mixture_is_caught(kind):
    with pytest.raises(BrokenLayer, match="output/0"):
        check_layer(functools.partial(kind, **mixture_of.keywords), SEQUENCES, only=["oracle"], **MIXTURE)


@register
def tens(shape, dtype=None):
    return tf.fill(shape, tf.constant(10.0, dtype))


def test_any_kind_of_initializer_serves_and_random_ones_make_experts_that_differ():
    class Own(keras.initializers.Initializer):
        """Has no seed and no config."""

        def __init__(self, value):
            self.value = value

        def __call__(self, shape, dtype=None):
            return tf.fill(shape, tf.constant(self.value, dtype))

    def kernels(initializer):
        layer = MixtureOfExperts(experts=3, units=4, kernel_initializer=initializer)
        layer.build((None, 2, 5))
        return layer, layer.kernel_in.numpy()

    for initializer in (tens, Own(10.0), "ones"):
        layer, made = kernels(initializer)
        assert made.shape == (3, 5, 4) and (made == (1 if initializer == "ones" else 10)).all()
    assert MixtureOfExperts.from_config(kernels(tens)[0].get_config()).kernel_initializer is tens
    seeds = (None, 7, keras.random.SeedGenerator(7))
    for initializer in [keras.initializers.GlorotUniform(seed=seed) for seed in seeds] + [lambda s, dtype=None: tf.random.normal(s)]:
        made = kernels(initializer)[1]
        assert all(not np.allclose(made[i], made[j]) for i, j in ((0, 1), (0, 2), (1, 2))), initializer
