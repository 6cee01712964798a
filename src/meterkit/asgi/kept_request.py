"""A request's body, kept up to a bound while the app receives it, and the models that the request names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.body import decoded, header_of
from meterkit.tokens.request import read_request
from meterkit.tokens.requested_model import (
    JsonModels,
    RequestHead,
    form_readers,
    is_form,
    models_in_text,
    models_of_body,
    models_of_form,
    models_of_path,
    names_of,
    requested_models,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Scope

    from meterkit.asgi.body import BufferedBody
    from meterkit.tokens.requested_model import BodyModels

BODY_BYTES_MAX: Final = 1 << 20
"""How much of a request's body is kept."""

_LATE_BYTES_MAX: Final = 64 << 10


def head_of(scope: Scope) -> RequestHead:
    """The parts of a request's head that may name its model."""
    kinds = b",".join(header_of(scope, b"content-type"))
    return RequestHead(scope["path"], scope.get("query_string", b""), kinds)


class KeptRequest:
    """Stands for the server's ``receive``, and keeps what the app receives of the body.

    Of a body that is larger than the bound the rest is only searched for the model: a form may name it behind
    its file, and JSON behind its messages.

    Args:
        scope: of the request.
        receive: the server's, or of the body that was read before.
        body: which was read before; None: none was.
    """

    __slots__ = ("_body", "_buffered", "_is_searched", "_named", "_receive", "_rest", "_scope", "_size")

    def __init__(self, scope: Scope, receive: Receive, body: BufferedBody | None = None) -> None:
        self._scope = scope
        self._receive = receive
        self._buffered = body
        self._body: bytearray | None = bytearray()
        self._size = 0
        self._rest: Sequence[BodyModels] = ()
        self._is_searched = False
        self._named: tuple[str, ...] = ()  # By the body that is no longer kept.

    async def receive(self) -> Message:
        """The next message, as it is."""
        message = await self._receive()
        if message["type"] == "http.request" and (body := message.get("body")):
            self._keep(body)
        return message

    def _keep(self, body: bytes) -> None:
        kept = self._body
        if kept is None:
            return
        room = BODY_BYTES_MAX - self._size
        self._size += len(body)
        if room > 0 and self._buffered is None:
            kept += body[:room]
        if len(body) > room:
            self._search(bytes(body[max(0, room) :]))

    def _search(self, rest: bytes) -> None:
        """Look for the model in what is not kept."""
        if not self._is_searched:
            self._is_searched = True
            if header_of(self._scope, b"content-encoding"):
                return  # Its pieces cannot be read.
            kind, head = head_of(self._scope).content_type, self.head()[0]
            self._rest = form_readers(kind, head) if is_form(kind) else [JsonModels()]
            for reader in self._rest:
                reader.feed(head)
        for reader in self._rest:
            reader.feed(rest)

    def head(self) -> tuple[bytes, int]:
        """The beginning of the body, and the size of the whole."""
        known = self._buffered
        return (bytes(self._body or b""), self._size) if known is None else (known.head, known.size)

    def models(self) -> tuple[str, ...]:
        """The models that the request names, each that some app may read.

        One of them is the empty text where JSON could only be searched: it may name another model.
        """
        head = head_of(self._scope)
        if self._body is None:
            return requested_models(head, self._named)
        body, size = self.head()
        body, size, is_whole = decoded(self._scope, body, size, ended=size <= len(body))
        is_whole = is_whole and size <= len(body)
        found = models_of_body(head, body, read_request(body) if is_whole else None, is_whole=is_whole)
        if found is None or self._rest:
            found = self._search_models(head, body, found or ())
        return requested_models(head, found)

    def _search_models(self, head: RequestHead, body: bytes, known: Sequence[str]) -> tuple[str, ...]:
        """The models that a search finds in a body that cannot be parsed, and those that are known."""
        of_form = is_form(head.content_type)
        found = [name for reader in self._rest for name in reader.models()]
        if not (self._rest or of_form):
            found += models_in_text(body)
        named = names_of((*known, *found))
        is_certain = of_form or models_of_path(head.path)
        return named if is_certain else (*named, "")

    def release(self) -> None:
        """Keep a large body no longer once the response is over: the app may still report what it used."""
        if self._body is not None and self._size > _LATE_BYTES_MAX:
            head, kept = head_of(self._scope), self.head()[0]
            kind = head.content_type
            of_form = models_of_form(kind, kept) if is_form(kind) else ()
            self._named = self._search_models(head, kept, of_form)
            self._body, self._buffered, self._rest = None, None, ()
