"""The README of `llm_usage`: its code runs, and its table is that of the readers."""

# Internals: the paths of figures that each reader declares.

from __future__ import annotations

import re
import runpy
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final

import pytest

from llm_usage import providers
from llm_usage.json_values import Paths

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "src/llm_usage/README.md"
TOOL: Final = runpy.run_path(str(ROOT / "docs/tools/llm_usage_fields.py"))


def test_the_code_of_the_readme_runs_in_its_order() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), scope)  # noqa: S102 - the README's own code


def test_the_table_of_fields_is_that_of_the_readers() -> None:
    readme = README.read_text("utf-8")
    assert TOOL["with_table"](readme) == readme, "run python docs/tools/llm_usage_fields.py"
    with pytest.raises(ValueError, match=r"README\.md has no lines '<!-- fields"):
        TOOL["with_table"]("")


def test_each_path_that_a_reader_declares_is_in_the_table() -> None:
    fields = [shape.fields for api in TOOL["apis"]() for shape in api.shapes]
    shown = {tuple(path) for one in fields for many in one.values() for path in many}
    declared = {
        tuple(path)
        for module in iter_modules(providers.__path__, f"{providers.__name__}.")
        for value in vars(import_module(module.name)).values()
        if isinstance(value, Paths)
        for many in value.values()
        for path in many
    }
    assert len(declared) > 100
    assert declared - shown == set()


def test_the_readme_names_each_public_name() -> None:
    named = set(re.findall(r"\w+", README.read_text("utf-8")))
    assert {*import_module("llm_usage").__all__} - named == set()
