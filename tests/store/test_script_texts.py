"""The scripts read like code: numbers have names, and an include is one function that takes what it needs."""

# Internals: a pure table of the texts of all scripts.

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

from meterkit.redis import scripts
from meterkit.redis.scripts import NAMES

LUA: Final = Path(str(files("meterkit") / "lua"))
INCLUDED: Final = sorted(LUA.glob("include/*.lua"))
SCRIPTS: Final = sorted(LUA.glob("*.lua"))
CONSTANTS: Final = dict(
    re.findall(r"^local (\w+) = (\S+)", (LUA / "shared/constants.lua").read_text(), re.MULTILINE)
)


def code(path: Path) -> str:
    """A file without its comments."""
    return re.sub(r"--.*", "", path.read_text())


def test_an_include_is_one_function_that_takes_what_it_needs() -> None:
    for path in INCLUDED:
        assert re.findall(r"^local function (\w+)", code(path), re.MULTILINE) == [path.stem]
        beyond = re.findall(r"^(?!local function|  |end$).+|KEYS|ARGV", code(path), re.MULTILINE)
        assert (path.stem, beyond) == (path.stem, [])


def test_large_numbers_keys_and_arguments_have_names() -> None:
    assert [path.stem for path in (*SCRIPTS, *INCLUDED) if re.search(r"\d{5,}", code(path))] == []
    for path in SCRIPTS:
        lines = [line for line in code(path).split("\n") if re.search(r"(KEYS|ARGV)\[\d+\]", line)]
        named = re.compile(r"\s*local [\w, ]+ = |  backing, hold = cjson")
        assert (path.stem, [line for line in lines if not named.match(line)]) == (path.stem, [])


def test_every_constant_is_used_and_every_name_of_one_replaced() -> None:
    for name in (*NAMES, "rights"):
        text = scripts.load(name).text
        left = re.findall(r"\b[A-Z]+_[A-Z_]+\b", re.sub(r"--.*", "", text))
        left += re.findall(r"^--include", text, re.MULTILINE)
        assert (name, left) == (name, [])
    text = "".join(map(code, (*SCRIPTS, *INCLUDED)))
    assert [name for name in CONSTANTS if not re.search(rf"\b{name}\b", text)] == []
