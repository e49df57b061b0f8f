"""After the README's first command type checkers and editors outside of the repository find the packages; `.ci/run` asks mypy."""

from __future__ import annotations

import configparser
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_packages_say_that_they_have_types():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for package in ("loops", "layers"):
        assert (ROOT / package / "py.typed").is_file()
        assert config["options.package_data"][package] == "py.typed"


def test_an_editable_install_is_a_plain_path(tmp_path):
    """Type checkers follow a path, and no import hook."""
    pytest.importorskip("setuptools")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for package in ("loops", "layers", "research"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('__version__ = "0"\n' if package == "loops" else "")
        (tmp_path / package / "py.typed").touch()
    script = "import sys; from setuptools import build_meta; print(build_meta.build_editable(sys.argv[1]))"
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", script, wheels], cwd=tmp_path, capture_output=True, text=True, check=True)
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", wheels / made.stdout.split()[-1], tmp_path / "unpacked"], check=True, capture_output=True
    )
    assert listing.returncode == 0
    paths = list((tmp_path / "unpacked").glob("*.pth"))
    assert [path.read_text().strip() for path in paths] == [str(tmp_path)]
