"""Measuring the events of a stream that differ from one measured before in nothing but what they say."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llm_usage.observer import UsageObserver

# Every name under which an event may hold what the model wrote, whatever the API; see estimate.py.
_TEXTS: Final = (
    rb"content|reasoning_content|reasoning|refusal|text|arguments|delta|thinking|partial_json|tool_plan"
    rb"|input|response"
)
# Padding that OpenAI adds, of another length each time; it says nothing.
_VARYING: Final = re.compile(rb'"(?:(?P<text>' + _TEXTS + rb')|obfuscation)"\s*:\s*"([^"\\]*)"')
# After so many consecutive events without a repetition no more are compared.
_MISSES_MAX: Final = 16
_EVENT_BYTES_MAX: Final = 4_096
# More is read with pauses.
_TEXT_BYTES_MAX: Final = 16 << 10
_PLACES_MAX: Final = 2
# Printable ASCII without quotation marks and backslashes: such a text is as long as its bytes.
_is_plain: Final = re.compile(rb"[ !#-\[\]-~]*").fullmatch
_END: Final = b"\n\n"
_ENDS: Final = (_END, b"\r\n\r\n")
_HEAD: Final = re.compile(rb"(?:(?:event: [^\n]*\n)?data: )?")


class RepeatedEvents:
    """Knows one event by the bytes around its text.

    Another one with the same bytes around another text differs in that text only, so that it need not
    be parsed. What is not plain, such as an escape in the text, is never taken for a repeat.

    Args:
        observer: counts the text of repeats.
    """

    def __init__(self, observer: UsageObserver) -> None:
        self._observer = observer
        # The bytes before the text and after it; and between it and the padding beside it, if any.
        self._before = self._after = self._middle = b""
        self._text_first = True
        # What the last event began and ended with, how long that is, and what stands between two such events.
        self._start = self._tail = self._between = b""
        self._around = sys.maxsize
        self._misses = 0

    def skip(self, events: bytes) -> bool:
        """Count the text of events if each repeats the known one, so that none needs to be read.

        Args:
            events: the data of one event, or one or more whole server-sent events.
        """
        texts = events.removeprefix(self._start).removesuffix(self._tail)
        measured = len(texts)
        if len(events) - measured != self._around:
            if not self._matches_known(events):
                return False
            texts = events[len(self._start) : -len(self._tail)]
            measured = len(texts)
        if measured > _TEXT_BYTES_MAX:
            return False
        if self._middle or not _is_plain(texts):
            found = self._measure(texts)
            if found is None:
                return False
            measured = found
        self._misses = 0
        self._observer.text_bytes += measured
        return True

    def _measure(self, texts: bytes) -> int | None:
        """UTF-8 bytes of texts that stand alone, or beside padding; None: something else is among them."""
        measured = len(texts)
        if self._middle:
            first, middle, second = texts.partition(self._middle)
            if not middle:
                return None
            measured = len(first if self._text_first else second)
            texts = first + b" " + second
            if _is_plain(texts):
                return measured
        elif b'"' in texts:
            # The rest is texts, unless something unique stands between two events.
            texts = texts.replace(self._between, b"")
            measured = len(texts)
        if b'"' in texts or b"\\" in texts:
            return None
        try:
            return measured if texts.decode().isprintable() else None
        except UnicodeDecodeError:
            return None

    def _matches_known(self, events: bytes) -> bool:
        """Whether the known event begins and ends here, in what server-sent events have around their data."""
        at = events.find(self._before) if self._before else -1
        if at < 0 or _HEAD.fullmatch(events, 0, at) is None:
            return False
        end = next((end for end in _ENDS if events.endswith(end)), b"")
        start, tail = events[:at] + self._before, self._after + end
        if len(events) < len(start) + len(tail) or not events.endswith(tail):
            return False
        self._start, self._tail, self._around = start, tail, len(start) + len(tail)
        self._between = self._after + _END + start
        return True

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
        self._around = sys.maxsize
