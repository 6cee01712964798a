"""Events that were seen in other responses, by all but their id and time: they are parsed once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from llm_usage.providers.reader_interface import ProviderApi

_HEAD: Final = re.compile(
    rb'\{"id": ?"([ !#-\[\]-~]{1,256})", ?"object": ?"[a-z._]{1,64}", ?"created": ?([1-9][0-9]{0,11}), ?"'
)
_EVENT_BYTES_MAX: Final = 1_024
_EVENTS_MAX: Final = 256


class FirstEvent(NamedTuple):
    """Facts about a call in its first event, beside its id.

    Attributes:
        api: the API that recognises it.
        model: the model's name.
        asks: whether it is an answer of the kind that reports usage only if asked.
        text_bytes: UTF-8 bytes of its text.
    """

    api: ProviderApi
    model: str | None
    asks: bool
    text_bytes: int


class EventKey(NamedTuple):
    """An event without its call's id and time.

    Attributes:
        rest: its other bytes; a zero byte, which JSON cannot have, stands for each of the two.
        call_id: the id.
    """

    rest: bytes
    call_id: str


def key_of(event: bytes) -> EventKey | None:
    """Split an event; None: it does not begin with an id and a time, or is not kept."""
    head = _HEAD.match(event) if len(event) <= _EVENT_BYTES_MAX else None
    if head is None:
        return None
    begin, end = head.span(1)
    time, rest = head.span(2)
    return EventKey(event[:begin] + b"\0" + event[end:time] + b"\0" + event[rest:], head[1].decode())


class KnownEvents:
    """Events of one API, or of responses whose API is not known before. Safe in any thread.

    Attributes:
        first: by :attr:`EventKey.rest`.
        silent: those without text that came later, once the API was known.
    """

    __slots__ = ("first", "silent")

    def __init__(self) -> None:
        self.first: dict[bytes, FirstEvent] = {}
        self.silent: dict[bytes, None] = {}

    def add(self, event: bytes, key: EventKey, found: FirstEvent | None) -> None:
        """Keep an event that was parsed.

        Args:
            event: the whole of it. It is not kept if it has another id, or an escape, which may spell one.
            key: of it.
            found: the facts if it was the first event; None: it came later, and has no text.
        """
        if b"\\" in event or event.count(b'"id"') > 1:
            return
        for events in (self.first, self.silent):
            if len(events) >= _EVENTS_MAX:
                events.clear()
        if found is None:
            self.silent[key.rest] = None
        else:
            self.first[key.rest] = found
