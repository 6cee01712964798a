"""The Lua scripts, as the server gets them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

__all__ = ["NAMES", "Script", "load"]

NAMES: Final = (
    *("decide", "settle", "fence", "amend", "usage"),
    *("seal", "move", "lease", "claim", "forget", "grant", "void", "count", "recall"),
)

Clock = Literal["server", "caller"]
Dialect = Literal["server", "fake"]

_INCLUDE = re.compile(r"^--include (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its name, its text with all includes inlined, and the SHA-1 that EVALSHA names it by."""

    name: str
    text: str
    sha: str


def load(name: str, *, clock: Clock = "server", dialect: Dialect = "server") -> Script:
    """Read a script of this package.

    Args:
        name: the file's name without ``.lua``.
        clock: whose clock decides; ``caller`` is for tests with a clock that is set, and changes the SHA, so
            that a server never mixes the two.
        dialect: ``fake`` leaves out the first line, ``#!lua …``, which fakeredis does not know.
    """
    text = _read(f"{name}.lua")

    def inline(match: re.Match[str]) -> str:
        include = match[1]
        if include == "wall" and clock == "caller":
            include = "wall_argument"
        return _read(f"include/{include}.lua")

    text = _INCLUDE.sub(inline, text)
    if dialect == "fake":
        text = text.partition("\n")[2]
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(path: str) -> str:
    return (resources.files("meterkit") / "lua" / path).read_text(encoding="utf-8")
