"""A message of MCP that was admitted: its answer says whether the call succeeded, not only its status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.asgi.exchange import Exchange
from meterkit.asgi.mcp_requests import RESPONSE_BYTES_MAX, failure_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import Message

    from meterkit.catalog import Outcome


class McpExchange(Exchange):
    """Keeps the answer up to a bound and reads it when it is complete.

    An error of JSON-RPC and a result with ``isError`` are no success. An answer that is larger, or comes
    compressed, goes by its status.

    Slots:
        _kind: the answer's ``Content-Type``.
        _kept: what was sent of the answer; None: it is too large.
        _found: the outcome, once it is known.
    """

    __slots__ = ("_found", "_kept", "_kind")

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, and keep what it has of the answer."""
        kind = message["type"]
        if kind == "http.response.start":
            self._kept: bytearray | None = bytearray()
            message = {**message, "headers": list(message.get("headers", ()))}
            types = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._kind = bytes(types[0]).lower() if types else b""
        elif kind == "http.response.body" and (kept := getattr(self, "_kept", None)) is not None:
            kept += message.get("body", b"")
            if len(kept) > RESPONSE_BYTES_MAX:
                self._kept = None
        return super().send(message)

    def _outcome(self) -> Outcome:
        found = super()._outcome()
        if found != "success":
            return found
        if not hasattr(self, "_found"):
            kept: bytearray | None = getattr(self, "_kept", None)
            self._found: Outcome = (failure_of(bytes(kept), self._kind) if kept else None) or found
            self._kept = None
        return self._found
