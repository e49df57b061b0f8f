"""Two replicas give one device's numbers (models without batch statistics and random layers), to float tolerance."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds.split import split
from loops.tasks import replicas
from tests.loops import tiny
from tests.loops.sampling import sample

# 97 examples in batches of 32: full batches split 16+16, and the last batch of one example leaves a replica empty.
N, BATCH = 97, 32


def loop_of(strategy, make_task, *, feed=None, **settings):
    x, y = tiny.data(N)
    with strategy.scope():
        task = make_task()
    return loops.TrainLoop(
        task, feed or loops.ArrayFeed((x, y), BATCH), evaluate={"val": loops.ArrayFeed((x, y), BATCH)}, strategy=strategy, **settings
    )


def train(strategy, make_task, **settings):
    loop = loop_of(strategy, make_task, **settings)
    loop.run(epochs=2)
    return loop


def assert_close(one, two, tolerance=2e-6):
    assert one.history.history.keys() == two.history.history.keys()
    for name, values in one.history.history.items():
        np.testing.assert_allclose(two.history.history[name], values, rtol=tolerance, atol=tolerance, err_msg=name)
    for left, right in zip(one.task.model.get_weights(), two.task.model.get_weights(), strict=True):
        np.testing.assert_allclose(right, left, atol=tolerance)


def regularized(optimizer):
    def make():
        task = tiny.Classifier(optimizer())
        task.model.layers[0].kernel_regularizer = keras.regularizers.L2(0.01)
        return task

    return make


CLIPS = {
    "plain": None,
    "all of them": [loops.ClipByGlobalNorm(0.1), loops.ClipByNorm(0.05), loops.ClipByValue(0.01)],
    "global norm": 0.1,
    "norm": loops.ClipByNorm(0.05),
    "value": loops.ClipByValue(0.01),
}


@pytest.mark.parametrize("clip", sample(CLIPS, "plain", "all of them"))
def test_two_replicas_train_as_one_device(one_device, two_replicas, clip):
    make = regularized(lambda: keras.optimizers.SGD(0.2, momentum=0.9))
    assert_close(train(one_device, make, clip=CLIPS[clip]), train(two_replicas, make, clip=CLIPS[clip]))


@pytest.mark.parametrize(
    "clipping",
    [
        {"clipnorm": 0.05},
        pytest.param({"global_clipnorm": 0.1}, marks=pytest.mark.matrix),
        pytest.param({"clipvalue": 0.01}, marks=pytest.mark.matrix),
    ],
    ids=str,
)
def test_the_optimizers_own_clipping_bounds_what_one_device_would_clip(one_device, two_replicas, clipping):
    make = regularized(lambda: keras.optimizers.SGD(0.2, **clipping))
    assert_close(train(one_device, make), train(two_replicas, make))


def test_xla_compiles_what_a_replica_does_by_itself(one_device, two_replicas):
    make = regularized(lambda: keras.optimizers.SGD(0.2, momentum=0.9))
    compiled = train(two_replicas, make, compile="xla", clip=0.1)
    assert_close(train(one_device, make, clip=0.1), compiled)
    functions = [compiled.graph, *(f.graph for f in compiled.graph._functions.values())]
    marked = {op.type for graph in functions for op in graph.get_operations() if "_XlaCompile" in op.node_def.attr}
    assert "MatMul" in marked


def test_a_dataset_is_split_like_arrays(one_device, two_replicas):
    x, y = tiny.data(N)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    one, two = (train(s, tiny.Classifier, feed=loops.DatasetFeed(dataset)) for s in (one_device, two_replicas))
    assert_close(one, two)


def test_a_compiled_model_trains_as_on_one_device(one_device, two_replicas):
    x, y = tiny.data(N)
    found = []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            layers = [
                keras.Input([tiny.N_FEATURES]),
                keras.layers.Dense(5, "tanh", kernel_regularizer="l2"),
                keras.layers.Dense(3, "softmax"),
            ]
            model = keras.Sequential(layers)
            model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = loops.fit(model, x, y, epochs=2, batch_size=BATCH, validation_split=0.2, shuffle=False, verbose=0)
        found.append((history.history, model.get_weights(), loops.evaluate(model, x, y), loops.predict(model, x)))
    (history, weights, logs, predictions), (history2, weights2, logs2, predictions2) = found
    for name in history:
        np.testing.assert_allclose(history2[name], history[name], rtol=1e-5)
        np.testing.assert_allclose(logs2[name], logs[name], rtol=1e-5) if name in logs else None
    for left, right in zip(weights, weights2, strict=True):
        np.testing.assert_allclose(right, left, atol=1e-6)
    np.testing.assert_allclose(predictions2, predictions, atol=1e-6)


class SkipsSteps(tiny.Classifier):
    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(x, training=True))
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables, when=self.step % 3 == 0)
        return {"loss": loss}


def test_a_skipped_update_changes_nothing_bit_for_bit_on_any_number_of_replicas(one_device, two_replicas):
    one, two = train(one_device, SkipsSteps), loop_of(two_replicas, SkipsSteps)
    two.run(steps=1)
    before = tiny.state(two.task)
    two.run(steps=3)
    tiny.assert_same_bits(tiny.state(two.task), before)
    two.run(epochs=2)
    assert int(one.task.optimizer.iterations.numpy()) == int(two.task.optimizer.iterations.numpy()) == 3  # of 8 steps: 0, 3, 6
    assert_close(one, two)


def loop_on(strategy, x, y):
    with strategy.scope():
        task = tiny.Classifier()
    return loops.TrainLoop(task, loops.ArrayFeed((x, y), BATCH), strategy=strategy)


@pytest.fixture(scope="module")
def after_two_steps(two_replicas):
    loop = loop_on(two_replicas, *tiny.data(N))
    loop.run(steps=2)
    return tiny.state(loop.task)


@pytest.mark.parametrize("bad_row", sample({"first replica": 32 * 2 + 3, "second replica": 32 * 2 + 20}, "second replica", values=True))
def test_a_non_finite_value_on_one_replica_halts_all(two_replicas, after_two_steps, bad_row):
    x, y = tiny.data(N)
    x[bad_row, 0] = np.nan
    loop = loop_on(two_replicas, x, y)
    with pytest.raises(loops.NonFiniteError, match="At step 3 "):
        loop.run(epochs=1)
    tiny.assert_same_bits(tiny.state(loop.task), after_two_steps)


class DrawsNumbers(loops.Task):
    def __init__(self):
        super().__init__()
        self.model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])

    def train_step(self, batch):
        value = tf.random.stateless_uniform([], self.seed())
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return {f"replica_{i}": loops.Mean(value, weight=tf.cast(tf.equal(replica, i), tf.float32)) for i in range(2)}


def test_seeds_differ_between_replicas_and_steps(two_replicas):
    class Trace(loops.hooks.Hook):
        def on_window_end(self, loop, window):
            self.trace = window.trace

    with two_replicas.scope():
        task = DrawsNumbers()
    hook = Trace()
    loops.TrainLoop(task, loops.ArrayFeed((np.zeros([64, 1]),), 8), [hook], strategy=two_replicas).run(epochs=1)
    drawn = np.concatenate([hook.trace["replica_0"], hook.trace["replica_1"]])
    assert len(np.unique(drawn)) == 16


def test_batch_statistics_are_averaged_and_an_empty_replica_leaves_them_alone(two_replicas):
    loop = train(two_replicas, lambda: tiny.Classifier(random=True))
    moving = [v for v in loop.task.model.non_trainable_variables if "moving" in v.path]
    assert len(moving) == 2
    for variable in moving:
        first, second = replicas.local_variables([variable])
        assert np.isfinite(first.numpy()).all()
        tiny.assert_same_bits([first.numpy()], [second.numpy()])


def test_a_model_made_outside_of_the_scope_is_refused(two_replicas):
    with pytest.raises(ValueError, match=r"inside `with strategy.scope\(\):`"):
        loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed(tiny.data(10), 5), strategy=two_replicas)


def test_parts_tile_the_batch_in_order():
    for size in range(1, 8):
        batch = {"x": tf.range(size), "ragged": tf.ragged.range(tf.range(size)), "sparse": tf.sparse.eye(size), "none": None, "rate": 0.5}
        batch["scalar"] = tf.constant(3.0)
        for count in (1, 2, 3):
            parts = split(batch, count)
            assert np.concatenate([p["x"].numpy() for p in parts]).tolist() == list(range(size))
            assert sum((p["ragged"].to_list() for p in parts), []) == batch["ragged"].to_list()
            assert np.concatenate([tf.sparse.to_dense(p["sparse"]).numpy() for p in parts]).tolist() == np.eye(size).tolist()
            assert all(p["none"] is None and p["rate"] == 0.5 and float(p["scalar"]) == 3.0 for p in parts)


def test_a_batch_of_one_size_is_cut_as_for_model_fit(two_replicas):
    for size in range(1, 8):
        mine = split(tf.range(size, dtype=tf.int64), 2)
        of_fit = two_replicas.experimental_distribute_dataset(tf.data.Dataset.range(size).batch(size))
        for part, expected in zip(mine, two_replicas.experimental_local_results(next(iter(of_fit))), strict=True):
            assert part.numpy().tolist() == expected.numpy().tolist()


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((16, 48), [(8, 24), (8, 24)]),
        ((48, 16), [(24, 8), (24, 8)]),
        ((15, 45), [(8, 24), (7, 21)]),
        ((16, 24), [(8, 12), (8, 12)]),
        ((1, 3), [(1, 3), (0, 0)]),
        ((4, 0), [(2, 0), (2, 0)]),
    ],
)
def test_tensors_of_different_sizes_are_cut_in_the_same_proportions(sizes, expected, static):
    batch = tuple(tf.range(size) for size in sizes)
    if static:
        parts = split(batch, 2)
    else:
        parts = tf.function(lambda *b: split(b, 2), input_signature=[tf.TensorSpec([None], tf.int32)] * 2)(*batch)
    assert [tuple(len(leaf) for leaf in part) for part in parts] == expected
    for i, leaf in enumerate(batch):
        assert np.concatenate([part[i].numpy() for part in parts]).tolist() == leaf.numpy().tolist()


class LabelledAndUnlabelled(loops.Task):
    """A batch of two parts of different sizes, as in FixMatch."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
        self.optimizer = keras.optimizers.SGD(0.1)

    def train_step(self, batch):
        labelled, unlabelled = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.model(labelled) ** 2) + tf.reduce_mean((self.model(unlabelled) - 1) ** 2)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss, "seen": loops.Sum(tf.reduce_sum(unlabelled))}

    def predict_step(self, batch):
        return {"labelled": self.model(batch[0]), "unlabelled": self.model(batch[1])}


