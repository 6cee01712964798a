"""The endpoint for events of object stores: an ASGI app that answers once they have counted."""

from __future__ import annotations

from hmac import compare_digest
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.answers import answer, read_body, refuse
from meterkit.errors import MeterkitError
from meterkit.storage.object_events import UnreadableError
from meterkit.storage.sns import ForgedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Receive, Scope, Send

    from meterkit.storage.service import ObjectStorage

BODY_BYTES_MAX: Final = 1 << 20
"""Of a request to the endpoint."""

_AUTHORIZATION: Final = b"authorization"
_SECRET_LEAST: Final = 16


class StoringKit(Protocol):
    """As much of a kit as the endpoint uses."""

    @property
    def storage(self) -> ObjectStorage:
        """What counts the events."""
        ...


class StorageEndpoint:
    """Answers 200 once the events of a post have counted.

    400 for a post that is not signed or that no object store writes, 413 for more than 1 MiB. 503 where the
    store fails or the plans file has no ``storage:``: MinIO, SNS and EventBridge send it again.

    Args:
        kit: whose plans file has ``storage:``.
        secret: what MinIO and EventBridge send after ``Bearer`` in ``Authorization``.
        topics: ARNs of the topics of SNS whose messages count.

    Raises:
        MeterkitError: the secret is too short, or topics are named and ``cryptography`` is missing.
    """

    def __init__(self, kit: StoringKit, secret: str, topics: Iterable[str] = ()) -> None:
        if len(secret) < _SECRET_LEAST:
            raise MeterkitError(
                f"secret: allowed is a text of at least {_SECRET_LEAST} characters, as MinIO has it in"
                " MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN; without it anybody could change what customers store"
            )
        self._storage = kit.storage
        self._expected = f"Bearer {secret}".encode()
        self._topics = frozenset(topics)
        if self._topics:
            try:
                import_module("meterkit.storage.sns_certificates")
            except ImportError as error:
                raise MeterkitError(str(error)) from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the storage endpoint takes HTTP requests; found {scope['type']}")
        if scope["method"] == "HEAD":  # MinIO asks so whether anybody is there.
            await answer(send, HTTPStatus.OK, None)
            return
        if scope["method"] != "POST":
            await refuse(
                send, HTTPStatus.METHOD_NOT_ALLOWED, "object stores post their events", allow=b"POST"
            )
            return
        body = await read_body(scope, receive, most=BODY_BYTES_MAX)
        if body is None:
            await refuse(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_BYTES_MAX} bytes")
            return
        try:
            if self._is_bearer(scope):
                await self._storage.count(body)
            else:
                await self._storage.count_signed(body, self._topics)
        except MeterkitError as error:  # Of the store; or the plans file in force has no `storage:` any more.
            self._storage.warn(
                f"events of an object store do not count now; it will send them again: {error}"
            )
            await refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, "it cannot be counted now; send it again")
        except (ForgedError, UnreadableError) as error:
            self._storage.warn(f"what came to the endpoint for object stores is refused: {error}")
            await refuse(send, HTTPStatus.BAD_REQUEST, str(error))
        else:
            await answer(send, HTTPStatus.OK, {"received": True})

    def _is_bearer(self, scope: Scope) -> bool:
        found = [value for name, value in scope["headers"] if name == _AUTHORIZATION]
        return len(found) == 1 and compare_digest(found[0], self._expected)
