"""TensorBoard: Keras's dashboards carry over, without the faults of its callback."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.graph import keras_util
from tensorboard.plugins.projector import projector_plugin

import loops
from loops import hooks, testing
from loops.summaries import model_views, profiler_range

RNG = np.random.default_rng(0)
X = RNG.normal(size=[100, 4]).astype("float32")
Y = (X.sum(1) > 0).astype("int64")


def compiled(*layers, optimizer="sgd", metrics=("accuracy",)):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input([4]), *(layers or [keras.layers.Dense(8, activation="relu", name="hidden"), keras.layers.Dense(2, name="logits")])],
        name="classifier",
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=list(metrics))
    return model


def fit(model, hook, *more_hooks, x=X, y=Y, **kwargs):
    settings = {"batch_size": 20, "epochs": 3, "shuffle": False, "verbose": 0, **kwargs}
    return loops.fit(model, x, y, hooks=[hook, *more_hooks], **settings)


def plugins(directory):
    accumulator = event_accumulator.EventAccumulator(str(directory))
    accumulator.Reload()
    return {tag: accumulator.SummaryMetadata(tag).plugin_data.plugin_name for tag in accumulator.Tags()["tensors"]}


def steps_of(values):
    return [step for step, _ in values]


class Observer(hooks.Hook):
    """Keeps the loss of every single step, and the steps at which anybody looked."""

    every = "1 steps"

    def __init__(self):
        self.losses = {}

    def on_window_end(self, loop, window):
        self.losses.update(zip(range(window.first_step, window.last_step + 1), window.trace["loss"], strict=True))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One run with the callback of Keras and one with ours."""
    directory = tmp_path_factory.mktemp("both")
    settings = {"histogram_freq": 2, "write_images": True, "write_steps_per_second": True, "update_freq": 2}
    kwargs = {"batch_size": 20, "epochs": 3, "shuffle": False, "verbose": 0, "validation_split": 0.2}
    compiled().fit(X, Y, callbacks=[keras.callbacks.TensorBoard(str(directory / "keras"), **settings)], **kwargs)
    fit(compiled(), hooks.TensorBoard(directory / "ours", **settings), validation_split=0.2)
    return directory


def test_runs_tags_and_plugins_are_those_of_keras(both):
    for run in ("train", "validation"):
        theirs, ours = plugins(both / "keras" / run), plugins(both / "ours" / run)
        assert {tag: ours.get(tag) for tag in theirs} == theirs


def test_step_axes_are_those_of_keras(both):
    theirs, ours = testing.read_events(both / "keras"), testing.read_events(both / "ours")
    for run, tags in theirs.items():
        for tag, values in tags.items():
            if tag.startswith("evaluation_"):  # Keras writes these by chance: where its own count of validation batches is a multiple
                assert set(steps_of(values)) <= set(steps_of(ours[run][tag])) == {4, 8, 12}
            elif tag in ("batch_accuracy", "batch_steps_per_second"):  # ours: once for each look
                assert steps_of(ours[run][tag])[-1] == 12 and set(steps_of(ours[run][tag])) >= {4, 8, 12}
            else:
                assert steps_of(ours[run][tag]) == steps_of(values), tag


def test_epoch_values_and_weight_histograms_are_those_of_keras(both):
    theirs, ours = testing.read_events(both / "keras"), testing.read_events(both / "ours")
    for run, tags in theirs.items():
        for tag, values in tags.items():
            if (tag.startswith("epoch_") and tag != "epoch_steps_per_second") or tag.endswith("/histogram"):
                np.testing.assert_array_equal([v for _, v in ours[run][tag]], [v for _, v in values], err_msg=tag)


def test_metrics_at_a_look_are_those_of_the_epoch_to_date_as_in_keras(both):
    theirs, ours = (dict(testing.read_events(both / name)["train"]["batch_accuracy"]) for name in ("keras", "ours"))
    assert ours[4] == theirs[4] and ours[12] == theirs[12]


def test_metrics_of_every_step_are_written_when_they_are_observed(tmp_path):
    class Metrics(hooks.Hook):
        observes = frozenset({"metrics"})

    fit(compiled(), hooks.TensorBoard(tmp_path, update_freq="batch"), Metrics(), epochs=1)
    assert steps_of(testing.read_events(tmp_path)["train"]["batch_accuracy"]) == [1, 2, 3, 4, 5]


