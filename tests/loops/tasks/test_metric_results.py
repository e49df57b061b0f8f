"""`{"acc": metric.result()}` means the metric; what is computed from results alone counts as it is after the last step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks

HITS = np.array([1.0] * 32 + [0.0] * 64 + [1.0] * 16 + [0.0] * 16, "float32")  # batches of 32: 1, 0, 0, 0.5
OF_ALL = HITS.mean()


class Counts(loops.Task):
    def __init__(self):
        super().__init__()
        self.accuracy, self.spread = keras.metrics.Mean(name="accuracy"), keras.metrics.Sum()

    def results(self, kind, reduced, metrics):
        self.returned = sorted(metrics)
        return super().results(kind, reduced, metrics)

    def train_step(self, batch):
        mean = tf.reduce_mean(batch)
        self.accuracy.update_state(batch)
        self.spread.update_state(batch)
        return {
            "object": self.accuracy,
            "result": self.accuracy.result(),
            "called": self.accuracy(batch) * 1.0,
            "derived": tf.sqrt(self.accuracy.result()) + 1.0,
            "of_two": self.spread.result() / self.accuracy.result(),
            "advantage": mean - self.accuracy.result(),
            "plain": mean,
        }

    eval_step = train_step


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_a_result_is_the_metric_in_training_and_evaluation(compile):
    windows = []
    hook = hooks.LambdaHook(on_window_end=lambda loop, window: windows.append(dict(window.logs)), every="1 steps")
    task = Counts()
    feed = loops.ArrayFeed(HITS, 32)
    history = loops.TrainLoop(task, feed, [hook], evaluate={"val": feed}, compile=compile).run(epochs=2).history
    assert task.returned == ["object", "result"]
    twice = 2 * HITS.sum()  # "called" updates the accuracy a second time, which changes no mean
    for prefix in ("", "val_"):
        for name, value in {"object": OF_ALL, "result": OF_ALL, "called": OF_ALL, "derived": np.sqrt(OF_ALL) + 1}.items():
            np.testing.assert_allclose(history[prefix + name], [value] * 2, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(history[prefix + "of_two"], [twice / 2 / OF_ALL] * 2, rtol=1e-6)
        running = np.array([1, 1 / 2, 1 / 3, 2.5 / 4 - 0.25])  # the metric after each step, a mean over steps of which enters below
        running[-1] = OF_ALL
        np.testing.assert_allclose(history[prefix + "advantage"], [np.mean([1, 0, 0, 0.5] - running)] * 2, rtol=1e-6)
        assert history[prefix + "plain"] == [OF_ALL] * 2
    np.testing.assert_allclose([logs["result"] for logs in windows[:4]], [1, 1 / 2, 1 / 3, OF_ALL], rtol=1e-6)
    np.testing.assert_allclose([logs["derived"] for logs in windows[:4]], np.sqrt([1, 1 / 2, 1 / 3, OF_ALL]) + 1, rtol=1e-6)


class InControlFlow(loops.Task):
    """A result that is read inside a conditional, a loop and a function."""

    def __init__(self):
        super().__init__()
        self.accuracy = keras.metrics.Mean()

    def train_step(self, batch):
        self.accuracy.update_state(batch)
        doubled = tf.function(lambda: 2 * self.accuracy.result())()
        chosen = self.accuracy.result() if self.step >= 0 else tf.constant(-1.0)
        total, loss = tf.constant(0.0), tf.constant(0.0)
        for _ in tf.range(3):
            total += self.accuracy.result()
            loss += tf.reduce_mean(batch)
        return {"doubled": doubled, "total": total, "loss": loss, "chosen": chosen}


def test_results_are_followed_through_control_flow():
    history = loops.TrainLoop(InControlFlow(), loops.ArrayFeed(HITS, 32), compile="graph").run(epochs=1).history
    np.testing.assert_allclose(history["doubled"], [2 * OF_ALL], rtol=1e-6)
    np.testing.assert_allclose(history["total"], [3 * OF_ALL], rtol=1e-6)
    np.testing.assert_allclose(history["loss"], [3 * OF_ALL], rtol=1e-6)  # the mean over steps


class Vectors(loops.Task):
    def __init__(self):
        super().__init__()
        self.f1 = keras.metrics.F1Score()

    def train_step(self, batch):
        y, y_pred = batch
        self.f1.update_state(y, y_pred)
        return {"f1": self.f1.result()}


def test_a_result_may_have_several_values():
    rng = np.random.default_rng(0)
    y, y_pred = np.eye(3, dtype="float32")[rng.integers(0, 3, 40)], rng.dirichlet(np.ones(3), 40).astype("float32")
    oracle = keras.metrics.F1Score()
    oracle.update_state(y, y_pred)
    history = loops.TrainLoop(Vectors(), loops.ArrayFeed((y, y_pred), 8), compile="graph").run(epochs=1).history
    np.testing.assert_allclose(history["f1"][0], oracle.result(), rtol=1e-6)


def test_the_results_of_a_compiled_model_are_its_metrics():
    class Guide(loops.Task):
        def __init__(self):
            super().__init__()
            self.model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
            self.model.compile(loss="mse", metrics=["mae"])

        def train_step(self, batch):
            x, y = batch
            y_pred = self.model(x)
            return self.model.compute_metrics(x, y, y_pred) | {"rmse": tf.sqrt(self.model.metrics[1].result()["mae"])}

    x = np.arange(8, dtype="float32")[:, None]
    history = loops.TrainLoop(Guide(), loops.ArrayFeed((x, 3 * x), 2), compile="graph").run(epochs=2).history
    np.testing.assert_allclose(history["mae"], [np.mean(2 * x)] * 2)
    np.testing.assert_allclose(history["rmse"], [np.sqrt(np.mean(2 * x))] * 2, rtol=1e-6)


def test_under_replicas_a_result_is_that_of_all_and_what_is_computed_from_it_is_refused(two_replicas):
    class Direct(loops.Task):
        def __init__(self, derived):
            super().__init__()
            self.accuracy, self.derived = keras.metrics.Mean(), derived

        def train_step(self, batch):
            self.accuracy.update_state(batch)
            return {"acc": self.accuracy.result() * 2 if self.derived else self.accuracy.result()}

    def train(derived):
        with two_replicas.scope():
            task = Direct(derived)
        return loops.TrainLoop(task, loops.ArrayFeed(HITS, 32), strategy=two_replicas, compile="graph").run(epochs=1).history

    np.testing.assert_allclose(train(False)["acc"], [OF_ALL])
    with pytest.raises(ValueError, match="'acc', which is computed from the results of metrics.*return the metrics themselves"):
        train(True)


def test_a_metric_of_some_batches_only_survives_a_restart_in_mid_epoch(tmp_path):
    class Tails(loops.Task):
        def __init__(self):
            super().__init__()
            self.of_full, self.of_all = keras.metrics.Mean(), keras.metrics.Mean()

        def train_step(self, batch):
            self.of_all.update_state(batch)
            if batch.shape[0] == 4:
                self.of_full.update_state(batch)
                return {"full": self.of_full.result(), "all": self.of_all.result()}
            return {"all": self.of_all}

    class Sizes(loops.Feed):
        """Full batches, then a smaller one."""

        element_spec, steps_per_epoch, seekable = tf.TensorSpec([None]), 3, True

        def blocks(self, position):
            for batch in [np.ones(4, "float32"), np.full(4, 3.0, "float32"), np.full(2, 8.0, "float32")][position.batch :]:
                yield loops.Block(tf.constant(batch[None]), 1)

    def run(workdir, *steps):
        for n in steps:
            history = loops.TrainLoop(Tails(), Sizes(), compile="xla", workdir=workdir).run(steps=n).history
        return history

    undisturbed = run(tmp_path / "a", 3)
    assert undisturbed == {"all": [pytest.approx(3.2)], "full": [2.0]} and run(tmp_path / "b", 2, 3) == undisturbed


OF_THE_MODULE = keras.metrics.Mean(name="of_the_module")


class Stranger(loops.Task):
    def __init__(self, returned):
        super().__init__()
        self.returned, self.mine = returned, keras.metrics.Mean()

    def train_step(self, batch):
        OF_THE_MODULE.update_state(batch)
        self.mine.update_state(batch)
        values = {"object": OF_THE_MODULE, "result": OF_THE_MODULE.result(), "derived": tf.sqrt(OF_THE_MODULE.result())}
        both = OF_THE_MODULE.result() / self.mine.result()
        return {"x": {**values, "both": both, "no": self.mine.result()}[self.returned]}


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_a_metric_that_no_attribute_leads_to_is_refused(compile):
    for returned in ("object", "result", "derived", "both"):
        with pytest.raises(ValueError, match="no attribute of the task leads to"):
            loops.TrainLoop(Stranger(returned), loops.ArrayFeed(HITS, 32), compile=compile).run(epochs=1)
    result = keras.metrics.Mean.result
    assert loops.TrainLoop(Stranger("no"), loops.ArrayFeed(HITS, 32), compile=compile).run(epochs=2).history["x"] == [OF_ALL] * 2
    assert keras.metrics.Mean.result is result and not hasattr(result, "__wrapped__")


class ByStep(loops.Task):
    def __init__(self):
        super().__init__()
        self.accuracy = keras.metrics.Mean()

    def train_step(self, batch):
        self.accuracy.update_state(batch)
        shown = tf.constant(0.0)
        if self.step >= 0:
            shown = self.accuracy.result()
        return {"where": tf.where(self.step > 100, 0.0, self.accuracy.result()), "shown": shown, "step": self.step}

    eval_step = train_step


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_the_step_number_may_choose_among_results(compile):
    feed = loops.ArrayFeed(HITS, 32)
    history = loops.TrainLoop(ByStep(), feed, evaluate={"val": feed}, compile=compile).run(epochs=1).history
    for name in ("where", "shown", "val_where", "val_shown"):
        np.testing.assert_allclose(history[name], [OF_ALL], rtol=1e-6)
    assert history["step"] == [1.5]
