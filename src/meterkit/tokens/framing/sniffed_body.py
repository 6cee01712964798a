"""Body of a response whose framing its first bytes tell: content sniffing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.tokens.framing.content_types import BLANK, recognise_framing
from meterkit.tokens.framing.json import JsonTextReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.framing.content_types import Framing
    from meterkit.tokens.framing.incremental import IncrementalReader, Work


class SniffedBody:
    """Opens the reader of a body once its framing is recognised, and feeds it.

    Args:
        kind: the content type.
        open_reader: opens the reader of a framing other than a JSON text. A text is read as the body that is
            in it: some apps serialize a response twice.
        is_inner: whether this is the body in a JSON text.

    Attributes:
        reader: of the body; None until its framing is recognised.
    """

    __slots__ = ("_head", "_is_inner", "_kind", "_open_reader", "reader")

    def __init__(
        self, kind: bytes, open_reader: Callable[[Framing], IncrementalReader], *, is_inner: bool = False
    ) -> None:
        self._kind = kind
        self._open_reader = open_reader
        self._is_inner = is_inner
        self._head = b""
        self.reader: IncrementalReader | None = None

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes of the body; what is left to do with them."""
        reader = self.reader
        return self._begin_reading(data) if reader is None else reader.feed(data)

    def close(self) -> Work:
        """No more bytes come: read what is left."""
        if self._head:
            yield from self._begin_reading(b"", is_over=True) or ()
        if self.reader is not None:
            yield from self.reader.close()

    def _begin_reading(self, data: bytes, *, is_over: bool = False) -> Work | None:
        # Some servers send blanks for minutes, to keep the connection alive: they are not kept.
        head = (self._head + data).lstrip(BLANK)
        framing = recognise_framing(head, self._kind, is_over=is_over)
        if framing is None:
            self._head = head
            return None
        self._head = b""
        if framing != "text":
            self.reader = self._open_reader(framing)
        elif self._is_inner:
            self.reader = self._open_reader("unknown")
        else:
            self.reader = JsonTextReader(SniffedBody(b"", self._open_reader, is_inner=True))
        return self.reader.feed(head)


def feed_nothing(_: bytes) -> None:
    """Drop bytes: the body is closed."""
