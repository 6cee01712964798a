"""The shapes of ``--json`` that docs/cli.md documents, and their comparison with what commands print."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias, Union

Json: TypeAlias = Union["dict[str, Json]", "list[Json]", str, int, float, None]
Shape: TypeAlias = Union["dict[str, Shape]", "list[Shape]", None]
_PAGE: Final = Path(__file__).parents[2] / "docs/cli.md"
_ROW: Final = re.compile(r"^\| (`[^|]+) \| (`[^|]+) \|$", re.MULTILINE)
_CODE: Final = re.compile(r"`([^`]+)`")
_TOKEN: Final = re.compile(r"[{}\[\],:]|\w+\??")
_OBJECT: Final = re.compile(r"[A-Z][a-z]\w+")


@cache
def documented_shapes() -> Mapping[tuple[str, ...], Sequence[str]]:
    """The words of each row, a command with its options or the name of an object, with its shapes."""
    section = _PAGE.read_text("utf-8").partition("\n## JSON output\n")[2].partition("\n## ")[0]
    found: dict[tuple[str, ...], Sequence[str]] = {}
    for commands, shapes in _ROW.findall(section):
        for command in _CODE.findall(commands):
            assert tuple(command.split()) not in found, command
            found[tuple(command.split())] = _CODE.findall(shapes)
    return found


def shapes_of(arguments: Sequence[str]) -> Sequence[str]:
    """The shapes of a command line: those of the row with most of its words."""
    found = [words for words in documented_shapes() if _is_row_of(words, arguments)]
    return documented_shapes()[max(found, key=len)] if found else ()


def _is_row_of(words: Sequence[str], arguments: Sequence[str]) -> bool:
    names = [word for word in words if not word.startswith("--")]
    return list(arguments[: len(names)]) == names and set(words) <= set(arguments)


def is_shaped(value: Json, shape: str) -> bool:
    """Whether a value has the keys of a shape: those in capitals are any, `name?` may be left out."""
    return _fits(value, _parse(_TOKEN.findall(shape)))


def _parse(tokens: list[str]) -> Shape:
    """Parse a shape: a dict of `{…}`, a list of the alternatives of `[…]`, None of a plain value."""
    token = tokens.pop(0)
    if token == "[":
        items = [_parse(tokens)]
        while tokens.pop(0) == ",":
            items.append(_parse(tokens))
        return items
    if token != "{":
        (shape,) = documented_shapes()[token,] if _OBJECT.fullmatch(token) else ("",)
        return _parse(_TOKEN.findall(shape)) if shape else None
    keys: dict[str, Shape] = {}
    while token != "}":
        name, token = tokens.pop(0), tokens.pop(0)
        keys[name] = None
        if token == ":":
            keys[name], token = _parse(tokens), tokens.pop(0)
    return keys


def _fits(value: Json, shape: Shape) -> bool:
    if shape is None or value is None:
        return True
    if isinstance(shape, list):
        return isinstance(value, list) and all(any(_fits(one, item) for item in shape) for one in value)
    if not isinstance(value, dict):
        return False
    if any(name.isupper() for name in shape):
        (item,) = shape.values()
        return all(_fits(one, item) for one in value.values())
    needed = {name for name in shape if not name.endswith("?")}
    known = {name.rstrip("?"): item for name, item in shape.items()}
    return needed <= value.keys() <= known.keys() and all(_fits(value[name], known[name]) for name in value)


def check_json(arguments: Sequence[str], printed: str) -> None:
    """Compare the JSON of a command with the page; what is refused prints none."""
    if "--json" in arguments and printed:
        shapes, value = shapes_of(arguments), json.loads(printed)
        assert shapes, f"docs/cli.md has no JSON of meterkit {' '.join(arguments)}"
        assert any(is_shaped(value, shape) for shape in shapes), (arguments, shapes, value)
