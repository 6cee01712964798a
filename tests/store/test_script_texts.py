"""The scripts read like code: numbers have names, and an include is one function that takes what it needs."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.keys import FORMAT
from meterkit.redis import scripts
from meterkit.redis.scripts import NAMES

LUA: Final = Path(str(files("meterkit") / "lua"))
CONSTANTS: Final = dict(
    re.findall(r"^local (\w+) = (\S+)", (LUA / "shared/constants.lua").read_text(), re.MULTILINE)
)


def code(path: Path) -> str:
    """A file without its comments."""
    return re.sub(r"--.*", "", path.read_text())


@pytest.mark.parametrize("path", sorted(LUA.glob("include/*.lua")), ids=lambda path: path.stem)
def test_an_include_is_one_function_that_takes_what_it_needs(path: Path) -> None:
    assert re.findall(r"^local function (\w+)", code(path), re.MULTILINE) == [path.stem]
    assert re.findall(r"^(?!local function|  |end$).+", code(path), re.MULTILINE) == []
    assert re.findall(r"KEYS|ARGV", code(path)) == []


@pytest.mark.parametrize("path", sorted([*LUA.glob("*.lua"), *LUA.glob("include/*.lua")]), ids=str)
def test_large_numbers_have_names(path: Path) -> None:
    assert re.findall(r"\d{5,}", code(path)) == []


@pytest.mark.parametrize("path", sorted(LUA.glob("*.lua")), ids=lambda path: path.stem)
def test_keys_and_arguments_have_names(path: Path) -> None:
    lines = [line for line in code(path).split("\n") if re.search(r"(KEYS|ARGV)\[\d+\]", line)]
    assert [
        line for line in lines if not re.match(r"\s*local [\w, ]+ = |  backing, hold = cjson", line)
    ] == []


def test_the_scripts_and_the_library_mean_the_same_format() -> None:
    assert (CONSTANTS["FORM"], CONSTANTS["NO_STATE"]) == (str(-FORMAT), f"'{NO_STATE}'")


@pytest.mark.parametrize("name", [*NAMES, "rights"])
def test_every_name_of_a_constant_is_replaced(name: str) -> None:
    text = re.sub(r"--.*", "", scripts.load(name).text)
    assert set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", text)) == set()
    assert not re.search(r"^--include", scripts.load(name).text, re.MULTILINE)


def test_every_constant_is_used() -> None:
    text = "".join(code(path) for path in (*LUA.glob("*.lua"), *LUA.glob("include/*.lua")))
    assert [name for name in CONSTANTS if not re.search(rf"\b{name}\b", text)] == []
