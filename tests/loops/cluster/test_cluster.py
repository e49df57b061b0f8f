"""One process has a cluster of one worker, for which agreeing costs nothing; what several exchange is packed bit for bit."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from loops.cluster import Agreement, Cluster
from loops.cluster.packing import packed, unpacked
from loops.engine.rows import LogSpec, _averaged, _summands, merge_replicas
from loops.errors import MismatchError, WorkerLost
from loops.tasks.reductions import Last, Mean, Sum
from tests.loops.cluster.comparing import assert_same


class Two(Cluster):
    """Two workers of which this process plays both: each call of the first is answered with what the second would have given."""

    def __init__(self, answers):
        super().__init__(tf.distribute.get_strategy())
        self.count, self._answers = 2, iter(answers)

    def table(self, values):
        return np.array([values, next(self._answers)], np.float64)

    def gather(self, content):
        return [content, next(self._answers)]


def test_one_process_exchanges_nothing(one_device, two_replicas):
    for strategy, replicas in ((one_device, 1), (two_replicas, 2)):
        cluster = Cluster.of(strategy)
        assert cluster is Cluster.of(strategy)
        assert (cluster.count, cluster.index, cluster.local_replicas, cluster.several, cluster.is_chief) == (1, 0, replicas, False, True)
        assert cluster.table([1, 2]).tolist() == [[1, 2]]
        assert cluster.gather(b"x") == [b"x"] and cluster.from_chief(b"y") == b"y"
        assert cluster.all(True) and not cluster.all(False) and cluster.any(True, False) == [True, False]
        assert cluster.together(lambda: 5, on="this") == 5
        cluster.check_same({"a": 1})


def test_one_worker_goes_by_its_own_clock_and_requests():
    asked = [False, False]
    agreement = Agreement(Cluster.of(tf.distribute.get_strategy()), lambda: 7.0, lambda: tuple(asked))
    assert agreement.before_call(5, settle=True) == 5 and agreement.now() == 7.0 and not agreement.ends
    asked[:] = True, True
    assert agreement.ends and agreement.ends_by_system


def test_workers_do_the_least_steps_by_the_clock_of_the_chief():
    # steps, clock, next look, a look by the time, interrupted, preempted, wants to settle
    agreement = Agreement(Two([[3, 50.0, 8, 0, 0, 0, 0]]), lambda: 7.0, lambda: (False, False))
    agreement.propose(9, False)
    assert agreement.before_call(5, settle=False) == 3
    assert agreement.now() == 7.0 and agreement.is_due(8) and not agreement.is_due(7)


@pytest.mark.parametrize(
    ("kind", "message", "raised"),
    [
        (tf.errors.InvalidArgumentError, "indices[0] = 7 is not in [0, 3) on /job:worker/replica:0/task:0/device:CPU:0", tf.errors.OpError),
        (tf.errors.UnavailableError, "Socket closed", WorkerLost),
        (tf.errors.InternalError, "Collective ops is aborted by: Error reported from /job:worker/task:1", WorkerLost),
    ],
)
def test_an_error_of_a_step_is_not_taken_for_a_lost_worker(kind, message, raised):
    with pytest.raises(raised), Two([]).noticing_loss():
        raise kind(None, None, message)


@pytest.mark.parametrize(("interrupted", "preempted", "settle"), [(1, 0, 0), (1, 1, 0), (0, 0, 1)])
def test_what_one_worker_asks_for_all_do(interrupted, preempted, settle):
    agreement = Agreement(Two([[3, 0.0, 8, 0, interrupted, preempted, settle]]), lambda: 7.0, lambda: (False, False))
    assert agreement.before_call(5, settle=False) == 0 and agreement.settle == bool(settle)
    assert agreement.ends == bool(interrupted) and agreement.ends_by_system == bool(preempted)


def test_data_that_ends_on_one_worker_only_is_an_error_on_all():
    agreement = Agreement(Two([[0, 0.0, 8, 0, 0, 0, 0]]), lambda: 7.0, lambda: (False, False))
    with pytest.raises(ValueError, match="The data of worker 1 has ended, and other workers have more batches"):
        agreement.before_call(5, settle=False)


def test_settings_that_differ_are_named():
    with pytest.raises(MismatchError, match=r"data\.sizes\[1\] is 2 on worker 0 and 3 on worker 1. Start all"):
        Two([b'{"data": {"sizes": [1, 3], "seed": 0}}']).check_same({"data": {"sizes": [1, 2], "seed": 0}})


def test_an_error_of_the_chief_is_one_of_all():
    cluster = Two([b"null"])
    with pytest.raises(ZeroDivisionError):
        cluster.together(lambda: 1 / 0, on="dividing")
    cluster = Two([])
    cluster.index = 1
    cluster.gather = lambda content: [b'"division by zero"', content]
    with pytest.raises(RuntimeError, match=r"The chief failed \(dividing\): division by zero"):
        cluster.together(lambda: 1 / 0, on="dividing")


def test_who_acts_alone_cannot_exchange():
    cluster = Two([])
    with cluster.alone("MyHook"), pytest.raises(RuntimeError, match="MyHook acts on the chief only"):
        Cluster.table(cluster, [1.0])


ARRAYS = {
    "bfloat16": np.arange(6, dtype="float32").reshape(2, 3).astype(ml_dtypes.bfloat16),
    "float16": np.array([1.5, np.inf, np.nan], "float16"),
    "empty": np.zeros([0, 3], "float32"),
    "scalar": np.array(7, "int64"),
    "bool": np.array([True, False]),
    "strings": np.array([b"a", b"", b"long \x00 one"], object),
    "transposed": np.arange(6.0).reshape(2, 3).T,
}


def test_arrays_come_back_bit_for_bit():
    files = {"feed/index": b"\x00\x01", "feed/none": b""}
    arrays, described, found = unpacked(packed(ARRAYS, {"step": 3, "names": ["a"]}, files))
    assert described == {"step": 3, "names": ["a"]} and found == files
    for name, array in ARRAYS.items():
        assert_same(array, np.asarray(arrays[name]), name)


def test_rows_summed_over_workers_are_rows_merged_over_replicas():
    spec = LogSpec({"mean": Mean, "sum": Sum, "last": Last})
    rows = tf.constant(
        [[16, 0.0, 2.0, 16, 5.0, 1, 3.0, 16], [1, 0.0, 7.0, 1, 4.0, 1, 9.0, 1], [0, 0.0, np.nan, 0, np.nan, 0, np.nan, 0]], tf.float64
    )
    summed = sum(_summands(spec, row[None])[0] for row in rows)
    np.testing.assert_array_equal(_averaged(spec, summed), merge_replicas(spec, rows))
    np.testing.assert_allclose(merge_replicas(spec, rows), [17, 0, 39 / 17, 17, 9, 2, 57 / 17, 17])
