"""Writes `docs/layers.md`, one row for each layer, loss and metric of the package `layers`, from their docstrings.

    python scripts/layers_table.py                       # to be run after a docstring was changed; a test compares the page with it

It relies on the form of these docstrings: a first sentence, an indented formula, and the sections Call, Losses, Metrics and References.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from absl import flags

from research import command_line

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "layers.md"

HEAD = """\
# The layers

One row for each layer of the package [`layers`](../layers/__init__.py), generated from its docstring by `python scripts/layers_table.py`:
edit the docstring, not this page. The docstring also has the arguments, shapes and an example. [writing_layers.md](writing_layers.md) shows
how to write your own layer, and how to check it.

Every layer works in eager mode, graphs and XLA, in `model.fit` and loops, on several replicas, in mixed precision, and in every way of
saving. Losses go to `layer.losses`; metrics appear in the logs as `"<layer name>/<metric>"`.
"""

SECTIONS = ("Args", "Call", "Returns", "Losses", "Metrics", "Raises", "Example", "References")


@dataclasses.dataclass(frozen=True)
class Docstring:
    """The parts of a docstring that the table shows.

    Attributes:
        purpose: first sentence or paragraph.
        formula: lines of the first indented block.
        sections: title -> its text, without the indentation.
    """

    purpose: str
    formula: list[str]
    sections: dict[str, str]

    def entries(self, section: str) -> dict[str, str]:
        """Name -> description, of a section that is a list of them; an entry may have several names."""
        entries: dict[str, str] = {}
        for names, text in re.findall(r"^(\w+(?:, \w+)*): (.*(?:\n .*)*)", self.sections.get(section, ""), re.MULTILINE):
            entries |= {name: " ".join(text.split()) for name in names.split(", ")}
        return entries

    @property
    def papers(self) -> list[str]:
        """Their arXiv numbers."""
        return re.findall(r"arXiv:(\d{4}\.\d{4,5})", self.sections.get("References", ""))


def parse(text: str) -> Docstring:
    """Reads a docstring as `inspect.getdoc` gives it."""
    title = rf"^({'|'.join(SECTIONS)}):\n"
    preamble, *rest = re.split(title, text, flags=re.MULTILINE)
    sections = {name: inspect.cleandoc(f"\n{body}").strip() for name, body in zip(rest[::2], rest[1::2], strict=True)}
    purpose, *paragraphs = re.split(r"\n\s*\n", preamble)
    formula = next((p for p in paragraphs if all(line.startswith("    ") for line in p.splitlines() if line.strip()) and p.strip()), "")
    return Docstring(" ".join(purpose.split()), [" ".join(line.split()) for line in formula.splitlines()], sections)


def members(kind: str) -> dict[str, type]:
    """Name -> class, of the layers, losses or metrics that `layers` exports; without the bases."""
    import keras

    import layers

    base = {"layers": keras.layers.Layer, "losses": keras.losses.Loss, "metrics": keras.metrics.Metric}[kind]
    exported = {name: getattr(layers, name) for name in sorted(layers.__all__) if name not in ("Layer", "Model")}
    return {name: member for name, member in exported.items() if inspect.isclass(member) and issubclass(member, base)}


def page() -> str:
    """The text of `docs/layers.md`."""
    text = (
        HEAD + "\n" + _table(["layer", "for", "formula", "paper", "call", "loss", "metrics"], map(_layer_row, members("layers").values()))
    )
    for kind in ("losses", "metrics"):
        if classes := members(kind):
            text += f"\n## {kind.capitalize()}\n\n" + _table([kind, "for", "formula", "paper"], map(_row, classes.values()))
    return text


def _layer_row(kind: type) -> list[str]:
    doc = parse(inspect.getdoc(kind) or "")
    losses = [line for line in doc.formula if re.match(r"loss\b", line)]
    formula = [line for line in doc.formula if line not in losses]
    loss = [_code(line.partition("=")[2].strip()) for line in losses] or [_plain(doc.sections.get("Losses", "")) or "-"]
    name, purpose, _, papers = _row(kind)
    return [name, purpose, _lines(formula), papers, _call(doc), "<br>".join(loss), _plain(", ".join(doc.entries("Metrics"))) or "-"]


def _row(kind: type) -> list[str]:
    doc = parse(inspect.getdoc(kind) or "")
    source = pathlib.Path(inspect.getsourcefile(kind) or "").relative_to(REPOSITORY)
    papers = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in doc.papers)
    return [
        f"[{kind.__name__}](../{source.as_posix()})",
        _plain(doc.purpose),
        _lines(doc.formula),
        papers or _plain(doc.sections.get("References", "")) or "-",
    ]


def _call(doc: Docstring) -> str:
    """Arguments with their shapes, and the shape of what comes out."""
    arguments = [f"{name} {_shape(text)}".strip() for name, text in doc.entries("Call").items()]
    outputs = re.split(r"[.;](?:\s|$)", " ".join(doc.sections.get("Returns", "").split()))[0]
    shape = "" if " pair " in outputs else _shape(outputs)
    return f"{_code(', '.join(arguments))} to {_code(shape) or _plain(outputs[:1].lower() + outputs[1:])}"


def _shape(text: str) -> str:
    """The shape that a description begins with, or has after a word or two: `[B, T, D]`."""
    found = re.match(r"(?:\w+ ){0,2}`(\[[^`]*\])`", text)
    return found[1] if found else ""


def _table(titles: list[str], rows: Iterable[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _lines(lines: Iterable[str]) -> str:
    return "<br>".join(_code(line) for line in lines) or "-"


def _code(text: str) -> str:
    return f"`{_plain(text.replace('`', ''))}`" if text else ""


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def undocumented(kind: type, *, sections: Iterable[str]) -> Iterator[str]:
    """What a docstring lacks."""
    doc = parse(inspect.getdoc(kind) or "")
    if not doc.formula:
        yield "a formula"
    yield from (section for section in sections if section not in doc.sections)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("output", str(PAGE), "File to write.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    with command_line.quiet_tensorflow():
        text = page()
    pathlib.Path(args.output).write_text(text, encoding="utf-8")
    print(f"Wrote {os.path.relpath(args.output)}.")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
