"""The character study: a recurrent network that reads text in parallel streams and carries its state from batch to batch.

Truncated back-propagation through time: the gradient goes back to the beginning of a window, the state comes from the beginning of the
text. Config: `research/configs/char_gru.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

import loops
from research.data import text
from research.study import InputError, Run, Study, from_config
from research.supervised import make_optimizer

__all__ = ["CharacterTask", "build", "make_model", "sample"]


def make_model(characters: int, *, embedding: int = 64, units: int = 256, dropout: float = 0.1) -> keras.Model:
    """A gated recurrent unit between an embedding and a linear layer, with its state as an input and an output.

    Args:
        characters: size of the vocabulary.
        embedding: length of a character's vector.
        units: size of the state.
        dropout: share of the outputs of the recurrent layer that is dropped in training.

    Returns:
        A model from `(characters int32 [B, T], state [B, units])` to `(logits of the next character [B, T, characters], state)`.

    References:
        Cho et al. 2014, arXiv:1406.1078.

    Example:
        >>> logits, state = make_model(65, units=32)([tf.zeros([2, 7], tf.int32), tf.zeros([2, 32])])
        >>> logits.shape, state.shape
        (TensorShape([2, 7, 65]), TensorShape([2, 32]))
    """
    read, state = keras.Input([None], dtype="int32", name="characters"), keras.Input([units], name="state")
    x = keras.layers.Embedding(characters, embedding)(read)
    x, after = keras.layers.GRU(units, return_sequences=True, return_state=True)(x, initial_state=state)
    logits = keras.layers.Dense(characters)(keras.layers.Dropout(dropout)(x))
    return keras.Model([read, state], [logits, after], name="char_gru")


class CharacterTask(loops.Task):
    """Learns to predict the next character from all before it; batches are those of `research.data.text.streams`.

    The state after a batch is what the next batch begins with, except for streams that begin. It lies in variables of the task, so it
    belongs to the state of the run: a run that was killed goes on with it. Evaluation reads its own text with a state of its own.

    Args:
        model: as `make_model` gives it.
        optimizer: what updates it.
        streams: streams of the training text.
        evaluation_streams: streams of the texts to evaluate on.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, *, streams: int, evaluation_streams: int):
        super().__init__()
        self.model, self.optimizer = model, optimizer
        units = model.inputs[1].shape[-1]
        self.state = tf.Variable(tf.zeros([streams, units]), trainable=False, name="training_state")
        self.evaluation_state = tf.Variable(tf.zeros([evaluation_streams, units]), trainable=False, name="evaluation_state")

    def train_step(self, batch: text.Streams) -> Mapping[str, Any]:
        with tf.GradientTape() as tape:
            loss, logs = self._read(batch, self.state, training=True)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return logs

    def eval_step(self, batch: text.Streams) -> Mapping[str, Any]:
        return self._read(batch, self.evaluation_state, training=False)[1]

    def _read(self, batch: text.Streams, state: tf.Variable, *, training: bool) -> tuple[tf.Tensor, dict[str, Any]]:
        """The mean loss over the characters of a batch in nats, and the logs; `state` is that after the batch then."""
        x, y, begins = batch
        before = tf.where(begins[:, None], tf.zeros_like(state), state)
        logits, after = self.model([x, before], training=training)
        state.assign(after)
        known = tf.cast(y >= 0, logits.dtype)
        target, count = tf.maximum(y, 0), tf.reduce_sum(known)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits)
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == target, logits.dtype)
        loss, accuracy = (tf.reduce_sum(value * known) / count for value in (losses, right))
        return loss, {"loss": loops.Mean(loss, weight=count), "accuracy": loops.Mean(accuracy, weight=count)}


def sample(model: keras.Model, corpus: text.Text, *, prompt: str, length: int, temperature: float = 1.0, seed: int = 0) -> str:
    """Text that the model makes up, character by character, each drawn from `softmax(logits / temperature)`.

    Args:
        model: as `make_model` gives it.
        corpus: whose vocabulary it reads.
        prompt: what comes before, one character or more.
        length: characters to draw.
        temperature: below 1 prefers what is likely.
        seed: seed of the draws.

    Returns:
        The prompt and what was drawn.
    """

    @tf.function
    def write(read: tf.Tensor) -> tf.Tensor:
        logits, state = model([read, tf.zeros([1, model.inputs[1].shape[-1]])])
        last, written = logits[:, -1], tf.TensorArray(tf.int32, length)
        for i in tf.range(length):
            drawn = tf.random.stateless_categorical(last / temperature, 1, tf.stack([seed, i]), dtype=tf.int32)
            written = written.write(i, drawn[0, 0])
            logits, state = model([drawn, state])
            last = logits[:, 0]
        return written.stack()

    begin = tf.constant(corpus.encode(prompt)[None], tf.int32)
    return prompt + corpus.decode(write(begin).numpy())


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    The seed is also that of the text that is written in the end. The streams of a text are not divided among devices.

    Raises:
        InputError: for a text that is not there, or sizes that fit no model or text.
    """
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        raise InputError("char_gru carries its state from batch to batch on one device: leave out --strategy.")
    corpus = text.load(config.dataset, data_dir=data_dir)
    train = text.streams(corpus.train, count=config.batch_size, length=config.window)
    val, test = (text.streams(part, count=config.evaluation_streams, length=config.window) for part in (corpus.val, corpus.test))
    with from_config():
        model = make_model(len(corpus.vocabulary), embedding=config.embedding, units=config.units, dropout=config.dropout)
        task = CharacterTask(
            model, make_optimizer(config.optimizer), streams=config.batch_size, evaluation_streams=config.evaluation_streams
        )
    prompt = corpus.decode(corpus.val[:1]) if not config.sample.prompt else config.sample.prompt
    corpus.encode(prompt)

    def write(run: Run) -> Sequence[str]:
        written = sample(model, corpus, prompt=prompt, length=config.sample.length, temperature=config.sample.temperature, seed=seed)
        if run.workdir is not None:
            (run.workdir / "sample.txt").write_text(written + "\n", encoding="utf-8")
        return [f"What it writes after {prompt!r}, at temperature {config.sample.temperature:g}:", "", *written.splitlines()]

    return Study(
        task=task,
        model=model,
        train=loops.ArrayFeed(tuple(train), batch_size=config.batch_size),
        evaluate={"val": loops.ArrayFeed(tuple(val), batch_size=config.evaluation_streams)},
        test=loops.ArrayFeed(tuple(test), batch_size=config.evaluation_streams),
        hooks=(loops.hooks.ReduceLROnPlateau("val_loss", factor=0.5, patience=config.plateau, min_delta=0.0),) if config.plateau else (),
        title=f"{config.dataset}, GRU {config.units}, windows of {config.window}",
        description=f"{corpus.description} {config.batch_size} streams, losses in nats per character.",
        after=write,
        clip=config.clip or None,
    )
