"""The tree: source roots, namespace, types, size of files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = [ROOT / name for name in ("services", "schemas", "topology")]
SOURCES = [path for root in SOURCE_ROOTS for path in sorted((root / "everfold").rglob("*.py"))]
LINES_MAX = 768
"""The longest file of the code bases that ours learned from; typical ones have 60 to 250 lines."""


@pytest.mark.parametrize("root", SOURCE_ROOTS, ids=lambda path: path.name)
def test_no_root_holds_an_init_file_that_would_hide_the_others(root: Path) -> None:
    assert not (root / "everfold" / "__init__.py").exists()
    assert not (root / "__init__.py").exists()


@pytest.mark.parametrize("root", SOURCE_ROOTS, ids=lambda path: path.name)
def test_every_package_is_typed_and_has_an_init_file(root: Path) -> None:
    for package in (root / "everfold").iterdir():
        if package.is_dir() and package.name != "__pycache__" and any(package.rglob("*.py")):
            assert (package / "py.typed").is_file(), package
            assert (package / "__init__.py").is_file(), package


def test_nothing_is_left_to_do_without_an_issue() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in SOURCES if ast.get_docstring(ast.parse(path.read_text())) is None]
    assert not silent


def test_no_file_grows_beyond_one_concept() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in SOURCES
        if (count := len(path.read_text().splitlines())) > LINES_MAX and "generated" not in path.name
    }
    assert not long


def test_only_known_directories_lie_at_the_top() -> None:
    known = {"services", "schemas", "topology", "tests", "compose", "docs", "examples", "benchmarks"}
    made = {"dist", "build", "node_modules", "__pycache__", "everfold-data"}
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert top <= known | made
