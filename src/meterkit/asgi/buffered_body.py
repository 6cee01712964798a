"""Body of a request: read ahead and replayed, or kept up to a bound while the app receives it."""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING, Final

from llm_usage import read_request
from llm_usage.call_location import JsonLocation, location_of_body, location_of_path, location_of_text
from llm_usage.call_usage import names_of
from llm_usage.form_models import form_readers, is_form
from llm_usage.llm_request import WAYS_OF_HEADERS
from llm_usage.published_factors import REGIONAL
from llm_usage.requested_model import (
    JsonModelReader,
    RequestHead,
    models_in_text,
    models_of_body,
    models_of_form,
    models_of_path,
    requested_models,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Scope

    from llm_usage.form_models import BodyModelReader

READ_AHEAD_BYTES_MAX: Final = 1 << 20
DECODED_BYTES_MAX: Final = 256 << 10
"""Bytes that are read of a compressed body."""

_MESSAGES_MAX: Final = 4_096
_LENGTH_DIGITS_MAX: Final = 15
_CODED_TEXT_RATIO: Final = 3
_INFLATED: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})
_ZLIB_OR_GZIP: Final = 47
_WAYS: Final = {name.encode(): way for name, way in WAYS_OF_HEADERS.items()}
_ANNOUNCING: Final = frozenset({b"content-length", b"transfer-encoding"})


class BufferedBody:
    """Reads a body ahead, then replays it in place of the server's ``receive``.

    Args:
        scope: the request's.
        receive: the server's.
        most: limit of the bytes that are read; servers may give a body of any size in one message.

    Attributes:
        scope: the request's.
        head: the first bytes of the body.
        ended: whether that is all of it.
        received: bytes that the server has given, and the head may lack some of.
        gone: whether the client hung up meanwhile.
        untouched: whether nothing was read ahead.
    """

    __slots__ = ("_kept", "_most", "_receive", "ended", "gone", "head", "received", "scope", "untouched")

    def __init__(self, scope: Scope, receive: Receive, *, most: int = READ_AHEAD_BYTES_MAX) -> None:
        self.scope = scope
        self._most = most
        self._receive = receive
        self._kept: deque[Message] = deque()
        self.head = b""
        self.received = 0
        self.ended = self.gone = False
        self.untouched = True

    async def read(self) -> None:
        """Read the body once: to its end, until the client hangs up, or the message that passes a bound."""
        if not self.untouched:
            return
        self.untouched = False
        pieces: list[bytes] = []
        while self.received < self._most and len(self._kept) < _MESSAGES_MAX:
            message = await self._receive()
            self._kept.append(message)
            if message["type"] != "http.request":
                self.gone = message["type"] == "http.disconnect"
                break
            body = bytes(message.get("body", b""))
            pieces.append(body[: self._most - self.received])
            self.received += len(body)
            if not message.get("more_body", False):
                self.ended = self.received <= self._most
                break
        self.head = b"".join(pieces)

    @property
    def size(self) -> int:
        """Size of the whole body in bytes, by the read part and ``Content-Length``."""
        found = self.header(b"content-length")
        declared = found[0] if len(found) == 1 and len(found[0]) <= _LENGTH_DIGITS_MAX else b""
        return max(self.received, int(declared) if declared.isdigit() else 0)

    def content(self) -> tuple[bytes, int, bool]:
        """See :func:`decode_body`."""
        return decode_body(self.scope, self.head, self.size, ended=self.ended)

    async def receive(self) -> Message:
        """Receive the messages that were read ahead, then the server's."""
        return self._kept.popleft() if self._kept else await self._receive()

    def header(self, name: bytes) -> list[bytes]:
        """List the values of a header."""
        return header_of(self.scope, name)


def header_of(scope: Scope, name: bytes) -> list[bytes]:
    """List the values of a request's header."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def has_body(scope: Scope) -> bool:
    """Whether a request announces a body."""
    return any(value.strip(b"0 ") for name in _ANNOUNCING for value in header_of(scope, name))


def decode_body(scope: Scope, head: bytes, size: int, *, ended: bool) -> tuple[bytes, int, bool]:
    """Decode a body: its text, the size of the whole, and whether it is known to its end.

    A body that cannot be decoded within bounds is not read; each coded byte counts as three.

    Args:
        scope: of the request.
        head: the first bytes of its body.
        size: bytes of the whole of it.
        ended: whether the head is all of it.
    """
    codings = b",".join(header_of(scope, b"content-encoding")).strip().lower()
    if codings in {b"", b"identity"}:
        return head, size, ended
    plain = _inflate(head) if ended and codings in _INFLATED else None
    if plain is None:
        return b"", size * _CODED_TEXT_RATIO, False
    return plain, len(plain), True


def _inflate(coded: bytes) -> bytes | None:
    """Decompress one gzip or zlib stream; None if it is invalid, too large, or more than one stream."""
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        decoded = stream.decompress(coded, DECODED_BYTES_MAX + 1)
    except zlib.error:
        return None
    return decoded if stream.eof and not stream.unused_data and len(decoded) <= DECODED_BYTES_MAX else None


KEPT_BYTES_MAX: Final = 1 << 20
"""Bytes of a request's body that are kept."""

_LATE_BYTES_MAX: Final = 64 << 10


def head_of(scope: Scope, path: str | None = None) -> RequestHead:
    """Collect the parts of a request's head that may name its model.

    Args:
        scope: the request's.
        path: the request's, if routers of the app may have changed the one in its scope.
    """
    kinds = b",".join(header_of(scope, b"content-type"))
    return RequestHead(scope["path"] if path is None else path, scope.get("query_string", b""), kinds)


