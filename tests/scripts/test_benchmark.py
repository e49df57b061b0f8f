"""The benchmark measures what it says, and its table holds what was measured. No speed is asserted."""

from __future__ import annotations

import json

import pytest

from research import command_line
from research.benchmarks import first_step
from research.benchmarks.workloads import WORKLOADS
from scripts import benchmark
from tests.scripts.programs import run

RATES = {"fit": [100.0, 50.0, 90.0], "fit_50": [150.0, 100.0, 120.0], "fit_50_xla": [300.0, 300.0, 300.0], "loops": [300.0, 200.0, 360.0]}
RATES |= {"while": [300.0, 250.0, 300.0]}


def test_one_tiny_workload(tmp_path):
    file = tmp_path / "measured.json"
    contenders = "fit,fit_callbacks"
    code, out, err = run(
        benchmark,
        "--workloads=wide_deep",
        f"--contenders={contenders}",
        "--rounds=1",
        "--seconds=0",
        "--rows=320",
        f"--json={file}",
        "--markdown",
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


def test_the_time_to_the_first_step_of_two_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(first_step, "CONTENDERS", {name: first_step.CONTENDERS[name] for name in ("fit", "loops")})
    file = tmp_path / "measured.json"
    code, out, err = run(benchmark, "--first_step", "--workloads=wide_deep", "--rounds=1", f"--json={file}")
    assert code == 0, err
    measured = json.loads(file.read_text())["first_step"]["wide_deep"]
    assert list(measured) == ["fit", "loops"]
    for name, (fits,) in measured.items():
        assert len(fits) == 2 and all(0 < step < whole for step, whole in fits)
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[1:] == [f"{1000 * seconds:,.0f}" for one in fits for seconds in one]


def test_a_step_is_shown_by_its_operations():
    # All of them: which are the most expensive depends on what else the machine does.
    arguments = ["--workloads=wide_deep", "--contenders=loops,loops_xla", "--rounds=1", "--seconds=0", "--rows=640", "--operations=99"]
    code, out, err = run(benchmark, *arguments)
    assert code == 0, err
    for contender, product in ("loops", "MatMul"), ("loops_xla", "fusion"):
        table = out.split(f"a step of {contender}, by operation\n")[1]
        kinds = dict(line.rsplit(None, 1) for line in table[: table.index("all others")].splitlines()[1:])
        microseconds = [float(value.replace(",", "")) for value in kinds.values()]
        assert microseconds == sorted(microseconds, reverse=True) and microseconds[0] > 0, table
        assert any(product in kind for kind in kinds), table


def test_batch_sizes_change_the_steps_of_an_epoch():
    workload = WORKLOADS["wide_deep"].resized(rows=1000, batch_size=128)
    assert (workload.rows, workload.batch_size, workload.steps) == (896, 128, 7)
    assert list(benchmark._sized({"a": workload}, ["32", "512"], None)) == ["a@32", "a@512"]


def test_peers_have_a_column_when_they_run():
    rates = {**RATES, "torch": [150.0, 100.0, 180.0], "jax": [100.0, 100.0, 100.0]}
    assert benchmark.ratios(rates)["vs best peer"]["loops"] == 2.0 and "vs best peer" not in benchmark.ratios(RATES)
    assert benchmark.table(rates)[-2] == "best peer: torch"


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
    code, _, err = run(benchmark, argument)
    assert code == command_line.EXIT_REFUSED
    assert sentence in err and "Traceback" not in err
