"""Modules, functions and scripts stay as small as the design says: a stranger can read each at once."""

from __future__ import annotations

import ast
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final

import pytest

import meterkit

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(meterkit.__file__).parent
MODULES: Final = sorted(ROOT.rglob("*.py"))


def functions() -> Iterator[tuple[str, int]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(ROOT)} {node.name}"
                yield name, (node.end_lineno or node.lineno) - node.lineno + 1


def code_of(path: Path) -> int:
    """The lines of a script below its header."""
    lines = path.read_text(encoding="utf-8").split("\n")
    header = next(number for number, line in enumerate(lines) if not line.startswith(("--", "#!")))
    return sum(1 for line in lines[header:] if line.strip())


def test_modules_are_short() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").split("\n")) for path in MODULES
    }
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert 150 <= median(lines.values()) <= 200


@pytest.mark.dear("all modules are parsed")
def test_functions_are_short() -> None:
    lines = dict(functions())
    assert {name: count for name, count in lines.items() if count > 70} == {}
    assert quantiles(lines.values(), n=20)[-1] <= 40


def test_scripts_are_short() -> None:
    scripts = Path(str(files("meterkit") / "lua"))
    commands = {path.name: code_of(path) for path in scripts.glob("*.lua")}
    includes = {path.name: code_of(path) for path in scripts.glob("include/*.lua")}
    assert commands
    assert includes
    assert {name: count for name, count in commands.items() if count > 120} == {}
    assert {name: count for name, count in includes.items() if count > 60} == {}


def test_no_type_is_ignored() -> None:
    assert [str(path) for path in MODULES if "type: ignore" in path.read_text(encoding="utf-8")] == []