def test_images_have_the_size_of_kerass(both):
    theirs, ours = testing.read_events(both / "keras")["train"], testing.read_events(both / "ours")["train"]
    for tag in ("classifier/hidden/kernel/image", "classifier/logits/kernel/image"):
        assert [image[:2] for _, image in ours[tag]] == [image[:2] for _, image in theirs[tag]]


def test_batch_scalars_stand_at_the_true_step_of_the_whole_run(tmp_path):
    observer = Observer()
    task = loops.SupervisedTask(compiled(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), optimizer="sgd")
    loop = loops.TrainLoop(task, loops.ArrayFeed((X, Y), batch_size=20), hooks=[hooks.TensorBoard(tmp_path, update_freq="batch"), observer])
    loop.run(steps=7)
    loop.run(epochs=3)
    written = testing.read_events(tmp_path)["train"]["batch_loss"]
    assert steps_of(written) == list(range(1, 16)) == list(observer.losses)
    np.testing.assert_array_equal([value for _, value in written], np.float32(list(observer.losses.values())))


def test_every_nth_step_is_written_whatever_the_windows(tmp_path):
    fit(compiled(), hooks.TensorBoard(tmp_path, update_freq=4))
    assert steps_of(testing.read_events(tmp_path)["train"]["batch_loss"]) == [4, 8, 12]


def test_epochs_alone_need_no_look():
    assert hooks.TensorBoard("logs").every is None


def test_single_steps_need_no_look_each(tmp_path):
    looks = []

    class Counting(hooks.TensorBoard):
        def on_window_end(self, loop, window):
            looks.append(window.steps)
            super().on_window_end(loop, window)

    fit(compiled(), Counting(tmp_path, update_freq="batch"), x=np.repeat(X, 10, 0), y=np.repeat(Y, 10), epochs=2)
    assert sum(looks) == 100 and len(looks) < 20
    assert len(testing.read_events(tmp_path)["train"]["batch_loss"]) == 100


def test_absent_values_draw_no_point(tmp_path):
    class Alternating(loops.Task):
        def __init__(self):
            super().__init__()
            self.count = tf.Variable(0.0, trainable=False)

        def train_step(self, batch):
            self.count.assign_add(1.0)
            count = tf.identity(self.count)
            return {"loss": count, "rare": loops.Last(count, weight=tf.cast(count % 3 == 0, tf.float32))}

    loops.TrainLoop(Alternating(), loops.ArrayFeed(X, batch_size=20), hooks=[hooks.TensorBoard(tmp_path, update_freq="batch")]).run(steps=9)
    train = testing.read_events(tmp_path)["train"]
    assert train["batch_rare"] == [(3, 3.0), (6, 6.0), (9, 9.0)]
    assert steps_of(train["batch_loss"]) == list(range(1, 10))


class OwnWeight(keras.Model):
    """A model with weights that are in no layer of it."""

    def __init__(self):
        super().__init__(name="own")
        self.dense = keras.layers.Dense(2)
        self.scale = self.add_weight(shape=[4], initializer="ones", name="scale")
        self.shift = self.add_weight(shape=[4], initializer="zeros", name="shift", trainable=False)

    def call(self, x):
        return self.dense(x * self.scale + self.shift)


def test_histograms_include_the_weights_of_the_model_itself(tmp_path):
    model = OwnWeight()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, hooks.TensorBoard(tmp_path, histogram_freq=1))
    train = testing.read_events(tmp_path)["train"]
    for weight in model.weights:
        assert steps_of(train[f"{weight.path}/histogram"]) == [0, 1, 2]
        assert (f"{weight.path}/gradient_histogram" in train) == weight.trainable
    assert train[f"{model.scale.path}/histogram"][-1][1][-1, 1] == pytest.approx(float(np.max(model.scale.numpy())))


