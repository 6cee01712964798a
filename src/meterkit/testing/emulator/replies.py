"""What comes out of the emulator: replies, errors, and the record of both."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ApiError",
    "Exchange",
    "JsonObject",
    "Reply",
    "missing_parameter",
    "missing_resource",
    "new_id",
    "no_such",
    "unknown_parameter",
]

JsonObject = dict[str, object]
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_id(prefix: str, *, length: int = 14) -> str:
    """Return a fresh id as Stripe forms them: ``cus_`` and 14 letters or digits."""
    return f"{prefix}_{''.join(secrets.choice(ALPHABET) for _ in range(length))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer.

    Attributes:
        stored: whether a repetition of the idempotency key gets this answer again.
    """

    status: int
    body: JsonObject
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    stored: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request that the emulator has seen, and what became of it.

    Attributes:
        identifier: of the meter event, if it was one.
        status: of the answer; 0 where none was sent.
        replayed: whether the answer was that of an earlier request with the same idempotency key.
    """

    method: str
    path: str
    idempotency_key: str | None
    identifier: str | None
    status: int
    replayed: bool


class ApiError(Exception):
    """A refusal, in Stripe's words.

    Args:
        stored: whether a repetition of the idempotency key gets this answer again. Stripe stores what an
            endpoint answered once it had begun to execute, and not what was refused before.

    Attributes:
        reply: it as an answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        stored: bool = False,
        decline_code: str | None = None,
    ) -> None:
        super().__init__(message)
        page = None if code is None else f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
        said = {"message": message, "type": kind, "code": code, "doc_url": page, "param": param}
        said["decline_code"] = decline_code
        error = {name: value for name, value in said.items() if value is not None}
        self.reply = Reply(status=status, body={"error": error}, headers=headers or {}, stored=stored)


def unknown_parameter(name: str) -> ApiError:
    """The refusal of a parameter that there is not."""
    return ApiError(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def missing_parameter(name: str) -> ApiError:
    """The refusal of a request without a parameter that it must have."""
    return ApiError(f"Missing required param: {name}.", code="parameter_missing", param=name)


def no_such(what: str, object_id: str) -> ApiError:
    """The refusal of a path with the id of an object that there is not: 404."""
    message = f"No such {what}: '{object_id}'"
    return ApiError(message, status=HTTPStatus.NOT_FOUND, code="resource_missing", param="id")


def missing_resource(what: str, object_id: str, *, param: str) -> ApiError:
    """The refusal of a parameter with the id of an object that there is not: 400."""
    return ApiError(f"No such {what}: '{object_id}'", code="resource_missing", param=param)
