"""The benchmark measures what it says, and its file and its tables hold what was measured. No speed is asserted."""

from __future__ import annotations

import json
import statistics

import pytest

from research import command_line
from research.benchmarks import registry
from research.benchmarks.measurements import Measurements
from scripts import benchmark, benchmark_report
from tests.research.benchmarks.fakes import fake
from tests.scripts.programs import run

TINY = ["--workloads=wide_deep", "--batch_sizes=32", "--rounds=1", "--seconds=0", "--patience=0", "--rows=640"]


@pytest.fixture
def fakes(monkeypatch):
    """Contenders that train nothing, in rows of their own."""
    entries = {
        "fit": fake([100]),
        "loops": fake([150, 200, 300]),
        "loops_auto": fake([400]),
        "torch": fake(fault="abort"),
        "jax": fake(fault="missing"),
    }
    monkeypatch.setattr(registry, "CONTENDERS", entries)
    monkeypatch.setattr(registry, "contenders_of", lambda row: list(entries))


def test_one_tiny_workload_in_a_process_of_its_own(tmp_path):
    file = tmp_path / "measured.json"
    code, out, err = run(benchmark, *TINY, "--contenders=loops_auto", "--operations=99", f"--json={file}")
    assert code == 0, err
    (row,) = json.loads(file.read_text())["rows"].values()
    found = row["contenders"]["loops_auto"]
    assert found["ended"] is None, found["ended"]
    assert len(found["rates"]) == 1 and found["rates"][0] > 0 and row["data"]["steps"] == 20
    assert found["mode"] == "xla" and found["memory"]["peak"] > found["memory"]["imported"]
    assert row["run"]["rounds"] == 1 and row["run"]["machine"]["cores"] >= 1 and "tensorflow" in row["run"]["versions"]
    assert row["run"]["command"].startswith("python scripts/benchmark.py --") and str(tmp_path) not in row["run"]["command"]
    (line,) = [line for line in out.splitlines() if line.startswith("loops_auto (xla) ")]
    assert line.split()[2] == f"{found['rates'][0]:,.0f}"
    # What its steps are made of; all of it, as the most expensive depends on what else the machine does.
    table = out.split("a step of loops_auto, by operation\n")[1]
    kinds = dict(line.rsplit(None, 1) for line in table[: table.index("all others")].splitlines()[1:])
    microseconds = [float(value.replace(",", "")) for value in kinds.values()]
    assert microseconds == sorted(microseconds, reverse=True) and microseconds[0] > 0 and any("fusion" in kind for kind in kinds), table


def test_the_pieces_of_a_benchmark_come_together_in_one_file(tmp_path, fakes):
    file = tmp_path / "measured.json"
    arguments = ["--sources=arrays", "--rounds=2", "--seconds=0", "--patience=0", f"--json={file}", "--noinference"]
    assert run(benchmark, "--workloads=selu", *arguments)[0] == 0
    first = json.loads(file.read_text())["rows"]["selu@32"]
    code, out, err = run(benchmark, "--workloads=selu,lstm", "--missing", *arguments)
    assert code == 0, err
    rows = json.loads(file.read_text())["rows"]
    assert list(rows) == ["selu@32", "lstm@32"] and rows["selu@32"] == first
    found = rows["lstm@32"]["contenders"]
    assert found["loops"]["rates"] == [200.0, 300.0] and statistics.median(found["fit"]["rates"]) == 100
    assert "torch ended: round 2: killed by SIGABRT: what it said last" in out and "jax: not installed: no_such_package" in out
    assert "selu@32" not in out
    assert not Measurements(file).holds("rows", "selu@32", rounds=3, seconds=0.0)  # it would be measured again


def test_the_report_changes_figures_only_and_only_once(tmp_path, fakes):
    file, page = tmp_path / "measured.json", tmp_path / "page.md"
    assert run(benchmark, "--workloads=lstm", "--rounds=2", "--seconds=0", "--patience=0", f"--json={file}")[0] == 0
    page.write_text("Prose.\n\n<!-- measured: arrays -->\n<!-- end -->\n\n<!-- measured: mode choices -->\nkept\n<!-- end -->\nMore.\n")
    assert run(benchmark_report, f"--json={file}", f"--page={page}", f"--mode_choices={tmp_path / 'none'}")[0] == 0
    once = page.read_text()
    assert once.startswith("Prose.\n\n<!-- measured: arrays -->\n| row ") and once.endswith("mode choices -->\nkept\n<!-- end -->\nMore.\n")
    assert "4.00x (4.00–4.00) `fit`" in once
    assert page.with_suffix(".png").stat().st_size > 1000
    assert run(benchmark_report, f"--json={file}", f"--page={page}", f"--mode_choices={tmp_path / 'none'}")[0] == 0
    assert page.read_text() == once


def test_the_page_of_the_project_is_what_the_report_writes():
    page = benchmark_report.DOCS / "benchmarks.md"
    content = Measurements(benchmark_report.DOCS / "benchmarks.json").content
    text = page.read_text(encoding="utf-8")
    assert benchmark_report.written(text, content, benchmark_report.DOCS / "mode_choices.json") == text


def test_every_planned_row_has_contenders_that_exist_and_other_sizes_can_be_asked_for():
    for row in registry.PLAN:
        names = registry.contenders_of(row)
        assert names and set(names) <= set(registry.CONTENDERS)
        assert {"fit_50", "loops", "loops_auto"} <= set(names) and set(names) & set(registry.OTHERS)
    values = command_line.parse(benchmark.define_flags, ["benchmark.py", "--workloads=lstm", "--batch_sizes=8,16", "--sources=tf.data"])
    assert [row.name for row in benchmark._rows(values)] == ["lstm@8 tf.data", "lstm@16 tf.data"]


@pytest.mark.parametrize(
    "argument, sentence",
    [
        ("--workloads=mlp", "There is no workload 'mlp'; there are mlp_sgd, mlp_adam, selu, selu_dropout, conv, wide_deep, lstm,"),
        ("--contenders=fits", "There is no contender 'fits'"),
        ("--sources=csv", "There is no source 'csv'; there are arrays, tf.data."),
        ("--batch_sizes=32,many", "--batch_sizes has 'many'"),
        ("--rounds=0", "rounds"),
        ("--round=1", "Unknown command line flag 'round'"),
    ],
)
def test_what_does_not_exist_gets_a_sentence(argument, sentence):
    code, _, err = run(benchmark, argument)
    assert code == command_line.EXIT_REFUSED
    assert sentence in err and "Traceback" not in err


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    (file := tmp_path / "measured.json").write_text("mine")
    code, _, err = run(benchmark, f"--json={file}")
    assert code == command_line.EXIT_REFUSED and "no JSON that this program wrote" in err and file.read_text() == "mine"
