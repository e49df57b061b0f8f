"""Who trains together is read from `TF_CONFIG`, a resolver or Slurm, and what is wrong there gets a sentence."""

from __future__ import annotations

import json
import os

import pytest
import tensorflow as tf

from loops.cluster import slurm
from loops.cluster.members import found

TWO = {"worker": ["a:1", "b:2"]}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in [name for name in os.environ if name == "TF_CONFIG" or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def configure(monkeypatch, cluster, task):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))


@pytest.mark.parametrize("index", [1, "1"])
def test_tf_config(monkeypatch, index):
    configure(monkeypatch, TWO, {"type": "worker", "index": index})
    members = found()
    assert (members.addresses, members.number, members.leader) == (["a:1", "b:2"], 1, "/job:worker/replica:0/task:0")
    assert members.resolver is None  # TensorFlow reads it too


def test_a_chief_comes_before_the_workers(monkeypatch):
    configure(monkeypatch, {"worker": ["a:1", "b:2"], "chief": ["c:3"]}, {"type": "worker", "index": 1})
    members = found()
    assert (members.addresses, members.number, members.leader) == (["c:3", "a:1", "b:2"], 2, "/job:chief/replica:0/task:0")
    configure(monkeypatch, {"worker": ["a:1", "b:2"], "chief": ["c:3"]}, {"type": "chief", "index": 0})
    assert found().number == 0


def test_a_resolver_is_asked_before_the_environment(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "nonsense")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec(TWO), task_type="worker", task_id=1)
    members = found(resolver)
    assert (members.addresses, members.number) == (["a:1", "b:2"], 1) and members.resolver is resolver
    lost = tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec(TWO))
    with pytest.raises(ValueError, match="The SimpleClusterResolver says that this task is of type"):
        found(lost)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "Nothing says which processes train together: TF_CONFIG is not set. .*launch.py --workers=2"),
        ("{'cluster': {}}", "TF_CONFIG is not JSON .*: \"{'cluster': {}}\". It should look like TF_CONFIG="),
        ("[1]", "TF_CONFIG should be an object with a 'cluster' and a 'task'"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG should be an object with a 'cluster' and a 'task'"),
    ],
)
def test_no_tf_config_or_a_malformed_one(monkeypatch, text, sentence):
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=sentence):
        found()


@pytest.mark.parametrize(
    ("cluster", "task", "sentence"),
    [
        (TWO, ("worker", 2), "gives this task the index 2, but lists 2 of type 'worker': 0 to 1."),
        (TWO, ("worker", -1), "the index -1"),
        (TWO, ("worker", None), "the index None"),
        (TWO, ("worker", "one"), "the index 'one'"),
        (TWO, ("worker", True), "the index True"),
        (TWO, ("chief", 0), "this task is of type 'chief', but lists only tasks of type 'worker'."),
        (TWO, ("evaluator", 0), "has an evaluator, which there is none of here"),
        ({**TWO, "evaluator": ["c:3"]}, ("worker", 0), "has an evaluator"),
        (TWO, ("ps", 0), r"has parameter servers \('ps'\)"),
        ({**TWO, "ps": ["c:3"]}, ("worker", 0), r"has parameter servers \('ps'\)"),
        ({**TWO, "master": ["c:3"]}, ("worker", 0), "has tasks of type 'master'; expected 'worker'"),
        ({"chief": ["c:3", "d:4"], **TWO}, ("worker", 0), "lists 2 chiefs"),
        ({}, ("worker", 0), "lists no workers"),
        ({"worker": []}, ("worker", 0), "lists no workers"),
        ({"worker": "a:1"}, ("worker", 0), "should have a list of addresses for 'worker', but has 'a:1'."),
        ({"worker": ["a:1", "b"]}, ("worker", 0), "lists 'b' for 'worker'; an address is written 'host:port'"),
        ({"worker": ["a:1", "b:65536"]}, ("worker", 0), "lists 'b:65536'"),
        ({"worker": ["http://a:1", "b:2"]}, ("worker", 0), "without 'http://'"),
        ({"worker": ["a:1", 2]}, ("worker", 0), "lists 2 for 'worker'"),
        ({"worker": ["a:1", "a:1"]}, ("worker", 0), "lists a:1 more than once"),
    ],
)
def test_what_makes_no_sense_is_said(monkeypatch, cluster, task, sentence):
    configure(monkeypatch, cluster, {"type": task[0], "index": task[1]})
    with pytest.raises(ValueError, match=f"^TF_CONFIG .*{sentence}"):
        found()


STEP = {"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NODELIST": "a[9-10],b[01]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_JOB_ID": "7"}


def test_a_step_of_slurm(monkeypatch):
    for name, value in {**STEP, "SLURM_PROCID": "4"}.items():
        monkeypatch.setenv(name, value)
    members = found()
    port = int(members.addresses[0].rpartition(":")[2])
    assert members.addresses == [f"a9:{port}", f"a9:{port + 1}", f"a10:{port}", f"a10:{port + 1}", f"b01:{port}"]
    assert members.number == 4 and members.resolver.cluster_spec().as_dict() == {"worker": members.addresses}
    assert (members.resolver.task_type, members.resolver.task_id) == ("worker", 4)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not set(members.addresses) & set(found().addresses)  # another job on the same nodes
    configure(monkeypatch, TWO, {"type": "worker", "index": 0})
    assert found().addresses == TWO["worker"]


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1,3-4],m", ["n1", "n3", "n4", "m"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
        ("n[8-10]-x", ["n8-x", "n9-x", "n10-x"]),
    ],
)
def test_slurms_lists_of_nodes(nodes, hosts):
    count = len(hosts)
    step = {
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{count})",
        "SLURM_PROCID": "0",
    }
    assert [address.rpartition(":")[0] for address in slurm.tasks_of_step(step)[0]] == hosts


def test_tasks_that_slurm_laid_out_in_turns_are_refused():
    with pytest.raises(ValueError, match="Slurm runs task 1 on node 1 of the step, .* node 0: start them by srun --distribution=block."):
        slurm.tasks_of_step({**STEP, "SLURM_PROCID": "1", "SLURM_NODEID": "1"})
    with pytest.raises(ValueError, match="do not fit each other"):
        slurm.tasks_of_step({**STEP, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"})
