"""Escape texts from outside for terminals and logs; texts of the app as plain ones.

Ids of customers are any text without control characters: they may hold U+202E, which turns what follows
around, or U+2028, which ends a line in some programs.
"""

from __future__ import annotations

import json

__all__ = ["as_text", "escape_invisible", "plain_text"]


def escape_invisible(text: str) -> str:
    r"""Escape format characters, separators of lines and other invisible ones as JSON does: ``\u202e``.

    Line feeds stay. JSON stays JSON, with the same value.
    """
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def plain_text(text: str) -> str:
    """Convert a text to one of the type ``str``: a member of an ``Enum`` is formatted by its name."""
    return text if type(text) is str else str.__str__(text)


def as_text(value: object) -> str:
    """Format a value; a text of any type becomes a plain one."""
    return plain_text(value) if isinstance(value, str) else str(value)


def _escaped(line: str) -> str:
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)
