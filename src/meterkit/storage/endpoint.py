"""The endpoint for events of object stores: an ASGI app that answers after they are counted."""

from __future__ import annotations

from hmac import compare_digest
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.errors import MeterkitError
from meterkit.http_bodies import read_body, send_json, send_problem
from meterkit.storage.object_events import UnreadableEventError
from meterkit.storage.sns import ForgedMessageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Receive, Scope, Send

    from meterkit.storage.service import ObjectStorage

BODY_BYTES_MAX: Final = 1 << 20
"""Limit of a request body with the secret."""
SIGNED_BYTES_MAX: Final = 128 << 10
"""Limit of other bodies: anybody can post them, and they are parsed first. S3's messages have a few KiB."""

_AUTHORIZATION: Final = b"authorization"
_SECRET_LEAST: Final = 16


class StoringKit(Protocol):
    """The part of a kit that the endpoint uses."""

    @property
    def storage(self) -> ObjectStorage:
        """Counter of the events."""
        ...


class StorageEndpoint:
    """Answers 200 once the events of a post have counted.

    Answers 400 for an unsigned or unreadable post, 413 for more than 1 MiB, or 128 KiB without the secret,
    and 503 if the store fails or the plans file has no ``storage:``: MinIO, SNS and EventBridge send it
    again.

    Args:
        kit: its plans file has ``storage:``.
        secret: the token that MinIO and EventBridge send after ``Bearer`` in ``Authorization``.
        topics: ARNs of trusted SNS topics.

    Raises:
        MeterkitError: the secret is too short, or topics are named and ``cryptography`` is missing.
    """

    def __init__(self, kit: StoringKit, secret: str, topics: Iterable[str] = ()) -> None:
        if len(secret) < _SECRET_LEAST:
            raise MeterkitError(
                f"secret: allowed is a text of at least {_SECRET_LEAST} characters, the same as in MinIO's"
                " MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN; without it, any client could change the stored bytes"
            )
        self._storage = kit.storage
        self._expected = f"Bearer {secret}".encode()
        self._topics = frozenset(topics)
        if self._topics:
            try:
                import_module("meterkit.storage.sns_signatures")
            except ImportError as error:
                raise MeterkitError(str(error)) from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the storage endpoint accepts HTTP requests; found {scope['type']}")
        if scope["method"] == "HEAD":  # MinIO's health check.
            await send_json(send, HTTPStatus.OK, None)
            return
        if scope["method"] != "POST":
            await send_problem(
                send, HTTPStatus.METHOD_NOT_ALLOWED, "object stores post their events", allow=b"POST"
            )
            return
        is_bearer = self._is_bearer(scope)
        most = BODY_BYTES_MAX if is_bearer else SIGNED_BYTES_MAX
        body = await read_body(scope, receive, most=most)
        if body is None:
            await send_problem(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {most} bytes")
            return
        try:
            if is_bearer:
                await self._storage.count(body)
            else:
                await self._storage.count_signed(body, self._topics)
        except MeterkitError as error:  # A store error, or the plans file lost `storage:`.
            self._storage.warn(f"events of an object store were not counted; it sends them again: {error}")
            await send_problem(
                send, HTTPStatus.SERVICE_UNAVAILABLE, "the events cannot be counted now; send them again"
            )
        except (ForgedMessageError, UnreadableEventError) as error:
            self._storage.warn(f"the storage endpoint refuses a post: {error}")
            await send_problem(send, HTTPStatus.BAD_REQUEST, str(error))
        else:
            await send_json(send, HTTPStatus.OK, {"received": True})

    def _is_bearer(self, scope: Scope) -> bool:
        found = [value for name, value in scope["headers"] if name == _AUTHORIZATION]
        return len(found) == 1 and compare_digest(found[0], self._expected)
