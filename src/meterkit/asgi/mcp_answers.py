"""Read the outcome of an MCP call from its response: complete, an error, or a question to the user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from meterkit.tokens.framing.decoding import decoding_of
from meterkit.tokens.framing.incremental import drain, paused, whole_of
from meterkit.tokens.framing.json import Document
from meterkit.tokens.framing.large_json import LargeJson
from meterkit.tokens.framing.sse import Sse, Takers
from meterkit.tokens.json_values import dig, load, table
from meterkit.tokens.layout import Place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog import Outcome
    from meterkit.tokens.framing.incremental import Work
    from meterkit.tokens.json_values import Table

PIECE_BYTES: Final = 16 << 10
"""Bytes that are read without a pause."""
INPUT_REQUIRED: Final = "input_required"
"""Interim: https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/mrtr"""
_CLIENT_ERRORS: Final = range(-32602, -32599)
_IDENTITY: Final = (b"", b"identity")
_SSE: Final = b"text/event-stream"
_LEAF: Final = Place()
_MESSAGE: Final = Place(
    {
        "result": Place({"isError": _LEAF, "resultType": _LEAF}),
        "error": Place({"code": _LEAF}),
    }
)
"""Members of a JSON-RPC message that are kept of one that is larger than 16 KiB."""


class AnswerReader:
    """Incremental reader of an MCP response: JSON or server-sent events, in bounded memory.

    The first JSON-RPC response counts. The server's notifications may stand before and after it.

    Args:
        headers: of the response.

    Attributes:
        outcome: ``interim``, ``client_error`` or ``server_error``; None as long as nothing says so.
    """

    __slots__ = ("_decoding", "_framing", "_is_answered", "_is_readable", "outcome")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        named = {name.lower(): value.strip().lower() for name, value in headers}
        coding = named.get(b"content-encoding", b"")
        self._decoding = None if coding in _IDENTITY else decoding_of(coding)
        self._is_readable = coding in _IDENTITY or self._decoding is not None
        takers = Takers(self._take_event, self._wants, self._open_large)
        is_stream = named.get(b"content-type", b"").startswith(_SSE)
        self._framing = Sse(takers) if is_stream else Document(takers, unseen=True)
        self._is_answered = False
        self.outcome: Outcome | None = None

    def read(self, chunk: bytes) -> Work:
        """Read the next bytes of the body, with pauses."""
        if not self._is_readable:
            return
        for decoded in (chunk,) if self._decoding is None else self._decoding.feed(chunk):
            for at in range(0, len(decoded), PIECE_BYTES):
                if self._is_answered:
                    return
                for _ in paused(self._framing.feed(decoded[at : at + PIECE_BYTES])):
                    yield
                yield

    def close(self) -> Outcome | None:
        """Read what was cut off, and return the outcome. Idempotent."""
        drain(self._framing.close())
        return self.outcome

    def _wants(self, events: bytes) -> bool:
        del events
        return not self._is_answered

    def _take_event(self, data: bytes) -> Work | None:
        try:
            message = table(load(data))
        except ValueError:  # Cut off, or a number too long to be converted: read what there is of it.
            return whole_of(self._open_large(), data)
        if message is not None:
            self._take_message(message)
        return None

    def _open_large(self) -> LargeJson:
        return LargeJson(lambda message, _: self._take_message(message), lambda: None, _MESSAGE)

    def _take_message(self, message: Table) -> None:
        if not self._is_answered and ("result" in message or "error" in message):
            self._is_answered = True
            self.outcome = outcome_in(message)


def outcome_in(message: Table) -> Outcome | None:
    """Return the outcome that a JSON-RPC response states; None: the call is complete.

    Args:
        message: has ``result`` or ``error``.
    """
    error = table(message.get("error"))
    if error is not None:
        code = error.get("code")
        return "client_error" if isinstance(code, int) and code in _CLIENT_ERRORS else "server_error"
    if dig(message, ("result", "isError")) is True:
        return "server_error"
    kind = cast("object", dig(message, ("result", "resultType")))
    return "interim" if kind == INPUT_REQUIRED else None
