"""A message of MCP that was admitted: its answer says whether the call succeeded, not only its status."""

from __future__ import annotations

from asyncio import sleep
from typing import TYPE_CHECKING

from meterkit.asgi.exchange import Exchange
from meterkit.asgi.mcp_answers import PIECE_BYTES, AnswerReader
from meterkit.catalog.models import BILLED_ON_SUCCESS
from meterkit.tokens.framing.incremental import drain

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import Message

    from meterkit.catalog import Outcome


class McpExchange(Exchange):
    """Reads the answer as it passes, also one that the client did not wait for.

    An error of JSON-RPC and a result with ``isError`` are no success, and neither is an interim result:
    the server asks the user, and the client calls again.

    Slots:
        _answer: reads the answer, once it has begun.
    """

    __slots__ = ("_answer",)

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, and read what it has of the answer."""
        kind = message["type"]
        if kind == "http.response.start":
            message = {**message, "headers": list(message.get("headers", ()))}
            self._answer = AnswerReader(message["headers"])
        elif kind == "http.response.body" and self._status and (body := message.get("body", b"")):
            if len(body) > PIECE_BYTES:
                return self._read_and_send(message, body)
            drain(self._answer.read(body))
        return super().send(message)

    async def _read_and_send(self, message: Message, body: bytes) -> None:
        for _ in self._answer.read(body):
            await sleep(0)
        await super().send(message)

    def _outcome(self) -> Outcome:
        found = super()._outcome()
        if self._status and found in BILLED_ON_SUCCESS:
            return self._answer.close() or found
        return found