@pytest.mark.parametrize("counts", [(30, 90), (90, 30)])  # in batches of 8 and 24, the last of 6 and 18
def test_labelled_and_unlabelled_examples_train_as_on_one_device(one_device, two_replicas, counts):
    rng = np.random.default_rng(0)
    parts = [tf.data.Dataset.from_tensor_slices(rng.normal(size=[n, 2]).astype("float32")).batch(8 * n // 30) for n in counts]
    data = tf.data.Dataset.zip(tuple(parts))
    found = []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            task = LabelledAndUnlabelled()
        loop = loops.TrainLoop(task, loops.DatasetFeed(data), strategy=strategy, compile="graph")
        outputs = loops.PredictLoop(task, compile="graph").run(loops.DatasetFeed(data))
        found.append((*loop.run(epochs=2).history.values(), *task.model.get_weights(), outputs["labelled"], outputs["unlabelled"]))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, rtol=2e-6, atol=2e-6)


class Masked(loops.Task):
    """A loss that is a mean over tokens; sequences differ in length, so replicas differ in tokens."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(1)
        self.model = keras.Sequential([keras.Input([6, 3]), keras.layers.Dense(1)])
        self.optimizer = keras.optimizers.SGD(0.1)

    def train_step(self, batch):
        x, mask = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(mask * (self.model(x)[..., 0] - 1) ** 2) / tf.reduce_sum(mask)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss, "sequences": loops.Sum(tf.cast(tf.shape(x)[0], tf.float32))}


class CountsTokens(Masked):
    def batch_size(self, batch):
        return tf.cast(tf.reduce_sum(batch[1]), tf.int64)


class WeighsOnlyItsLog(Masked):
    def train_step(self, batch):
        logs = super().train_step(batch)
        return {**logs, "loss": loops.Mean(logs["loss"], weight=tf.reduce_sum(batch[1]))}


class WeighsByExamples(Masked):
    def train_step(self, batch):
        logs = super().train_step(batch)
        present = tf.cast(self.step % 2 == 0, tf.float32)  # absent in every other step
        return {"loss": loops.Mean(logs["loss"], weight=present * tf.cast(tf.shape(batch[0])[0], tf.float32))}


def masked_run(strategy, make):
    lengths = np.array([1, 1, 2, 1, 6, 6, 6, 6, 3, 0, 1, 0, 5, 5, 6, 4, 2, 1, 4])
    x = np.random.default_rng(0).normal(size=[len(lengths), 6, 3]).astype("float32")
    mask = (np.arange(6) < lengths[:, None]).astype("float32")
    with strategy.scope():
        task = make()
    loop = loops.TrainLoop(task, loops.ArrayFeed((x, mask), 8), strategy=strategy, compile="graph")
    loop.run(epochs=3)
    return loop


def test_replicas_are_weighted_by_tokens_if_batch_size_counts_tokens(one_device, two_replicas, caplog):
    one, two = masked_run(one_device, CountsTokens), masked_run(two_replicas, CountsTokens)
    assert_close(one, two)
    # On one device `batch_size` has no influence on the updates.
    for left, right in zip(masked_run(one_device, Masked).task.model.get_weights(), one.task.model.get_weights(), strict=True):
        assert left.tobytes() == right.tobytes()
    assert "batch_size" not in caplog.text


def test_a_loss_that_only_its_log_weighs_by_tokens_is_warned_of_once(one_device, two_replicas, caplog):
    masked_run(one_device, WeighsOnlyItsLog)
    masked_run(two_replicas, WeighsByExamples)
    masked_run(two_replicas, CountsTokens)
    assert "batch_size" not in caplog.text
    masked_run(two_replicas, WeighsOnlyItsLog)
    assert caplog.text.count("let WeighsOnlyItsLog.batch_size(batch) return it") == 1


def test_gradients_in_float64_are_weighted_in_float64(one_device, two_replicas):
    """Batches of 3 split 2+1: a share of a third would be right to eight digits only in float32."""
    x, y = tiny.data(12)

    def weights(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential([keras.Input([x.shape[1]]), keras.layers.Dense(1, dtype="float64")])
            mse = keras.losses.MeanSquaredError(dtype="float64")
            task = loops.SupervisedTask(model, loss=mse, optimizer=keras.optimizers.SGD(0.1))
        feed = loops.ArrayFeed((x.astype("float32"), y[:, None].astype("float32")), 3)
        loops.TrainLoop(task, feed, strategy=strategy, compile="graph").run(epochs=3)
        return model.get_weights()

    for left, right in zip(weights(one_device), weights(two_replicas), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "make_strategy", [lambda: tf.distribute.MirroredStrategy(["CPU:0"]), lambda: tf.distribute.OneDeviceStrategy("CPU:0")]
)
def test_a_strategy_with_one_replica_gives_the_bits_of_none(one_device, make_strategy):
    runs = [train(strategy, tiny.Classifier) for strategy in (one_device, make_strategy())]
    assert_close(*runs, tolerance=0)
