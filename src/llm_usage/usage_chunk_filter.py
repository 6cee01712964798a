"""Filter of a stream of OpenAI's Chat Completions: takes out the chunk that only reports usage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from llm_usage.framing.content_types import are_lines
from llm_usage.json_values import load, table

if TYPE_CHECKING:
    from collections.abc import Mapping

_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_HELD_BYTES_MAX: Final = 1 << 16
_END_BYTES_MAX: Final = len(b"\r\n\r\n")


class UsageChunkFilter:
    """Takes the events that only report usage out of a stream of server-sent events."""

    __slots__ = ("_by_line", "_held", "_hidden", "_is_text", "_passed", "_returned")

    def __init__(self) -> None:
        self._by_line: bool | None = None
        self._is_text = self._hidden = False
        # An event that has not ended. Of one that is too long only what may belong to its end is kept, though
        # the client has it.
        self._held = bytearray()
        self._passed = 0
        # Whether the client got the event whose last byte is a carriage return: a line feed may belong to it.
        self._returned: bool | None = None

    def pass_on(self, piece: bytes | bytearray | str) -> bytes | str | None:
        """Filter a chunk, keeping its type; None if nothing is left."""
        data = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else bytes(piece)
        if self._by_line is None and (data or self._held):
            self._is_text = isinstance(piece, str)
            self._by_line = self._recognise_lines(data)
            if self._by_line is None:
                # The first event has no usage: the client gets it as it comes.
                self._held += data
                self._passed = len(self._held)
                return self._restore_type(data)
            if self._by_line:
                self._held.clear()
                self._passed = 0
        if not self._by_line:
            return self._restore_type(self._filter_events(data))
        if self._hidden and not data:
            # The blank line that ended the event.
            self._hidden = False
            return None
        self._hidden = _is_extra(data)
        return None if self._hidden else self._restore_type(data, blank=True)

    def flush(self) -> bytes | str | None:
        """Return the end of a stream that broke off within an event."""
        held = bytes(self._held[self._passed :])
        self._held.clear()
        return None if _is_extra(held) else self._restore_type(held)

    def _recognise_lines(self, data: bytes) -> bool | None:
        """Whether pieces are lines without their ends; None: the first line may go on in the next piece."""
        if not self._is_text or len(self._held) > _HELD_BYTES_MAX:
            return False
        if self._held:
            return are_lines(bytes(self._held), data)
        return None if _LINE_END.search(data) is None else False

    def _filter_events(self, data: bytes) -> bytes:
        held = self._held
        kept: list[bytes] = []
        if self._returned is not None and data:
            if data.startswith(b"\n"):
                kept.append(data[: int(self._returned)])
                data = data[1:]
            self._returned = None
        begin, at = 0, max(0, len(held) - _END_BYTES_MAX + 1)
        held += data
        while (end := _EVENT_END.search(held, at)) is not None:
            at = end.end()
            event = bytes(held[begin + self._passed : at])
            is_kept = self._passed > 0 or not _is_extra(event)
            if is_kept:
                kept.append(event)
            if at == len(held) and event.endswith(b"\r"):
                self._returned = is_kept
            begin, self._passed = at, 0
        del held[:begin]
        if self._passed or len(held) > _HELD_BYTES_MAX:
            # No report is as long.
            kept.append(bytes(held[self._passed :]))
            del held[: 1 - _END_BYTES_MAX]
            self._passed = len(held)
        return b"".join(kept)

    def _restore_type(self, data: bytes, *, blank: bool = False) -> bytes | str | None:
        if not data and not blank:
            return None
        return data.decode("utf-8", "surrogatepass") if self._is_text else data


def _is_extra(event: bytes) -> bool:
    """Whether an event of a stream, or a line of one, says nothing but the usage."""
    if b'"usage"' not in event or b'"choices"' not in event:
        return False
    lines = _LINE_END.split(event)
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    try:
        found = table(load(data))
    except ValueError:
        return False
    return found is not None and reports_only_usage(found)


def reports_only_usage(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk is the extra one; without an answer in it, and with usage."""
    return chunk.get("choices") == [] and chunk.get("usage") is not None
