"""The protocol of Stripe's API: replies, errors, versions, limits of metadata."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field, fields
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JsonObject = dict[str, object]
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# A letter or digit for each byte.
_LETTERS: Final = bytes(ord(ALPHABET[byte % len(ALPHABET)]) for byte in range(256))


def new_id(prefix: str, *, length: int = 14) -> str:
    """Return a fresh id as Stripe forms them: ``cus_`` and 14 letters or digits."""
    return f"{prefix}_{secrets.token_bytes(length).translate(_LETTERS).decode()}"


def shown_fields(item: Any, *but: str) -> JsonObject:
    """Return the fields of a dataclass that Stripe shows under the same names: all, except some.

    ``but`` are names separated by spaces. Maps are copied: an event shows an object as it was.
    """
    shown = {name: getattr(item, name) for name in _shown_names(item.__class__, but)}
    return {name: value.copy() if isinstance(value, dict) else value for name, value in shown.items()}


@cache  # To ask a dataclass for its fields takes as long as to show an object.
def _shown_names(kind: Any, but: tuple[str, ...]) -> tuple[str, ...]:
    hidden = " ".join(but).split()
    return tuple(one.name for one in fields(kind) if one.name not in hidden)


def null_fields(names: str) -> JsonObject:
    """Return fields that Stripe shows as null; their names are separated by spaces."""
    return {**dict.fromkeys(names.split())}


def list_to_json(items: Sequence[JsonObject], *, url: str, shown_max: int | None = None) -> JsonObject:
    """Return a list inside of an object: its first items, and how many there are."""
    has_more = shown_max is not None and len(items) > shown_max
    shown = list(items[:shown_max])
    return {"object": "list", "data": shown, "has_more": has_more, "total_count": len(items), "url": url}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiReply:
    """A reply of the API.

    Attributes:
        stored: whether a repetition of the idempotency key gets this answer again.
    """

    status: int
    body: JsonObject
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    stored: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request and its result.

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
        self.reply = ApiReply(status=status, body={"error": error}, headers=headers or {}, stored=stored)


def unknown_parameter(name: str) -> ApiError:
    """Return the error for an unknown parameter."""
    return ApiError(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def missing_parameter(name: str) -> ApiError:
    """Return the error for a missing parameter."""
    return ApiError(f"Missing required param: {name}.", code="parameter_missing", param=name)


def not_found(what: str, object_id: str) -> ApiError:
    """Return the error for an unknown id in a path: 404."""
    message = f"No such {what}: '{object_id}'"
    return ApiError(message, status=HTTPStatus.NOT_FOUND, code="resource_missing", param="id")


def missing_resource(what: str, object_id: str, *, param: str) -> ApiError:
    """Return the error for an unknown id in a parameter: 400."""
    return ApiError(f"No such {what}: '{object_id}'", code="resource_missing", param=param)


# https://docs.stripe.com/metadata: "up to 50 key-value pairs", names of 40 and values of 500 characters.
KEYS_MAX: Final = 50
KEY_LENGTH_MAX: Final = 40
VALUE_LENGTH_MAX: Final = 500


def refuse_long_metadata(metadata: Mapping[str, str], *, param: str) -> None:
    """Refuse metadata beyond Stripe's limits, in the words that clients of Stripe have published.

    https://github.com/FlowFuse/flowfuse/issues/1948 has them for the number of keys.

    Raises:
        ApiError: it has too many keys, or a key or a value is too long.
    """
    for key, value in metadata.items():
        if len(key) > KEY_LENGTH_MAX:
            message = (
                f"Metadata keys can have up to {KEY_LENGTH_MAX} characters, but you passed in a key that is "
                f"{len(key)} characters. Invalid key: {key}"
            )
            raise ApiError(message, param=param)
        if len(value) > VALUE_LENGTH_MAX:
            message = (
                f"Metadata values can have up to {VALUE_LENGTH_MAX} characters, but you passed in a value "
                f"that is {len(value)} characters. Invalid value: {value}"
            )
            raise ApiError(message, param=f"{param}[{key}]")
    if len(metadata) > KEYS_MAX:
        message = (
            f"Metadata can have up to {KEYS_MAX} keys, but you've set {len(metadata)}. Email us at "
            "support+metadata@stripe.com for more information."
        )
        raise ApiError(message, param=param)


# https://docs.stripe.com/changelog: the releases whose objects have the shapes of the emulator's.
RELEASES: Final[Mapping[str, tuple[str, ...]]] = {
    "basil": ("2025-03-31", "2025-04-30", "2025-05-28", "2025-06-30", "2025-07-30", "2025-08-27"),
    "clover": ("2025-09-30", "2025-10-29", "2025-11-17", "2025-12-15", "2026-01-28", "2026-02-25"),
    "dahlia": ("2026-03-25", "2026-04-22", "2026-05-27", "2026-06-24", "2026-07-29", "2026-08-26"),
    "endive": ("2026-09-30", "2026-10-28"),
}
KNOWN_VERSIONS: Final = frozenset(
    f"{date}.{suffix}" for name, dates in RELEASES.items() for date in dates for suffix in (name, "preview")
)
# Releases had no names before 2024-09-30.acacia (https://docs.stripe.com/api/versioning).
ACACIA: Final = ("2024-09-30", "2024-10-28", "2024-11-20", "2024-12-18", "2025-01-27", "2025-02-24")
UNNAMED: Final = re.compile(r"20(1[1-9]|2[0-4])-[0-1][0-9]-[0-3][0-9]")


def read_version(given: str | None, *, default: str) -> str:
    """Return the API version of a request: the one that it names, else the account's default.

    https://github.com/beam-community/stripity-stripe/issues/606 has Stripe's words.

    Raises:
        ApiError: Stripe has no such version, or its objects have shapes that are not emulated.
    """
    if given is None:
        return default
    # Previews may name features: `2025-03-31.preview; feature_beta=v1`.
    version = given.partition(";")[0].strip()
    if version in KNOWN_VERSIONS:
        return version
    if UNNAMED.fullmatch(version) or version in {f"{date}.acacia" for date in ACACIA}:
        raise ApiError(f"Stripe-Version {version} is older than 2025-03-31.basil and not emulated.")
    raise ApiError(f"Invalid Stripe API version: {given}")
