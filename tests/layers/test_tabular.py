"""Layers for tables pass the battery: crosses against the closed form of a polynomial, embeddings of numbers against NumPy."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from layers.tabular import CrossV2, PeriodicEmbedding, PiecewiseLinearEmbedding, quantile_edges
from layers.testing import BrokenLayer
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
X0, X = RANDOM.standard_normal((6, 4)), RANDOM.standard_normal((6, 4))
SEQUENCES = RANDOM.standard_normal((4, 6, 3))


def crossed(layer, x0, x=None):
    """Feature by feature."""
    kernel = layer.kernel.numpy() if layer.projection is None else layer.down.numpy() @ layer.up.numpy()
    bias = layer.bias.numpy() if layer.use_bias else np.zeros(x0.shape[-1])
    x = x0 if x is None else x
    columns = [x0[..., j] * (sum(x[..., i] * kernel[i, j] for i in range(x.shape[-1])) + bias[j]) + x[..., j] for j in range(x.shape[-1])]
    return np.stack(columns, -1)


def some_bias(layer):
    layer.bias.assign([0.5, -1.0, 2.0, 0.1])


CROSS = {"oracle": crossed, "degenerate": {"a bias": (some_bias, crossed)}}


def test_cross_keeps_its_promises(battery_of_a_function):
    check_layer(CrossV2, (X0, X), invalid=[{"projection": 0}, {"projection": 1.5}], **battery_of_a_function, **CROSS)


def test_a_first_layer_and_a_low_rank_do_too():
    checks = ["config", "build", "oracle", "degenerate", "gradient", "policies", "unknown_dimensions", "keras_file"]
    check_layer(functools.partial(CrossV2, projection=2), X0, only=checks, **CROSS)
    check_layer(functools.partial(CrossV2, use_bias=False), SEQUENCES, oracle=crossed, only=[*checks, "masking"])


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_with_the_identity_as_kernel_layers_in_a_row_make_a_power(depth):
    x = X0
    for _ in range(depth):
        x = CrossV2(kernel_initializer="identity", dtype="float64")(X0, x)
    np.testing.assert_allclose(x, X0 * (1 + X0) ** depth, rtol=1e-10)


def test_u_and_v_differ_and_a_regularizer_counts_both():
    layer = CrossV2(projection=4, kernel_initializer="random_normal", kernel_regularizer="l2")
    layer(X0)
    assert not np.allclose(layer.down, layer.up)
    np.testing.assert_allclose(sum(layer.losses), 0.01 * (np.sum(np.square(layer.down)) + np.sum(np.square(layer.up))), rtol=1e-5)


def test_inputs_that_differ_in_size_are_refused():
    with pytest.raises(ValueError, match=r"`x0` and `x` must have the same shape; got \(2, 3\) and \(2, 1\)"):
        CrossV2()(np.ones([2, 3]), np.ones([2, 1]))


def waves(layer, x):
    """Real and imaginary parts of a turning pointer."""
    pointer = np.exp(2j * np.pi * np.einsum("...f,fk->...fk", x, layer.coefficients.numpy()))
    return np.concatenate([pointer.imag, pointer.real], -1)


def frequencies_of_zero(layer):
    layer.coefficients.assign(0 * layer.coefficients)


PERIODIC = {
    "oracle": waves,
    "degenerate": {"no frequency": (frequencies_of_zero, lambda layer, x: np.stack(3 * [0 * x] + 3 * [1 + 0 * x], -1))},
}


PERIODIC_OF = functools.partial(PeriodicEmbedding, **{"frequencies": 3, "sigma": 0.3})


def test_periodic_embedding_keeps_its_promises(battery_of_a_function):
    invalid = [{"frequencies": 0}, {"frequencies": 1.5}, {"sigma": 0.0}, {"sigma": float("nan")}]
    check_layer(PERIODIC_OF, X0, invalid=invalid, **battery_of_a_function, **PERIODIC)


def test_periodic_embedding_does_so_with_sequences():
    check_layer(PERIODIC_OF, SEQUENCES, only=["oracle", "masking", "output_spec"], **PERIODIC)


def test_frequencies_begin_with_the_given_deviation():
    layer = PeriodicEmbedding(frequencies=500, sigma=7.0)
    layer.build((None, 40))
    np.testing.assert_allclose(np.std(layer.coefficients), 7.0, rtol=0.03)


def test_half_precision_does_not_round_the_phase():
    layer = PeriodicEmbedding(frequencies=8, sigma=30.0, dtype="mixed_float16")
    x = np.float16([[0.5, -1.5, 3.0]])
    assert layer(x).dtype == "float16"
    np.testing.assert_allclose(layer(x), waves(layer, x.astype("float64")), atol=2e-3)


EDGES = [[-1.0, -0.2, 0.3, 2.0], [-0.5, -0.5, 0.0, 0.4], [-2.0, 0.1, 0.1, 1.0], [-0.7, 0.6, 1.1, 1.1]]


def coded(layer, x):
    """The paper's formula, case by case; what has no width is a step."""
    y = np.zeros([*x.shape, len(layer.edges[0]) - 1])
    for index in np.ndindex(*y.shape):
        value, edges, t, last = x[index[:-1]], layer.edges[index[-2]], index[-1], y.shape[-1] - 1
        if edges[t] == edges[t + 1]:
            y[index] = float(value >= edges[t])
        elif value < edges[t] and t > 0:
            y[index] = 0
        elif value >= edges[t + 1] and t < last:
            y[index] = 1
        else:
            y[index] = (value - edges[t]) / (edges[t + 1] - edges[t])
    return y