def test_gradients_and_norms_are_those_of_the_last_step(tmp_path):
    model = compiled(optimizer=keras.optimizers.SGD(0.0))
    fit(model, hooks.TensorBoard(tmp_path, histogram_freq=1), epochs=1)
    with tf.GradientTape() as tape:
        loss = model.loss(Y[80:], model(X[80:], training=True))
    gradients = [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]
    train = testing.read_events(tmp_path)["train"]
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        ((step, norm),) = train[f"gradient_norm/{variable.path}"]
        assert step == 0 and norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
        ((_, histogram),) = train[f"{variable.path}/gradient_histogram"]
        assert histogram[:, 2].sum() == gradient.size
        assert [histogram[0, 0], histogram[-1, 1]] == pytest.approx([gradient.min(), gradient.max()], rel=1e-4, abs=1e-7)
        ((_, norm),) = train[f"weight_norm/{variable.path}"]
        assert norm == pytest.approx(np.linalg.norm(variable.numpy()), rel=1e-5)
    assert train["epoch_gradient_norm"][0][1] == pytest.approx(np.sqrt(sum(np.sum(g**2) for g in gradients)), rel=1e-5)
    assert train["epoch_weight_norm"][0][1] == pytest.approx(np.sqrt(sum(np.sum(w.numpy() ** 2) for w in model.weights)), rel=1e-5)


def test_the_learning_rate_is_written_for_schedules_and_numbers(tmp_path):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=5, decay_rate=0.5)
    fit(compiled(optimizer=keras.optimizers.SGD(schedule)), hooks.TensorBoard(tmp_path / "a", update_freq="batch"))
    train = testing.read_events(tmp_path / "a")["train"]
    assert train["epoch_learning_rate"] == [(0, pytest.approx(0.05)), (1, pytest.approx(0.025)), (2, pytest.approx(0.0125))]
    assert set(steps_of(train["batch_learning_rate"])) >= {5, 10, 15}


def test_a_plateau_does_not_change_the_learning_rate_of_the_epoch_that_it_looked_at(tmp_path):
    plateau = hooks.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=100.0)
    fit(compiled(optimizer=keras.optimizers.SGD(0.5)), hooks.TensorBoard(tmp_path), plateau, epochs=4)
    assert testing.read_events(tmp_path)["train"]["epoch_learning_rate"] == [(0, 0.5), (1, 0.5), (2, 0.25), (3, 0.125)]


def test_other_evaluations_are_runs_of_their_name(tmp_path):
    task = loops.SupervisedTask(compiled(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), optimizer="sgd")
    feeds = {name: loops.ArrayFeed((X[:n], Y[:n]), batch_size=20) for name, n in (("val", 40), ("test", 60))}
    hook = hooks.TensorBoard(tmp_path)
    history = loops.TrainLoop(task, loops.ArrayFeed((X, Y), batch_size=20), hooks=[hook], evaluate=feeds).run(epochs=2)
    runs = testing.read_events(tmp_path)
    assert sorted(runs) == ["test", "train", "validation"]
    for run, name in (("test", "test_loss"), ("validation", "val_loss"), ("train", "loss")):
        assert runs[run]["epoch_loss"] == [(i, pytest.approx(v)) for i, v in enumerate(history.history[name])]
    assert steps_of(runs["test"]["evaluation_loss_vs_iterations"]) == [5, 10]
    assert not any("test" in tag or "val" in tag for tag in runs["train"])


def test_an_evaluation_in_mid_epoch_stands_at_its_step(tmp_path):
    evaluate = hooks.Evaluate(loops.ArrayFeed((X, Y), batch_size=50), name="test", every="4 steps")
    fit(compiled(), hooks.TensorBoard(tmp_path), evaluate)
    assert steps_of(testing.read_events(tmp_path)["test"]["evaluation_loss_vs_iterations"]) == [4, 8, 12]


def test_vector_metrics_are_written_by_element(tmp_path):
    class Mine(hooks.Hook):
        phase = hooks.Phase.DECIDE

        def on_epoch_end(self, loop, logs):
            loop.log("recall", np.array([0.25, 0.5]))

    fit(compiled(), hooks.TensorBoard(tmp_path), Mine(), epochs=1)
    train = testing.read_events(tmp_path)["train"]
    assert train["epoch_recall/0"] == [(0, 0.25)] and train["epoch_recall/1"] == [(0, 0.5)]


