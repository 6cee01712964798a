"""Measuring the events of a stream that differ from one measured before in nothing but what they say."""

from __future__ import annotations

import re
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
_PLACES_MAX: Final = 2
_END: Final = b"\n\n"
_CRLF_END: Final = b"\r\n\r\n"
_ENDS: Final = (_END, _CRLF_END)
_HEAD: Final = re.compile(rb"(?:(?:event: [^\n]*\n)?data: )?")


class Repeats:
    """Knows one event by the bytes around its text.

    Another one with the same bytes around another text says the same but for that text, so that it need not
    be parsed. What is not plain, such as an escape in the text, is never taken for a repeat.
    """

    __slots__ = ("_after", "_before", "_between", "_middle", "_misses", "_start", "_text_first")

    def __init__(self) -> None:
        # The bytes before the text and after it; and between it and the padding beside it, if any.
        self._before = self._after = self._middle = b""
        self._text_first = True
        # What the last event began with, and what stands between the texts of two such events.
        self._start = self._between = b""
        self._misses = 0

    def measure(self, events: bytes) -> int | None:
        """UTF-8 bytes of the text of events that repeat the known one; None where one of them does not.

        Args:
            events: the data of one event, or one or more whole server-sent events.
        """
        if not (self._before and (events.startswith(self._start) or self._meet(events))):
            return None
        begin = len(self._start)
        end = len(events) - len(self._after)
        if events.endswith(_ENDS):
            end -= len(_END) if events.endswith(_END) else len(_CRLF_END)
        if end < begin or not events.startswith(self._after, end):
            return None
        # What is left is texts, unless something stands between two events that no other one has.
        texts = events[begin:end].replace(self._between, b"")
        measured = len(texts)
        if self._middle:
            first, middle, second = texts.partition(self._middle)
            if not middle:
                return None
            measured = len(first if self._text_first else second)
            texts = first + b" " + second
        if b'"' in texts or b"\\" in texts:
            return None
        try:
            if not texts.decode().isprintable():
                return None
        except UnicodeDecodeError:
            return None
        self._misses = 0
        return measured

    def _meet(self, events: bytes) -> bool:
        """Whether the known event begins here, if behind what server-sent events have before their data."""
        self._expect(events[: max(0, events.find(self._before))])
        is_head = _HEAD.fullmatch(events, 0, len(self._start) - len(self._before)) is not None
        return is_head and events.startswith(self._start)

    def _expect(self, head: bytes) -> None:
        self._start = head + self._before
        self._between = self._after + _END + self._start

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
        texts = [match for match in found if match["text"] is not None]
        if len(texts) != 1 or len(found) > _PLACES_MAX or len(texts[0][2]) != measured:
            return
        first, last = found[0], found[-1]
        self._text_first = first is texts[0]
        self._before, self._after = event[: first.start(2)], event[last.end(2) :]
        self._middle = event[first.end(2) : last.start(2)] if first is not last else b""
        self._expect(b"")
