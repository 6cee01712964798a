"""Repeated stream events: an event that differs from the last one only in its text is not parsed."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llm_usage.observer import UsageObserver

# Members that hold the model's text in the events of any API.
_TEXTS: Final = (
    rb"content|reasoning_content|reasoning|refusal|text|arguments|delta|thinking|partial_json|tool_plan"
    rb"|input|response"
)
# `obfuscation` is padding that OpenAI adds, of varying length.
_VARYING: Final = re.compile(rb'"(?:(?P<text>' + _TEXTS + rb')|obfuscation)"\s*:\s*"([^"\\]*)"')
# After so many consecutive events without a repetition no more are learned.
_MISSES_MAX: Final = 16
_EVENT_BYTES_MAX: Final = 4_096
# More takes long to measure: the reader takes it, with pauses.
_TEXT_BYTES_MAX: Final = 16 << 10
# Values that may vary in an event: a text, and the padding beside it.
_VARYING_MAX: Final = 2
# Printable ASCII without quotation marks and backslashes: no escape, and one byte for each character.
_is_plain: Final = re.compile(rb"[ !#-\[\]-~]*").fullmatch
_SSE_END: Final = b"\n\n"
_SSE_ENDS: Final = (_SSE_END, b"\r\n\r\n")
# The lines of a server-sent event before its data; none for an event of another framing.
_SSE_HEAD: Final = re.compile(rb"(?:(?:event: [^\n]*\n)?data: )?")


class RepeatedEvents:
    """Keeps one parsed event, and measures events with the same bytes around another text.

    Such an event is not parsed. An event with an escape in its text is never taken for a repeat.

    Args:
        observer: gets the bytes of the repeats' texts.
    """

    def __init__(self, observer: UsageObserver) -> None:
        self._observer = observer
        # Bytes of the learned event before its text and after it; if it has padding, before and after both,
        # and between the two. Empty `_before`: no event is learned.
        self._before = self._after = self._middle = b""
        self._text_is_first = True
        # Those with the framing of the last repeat, such as `data: `: its first and last bytes, the number of
        # these, and the bytes between the texts of two such events.
        self._start = self._tail = self._between = b""
        self._around_bytes = sys.maxsize  # No event has as many: the framing is not known.
        self._misses = 0

    def learn(self, event: bytes, measured: int) -> None:
        """Keep an event that was parsed, if its text is all in one place.

        Args:
            event: its data.
            measured: UTF-8 bytes of its text, which must not be 0.
        """
        if self._misses >= _MISSES_MAX or len(event) > _EVENT_BYTES_MAX or b"\\" in event:
            return
        self._misses += 1
        found = [match for match in _VARYING.finditer(event) if match["text"] is None or match[2]]
        texts = [match for match in found if match["text"] is not None]
        if len(texts) != 1 or len(found) > _VARYING_MAX or len(texts[0][2]) != measured:
            return
        first, last = found[0], found[-1]
        self._text_is_first = first is texts[0]
        self._before, self._after = event[: first.start(2)], event[last.end(2) :]
        self._middle = event[first.end(2) : last.start(2)] if first is not last else b""
        self._around_bytes = sys.maxsize

    def skip_repeats(self, events: bytes) -> bool:
        """Count the text of events if each repeats the learned one; whether they do, and need not be read.

        Args:
            events: the data of one event, or one or more whole server-sent events.
        """
        # As most repeats look like the last one, its first and last bytes are tried before a search.
        texts = events.removeprefix(self._start).removesuffix(self._tail)
        measured = len(texts)
        if len(events) - measured != self._around_bytes:
            if not self._learn_framing(events):
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
        """UTF-8 bytes of one text, beside padding or not, or of several events; None: one is no repeat."""
        measured = len(texts)
        if self._middle:
            first, middle, second = texts.partition(self._middle)
            if not middle:
                return None
            measured = len(first if self._text_is_first else second)
            texts = first + b" " + second
            if _is_plain(texts):
                return measured
        elif b'"' in texts:
            # Several events: without the bytes between repeats, a quotation mark is left of any other event.
            texts = texts.replace(self._between, b"")
            measured = len(texts)
        if b'"' in texts or b"\\" in texts:
            return None
        try:
            return measured if texts.decode().isprintable() else None
        except UnicodeDecodeError:
            return None

    def _learn_framing(self, events: bytes) -> bool:
        """Note the framing of events that begin and end like the learned one; whether they do."""
        at = events.find(self._before) if self._before else -1
        if at < 0 or _SSE_HEAD.fullmatch(events, 0, at) is None:
            return False
        end = next((end for end in _SSE_ENDS if events.endswith(end)), b"")
        start, tail = events[:at] + self._before, self._after + end
        if len(events) < len(start) + len(tail) or not events.endswith(tail):
            return False
        self._start, self._tail, self._around_bytes = start, tail, len(start) + len(tail)
        self._between = self._after + _SSE_END + start
        return True
