"""A request's body, read before the app runs and replayed to it."""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

BUFFERED_BYTES_MAX: Final = 1 << 20
DECODED_BYTES_MAX: Final = 256 << 10
"""How much is read of a body that came compressed."""

_MESSAGES_MAX: Final = 4_096
_LENGTH_DIGITS_MAX: Final = 15
_CODED_TEXT_RATIO: Final = 3
_INFLATED: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})
_ZLIB_OR_GZIP: Final = 47
_ANNOUNCING: Final = frozenset({b"content-length", b"transfer-encoding"})


class BufferedBody:
    """Reads ahead what a client sends, and stands for the server's ``receive`` afterwards.

    Args:
        scope: the request's.
        receive: the server's.
        most: how many bytes are read at most, and the rest of the message that has the last of them.

    Attributes:
        scope: the request's.
        head: what was read of the body.
        ended: whether that is all of it.
        gone: whether the client hung up meanwhile.
        untouched: whether nothing was read ahead.
    """

    __slots__ = ("_kept", "_most", "_receive", "ended", "gone", "head", "scope", "untouched")

    def __init__(self, scope: Scope, receive: Receive, *, most: int = BUFFERED_BYTES_MAX) -> None:
        self.scope = scope
        self._most = most
        self._receive = receive
        self._kept: deque[Message] = deque()
        self.head = b""
        self.ended = self.gone = False
        self.untouched = True

    async def read(self) -> None:
        """Read the body to its end, until the client hangs up, or the message that passes a bound."""
        self.untouched = False
        pieces: list[bytes] = []
        size = 0
        while size < self._most and len(self._kept) < _MESSAGES_MAX:
            message = await self._receive()
            self._kept.append(message)
            if message["type"] != "http.request":
                self.gone = message["type"] == "http.disconnect"
                break
            pieces.append(bytes(message.get("body", b"")))
            size += len(pieces[-1])
            if not message.get("more_body", False):
                self.ended = True
                break
        self.head = b"".join(pieces)

    @property
    def size(self) -> int:
        """Bytes of the whole body, by what was read and what its ``Content-Length`` says."""
        found = self.header(b"content-length")
        said = found[0] if len(found) == 1 and len(found[0]) <= _LENGTH_DIGITS_MAX else b""
        return max(len(self.head), int(said) if said.isdigit() else 0)

    def content(self) -> tuple[bytes, int, bool]:
        """See :func:`decoded`."""
        return decoded(self.scope, self.head, self.size, ended=self.ended)

    async def receive(self) -> Message:
        """The messages that were read, as they are, and then the server's."""
        return self._kept.popleft() if self._kept else await self._receive()

    def header(self, name: bytes) -> list[bytes]:
        """The values of a header."""
        return header_of(self.scope, name)


def header_of(scope: Scope, name: bytes) -> list[bytes]:
    """The values of a request's header."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def decoded(scope: Scope, head: bytes, size: int, *, ended: bool) -> tuple[bytes, int, bool]:
    """A body without its content coding; the size of the whole; whether it is known to its end.

    Of what cannot be decoded within bounds nothing is read, and each coded byte is taken for three.

    Args:
        scope: of the request.
        head: the first bytes of its body.
        size: bytes of the whole of it.
        ended: whether the head is all of it.
    """
    codings = b",".join(header_of(scope, b"content-encoding")).strip().lower()
    if codings in {b"", b"identity"}:
        return head, size, ended
    plain = _inflated(head) if ended and codings in _INFLATED else None
    if plain is None:
        return b"", size * _CODED_TEXT_RATIO, False
    return plain, len(plain), True


def has_body(scope: Scope) -> bool:
    """Whether a request announces a body."""
    return any(name in _ANNOUNCING for name, _ in scope["headers"])


def _inflated(coded: bytes) -> bytes | None:
    """Decompress one gzip or zlib stream; None if it is invalid, too large, or more than one stream."""
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        decoded = stream.decompress(coded, DECODED_BYTES_MAX + 1)
    except zlib.error:
        return None
    return decoded if stream.eof and not stream.unused_data and len(decoded) <= DECODED_BYTES_MAX else None
