"""The benchmark measures what it says, and its table holds what was measured. No speed is asserted."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from research import command_line
from research.benchmark_contenders import CONTENDERS
from research.benchmark_limit import Products
from research.benchmark_workloads import WORKLOADS
from scripts import benchmark

RATES = {"fit": [100.0, 50.0, 90.0], "fit_50": [150.0, 100.0, 120.0], "fit_50_xla": [300.0, 300.0, 300.0], "loops": [300.0, 200.0, 360.0]}
RATES |= {"while": [300.0, 250.0, 300.0]}


def run(*arguments):
    """Runs the program in this process; returns its exit code, what it printed, and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line.run(benchmark.main, benchmark.define_flags, ["benchmark.py", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def test_one_tiny_workload(tmp_path):
    file = tmp_path / "measured.json"
    contenders = "fit,fit_callbacks,while,loops,loops_hooks,loops_xla"
    code, out, err = run(
        "--workloads=wide_deep", f"--contenders={contenders}", "--rounds=1", "--seconds=0", "--rows=320", f"--json={file}", "--markdown"
    )
    assert code == 0, err
    measured = json.loads(file.read_text())
    assert measured["machine"]["cores"] >= 1 and measured["settings"]["rounds"] == 1
    rates = measured["workloads"]["wide_deep"]["rates"]
    assert list(rates) == contenders.split(",")
    assert all(len(values) == 1 and values[0] > 0 for values in rates.values())
    for name, (rate,) in rates.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f"| {name} ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{rate:,.0f}"
        assert cells[3] == f"{rate / rates['fit'][0]:.2f}x"


def test_a_step_is_shown_by_its_operations():
    arguments = ["--workloads=wide_deep", "--contenders=loops,loops_xla", "--rounds=1", "--seconds=0", "--rows=640", "--operations=4"]
    code, out, err = run(*arguments)
    assert code == 0, err
    for contender, product in ("loops", "MatMul"), ("loops_xla", "fusion"):
        lines = out.split(f"a step of {contender}, by operation\n")[1].splitlines()[1:6]
        assert lines[4].startswith("all others") and all(float(line.split()[-1]) > 0 for line in lines[:4]), lines
        assert any(product in line for line in lines), lines


@pytest.mark.parametrize("name", ["fit", "eager", "while", "loops", "loops_hooks"])
def test_a_contender_does_the_steps_that_it_counts(name, tmp_path):
    workload = WORKLOADS["wide_deep"].resized(rows=160)
    contender = CONTENDERS[name]()
    contender.setup(workload, tmp_path)
    model = contender._loop.task.model if hasattr(contender, "_loop") else contender._model
    before = int(model.optimizer.iterations.numpy())
    timed = contender.run(3)
    assert timed.steps == int(model.optimizer.iterations.numpy()) - before == 15
    assert timed.seconds > 0


def test_hooks_on_means_that_all_of_it_is_written(tmp_path):
    contender = CONTENDERS["loops_hooks"]()
    contender.setup(WORKLOADS["wide_deep"].resized(rows=160), tmp_path)
    contender.run(2)
    assert (tmp_path / "best.weights.h5").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) > 1
    assert list(tmp_path.rglob("*tfevents*"))


def test_batch_sizes_change_the_steps_of_an_epoch():
    workload = WORKLOADS["wide_deep"].resized(rows=1000, batch_size=128)
    assert (workload.rows, workload.batch_size, workload.steps) == (896, 128, 7)
    assert list(benchmark._sized({"a": workload}, ["32", "512"], None)) == ["a@32", "a@512"]


def test_peers_have_a_column_when_they_run():
    rates = {**RATES, "torch": [150.0, 100.0, 180.0], "jax": [100.0, 100.0, 100.0]}
    assert benchmark.ratios(rates)["vs best peer"]["loops"] == 2.0 and "vs best peer" not in benchmark.ratios(RATES)
    assert benchmark.table(rates)[-2] == "best peer: torch"


def test_the_limit_does_all_products_of_a_step_and_no_other(tmp_path, monkeypatch):
    flops = []
    product = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: (flops.append(a.shape[0] * a.shape[1] * b.shape[1]), product(a, b, out=out)))
    contender = Products()
    contender.setup(WORKLOADS["mlp_sgd"].resized(rows=32), tmp_path)
    flops.clear()
    assert contender.run(1).steps == 1
    forward = [784 * 300, 300 * 100, 100 * 10]
    assert sum(flops) == 32 * (3 * sum(forward) - forward[0])


def test_ratios_are_medians_over_rounds_not_ratios_of_medians():
    assert benchmark.ratio(RATES, "loops", "fit") == 4.0  # of 3, 4 and 4; the medians' ratio is 3.33
    assert benchmark.ratio(RATES, "loops", "eager") is None
    assert benchmark.best(RATES, benchmark.GRAPH_FITS) == "fit_50"
    assert benchmark.best(RATES, benchmark.FITS) == "fit_50_xla"
    assert benchmark.best(RATES, ["eager"]) is None


def test_the_table_has_every_ratio_that_is_promised():
    lines = benchmark.table(RATES)
    assert lines[0].split("  ")[0] == "contender"
    (line,) = [line for line in lines if line.startswith("loops")]
    assert line.split() == ["loops", "300", "53%", "4.00x", "2.00x", "1.00x", "1.00x"]
    assert lines[-2:] == ["best graph fit: fit_50; best fit: fit_50_xla", "its like: loops vs while"]


def test_the_mean_over_workloads_is_geometric():
    slower = {"fit": [100.0], "loops": [100.0]}
    lines = benchmark.mean_table({"a": RATES, "b": slower})
    (line,) = [line for line in lines if line.startswith("loops")]
    assert line.split()[1:3] == ["2", "2.00x"]


@pytest.mark.parametrize(
    "argument, sentence",
    [
        ("--workloads=mlp", "There is no workload 'mlp'; there are mlp_sgd, mlp_adam, selu, selu_dropout, conv, wide_deep."),
        ("--contenders=fits", "There is no contender 'fits'"),
        ("--peers=caffe", "There is no peer 'caffe'"),
        ("--batch_sizes=32,many", "--batch_sizes has 'many'"),
        ("--rounds=0", "rounds"),
        ("--round=1", "Unknown command line flag 'round'"),
    ],
)
def test_what_does_not_exist_gets_a_sentence(argument, sentence):
    code, _, err = run(argument)
    assert code == command_line.EXIT_REFUSED
    assert sentence in err and "Traceback" not in err
