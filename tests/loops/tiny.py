"""Small tasks and data that the tests of the loop share."""

import weakref

import keras
import numpy as np
import tensorflow as tf

import loops

N_FEATURES, N_CLASSES = 6, 3

_traces = weakref.WeakKeyDictionary()  # not an attribute of the task: a number that a trace changes would be warned of


def data(n=100, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=[n, N_FEATURES]).astype("float32"), rng.integers(0, N_CLASSES, n)


def count_trace(task):
    """To be called by a step, in Python."""
    _traces[task] = traces_of(task) + 1


def traces_of(task):
    """How often the steps of a task were traced."""
    return _traces.get(task, 0)


class Classifier(loops.Task):
    """A dense network with a metric, a seed generator (dropout) and batch statistics if asked for; counts how often it is traced."""

    def __init__(self, optimizer=None, *, random=False, seed=0):
        super().__init__()
        keras.utils.set_random_seed(seed)
        noise = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.3, seed=1)] if random else []
        layers = [keras.Input([N_FEATURES]), keras.layers.Dense(5, "tanh"), *noise, keras.layers.Dense(N_CLASSES, "softmax")]
        self.model = keras.Sequential(layers)
        self.optimizer = optimizer or keras.optimizers.Adam(0.05)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy()

    def loss(self, y, y_pred):
        return self.compute_loss("sparse_categorical_crossentropy", y, y_pred)

    @property
    def traces(self):
        return traces_of(self)

    def train_step(self, batch):
        count_trace(self)
        x, y = batch
        with tf.GradientTape() as tape:
            y_pred = self.model(x, training=True)
            loss = self.loss(y, y_pred) + self.losses_of(self.model)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        self.accuracy.update_state(y, y_pred)
        return {"loss": loss, "accuracy": self.accuracy}

    def eval_step(self, batch):
        x, y = batch
        y_pred = self.model(x, training=False)
        return {"loss": self.loss(y, y_pred), "predictions": loops.Collect(y_pred)}

    def eval_end(self, collected):
        return {"mean_prediction": float(collected["predictions"].mean()), "examples": len(collected["predictions"])}

    def predict_step(self, x):
        return self.model(x[0] if isinstance(x, tuple) else x, training=False)


def state(task):
    """Every variable of a task as arrays, in order."""
    return [np.asarray(v) for v in task.tracked.all_variables()]


def assert_same_bits(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.dtype == right.dtype and left.tobytes() == right.tobytes()


def feed_of(kind, x, y, batch_size=16):
    """The same batches as arrays, as a dataset of known, and of unknown length."""
    if kind == "array":
        return loops.ArrayFeed((x, y), batch_size)
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    if kind == "unknown":
        dataset = dataset.filter(lambda *_: True)
    return loops.DatasetFeed(dataset.batch(batch_size))
