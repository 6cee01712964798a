"""A request's body, read before the app runs and given to it all the same."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

__all__ = ["BUFFERED_BYTES_MAX", "BufferedBody"]

BUFFERED_BYTES_MAX: Final = 1 << 20
_MESSAGES_MAX: Final = 4_096
_LENGTH_DIGITS_MAX: Final = 15


class BufferedBody:
    """Reads ahead what a client sends, and stands for the server's ``receive`` afterwards.

    Args:
        scope: the request's.
        receive: the server's.

    Attributes:
        head: what was read of the body.
        gone: whether the client hung up meanwhile.
    """

    __slots__ = ("_kept", "_receive", "_scope", "gone", "head")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self._kept: deque[Message] = deque()
        self.head = b""
        self.gone = False

    async def read(self) -> None:
        """Read the body to its end, until the client hangs up, or the message that passes a bound."""
        pieces: list[bytes] = []
        size = 0
        while size < BUFFERED_BYTES_MAX and len(self._kept) < _MESSAGES_MAX:
            message = await self._receive()
            self._kept.append(message)
            if message["type"] != "http.request":
                self.gone = message["type"] == "http.disconnect"
                break
            pieces.append(bytes(message.get("body", b"")))
            size += len(pieces[-1])
            if not message.get("more_body", False):
                break
        self.head = b"".join(pieces)

    @property
    def size(self) -> int:
        """Bytes of the whole body, by what was read and what its ``Content-Length`` says."""
        found = [value for name, value in self._scope["headers"] if name.lower() == b"content-length"]
        said = found[0] if len(found) == 1 and len(found[0]) <= _LENGTH_DIGITS_MAX else b""
        return max(len(self.head), int(said) if said.isdigit() else 0)

    async def receive(self) -> Message:
        """The messages that were read, as they are, and then the server's."""
        return self._kept.popleft() if self._kept else await self._receive()