def test_the_projector_shows_embeddings_with_their_labels(tmp_path):
    (tmp_path / "labels.tsv").write_text("".join(f"word {i}\n" for i in range(7)))
    model = compiled(keras.layers.Embedding(7, 3, name="words"), keras.layers.Flatten(), keras.layers.Dense(2))
    hook = hooks.TensorBoard(tmp_path / "logs", embeddings_freq=1, embeddings_metadata={"words": str(tmp_path / "labels.tsv")})
    fit(model, hook, x=np.abs(X).astype("int64") % 7)
    run = str(tmp_path / "logs" / "train")
    configs, paths = projector_plugin.ProjectorPlugin._read_latest_config_files(None, [("train", run)])
    (embedding,) = configs["train"].embeddings
    assert embedding.tensor_name == "classifier/words/embeddings"
    table = projector_plugin._read_tensor_tsv_file(projector_plugin._rel_to_abs_asset_path(embedding.tensor_path, paths["train"]))
    np.testing.assert_allclose(table, model.get_layer("words").embeddings.numpy(), rtol=1e-6)
    labels = projector_plugin._rel_to_abs_asset_path(embedding.metadata_path, paths["train"])
    with open(labels) as file:
        assert file.readline() == "word 0\n"


def test_wrong_embedding_metadata_is_named(tmp_path):
    model = compiled(keras.layers.Embedding(7, 3, name="words"), keras.layers.Flatten(), keras.layers.Dense(2))
    x = np.abs(X).astype("int64") % 7
    with pytest.raises(FileNotFoundError, match="no metadata file 'missing.tsv'"):
        fit(model, hooks.TensorBoard(tmp_path, embeddings_freq=1, embeddings_metadata="missing.tsv"), x=x)
    (tmp_path / "labels.tsv").write_text("a\n")
    with pytest.raises(ValueError, match=r"names the layers \['letters'\]; the embedding layers here are \['words'\]"):
        fit(model, hooks.TensorBoard(tmp_path, embeddings_freq=1, embeddings_metadata={"letters": "labels.tsv"}), x=x)


def test_the_layers_of_a_model_can_be_drawn(tmp_path):
    fit(compiled(), hooks.TensorBoard(tmp_path))
    ((_, text),) = testing.read_events(tmp_path)["train"]["keras"]
    graph = keras_util.keras_model_to_graph_def(json.loads(text))
    assert [node.name for node in graph.node][-2:] == ["classifier/hidden", "classifier/logits"]


def test_a_model_that_cannot_be_drawn_is_no_reason_to_fail(tmp_path):
    model = OwnWeight()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.to_json = lambda: 1 / 0
    fit(model, hooks.TensorBoard(tmp_path))
    assert "keras" not in testing.read_events(tmp_path)["train"]


def test_the_graph_that_a_loop_offers_is_written(tmp_path, monkeypatch):
    function = tf.function(lambda x: x * 2.0).get_concrete_function(tf.TensorSpec([None]))
    monkeypatch.setattr(loops.TrainLoop, "graph", function.graph, raising=False)
    fit(compiled(), hooks.TensorBoard(tmp_path), epochs=1)
    ((_, graph),) = testing.read_events(tmp_path)["train"]["graph"]
    assert "Mul" in {node.op for node in tf.compat.v1.GraphDef.FromString(graph).node}


def test_write_graph_false_writes_none(tmp_path):
    fit(compiled(), hooks.TensorBoard(tmp_path, write_graph=False))
    assert not {"keras", "graph"} & set(testing.read_events(tmp_path)["train"])


def test_images_of_your_own(tmp_path):
    board = hooks.TensorBoard(tmp_path)
    with pytest.raises(RuntimeError, match="a training loop that has begun"):
        board.image("samples", X, 0)

    class Drawing(hooks.Hook):
        def on_epoch_end(self, loop, logs):
            board.image("samples", np.zeros([4, 6]), loop.progress.step)

        def on_train_end(self, loop):
            board.image("last", np.zeros([4, 6]), loop.progress.step)

    fit(compiled(), board, Drawing())
    train = testing.read_events(tmp_path)["train"]
    assert steps_of(train["samples"]) == [5, 10, 15] and steps_of(train["last"]) == [15]
    assert not board._runs._writers


