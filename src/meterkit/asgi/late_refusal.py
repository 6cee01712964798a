"""A refusal in the midst of a request: meterkit's own answer in place of the one that the app gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Message, Send

__all__ = ["LateRefusal"]


class LateRefusal:
    """Stands in for the server's send from when a request is refused.

    The app says no in its own way, by an exception; its handlers make an answer of it, which gives way to
    the refusal. An app that goes on all the same and answers something else is left alone.

    Args:
        send: the server's.
        status: of the answer that gives way.
        refuse: answers with the refusal, by the send that it is given.
    """

    def __init__(self, send: Send, status: int, refuse: Callable[[Send], Awaitable[None]]) -> None:
        self._send = send
        self._status = status
        self._refuse = refuse
        self._is_answered = False

    async def __call__(self, message: Message) -> None:
        """Pass a message on, unless it is of the answer that gives way."""
        if self._is_answered:
            return
        # Of a websocket the kind has a prefix.
        if message["type"].endswith("http.response.start") and message["status"] == self._status:
            self._is_answered = True
            await self._refuse(self._send)
        else:
            await self._send(message)
