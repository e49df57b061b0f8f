"""docs/layers.md is what the docstrings say, every layer is on it and says all that it should."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re

import keras

import layers
from research import command_line
from scripts import layers_table


def test_the_page_is_up_to_date():
    found, expected = layers_table.PAGE.read_text(encoding="utf-8"), layers_table.page()
    assert found == expected, "docs/layers.md is not what the docstrings say: run python scripts/layers_table.py and commit the page"


def test_every_layer_loss_and_metric_has_a_row():
    rows = re.findall(r"^\| \[(\w+)\]", layers_table.page(), re.MULTILINE)
    exported = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert sorted(rows) == sorted(exported - {"Layer", "Model"})


def test_every_layer_of_a_module_is_exported():
    for info in pkgutil.iter_modules(layers.__path__):
        if not info.ispkg and info.name != "base":
            module = importlib.import_module(f"layers.{info.name}")
            classes = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
            own = {x.__name__ for x in classes if keras.saving.get_registered_name(x).startswith("tapeloops>")}
            assert own <= set(layers.__all__), info.name


def test_every_layer_has_formula_shapes_errors_an_example_and_a_paper():
    lacking = {}
    for name, kind in layers_table.members("layers").items():
        wanted = ["Args", "Call", "Returns", "Raises", "Example", "References"]
        if missing := list(layers_table.undocumented(kind, sections=wanted)):
            lacking[name] = missing
    assert lacking == {}


def test_every_example_is_one_that_runs():
    finder = doctest.DocTestFinder(recurse=False)
    for name, kind in layers_table.members("layers").items():
        module = importlib.import_module(kind.__module__)
        (found,) = finder.find(kind, name, module)
        assert found.examples, name
        assert any(example.want for example in found.examples), f"the example of {name} shows nothing"


def test_metrics_on_the_page_are_those_that_a_layer_declares():
    """As far as they are declared by name in the source of `__init__` or `build`."""
    for name, kind in layers_table.members("layers").items():
        declared = set(re.findall(r'declare_metric\(\s*"(\w+)"', inspect.getsource(kind)))
        said = set(layers_table.parse(inspect.getdoc(kind)).entries("Metrics"))
        assert declared <= said, name


EXAMPLE = """Adds a constant | a bias.

    y    = x + c,
           with c >= 0
    loss = |c|

It is learned.

Args:
    size: size of c
        at the start.

Call:
    inputs: floating tensor of shape `[B, D]`.
    mask: bool `[B]`.
    training: whether to add.

Returns:
    `[B, D]` in the compute dtype; what it was.

Metrics:
    one, two: sizes.
    three: another
        size.

References:
    Nobody 2020, arXiv:2001.00001; and arXiv:2001.00002.
"""


class Adder:
    __doc__ = EXAMPLE


def test_a_row_is_what_the_docstring_says():
    doc = layers_table.parse(inspect.getdoc(Adder))
    assert doc.formula == ["y = x + c,", "with c >= 0", "loss = |c|"]
    assert doc.entries("Metrics") == {"one": "sizes.", "two": "sizes.", "three": "another size."}
    assert [*layers_table.undocumented(Adder, sections=["Args", "Raises"])] == ["Raises"]
    assert layers_table._layer_row(Adder) == [
        "[Adder](../tests/layers/test_catalogue.py)",
        "Adds a constant \\| a bias.",
        "`y = x + c,`<br>`with c >= 0`",
        "[2001.00001](https://arxiv.org/abs/2001.00001), [2001.00002](https://arxiv.org/abs/2001.00002)",
        "`inputs, mask [B], training` to `[B, D]`",
        "`\\|c\\|`",
        "one, two, three",
    ]


def test_the_program_writes_the_page(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        arguments = ["layers_table.py", f"--output={tmp_path / 'page.md'}"]
        assert command_line.run(layers_table.main, layers_table.define_flags, arguments) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == layers_table.page()
    assert out.getvalue().endswith("page.md.\n")
