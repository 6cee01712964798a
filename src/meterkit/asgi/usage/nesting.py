"""Passing over JSON values by their brackets and quotation marks, as fast as regular expressions go."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["TEXT", "Nesting", "TextEnd"]

DEPTH_MAX: Final = 1_000
"""What is nested deeper is no provider's answer; Python's own parser gives up there too."""

_TEXT: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
TEXT: Final = re.compile(_TEXT, re.DOTALL)
"""A whole JSON text."""

_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_LEVELS: Final = 3
_QUOTE, _BACKSLASH = b'"\\'
_OPENING: Final = b"{["


def _balanced(levels: int) -> re.Pattern[bytes]:
    """Everything up to a bracket or text that does not end within these bytes, or is nested deeper."""
    inside = rb'(?:[^"{}\[\]]++|' + _TEXT + rb")*+"
    for _ in range(levels):
        inside = rb'(?:[^"{}\[\]]++|' + _TEXT + rb"|[{\[]" + inside + rb"[}\]])*+"
    return re.compile(inside, re.DOTALL)


_BALANCED: Final = _balanced(_LEVELS)


class TextEnd:
    """Finds the end of a JSON text that began before."""

    __slots__ = ("_escaped",)

    def __init__(self) -> None:
        self._escaped = False

    def find(self, data: bytes, at: int) -> int:
        """Where the closing quotation mark is; -1 if it is not among these bytes.

        Args:
            data: the next bytes.
            at: where among them to begin.
        """
        if self._escaped and at < len(data):
            self._escaped = False
            at += 1
        end = data.find(b'"', at)
        if end >= 0 and (end == at or data[end - 1] != _BACKSLASH):
            return end
        match = _REST.match(data, at)
        end = at if match is None else match.end()
        if end < len(data) and data[end] == _QUOTE:
            return end
        self._escaped = end < len(data)  # A backslash is the last byte.
        return -1


class Nesting:
    """Finds the end of an array or object whose first bracket was read.

    Attributes:
        too_deep: whether brackets are nested deeper than the bound; nothing is found any more then.
    """

    __slots__ = ("_depth", "_text", "too_deep")

    def __init__(self) -> None:
        self._depth = 1
        self._text: TextEnd | None = None
        self.too_deep = False

    def find(self, data: bytes, at: int) -> int:
        """Where the next byte behind the closing bracket is; -1 if that is not among these bytes.

        Args:
            data: the next bytes.
            at: where among them to begin.
        """
        while at < len(data) and not self.too_deep:
            if self._text is not None:
                end = self._text.find(data, at)
                if end < 0:
                    return -1
                self._text = None
                at = end + 1
            match = _BALANCED.match(data, at)
            at = at if match is None else match.end()
            if at == len(data):
                return -1
            mark = data[at]
            at += 1
            if mark == _QUOTE:
                self._text = TextEnd()
            elif mark in _OPENING:
                self._depth += 1
                self.too_deep = self._depth > DEPTH_MAX
            else:
                self._depth -= 1
                if not self._depth:
                    return at
        return -1
