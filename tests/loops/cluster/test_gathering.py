"""Workers wait for each other aloud, give up in time, and notice that they were not meant for each other. Threads stand for processes."""

from __future__ import annotations

import concurrent.futures
import socket
import threading
import time

import pytest

from loops.cluster import gathering
from loops.cluster.gathering import gather
from loops.cluster.members import Members


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(gathering, "_FIRST_WORD", 0.1)
    monkeypatch.setattr(gathering, "_CADENCE", 0.3)
    monkeypatch.setattr(gathering, "_RETRY", 0.02)


def cluster(count):
    """Members with free ports, one for each worker."""
    held = [socket.create_server(("", 0)) for _ in range(count)]
    addresses = [f"localhost:{each.getsockname()[1]}" for each in held]
    for each in held:
        each.close()
    return [Members({"worker": addresses}, "worker", number) for number in range(count)]


def together(members, limit=20.0, delays=None):
    """What `gather` raised for each, None where it returned; and after how many seconds."""
    began = time.monotonic()

    def one(member):
        time.sleep((delays or {}).get(member.number, 0.0))
        try:
            gather(member, limit)
        except Exception as error:
            return error, time.monotonic() - began
        return None, time.monotonic() - began

    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(one, members))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_all_go_on_when_the_last_has_come_and_say_for_whom_they_wait(late, monkeypatch):
    said = []
    monkeypatch.setattr(gathering, "say", lambda text: said.append((threading.get_ident(), text)))
    members = cluster(3)
    ends = together(members, delays={late: 1.5})
    assert [error for error, _ in ends] == [None] * 3
    assert all(1.5 <= after < 10 for _, after in ends)
    named = f"worker {late} at {members[0].addresses[late]}"
    assert all(named in text for _, text in said)
    assert len({speaker for speaker, text in said if text == f"Waiting for {named}."}) == 2
    for member in members:
        socket.create_server(("", int(member.addresses[member.number].rpartition(":")[2]))).close()  # free for TensorFlow


def test_nothing_is_said_where_nobody_waits_long(capsys, monkeypatch):
    monkeypatch.setattr(gathering, "_FIRST_WORD", 5.0)
    assert [error for error, _ in together(cluster(4))] == [None] * 4
    gather(cluster(1)[0], 1.0)
    assert capsys.readouterr().out == ""


def test_several_that_are_missing_are_named_some_of_many_only(capsys):
    members = cluster(9)
    (error, _), _ = together([members[0], members[4]], limit=0.6)
    addresses = members[0].addresses
    named = ", ".join(f"worker {i} at {addresses[i]}" for i in (1, 2, 3, 5, 6)) + " and 2 more"
    assert str(error).startswith(f"W{named[1:]} did not come within 0.6 seconds, and the run needs all")
    assert f"Waiting for {named}." in capsys.readouterr().out


def test_who_never_comes_ends_those_who_came_at_the_same_time():
    members = cluster(3)
    ends = together(members[:2], limit=1.5, delays={1: 0.3})
    sentence = f"Worker 2 at {members[0].addresses[2]} did not come within 1.5 seconds"
    assert all(isinstance(error, TimeoutError) and str(error).startswith(sentence) for error, _ in ends)
    assert all(1.5 <= after < 5 for _, after in ends)


def test_a_chief_that_never_comes():
    _, member = cluster(2)
    ((error, after),) = together([member], limit=0.5)
    assert isinstance(error, TimeoutError) and str(error).startswith(
        f"The chief, worker 0 at {member.addresses[0]}, did not come within 0.5"
    )
    assert after < 5


def test_a_name_that_is_not_known_is_said_so(capsys):
    member = Members({"worker": ["no-such-host.invalid:12345", cluster(1)[0].addresses[0]]}, "worker", 1)
    ((error, _),) = together([member], limit=0.5)
    assert "; the name no-such-host.invalid is not known here" in str(error) and "is not known here." in capsys.readouterr().out


def test_a_port_that_is_taken():
    members = cluster(2)
    taken = r"Port \d+ of this machine, that of worker 1 at localhost:\d+, is taken by another program. End that program"
    with socket.create_server(("", int(members[1].addresses[1].rpartition(":")[2]))), pytest.raises(OSError, match=taken):
        gather(members[1], 1.0)


def test_two_processes_with_one_index(monkeypatch):
    members = cluster(3)
    twin = Members(members[0].jobs, "worker", 1)
    # On one machine their port would tell; here the second one sits on another.
    own = gathering._own_port
    monkeypatch.setattr(gathering, "_own_port", lambda member: socket.create_server(("", 0)) if member is twin else own(member))
    ends = together([*members[:2], twin], limit=1.5)
    (refused,) = [error for error, _ in ends if isinstance(error, ValueError)]
    assert str(refused).startswith("Worker 1 is there already: two processes were given the index of worker 1 at ")
    assert sum(isinstance(error, TimeoutError) for error, _ in ends) == 2  # the first one and the chief wait for worker 2


def test_other_lists_of_members_end_all():
    members = cluster(3)
    other = Members({"worker": [*members[0].addresses[:2], "elsewhere:1"]}, "worker", 1)
    ends = together([members[0], other, members[2]], delays={1: 1.0})
    assert all(isinstance(error, ValueError) and "The chief was started with the workers [" in str(error) for error, _ in ends)
    assert "elsewhere:1" in str(ends[0][0]) and str(ends[0][0]) == str(ends[2][0])


def test_strangers_and_those_who_went_away_again_do_not_count():
    members = cluster(3)
    host, _, port = members[0].addresses[0].rpartition(":")

    def strange():
        while True:  # until the chief listens
            try:
                socket.create_connection((host, int(port))).close()
                break
            except OSError:
                time.sleep(0.02)
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"", b"PRI * HTTP/2.0\r\n\r\n", b'{"go": true}\n', b"[1]\n", b"\xff\xfe\n"):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(text)
        with socket.create_connection((host, int(port))) as gone:
            lines = gathering._Lines(gone)
            lines.send(worker=1, members=members[0].addresses)

    thread = threading.Thread(target=strange)
    thread.start()
    ends = together(members, delays={1: 1.5, 2: 1.5})
    thread.join()
    assert [error for error, _ in ends] == [None] * 3
    assert all(after >= 1.5 for _, after in ends)
