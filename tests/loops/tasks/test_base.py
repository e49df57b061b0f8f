"""What a task may return and ask for, and what a loop keeps of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny


class Reductions(loops.Task):
    def train_step(self, batch):
        (values,) = batch
        first = tf.cast(values[0], tf.float32)
        return {
            "mean": tf.reduce_mean(tf.cast(values, tf.float32)),
            "weighted": loops.Mean(first, weight=first),
            "sum": loops.Sum(tf.reduce_sum(values)),
            "last": loops.Last(first),
            "sometimes": loops.Last(first, weight=tf.cast(first < 8, tf.float32)),
            "never": loops.Mean(tf.constant(np.nan), weight=0.0),
        }


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_reductions_equal_numpy_over_ragged_batches(compile):
    values = np.arange(10)
    history = loops.TrainLoop(Reductions(), loops.ArrayFeed((values,), 4), compile=compile).run(epochs=1).history
    firsts = np.array([0.0, 4.0, 8.0])
    assert history == {
        "last": [8.0],
        "mean": [values.mean()],
        "sometimes": [4.0],
        "sum": [45.0],
        "weighted": [(firsts**2).sum() / firsts.sum()],
    }


def test_seeds_are_new_at_every_call_and_step_and_the_same_in_a_second_run():
    class Draws(loops.Task):
        def train_step(self, batch):
            return {name: tf.random.stateless_uniform([], self.seed()) for name in ("a", "b")}

    class Keep(hooks.Hook):
        def on_window_end(self, loop, window):
            self.values = np.concatenate(list(window.trace.values()))

    def draw(seed):
        hook = Keep()
        loops.TrainLoop(Draws(), loops.NoFeed(20), [hook], seed=seed).run(epochs=1)
        return hook.values

    first, again, other = draw(0), draw(0), draw(1)
    assert len(np.unique(first)) == 40
    np.testing.assert_array_equal(first, again)
    assert not np.intersect1d(first, other).size


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_observed_tensors_are_those_of_the_last_step_and_only_if_asked_for(compile):
    class Observes(tiny.Classifier):
        def train_step(self, batch):
            self.observe("row", batch[0][0])
            return super().train_step(batch)

    class Look(hooks.Hook):
        every = "3 steps"

        def __init__(self, *names):
            self.observes, self.seen = set(names), []

        def on_window_end(self, loop, window):
            self.seen.append((window.observed, window.batch))

    x, y = tiny.data(96)
    look = Look("row", "gradients")
    loop = loops.TrainLoop(Observes(keras.optimizers.SGD(0.1)), loops.ArrayFeed((x, y), 16), [look], compile=compile)
    loop.run(steps=5)
    before = [v.numpy() for v in loop.task.model.trainable_variables]
    loop.run(epochs=1)
    for observed, batch in look.seen:
        np.testing.assert_array_equal(observed["row"], batch[0][0])
    np.testing.assert_array_equal(look.seen[-1][1][1], y[80:])
    for left, now in zip(before, loop.task.model.trainable_variables, strict=True):
        gradient = look.seen[-1][0]["gradients"][now.path]
        np.testing.assert_allclose(left - 0.1 * gradient, now.numpy(), atol=1e-6)
    if compile == "graph":
        idle = Look()
        loops.TrainLoop(Observes(), loops.ArrayFeed((x, y), 16), [idle], compile=compile).run(epochs=1)
        assert idle.seen[0][0] == {}


def test_gradient_transforms_are_applied_in_order_after_clipping():
    seen = []

    def double(gradients, variables):
        seen.append(len(variables))
        return [2.0 * g for g in gradients]

    x, y = tiny.data(16)
    weights = []
    for clip in ([loops.ClipByGlobalNorm(1e-3), double], 2e-3):
        task = tiny.Classifier(keras.optimizers.SGD(1.0))
        loops.TrainLoop(task, loops.ArrayFeed((x, y), 16), clip=clip).run(steps=1)
        weights.append(task.model.get_weights())
    for left, right in zip(*weights, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-7)
    assert seen == [4]


def test_evaluation_leaves_no_trace():
    class Samples(tiny.Classifier):
        """Evaluates through a random layer and uses the training metric, both of which leave their mark."""

        def eval_step(self, batch):
            x, y = batch
            y_pred = self.model(x, training=True)
            self.accuracy.update_state(y, y_pred)
            return {"loss": self.loss(y, y_pred), "accuracy": self.accuracy}

    def train(evaluate):
        x, y = tiny.data(96)
        task = Samples(random=True)
        given = [hooks.Evaluate(loops.ArrayFeed((x, y), 16), every="2 steps")] if evaluate else []
        history = loops.TrainLoop(task, loops.ArrayFeed((x, y), 16), given).run(epochs=2).history
        return {k: v for k, v in history.items() if not k.startswith("val_")}, tiny.state(task)

    (with_, state_with), (without, state_without) = train(True), train(False)
    assert with_ == without
    tiny.assert_same_bits(state_with, state_without)


def test_collected_outputs_cover_the_whole_set_in_order():
    x, y = tiny.data(50)
    task = tiny.Classifier()
    for compile in ("graph", "xla", "eager"):
        logs = loops.EvalLoop(task, compile=compile).run(loops.ArrayFeed((x, y), 16))
        assert logs["examples"] == 50
        assert logs["mean_prediction"] == pytest.approx(1 / 3)
        predictions = loops.PredictLoop(task, compile=compile).run(loops.ArrayFeed(x, 16))
        np.testing.assert_allclose(predictions, task.model.predict(x, verbose=0), atol=1e-6)


def test_a_changed_trainable_flag_is_noticed_announced_and_obeyed(capsys):
    class Freeze(hooks.Hook):
        def on_epoch_end(self, loop, logs):
            loop.task.model.layers[0].trainable = loop.progress.epoch == 1

    x, y = tiny.data(64)
    task = tiny.Classifier()
    loop = loops.TrainLoop(task, loops.ArrayFeed((x, y), 16), [Freeze()])
    loop.run(epochs=1)
    frozen, free = (layer.get_weights() for layer in task.model.layers)
    loop.run(epochs=2)
    tiny.assert_same_bits(task.model.layers[0].get_weights(), frozen)
    assert not np.array_equal(task.model.layers[1].get_weights()[0], free[0])
    loop.run(epochs=3)
    assert not np.array_equal(task.model.layers[0].get_weights()[0], frozen[0])
    assert capsys.readouterr().out.count("Retracing the training step: `trainable` changed") == 3


@pytest.mark.parametrize("compile", ["graph", pytest.param("xla", marks=pytest.mark.matrix)])
def test_a_changed_flag_of_a_layer_without_trainable_variables_is_obeyed(compile, capsys):
    # A frozen batch normalization normalizes by its moving statistics, and leaves them as they are.
    class Freeze(hooks.Hook):
        def on_epoch_end(self, loop, logs):
            loop.task.model.layers[0].trainable = loop.progress.epoch == 1

    task = tiny.Classifier()
    norm = keras.layers.BatchNormalization(center=False, scale=False, name="plain_norm")
    task.model = keras.Sequential([keras.Input([tiny.N_FEATURES]), norm, keras.layers.Dense(tiny.N_CLASSES, "softmax")])
    loop = loops.TrainLoop(task, loops.ArrayFeed(tiny.data(64), 16), [Freeze()], compile=compile)
    moving = [norm.get_weights()]
    for epochs in (1, 2, 3):
        loop.run(epochs=epochs)
        moving.append(norm.get_weights())
    tiny.assert_same_bits(moving[1], moving[2])
    assert not np.array_equal(moving[0][0], moving[1][0]) and not np.array_equal(moving[2][0], moving[3][0])
    assert capsys.readouterr().out.count("plain_norm.") == 3


def test_a_layer_that_is_frozen_at_first_can_be_freed_later():
    class Free(hooks.Hook):
        def on_epoch_end(self, loop, logs):
            loop.task.model.layers[0].trainable = True

    x, y = tiny.data(64)
    task = tiny.Classifier()
    task.model.layers[0].trainable = False
    first = task.model.layers[0].get_weights()
    loop = loops.TrainLoop(task, loops.ArrayFeed((x, y), 16), [Free()])
    loop.run(epochs=1)
    tiny.assert_same_bits(task.model.layers[0].get_weights(), first)
    loop.run(epochs=2)
    assert not np.array_equal(task.model.layers[0].get_weights()[0], first[0])


def test_a_tf_module_can_be_trained():
    class Line(tf.Module):
        def __init__(self):
            self.slope = tf.Variable(0.0)

    class Fit(loops.Task):
        def __init__(self):
            super().__init__()
            self.line, self.optimizer = Line(), keras.optimizers.SGD(0.1)

        def train_step(self, batch):
            x, y = batch
            with tf.GradientTape() as tape:
                loss = self.compute_loss("mse", y, self.line.slope * x)
            self.minimize(loss, tape, self.optimizer, [self.line.slope])
            return {"loss": loss}

    x = np.linspace(-1, 1, 40, dtype="float32")[:, None]
    task = Fit()
    loops.TrainLoop(task, loops.ArrayFeed((x, 3 * x), 8, shuffle=True)).run(epochs=60)
    assert task.line.slope.numpy() == pytest.approx(3.0, abs=1e-3)


def test_two_identical_runs_give_identical_bits_and_modes_agree():
    def train(compile):
        task = tiny.Classifier(random=compile == "graph")
        loops.TrainLoop(task, loops.ArrayFeed(tiny.data(96), 16, shuffle=True), compile=compile).run(epochs=2)
        return tiny.state(task)

    tiny.assert_same_bits(train("graph"), train("graph"))
    by_xla = train("xla")
    tiny.assert_same_bits(by_xla, train("xla"))
    for left, right in zip(by_xla, train("eager"), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_targets_are_absolute_and_a_run_goes_on_where_it_stood():
    def train(*targets):
        task = tiny.Classifier(random=True)
        loop = loops.TrainLoop(task, loops.ArrayFeed(tiny.data(100), 16, shuffle=True))
        for target in targets:
            loop.run(**target)
        return loop, tiny.state(task)

    whole, state = train({"epochs": 3})
    parts, state_of_parts = train({"steps": 4}, {"epochs": 2}, {"epochs": 9, "steps": 17}, {"epochs": 3})
    assert whole.history.history == parts.history.history
    assert whole.progress.step == parts.progress.step == 21
    tiny.assert_same_bits(state, state_of_parts)


def test_the_training_step_is_known_in_evaluation_and_outside_of_steps():
    class Tells(tiny.Classifier):
        def eval_step(self, batch):
            return {"step": loops.Last(self.step)}

    task = Tells()
    every = hooks.Evaluate(loops.ArrayFeed(tiny.data(48), 16), every="3 steps")
    seen = hooks.LambdaHook(on_evaluate_end=lambda loop, name, logs: steps.append((logs["val_step"], int(task.step))))
    steps = []
    loops.TrainLoop(task, loops.ArrayFeed(tiny.data(64), 16), [every, seen]).run(steps=6)
    assert steps == [(3.0, 3), (6.0, 6)]


def test_an_average_of_the_weights_is_in_the_model_at_the_end():
    def make():
        return tiny.Classifier(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5))

    task = make()
    loops.TrainLoop(task, loops.ArrayFeed(tiny.data(32), 16)).run(epochs=1)
    averages = [v.numpy() for v in task.optimizer.variables if "average" in v.path]
    tiny.assert_same_bits(task.model.get_weights(), averages)


def test_an_own_feed_and_a_shuffled_dataset_under_xla_go_on_where_they_stood():
    class Sums(loops.Task):
        def train_step(self, batch):
            return {"sum": loops.Sum(tf.reduce_sum(batch))}

    dataset = tf.data.Dataset.range(60).shuffle(60, seed=0).batch(10)
    loop = loops.TrainLoop(Sums(), loops.DatasetFeed(dataset), compile="xla")
    for steps in (2, 3, 6):
        loop.run(steps=steps)
    assert loop.history.history["sum"] == [sum(range(60))]


def test_rows_of_windows_that_nobody_will_open_are_dropped():
    loop = loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed(tiny.data(64), 16))
    loop.run(epochs=5)
    assert loop.execution.trace.held <= 4


def test_every_watcher_of_evaluation_batches_is_told():
    class Watcher(hooks.Hook):
        watches_evaluation = True

        def __init__(self):
            self.batches = []

        def on_evaluate_batch(self, batch, logs, last):
            self.batches.append((batch, last, round(logs()["loss"], 3) if batch else None))

    watchers = Watcher(), Watcher()
    loops.TrainLoop(
        tiny.Classifier(), loops.ArrayFeed(tiny.data(32), 16), watchers, evaluate={"val": loops.ArrayFeed(tiny.data(48), 16)}
    ).run(epochs=1)
    assert watchers[0].batches == watchers[1].batches
    assert [b[:2] for b in watchers[0].batches] == [(0, False), (1, False), (2, False), (3, True)]


@pytest.mark.parametrize("with_workdir", [True, False])
def test_flags_that_change_as_the_first_epoch_begins_are_obeyed(with_workdir, tmp_path):
    class Freeze(hooks.Hook):
        def on_epoch_begin(self, loop):
            loop.task.model.layers[0].trainable = False

    task = tiny.Classifier()
    before = [np.asarray(w) for w in task.model.layers[0].weights]
    loop = loops.TrainLoop(task, loops.ArrayFeed(tiny.data(32), 16), [Freeze()], workdir=tmp_path if with_workdir else None)
    loop.run(epochs=1)
    tiny.assert_same_bits(before, [np.asarray(w) for w in task.model.layers[0].weights])


@pytest.mark.parametrize("name", ["batch_size", "seed", "step", "optimizers", "results"])
def test_an_attribute_that_would_hide_a_method_is_refused_at_once(name):
    class Hides(loops.Task):
        def __init__(self):
            super().__init__()
            setattr(self, name, 32)

    with pytest.raises(AttributeError, match=f"`self.{name} = ...` would hide the .* `{name}` of loops.Task.*another name"):
        Hides()
    with pytest.raises(TypeError, match=f"`Hides.{name} = ...` would hide"):
        type("Hides", (loops.Task,), {name: 32})