PIECEWISE = {"oracle": coded, "degenerate": {"a single bin": ({"edges": [[-1.0, 3.0]] * 4}, lambda layer, x: (x[..., None] + 1) / 4)}}


def test_piecewise_linear_embedding_keeps_its_promises(battery_of_a_function):
    invalid = [{"edges": e} for e in ([1.0, 2.0], [[1.0]], [[2.0, 1.0]], [[0.0, float("inf")]], [[0.0, 1.0], [0.0, 1.0, 2.0]], "edges")]
    check_layer(functools.partial(PiecewiseLinearEmbedding, edges=EDGES), X0, invalid=invalid, **battery_of_a_function, **PIECEWISE)


def test_piecewise_linear_embedding_does_so_with_sequences():
    factory = functools.partial(PiecewiseLinearEmbedding, edges=np.float32(EDGES[:3]))
    check_layer(factory, SEQUENCES, oracle=coded, only=["config", "oracle", "masking", "output_spec"])


def test_at_the_edges_it_is_continuous_where_bins_have_width():
    layer = PiecewiseLinearEmbedding(edges=[[0.0, 1.0, 3.0]], dtype="float64")
    at = np.array([[0.0], [1.0], [3.0]])
    np.testing.assert_allclose(layer(at - 1e-9), layer(at + 1e-9), atol=1e-8)
    np.testing.assert_array_equal(np.asarray(layer(at))[:, 0], [[0, 0], [1, 0], [1, 1]])


def test_other_numbers_of_features_are_refused():
    with pytest.raises(ValueError, match="`edges` has 4 rows, but the inputs have 3 features"):
        PiecewiseLinearEmbedding(edges=EDGES)(np.ones([2, 3]))


def test_quantile_edges_hold_equally_many():
    data = RANDOM.gamma(1.0, size=(1000, 3))
    data[RANDOM.random(data.shape) < 0.1] = np.nan
    edges = quantile_edges(data, bins=8)
    for column, row in zip(data.T, edges, strict=True):
        counts, _ = np.histogram(column, row)
        assert counts.max() - counts.min() <= 2
        assert (row[0], row[-1]) == (np.nanmin(column), np.nanmax(column))
    with pytest.raises(ValueError, match="`bins` must be an integer of at least 1; got 0"):
        quantile_edges(data, bins=0)
    with pytest.raises(ValueError, match=r"a number in each column; got shape \(3,\)"):
        quantile_edges([1.0, 2.0, 3.0], bins=2)


CASES = {
    CrossV2: ({}, (X0, X), CROSS),
    PeriodicEmbedding: ({"frequencies": 3, "sigma": 0.3}, X0, PERIODIC),
    PiecewiseLinearEmbedding: ({"edges": EDGES}, X0, PIECEWISE),
}
MUTATIONS = {
    "sign of the residual": (CrossV2, "x0 * crossed + x", "x0 * crossed - x", "oracle"),
    "kernel transposed": (CrossV2, "self.kernel if self.projection", "tf.transpose(self.kernel) if self.projection", "oracle"),
    "bias outside of the product": (
        CrossV2,
        "crossed += tf.convert_to_tensor(self.bias)",
        "x = x + tf.convert_to_tensor(self.bias)",
        "degenerate",
    ),
    "no gradient for x0": (CrossV2, "return x0 * crossed", "return tf.stop_gradient(x0) * crossed", "gradient"),
    "sign of the angle": (PeriodicEmbedding, "(2 * math.pi *", "(-2 * math.pi *", "oracle"),
    "half a turn": (PeriodicEmbedding, "(2 * math.pi *", "(math.pi *", "oracle"),
    "interleaved": (
        PeriodicEmbedding,
        "tf.concat([tf.sin(angle), tf.cos(angle)], -1)",
        "tf.concat([tf.sin(angle), tf.cos(angle)], -2)",
        "oracle",
    ),
    "frequencies do not learn": (
        PeriodicEmbedding,
        "tf.cast(self.coefficients,",
        "tf.cast(tf.stop_gradient(self.coefficients),",
        "gradient",
    ),
    "the last bin ends": (PiecewiseLinearEmbedding, ", greatest[:, -1] = -math.inf, math.inf", ", _ = -math.inf, math.inf", "oracle"),
    "sign of the way": (PiecewiseLinearEmbedding, "(wide[..., None] - constant(left))", "(constant(left) - wide[..., None])", "oracle"),
    "step at the wrong side": (PiecewiseLinearEmbedding, "wide[..., None] >= constant(left)", "wide[..., None] < constant(left)", "oracle"),
    "gradient stopped": (
        PiecewiseLinearEmbedding,
        "tf.cast(way, inputs.dtype)",
        "tf.stop_gradient(tf.cast(way, inputs.dtype))",
        "gradient",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_battery_notices(name):
    kind, old, new, found_by = MUTATIONS[name]
    arguments, inputs, settings = CASES[kind]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(mutant(kind, old, new), **arguments), inputs, only=[found_by], **settings)
    assert [*caught.value.broken] == [found_by]