def ways_of(scope: Scope) -> Sequence[tuple[str, str]]:
    """The ways of processing that a request's head asks for, such as ``("service_tier", "priority")``."""
    fields = [field for field in scope["headers"] if field[0] in _WAYS]
    location = location_of_path(scope["path"])
    if not fields:
        return () if location is None else (location,)
    ways = [(_WAYS[name], value.decode("latin-1").strip().lower()) for name, value in fields]
    return ways if location is None else [*ways, location]


class KeptRequest:
    """Receives in place of the server, and keeps the body as the app receives it.

    Of a body that is larger than the bound the rest is only searched for the model: a form may name it behind
    its file, and JSON behind its messages.

    Args:
        scope: of the request.
        receive: the server's, or of the body that was read before.
        body: which was read before; None: none was.
    """

    __slots__ = (
        "_body",
        "_buffered",
        "_located",
        "_named",
        "_path",
        "_receive",
        "_rest",
        "_rest_location",
        "_scope",
        "_size",
    )

    # Unset until they are needed: a request pays for each field that it sets.
    _rest_location: JsonLocation | None
    _located: tuple[int, str | None]  # By so many bytes of the body.
    _named: tuple[str, ...]  # By the body that is no longer kept.

    def __init__(self, scope: Scope, receive: Receive, body: BufferedBody | None = None) -> None:
        self._scope = scope
        self._path: str = scope["path"]
        self._receive = receive
        self._buffered = body
        self._body: bytearray | None = bytearray()
        self._size = 0
        # None: the part that is not kept is not searched yet.
        self._rest: Sequence[BodyModelReader] | None = None

    async def receive(self) -> Message:
        """Receive the next message unchanged."""
        message = await self._receive()
        if message["type"] == "http.request" and (body := message.get("body")):
            self._keep_piece(body)
        return message

    def _keep_piece(self, body: bytes) -> None:
        kept = self._body
        if kept is None:
            return
        room = KEPT_BYTES_MAX - self._size
        self._size += len(body)
        if room > 0 and self._buffered is None:
            kept += body[:room]
        if len(body) > room:
            self._search(bytes(body[max(0, room) :]))

    def _search(self, rest: bytes) -> None:
        """Search the part that is not kept for the model."""
        if self._rest is None:
            self._rest, self._rest_location = (), None
            if header_of(self._scope, b"content-encoding"):
                return  # Its pieces cannot be read.
            kind, head = self.content_type, self.head()[0]
            self._rest = form_readers(kind, head) if is_form(kind) else [JsonModelReader()]
            self._rest_location = None if is_form(kind) else JsonLocation()
            self._feed(head)
        self._feed(rest)

    def _feed(self, piece: bytes) -> None:
        for reader in self._rest or ():
            reader.feed(piece)
        if self._rest_location is not None:
            self._rest_location.feed(piece)

    def head(self) -> tuple[bytes, int]:
        """Return the beginning of the body, and the size of the whole."""
        known = self._buffered
        return (bytes(self._body or b""), self._size) if known is None else (known.head, known.size)

    def content(self) -> tuple[bytes, int]:
        """Return the decoded beginning of the body, and the size of the whole; see :func:`decode_body`."""
        head, size = self.head()
        content, size, _ = decode_body(self._scope, head, size, ended=size <= len(head))
        return content, size

    @property
    def content_type(self) -> bytes:
        """Content type of the body; several, joined, if the request names several."""
        return head_of(self._scope).content_type

    def models(self) -> tuple[str, ...]:
        """List the models that the request names, each that some app may read.

        One of them is the empty text where JSON could only be searched: it may name another model.
        """
        head = head_of(self._scope, self._path)
        if self._body is None:
            return requested_models(head, self._named)
        body, size = self.head()
        body, size, is_whole = decode_body(self._scope, body, size, ended=size <= len(body))
        is_whole = is_whole and size <= len(body)
        found = models_of_body(head, body, read_request(body) if is_whole else None, is_whole=is_whole)
        if found is None or self._rest:
            found = self._search_models(head, body, found or ())
        return requested_models(head, found)

    def location(self) -> str | None:
        """The location that the body asks for, such as ``us``; None: it asks for none."""
        known: tuple[int, str | None] | None = getattr(self, "_located", None)
        if known is None or (self._body is not None and known[0] != self._size):
            known = self._located = self._size, self._find_location()
        return known[1]

    def _find_location(self) -> str | None:
        if self._rest is not None and self._rest_location is not None:
            return self._rest_location.found
        head, size = self.head()
        body, size, is_whole = decode_body(self._scope, head, size, ended=size <= len(head))
        if head and not (body or is_whole):
            return REGIONAL[1]  # It cannot be read, and may ask for any.
        asked = read_request(body) if is_whole else None
        return location_of_text(body) if asked is None else location_of_body(asked)

    def _search_models(self, head: RequestHead, body: bytes, known: Sequence[str]) -> tuple[str, ...]:
        """Search a body that cannot be parsed for models, and add the known ones."""
        of_form = is_form(head.content_type)
        found = [name for reader in self._rest or () for name in reader.models()]
        if not self._rest:
            found += models_of_form(head.content_type, body) if of_form else models_in_text(body)
        named = names_of((*known, *found))
        is_certain = of_form or models_of_path(head.path)
        return named if is_certain else (*named, "")

    def release(self) -> None:
        """Drop a large body after the response, but what it names: the app may still report usage."""
        if self._body is not None and self._size > _LATE_BYTES_MAX:
            head, kept = head_of(self._scope, self._path), self.head()[0]
            kind = head.content_type
            of_form = models_of_form(kind, kept) if is_form(kind) else ()
            self._named = self._search_models(head, kept, of_form)
            self.location()
            self._body, self._buffered, self._rest, self._rest_location = None, None, (), None
