"""Measuring the events of a stream that differ from one measured before in nothing but what they say."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

__all__ = ["Repeats"]

# Every name under which an event may hold what the model wrote, whatever the API; see estimate.py.
_TEXTS: Final = (
    rb"content|reasoning_content|reasoning|refusal|text|arguments|delta|thinking|partial_json|tool_plan"
    rb"|input|response"
)
# Padding that OpenAI adds, of another length each time; it says nothing.
_VARYING: Final = re.compile(rb'"(?:(?P<text>' + _TEXTS + rb')|obfuscation)"\s*:\s*"([^"\\]*)"')
# After so many events, one after the other, of which none was like the one before it, no more are compared.
_MISSES_MAX: Final = 16
_EVENT_BYTES_MAX: Final = 4_096
_ONE_TEXT: Final = 2
_HEAD: Final = re.compile(rb"(?:event: [^\n]*\n)?data: ")


class Repeats:
    """Knows one event by the bytes around its text.

    Another one with the same bytes around another text says the same but for that text, so that it need not
    be parsed. What is not plain, such as an escape in the text, is never taken for a repeat.
    """

    __slots__ = ("_around", "_misses", "_which")

    def __init__(self) -> None:
        self._around: tuple[bytes, ...] = ()
        self._which = 0
        self._misses = 0

    def measure(self, event: bytes) -> int | None:
        """UTF-8 bytes of the text of an event that repeats the known one; None where it does not."""
        around = self._around
        if not around or not event.startswith(around[0]):
            return None
        at = len(around[0])
        measured = 0
        for place, after in enumerate(around[1:]):
            end = event.find(b'"', at)
            if end < 0 or not event.startswith(after, end):
                return None
            value = event[at:end]
            if not _is_plain(value):
                return None
            if place == self._which:
                measured = len(value)
            at = end + len(after)
        if at != len(event):
            return None
        self._misses = 0
        return measured

    def measure_all(self, events: bytes) -> int | None:
        """As :meth:`measure`, of several server-sent events at once; None where one of them is no repeat."""
        if len(self._around) != _ONE_TEXT:
            return None
        before, after = self._around
        at = events.find(before)
        head, begin = events[:at], at + len(before)
        end = len(events) - len(after)
        if at < 0 or end < begin or not events.endswith(after) or not _HEAD.fullmatch(head):
            return None
        # What is left is the texts, unless something stands between two events that no other one has.
        texts = events[begin:end].replace(after + b"\n\n" + head + before, b"")
        if b'"' in texts or not _is_plain(texts):
            return None
        self._misses = 0
        return len(texts)

    def learn(self, event: bytes, measured: int) -> None:
        """Know an event that was parsed, if its text is all in one place.

        Args:
            event: the bytes of it.
            measured: UTF-8 bytes of its text, which must not be 0.
        """
        if self._misses >= _MISSES_MAX or len(event) > _EVENT_BYTES_MAX or b"\\" in event:
            return
        self._misses += 1
        found = [match for match in _VARYING.finditer(event) if match["text"] is None or match[2]]
        texts = [place for place, match in enumerate(found) if match["text"] is not None]
        if len(texts) != 1 or len(found[texts[0]][2]) != measured:
            return
        if not all(_is_plain(match[2]) for match in found):
            return
        spans = [(0, 0), *(match.span(2) for match in found), (len(event), len(event))]
        self._around = tuple(event[end:begin] for (_, end), (begin, _) in pairwise(spans))
        self._which = texts[0]


def _is_plain(value: bytes) -> bool:
    """Whether it stands for itself within a JSON text: no escapes, no control characters, valid UTF-8."""
    if b"\\" in value:
        return False
    try:
        return not value or value.decode().isprintable()
    except UnicodeDecodeError:
        return False
