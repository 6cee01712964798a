"""Answers of ASGI endpoints: problem documents (RFC 9457), JSON, and bodies that are read up to a bound."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.types import Receive, Scope, Send

IANA: Final = "https://iana.org/assignments/http-problem-types#"
URN: Final = "urn:meterkit:problem:"
PROBLEM_JSON: Final = "application/problem+json"
CHALLENGE: Final = 'Bearer realm="api"'
"""The value of ``WWW-Authenticate``, unless the app has another one."""
_LENGTH: Final = b"content-length"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """The common part of all problems of one type.

    Attributes:
        members: the further members of this type, each with its schema.
    """

    status: int
    uri: str
    title: str
    members: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def document(self, detail: str, members: Mapping[str, object], *, instance: str) -> bytes:
        """Serialize a problem of this type for one request, with a unique ``instance``."""
        document = {
            "type": self.uri,
            "title": self.title,
            "status": self.status,
            "detail": detail,
            "instance": instance,
            **members,
        }
        return json.dumps(document, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemDocument:
    """A problem document, ready to send.

    Attributes:
        kind: its type.
        detail: the reason of the refusal, and the cure.
        members: the further members of its type.
        wait_s: after how many seconds a retry may succeed; None: waiting does not help.
    """

    kind: ProblemType
    detail: str
    members: Mapping[str, object] = field(default_factory=dict[str, object])
    wait_s: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        headers = {"content-type": PROBLEM_JSON, "cache-control": "no-store"}
        if self.wait_s is not None:
            headers["retry-after"] = str(self.wait_s)
        if self.kind.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = CHALLENGE
        return headers

    @property
    def body(self) -> bytes:
        """Serialized document, with a new ``instance``."""
        return self.kind.document(self.detail, self.members, instance=uuid4().urn)


async def read_body(scope: Scope, receive: Receive, *, most: int) -> bytes | None:
    """Read the whole body; None if it has more than ``most`` bytes; empty if the client has left."""
    lengths = [value for name, value in scope["headers"] if name == _LENGTH]
    if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > most:
        return None
    pieces, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most:
            return None
        if not message.get("more_body", False):
            return b"".join(pieces)


async def answer(
    send: Send,
    status: HTTPStatus,
    content: Mapping[str, Any] | None,
    *,
    kind: str = "application/json",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send JSON, or an empty body for None."""
    body = b"" if content is None else json.dumps(content, separators=(",", ":")).encode()
    head = [
        (b"content-type", kind.encode()),
        (_LENGTH, b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status.value, "headers": [*head, *headers]})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: HTTPStatus, detail: str, *, allow: bytes | None = None) -> None:
    """Send a problem document of the status alone (``about:blank``)."""
    problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    headers = [] if allow is None else [(b"allow", allow)]
    await answer(send, status, problem, kind=PROBLEM_JSON, headers=headers)
