"""Admitted MCP request: its response states whether the call succeeded, not only its status."""

from __future__ import annotations

from asyncio import sleep
from typing import TYPE_CHECKING, Final, cast

from llm_usage.framing.content_codings import make_decoder
from llm_usage.framing.content_types import SSE, content_of, has_answer
from llm_usage.framing.incremental import drain, feed_large, run_steps
from llm_usage.framing.json import JsonReader
from llm_usage.framing.large_json import LargeJsonReader
from llm_usage.framing.sse import EventCallbacks, SseReader
from llm_usage.json_values import dig, load, table
from llm_usage.layout import ValuePlace
from meterkit.asgi.buffered_body import header_of
from meterkit.asgi.exchange import Exchange
from meterkit.catalog.models import BILLED_ON_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from starlette.types import Message

    from llm_usage.framing.incremental import Work
    from llm_usage.json_values import Table
    from meterkit.catalog import Outcome


class McpExchange(Exchange):
    """Reads the response as it passes, also one that the client did not wait for.

    An error of JSON-RPC and a result with ``isError`` are no success, and neither is an interim result:
    the server asks the user, and the client calls again. A call that the client cancels counts as if the
    client had hung up. One that it only leaves goes on in its session, and counts too.

    Slots:
        _answer: reads the answer, once it has begun.
        _has_hung_up: True once the client has left; unset until then.
    """

    __slots__ = ("_answer", "_has_hung_up")

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message, and read its part of the response."""
        kind = message["type"]
        if kind == "http.response.start":
            message = {**message, "headers": list(message.get("headers", ()))}
            self._answer = McpResponseReader(message["headers"])
        elif kind == "http.response.body" and self._status:
            body = message.get("body", b"")
            if len(body) > PIECE_BYTES:
                return self._read_and_send(message, body)
            drain(self._answer.read(body))
            self._note_cancelled(message)
        return super().send(message)

    async def _read_and_send(self, message: Message, body: bytes) -> None:
        for _ in self._answer.read(body):
            await sleep(0)
        self._note_cancelled(message)
        await super().send(message)

    def _note_cancelled(self, message: Message) -> None:
        """Note that the client has left, where the answer up to a message says that it cancelled."""
        answer = self._answer
        if not message.get("more_body", False):
            answer.close()
        if answer.is_cancelled:
            self._note_left()
            self._early = answer.outcome != "client_gone"

    def _note_disconnect(self) -> None:
        super()._note_disconnect()
        self._has_hung_up = True

    def _note_unsent(self, error: BaseException, message: Message, *, last: bool) -> None:
        super()._note_unsent(error, message, last=last)
        if isinstance(error, OSError):
            self._has_hung_up = True

    def _outcome(self) -> Outcome:
        found = super()._outcome()
        if self._status and (found in BILLED_ON_SUCCESS or self._runs_on()):
            return self._answer.close() or ("client_gone" if found == "server_error" else found)
        return found

    def _runs_on(self) -> bool:
        """Whether the tool runs on without its client: hanging up cancels nothing within a session.

        https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#sending-messages-to-the-server
        """
        is_left = getattr(self, "_has_hung_up", False) and not self._failed
        is_stream = has_answer(self._status) and self._answer.is_stream
        return is_left and is_stream and bool(header_of(self._scope, _SESSION))


PIECE_BYTES: Final = 16 << 10
"""Bytes that are read without a pause."""
INPUT_REQUIRED: Final = "input_required"
"""Interim: https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/mrtr"""
_SESSION: Final = b"mcp-session-id"
_CLIENT_ERRORS: Final = range(-32602, -32599)
_CANCELLED: Final = ((-32800, "Request cancelled"), (0, "Request cancelled"))
"""Errors with which the MCP SDK, from 2.0 on and before, answers a call that its client has cancelled."""
_LEAF: Final = ValuePlace()
_MESSAGE: Final = ValuePlace(
    {
        "result": ValuePlace({"isError": _LEAF, "resultType": _LEAF}),
        "error": ValuePlace({"code": _LEAF, "message": _LEAF}),
    }
)
"""Members of a JSON-RPC message that are kept of one that is larger than 16 KiB."""


class McpResponseReader:
    """Incremental reader of an MCP response: JSON or server-sent events, in bounded memory.

    The first JSON-RPC response counts. The server's notifications may stand before and after it.

    Args:
        headers: of the response.

    Attributes:
        outcome: ``interim``, ``client_gone``, ``client_error`` or ``server_error``; None as long as nothing
            says so.
        is_cancelled: whether the client has cancelled the call.
        is_stream: whether it is a stream of events.
    """

    __slots__ = (
        "_decoding",
        "_framing",
        "_has_begun",
        "_is_answered",
        "_is_readable",
        "is_cancelled",
        "is_stream",
        "outcome",
    )

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        kind, coding = content_of(headers)
        self._decoding = make_decoder(coding) if coding else None
        self._is_readable = not coding or self._decoding is not None
        takers = EventCallbacks(self._take_event, self._wants, self._open_large)
        self.is_stream = kind == SSE
        self._framing = SseReader(takers) if self.is_stream else JsonReader(takers, unseen=True)
        self._is_answered = self._has_begun = self.is_cancelled = False
        self.outcome: Outcome | None = None

    def read(self, chunk: bytes) -> Work:
        """Read the next bytes of the body, with pauses."""
        if not self._is_readable:
            return
        for decoded in (chunk,) if self._decoding is None else self._decoding.feed(chunk):
            for at in range(0, len(decoded), PIECE_BYTES):
                if self._is_answered:
                    return
                for _ in run_steps(self._framing.feed(decoded[at : at + PIECE_BYTES])):
                    yield
                yield

    def close(self) -> Outcome | None:
        """Read a response that was cut off, and return the outcome. Idempotent."""
        drain(self._framing.close())
        return self.outcome

    def _wants(self, events: bytes) -> bool:
        del events
        return not self._is_answered

    def _take_event(self, data: bytes) -> Work | None:
        try:
            message = table(load(data))
        except ValueError:  # Cut off, or a number too long to be converted: read what there is of it.
            return feed_large(self._open_large(), data)
        if message is not None:
            self._take_message(message)
        return None

    def _open_large(self) -> LargeJsonReader:
        return LargeJsonReader(lambda message, _: self._take_message(message), lambda: None, _MESSAGE)

    def _take_message(self, message: Table) -> None:
        if self._is_answered:
            return
        if "result" not in message and "error" not in message:
            self._has_begun = True  # A notification, or a request of the server's.
            return
        self._is_answered = True
        self.outcome = outcome_in(message)
        error = table(message.get("error")) or {}
        self.is_cancelled = (error.get("code"), error.get("message")) in _CANCELLED
        if self.is_cancelled and self._has_begun:
            self.outcome = "client_gone"


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