@pytest.mark.parametrize("spec, expected", [(1, (0, 1)), (4, (3, 4)), ((6, 9), (5, 9)), ("2,3", (1, 3)), ((14, 99), (13, 15))])
def test_the_profiler_runs_over_exactly_its_steps(tmp_path, monkeypatch, spec, expected):
    model, seen, board = compiled(), [], hooks.TensorBoard(tmp_path, profile_batch=spec)
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda logdir: seen.append((logdir, int(model.optimizer.iterations.numpy()))))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: seen.append(int(model.optimizer.iterations.numpy())))
    fit(model, board)
    assert seen == [(str(tmp_path / "train"), expected[0]), expected[1]]


def test_a_profile_is_written(tmp_path):
    fit(compiled(), hooks.TensorBoard(tmp_path, profile_batch=(2, 3)), epochs=1)
    assert list((tmp_path / "train" / "plugins" / "profile").glob("*/*"))


def test_a_profiler_that_already_runs_is_no_reason_to_fail(monkeypatch):
    def refuse(logdir):
        raise tf.errors.AlreadyExistsError(None, None, "Another profiler is running.")

    monkeypatch.setattr(tf.profiler.experimental, "start", refuse)
    profiled = profiler_range.ProfiledRange(3)
    with pytest.warns(UserWarning, match="Another profiler is running"):
        profiled.at(2, "somewhere")
    profiled.at(3, "somewhere")


@pytest.mark.parametrize("spec", [-1, (3, 2), (0, 4), "a,b", (1, 2, 3), None])
def test_wrong_profile_ranges_are_named(spec):
    with pytest.raises(ValueError, match="takes a step or a pair"):
        hooks.TensorBoard(profile_batch=spec)


@pytest.mark.parametrize("update_freq", ["step", 0, -1, 1.5, True])
def test_wrong_update_frequencies_are_named(update_freq):
    with pytest.raises(ValueError, match='takes "epoch", "batch" or a number of steps'):
        hooks.TensorBoard(update_freq=update_freq)


def test_without_a_directory_it_writes_below_the_working_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(compiled(), hooks.TensorBoard(), epochs=1)
    assert (tmp_path / "logs" / "train").is_dir()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="could not be written to"):
        fit(compiled(), hooks.TensorBoard(tmp_path / "file"))


def test_it_can_end_without_having_begun(tmp_path, monkeypatch):
    class Failing(hooks.Hook):
        phase = hooks.Phase.EVALUATE

        def on_train_begin(self, loop):
            raise KeyError("mine")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyError, match="mine"):
        fit(compiled(), Failing(), hooks.TensorBoard())
    assert not list(tmp_path.iterdir())


def test_steps_per_second_are_positive_at_epochs_and_looks(tmp_path):
    fit(compiled(), hooks.TensorBoard(tmp_path, write_steps_per_second=True, update_freq="batch"))
    train = testing.read_events(tmp_path)["train"]
    for tag, steps in (("epoch_steps_per_second", [0, 1, 2]), ("batch_steps_per_second", [5, 10, 15])):
        assert set(steps_of(train[tag])) >= set(steps) and all(value > 0 for _, value in train[tag])


def test_pictures_tile_the_kernels_of_a_convolution():
    kernel = np.arange(2 * 3 * 2 * 4, dtype="float32").reshape(2, 3, 2, 4)
    picture = model_views.picture(kernel)
    assert picture.shape == (2 * 3, 4 * 4)
    np.testing.assert_allclose(picture[3:5, 4:7], kernel[:, :, 1, 1] / 47, rtol=1e-6)


@pytest.mark.parametrize("shape, size", [((), (1, 1)), ((5,), (1, 5)), ((5, 3), (3, 5)), ((3, 5), (3, 5)), ((2, 1, 5), (2, 5))])
def test_pictures_lie_flat(shape, size):
    assert model_views.picture(RNG.normal(size=shape)).shape == size


def test_pictures_of_extreme_weights():
    assert model_views.picture(np.full([2, 2], 3.0)).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert model_views.picture([[0.0, np.nan], [1.0, np.inf]]).tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert model_views.picture(np.zeros([3000, 3000])) is None and model_views.picture(np.zeros([2] * 5)) is None
