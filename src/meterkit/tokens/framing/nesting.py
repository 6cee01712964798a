"""Passing over JSON values by their brackets and quotation marks, as fast as regular expressions go."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["BALANCED", "TEXT", "Nesting", "TextEnd", "span"]

DEPTH_MAX: Final = 1_000
"""What is nested deeper is no provider's answer; Python's own parser gives up there too."""

# Atomic groups, as Python 3.11 before 3.11.5 matches repeated groups that are possessive, (?:...)*+, wrongly:
# https://github.com/python/cpython/issues/106052
_TEXT: Final = rb'"[^"\\]*+(?>(?:\\.[^"\\]*+)*)"'
TEXT: Final = re.compile(_TEXT, re.DOTALL)
"""A whole JSON text."""

_REST: Final = re.compile(rb'[^"\\]*+(?>(?:\\.[^"\\]*+)*)', re.DOTALL)
_LEVELS: Final = 7
_QUOTE, _BACKSLASH = b'"\\'
_OPENING: Final = b"{["


def _balanced(levels: int) -> re.Pattern[bytes]:
    inside = rb'(?>(?:[^"{}\[\]]++|' + _TEXT + rb")*)"
    for _ in range(levels):
        inside = rb'(?>(?:[^"{}\[\]]++|' + _TEXT + rb"|[{\[]" + inside + rb"[}\]])*)"
    return re.compile(inside, re.DOTALL)


BALANCED: Final = _balanced(_LEVELS)
"""Whole values, and what is between them: up to a bracket or text that does not end, or is nested deeper."""
_OPEN: Final = re.compile(rb"[{\[]*+")
_CLOSED: Final = re.compile(rb"[}\]]*+")
# What is read without a rest: at the slowest, some tenths of a millisecond.
_STEPS_MAX: Final = 32
_WINDOW_BYTES: Final = 4 << 10


class TextEnd:
    """Finds the end of a JSON text that began before."""

    __slots__ = ("_escaped",)

    def __init__(self) -> None:
        self._escaped = False

    def find(self, data: bytes, at: int, stop: int) -> int:
        """Where the closing quotation mark is; -1 if it is not among these bytes.

        Args:
            data: the next bytes.
            at: where among them to begin.
            stop: where to end.
        """
        if self._escaped and at < stop:
            self._escaped = False
            at += 1
        end = data.find(b'"', at, stop)
        if end >= 0 and (end == at or data[end - 1] != _BACKSLASH):
            return end
        end = span(_REST, data, at, stop)
        if end < stop and data[end] == _QUOTE:
            return end
        self._escaped = end < stop  # A backslash is the last byte.
        return -1


class Nesting:
    """Finds the end of an array or object whose first bracket was read.

    Attributes:
        ended: whether that was found.
        too_deep: whether brackets are nested deeper than the bound; nothing is found any more then.
    """

    __slots__ = ("_depth", "_text", "ended", "too_deep")

    def __init__(self) -> None:
        self._depth = 1
        self._text: TextEnd | None = None
        self.ended = self.too_deep = False

    def read(self, data: bytes, at: int) -> int:
        """Read on, as far as no rest is needed.

        Args:
            data: the next bytes.
            at: where among them to begin.

        Returns:
            Where to go on, or what follows the closing bracket; the length where more bytes are needed.
        """
        stop = min(len(data), at + _WINDOW_BYTES)
        for _ in range(_STEPS_MAX):
            if at >= stop or self.ended or self.too_deep:
                break
            if self._text is not None:
                end = self._text.find(data, at, len(data))
                if end < 0:
                    return len(data)
                self._text = None
                at = end + 1
            at = self._step(data, at, max(at, stop))
        return at

    def _step(self, data: bytes, at: int, stop: int) -> int:
        """Pass over what is balanced, and over the brackets or the quotation mark behind it."""
        at = span(BALANCED, data, at, stop)
        if at == stop:
            return at
        if data[at] == _QUOTE:
            self._text = TextEnd()
            return at + 1
        if data[at] in _OPENING:
            # The innermost of them are balanced, it may be.
            passed = max(1, span(_OPEN, data, at, stop) - at - _LEVELS)
            self._depth += passed
            self.too_deep = self._depth > DEPTH_MAX
        else:
            passed = min(self._depth, span(_CLOSED, data, at, stop) - at)
            self._depth -= passed
            self.ended = not self._depth
        return at + passed


def span(pattern: re.Pattern[bytes], data: bytes, at: int, stop: int) -> int:
    """Where the match of a pattern ends that matches nothing, too."""
    match = pattern.match(data, at, stop)
    return at if match is None else match.end()
