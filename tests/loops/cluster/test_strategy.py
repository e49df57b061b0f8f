"""`loops.multi_worker_strategy` refuses with a sentence what cannot work; its workers come together, and do not outlive each other."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import loops
from loops import _private_api
from loops.cluster import strategy as module

# A worker that sums with the others again and again. What it has to say it prints.
WORKER = """
import json, os, sys, time
import tensorflow as tf
import loops
import loops.cluster.strategy

index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
if sys.argv[2:] == [str(index)]:
    gather = loops.cluster.strategy.gather
    loops.cluster.strategy.gather = lambda *arguments: (gather(*arguments), os._exit(9))
strategy = loops.multi_worker_strategy(timeout=float(sys.argv[1]), join_timeout=60.0)

@tf.function
def summed(value):
    context = tf.distribute.get_replica_context
    return strategy.run(lambda v: context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(v)), args=(value,))

assert summed(tf.constant(index + 1.0)) == 3.0
print("together", flush=True)
try:
    while True:
        summed(tf.constant(1.0))
        time.sleep(0.05)
except tf.errors.UnavailableError:
    print("lost", flush=True)
    sys.exit(75)
"""


@pytest.fixture
def two(monkeypatch):
    """TF_CONFIG of the first of two workers."""
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))


def test_after_tensorflow_has_started_it_is_too_late(two):
    tf.constant(1.0)
    with pytest.raises(
        RuntimeError, match=r"^TensorFlow has started in this process already, .*: call multi_worker_strategy\(\) once, before"
    ):
        loops.multi_worker_strategy()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"timeout": 0.5}, "timeout should be 1 second or more, but is 0.5"),
        ({"join_timeout": 0}, "join_timeout should be a positive number of seconds, but is 0"),
    ],
)
def test_limits_that_make_no_sense(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        loops.multi_worker_strategy(**arguments)


def test_a_release_without_the_names_that_it_takes(two, monkeypatch):
    monkeypatch.delattr(context.Context, "configure_coordination_service")
    with pytest.raises(RuntimeError, match=r"lacks tensorflow\.python\.eager\.context\.Context\.configure_coordination_service, by which"):
        loops.multi_worker_strategy()


@pytest.fixture
def not_started(monkeypatch):
    """As in a new process; records what is asked of TensorFlow instead of asking it."""
    asked = {}
    monkeypatch.setattr(_private_api, "has_started", lambda: False)
    monkeypatch.setattr(_private_api, "configure_coordination", lambda *given, **limits: asked.update(given=given, limits=limits))
    monkeypatch.setattr(module, "gather", lambda members, limit: asked.update(addresses=members.addresses, join_timeout=limit))
    return asked


def test_the_cluster_is_checked_before_anybody_is_waited_for(two, not_started, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", os.environ["TF_CONFIG"].replace('"index": 0', '"index": 2'))
    with pytest.raises(ValueError, match="TF_CONFIG gives this task the index 2"):
        loops.multi_worker_strategy()
    assert not_started == {}


def test_what_tensorflow_is_asked_for(two, not_started, monkeypatch):
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda *given: given)
    assert loops.multi_worker_strategy(timeout=45.0, communication_options="options") == (None, "options")
    assert not_started["addresses"] == ["localhost:1", "localhost:2"] and not_started["join_timeout"] == 600.0
    assert not_started["given"] == ("/job:worker/replica:0/task:0", {"worker": 2})
    assert not_started["limits"]["heartbeat"] == 45.0


def test_workers_are_not_looked_for_behind_a_proxy_for_web_pages(two, not_started, monkeypatch):
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda *given: given)
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
    loops.multi_worker_strategy()
    assert os.environ[module._NO_PROXY] == ""
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", ".home")
    loops.multi_worker_strategy()
    assert os.environ[module._NO_PROXY] == ".home,localhost"


def test_workers_that_tensorflow_cannot_connect(two, not_started, monkeypatch):
    def fails(*given):
        raise tf.errors.DeadlineExceededError(None, None, "Barrier timed out.\nMore.")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fails)
    with pytest.raises(TimeoutError, match=r"could not connect them; start all of them again. It says: Barrier timed out\.$"):
        loops.multi_worker_strategy()


@contextlib.contextmanager
def started(timeout, *more):
    """Two workers; they are gone afterwards."""
    held = [socket.create_server(("", 0)) for _ in range(2)]
    addresses = [f"localhost:{each.getsockname()[1]}" for each in held]
    for each in held:
        each.close()
    workers = []
    try:
        for index in (0, 1):
            config = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
            environment = {**os.environ, "TF_CONFIG": config, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, "-c", WORKER, str(timeout), *map(str, more)]
            workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


@pytest.mark.parametrize(("victim", "timeout"), [(1, 4.0), *(pytest.param(victim, 10.0, marks=pytest.mark.matrix) for victim in (0, 1))])
def test_a_killed_worker_ends_the_other_within_the_timeout(victim, timeout):
    with started(timeout) as workers:
        for worker in workers:
            while (line := worker.stdout.readline()) != "together\n":
                assert line.startswith("Waiting for worker"), worker.stderr.read()
        workers[victim].kill()
        killed = time.monotonic()
        assert workers[1 - victim].stdout.readline() == "lost\n"
        noticed = time.monotonic() - killed
        assert workers[1 - victim].wait(60) == 75
        assert noticed < timeout + 5.0  # what a busy machine adds


@pytest.mark.matrix
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_while_tensorflow_connects_them_ends_the_other(victim):
    with started(10.0, victim) as workers:
        assert workers[victim].wait(120) == 9
        died = time.monotonic()
        _, errors = workers[1 - victim].communicate(timeout=100)
        assert time.monotonic() - died < 60.0
        assert "TimeoutError: All workers had come, but TensorFlow could not connect them; start all of them again." in errors
