"""MLflow gets every point once, and its run goes on, wherever the process was killed; read back from a local store by MLflow's client."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import loops
from loops import hooks
from loops.hooks import mlflow as our_module
from tests.loops.hooks import tracked_runs
from tests.loops.hooks.tracked_runs import CONFIG, EPOCHS, KILLS

mlflow = pytest.importorskip("mlflow", reason='needs pip install "tapeloops[mlflow]"')


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts unless told otherwise


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    client.create_experiment("runs", artifact_location=str(path.with_name("artifacts")))
    return path.read_bytes()


@pytest.fixture
def uri(tmp_path, empty_store):
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    return f"sqlite:///{tmp_path}/mlflow.db"


def only_run(uri):
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("runs").experiment_id])
    assert len(found) == 1
    return client, found[0]


def points(uri):
    client, run = only_run(uri)
    return sorted(
        (metric.key, metric.step, metric.value) for key in run.data.metrics for metric in client.get_metric_history(run.info.run_id, key)
    )


def known_otherwise(found):
    """Without learning rates, and of the looks the loss alone."""
    return [point for point in found if point[0] == "batch/loss" or not point[0].startswith(("batch/", "learning_rate"))]


def train(workdir, uri, epochs=EPOCHS, **arguments):
    loop = tracked_runs.make(workdir, hooks.MLflow("runs", tracking_uri=uri, every="2 steps"), **arguments)
    loop.run(epochs=epochs)
    return loop


def test_a_run_with_all_that_belongs_to_it(tmp_path, uri):
    hook = hooks.MLflow("runs", tracking_uri=uri, every="2 steps", tags={"owner": "me"})
    draw = hooks.LambdaHook(on_epoch_end=lambda loop, logs: hook.image("a/picture", np.eye(4), loop.progress.step))
    loop = tracked_runs.make(tmp_path / "run", hook, draw)
    loop.run(epochs=EPOCHS)
    client, run = only_run(uri)
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.tags["outcome"] == "finished" and run.data.tags["owner"] == "me"
    assert run.data.params == {
        "epochs": "3", "optimizer.name": "adam", "optimizer.learning_rate": "0.5", "hidden": "[5]", "clip": "None"
    }  # fmt: skip
    found = known_otherwise(points(uri))
    wanted = tracked_runs.expected(loop)
    assert [point[:2] for point in found] == [point[:2] for point in wanted]
    np.testing.assert_allclose([point[2] for point in found], [point[2] for point in wanted], rtol=1e-6)
    rates = [point for point in points(uri) if point[0] == "learning_rate"]
    assert [step for _, step, _ in rates] == [6, 12, 18]
    files = [file.path for file in client.list_artifacts(run.info.run_id, "weights")]
    assert files == ["weights/best.weights.h5"]
    kept = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=files[0], tracking_uri=uri, dst_path=tmp_path / "got")
    best = tmp_path / "run" / "checkpoints" / "best.weights.h5"
    assert pathlib.Path(kept).read_bytes() == best.read_bytes()
    assert len(client.list_artifacts(run.info.run_id, "pictures/a/picture")) == EPOCHS


def test_killed_anywhere_the_same_run_goes_on_and_has_each_point_once(tmp_path, empty_store, monkeypatch):
    workdir = tmp_path / "run"

    def make(store):
        hook = hooks.MLflow("runs", tracking_uri=f"sqlite:///{store}", every="2 steps")
        fill = hooks.LambdaHook(on_epoch_begin=lambda loop: store.exists() or store.write_bytes(empty_store))
        return tracked_runs.make(workdir, hook, fill), hook

    store = workdir / "mlflow.db"  # copied with the workdir
    lock = tracked_runs.talking(monkeypatch, our_module._Run)
    loop, hook = make(store)
    with tracked_runs.KillPoints(workdir, hook, lock) as copies:
        loop.run(epochs=EPOCHS)
    wanted, held = points(f"sqlite:///{store}"), []
    for name, count, _ in KILLS:
        copies.restore((name, count))
        now = tmp_path / f"{name}-{count}.db"  # MLflow keeps files open
        now.write_bytes(store.read_bytes())
        uri = f"sqlite:///{now}"
        held.append(len(points(uri)) if mlflow.MlflowClient(uri).search_runs(["1"]) else 0)
        make(now)[0].run(epochs=EPOCHS)
        assert points(uri) == wanted, (name, count)
        assert only_run(uri)[1].info.status == "FINISHED"
    assert len(set(held)) > 3, "the kills left MLflow with the same points"


def test_a_run_that_is_complete_is_not_touched_again(tmp_path, uri):
    train(tmp_path / "run", uri)
    before, ended = points(uri), only_run(uri)[1].info.end_time
    train(tmp_path / "run", uri)
    assert points(uri) == before and only_run(uri)[1].info.end_time == ended


def test_further_epochs_and_changed_settings_go_to_the_same_run(tmp_path, uri):
    train(tmp_path / "run", uri, epochs=1)
    train(tmp_path / "run", uri, config={**CONFIG, "epochs": 9})
    _, run = only_run(uri)
    assert run.data.params["epochs"] == "3" and run.data.tags["config.epochs"] == "9"
    assert [step for name, step, _ in points(uri) if name == "val_loss"] == [6, 12, 18]


def test_several_runs_of_a_loop_and_an_evaluation_after_them(tmp_path, uri):
    loop = tracked_runs.make(None, hooks.MLflow("runs", tracking_uri=uri))
    loop.run(epochs=1)
    loop.run(epochs=2)
    logs = loop.evaluate(loop.evaluations["val"], "test")
    found = points(uri)
    assert [step for name, step, _ in found if name == "val_loss"] == [6, 12]
    assert ("test_loss", 12, logs["test_loss"]) in found
    assert only_run(uri)[1].info.status == "FINISHED"


def test_fit_takes_it_as_a_callback(uri):
    model = tracked_runs.tiny.Classifier().model
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = tracked_runs.tiny.data(32)
    history = loops.fit(model, x, y, epochs=2, verbose=0, callbacks=[hooks.MLflow("runs", tracking_uri=uri)])
    found = [value for name, _, value in points(uri) if name == "loss"]
    assert found == history.history["loss"]


def test_how_training_ended_is_the_status_of_the_run(tmp_path, uri):
    fail = hooks.LambdaHook(on_epoch_end=lambda loop, logs: 1 / 0)
    loop = tracked_runs.make(tmp_path / "a", hooks.MLflow("runs", tracking_uri=uri), fail)
    with pytest.raises(ZeroDivisionError):
        loop.run(epochs=1)
    _, run = only_run(uri)
    assert run.info.status == "FAILED" and run.data.tags["reason"] == "ZeroDivisionError: division by zero"


def test_a_server_that_is_gone_is_said_once_and_what_it_missed_comes_later(tmp_path, uri, monkeypatch):
    with (
        tracked_runs.failing(monkeypatch, mlflow.MlflowClient, "log_batch"),
        pytest.warns(UserWarning, match=r"MLflow could not .*OSError: nobody is there") as caught,
    ):
        loop = train(tmp_path / "run", uri, epochs=1)
    assert loop.outcome == "finished" and len([w for w in caught if "MLflow" in str(w.message)]) == 1
    train(tmp_path / "run", uri)
    assert [step for name, step, _ in points(uri) if name == "val_loss"] == [6, 12, 18]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"experiment": 3}, r"MLflow\(experiment=...\) takes the name of an experiment; got 3"),
        ({"tags": ["a"]}, r"MLflow\(tags=...\) takes a mapping of names to texts; got \['a'\]"),
        ({"timeout": 0}, r"MLflow\(timeout=...\) takes seconds, more than 0; got 0"),
        ({"every": "often"}, "often"),
    ],
)
def test_wrong_arguments_get_a_sentence(arguments, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        hooks.MLflow(**arguments)
