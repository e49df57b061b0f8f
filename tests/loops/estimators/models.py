"""Small models and data for the tests of estimators; also imported by joblib's worker processes."""

import functools

import keras
import numpy as np
import tensorflow as tf
from sklearn import datasets

import loops


def perceptron(X, y, units=8, rate=0.01, loss="categorical_crossentropy", last="softmax", outputs=None, optimizer="adam"):
    """A perceptron, by default with as many outputs as y has columns, as models for `keras.wrappers` are written."""
    inputs = keras.Input(X.shape[1:])
    hidden = keras.layers.Dense(units, activation="relu")(inputs) if units else inputs
    model = keras.Model(inputs, keras.layers.Dense(outputs or y.shape[1], activation=last)(hidden))
    model.compile(keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": rate}}), loss, jit_compile=False)
    return model


regression = functools.partial(perceptron, loss="mse", last=None)


def noisy(X, y):
    """A model with the state of a random layer."""
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.5), keras.layers.Dense(y.shape[1], activation="softmax")]
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy", jit_compile=False)
    return model


@functools.cache
def flowers():
    """Iris: `[150, 4]` around 0 and three classes by name, in an order of no meaning."""
    data = datasets.load_iris()
    order = np.random.default_rng(0).permutation(150)
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    return x[order].astype("float32"), data.target_names[data.target][order]


@functools.cache
def numbers():
    """Two targets that are nearly linear in five columns, `[120, 5]` and `[120, 2]`."""
    random = np.random.default_rng(0)
    x = random.normal(size=[120, 5]).astype("float32")
    y = x @ random.normal(size=[5, 2]) + 0.1 * random.normal(size=[120, 2])
    return x, y


class Classification(loops.Task):
    """A perceptron in a step of one's own."""

    def __init__(self, X, y, units=8, rate=0.01, optimizer="adam"):
        super().__init__()
        layers = [keras.layers.Dense(units, activation="relu"), keras.layers.Dense(int(y.max()) + 1, activation="softmax")]
        self.model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
        self.optimizer = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": rate}})
        self.mean = float(np.mean(X[:, 0]))  # what is learnt from the data outside of variables

    def loss(self, batch, training):
        x, y, *weights = batch
        return self.compute_loss("sparse_categorical_crossentropy", y, self.model(x - self.mean, training=training), *weights)

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.loss(batch, training=True)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}

    def eval_step(self, batch):
        return {"loss": self.loss(batch, training=False)}

    def predict_step(self, x):
        return self.model(x - self.mean, training=False)


class Autoencoder(loops.Task):
    """Learns x from x: no y."""

    def __init__(self, X, y, code=2):
        super().__init__()
        self.model = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Dense(code), keras.layers.Dense(X.shape[1])])
        self.optimizer = keras.optimizers.Adam(0.02)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = self.compute_loss("mse", x, self.model(x, training=True))
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}

    def eval_step(self, x):
        return {"loss": self.compute_loss("mse", x, self.model(x, training=False))}

    def predict_step(self, x):
        return self.model(x, training=False)


class Regression(Autoencoder):
    """A straight line, on numbers as they come."""

    def __init__(self, X, y):
        loops.Task.__init__(self)
        self.model = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Dense(1)])
        self.optimizer = keras.optimizers.Adam(0.1)

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.compute_loss("mse", batch[1], self.model(batch[0], training=True))
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}
