"""What a refused client is told: a problem document (RFC 9457) with its status and fields."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.asgi.details import Circumstances, Kind, Member, Refusal, kind_of, tell
from meterkit.asgi.headers import fields, join, merge, policy_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta
    from uuid import UUID

    from starlette.types import Scope, Send

    from meterkit.catalog.models import Headers
    from meterkit.decisions.decision import Decision, Reason

__all__ = ["TYPES", "Circumstances", "Denial", "complete", "problem", "send_denial"]

IANA: Final = "https://iana.org/assignments/http-problem-types#"
URN: Final = "urn:meterkit:problem:"
PATIENCE_S: Final = 60
_OF_THE_BODY: Final = frozenset({b"content-type", b"content-length"})
_LISTS: Final = frozenset({b"access-control-expose-headers", b"vary"})
POLICY_VIOLATION: Final = 1008
"""The websocket close code for a message or client that breaks a rule (RFC 6455 section 7.4.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemType:
    """What all problems of one kind have in common."""

    status: int
    uri: str
    title: str


TYPES: Final[Mapping[Kind, ProblemType]] = {
    "quota": ProblemType(status=429, uri=f"{IANA}quota-exceeded", title="Quota Exceeded"),
    "payment": ProblemType(status=402, uri=f"{URN}payment-required", title="Payment Required"),
    "feature": ProblemType(status=403, uri=f"{URN}feature-not-in-plan", title="Feature Not In Plan"),
    "seats": ProblemType(status=403, uri=f"{URN}seats-limit-exceeded", title="Seats Limit Exceeded"),
    "storage": ProblemType(status=413, uri=f"{URN}storage-limit-exceeded", title="Storage Limit Exceeded"),
    "unknown": ProblemType(status=401, uri=f"{URN}customer-unknown", title="Customer Unknown"),
    "invalid": ProblemType(status=400, uri=f"{URN}customer-invalid", title="Customer Invalid"),
    "in_flight": ProblemType(status=409, uri=f"{URN}request-in-flight", title="Request In Flight"),
    "capacity": ProblemType(
        status=503, uri=f"{IANA}temporary-reduced-capacity", title="Temporary Reduced Capacity"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A refusal, ready to be sent."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    title: str
    instance: str


def problem(
    decision: Decision, circumstances: Circumstances, *, mode: Headers, now_s: int, instance: UUID
) -> Denial:
    """The answer to a request that was refused.

    Args:
        decision: why; a decision without a reason is told as one of the store.
        circumstances: what the words and members need.
        mode: which family of limit fields the route sends.
        now_s: seconds since the epoch.
        instance: the name of this occurrence.
    """
    reason: Reason = decision.reason or "store"
    kind = kind_of(reason)
    about = TYPES[kind]
    wait_s = _wait_s(reason, decision.retry_after)
    refusal = Refusal(decision=decision, reason=reason, circumstances=circumstances, wait_s=wait_s)
    detail, members = tell(kind, refusal)
    document: dict[str, Member] = {
        "type": about.uri,
        "title": about.title,
        "status": about.status,
        "detail": detail,
        "instance": instance.urn,
    }
    document |= members
    body = json.dumps(document, separators=(",", ":")).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    ours = _limit_fields(refusal, mode=mode, now_s=now_s)
    if wait_s is not None:
        ours.append((b"retry-after", b"%d" % wait_s))
    if wait_s is None or wait_s >= PATIENCE_S:
        ours.append((b"x-should-retry", b"false"))
    if kind == "unknown":
        ours.append((b"www-authenticate", circumstances.challenge.encode("latin-1")))
    headers = merge(headers, ours, expose=circumstances.origin is not None)
    headers += _cors(circumstances)
    return Denial(
        status=about.status, headers=tuple(headers), body=body, title=about.title, instance=instance.urn
    )


def complete(headers: Iterable[tuple[bytes, bytes]], denial: Denial) -> list[tuple[bytes, bytes]]:
    """The headers of an app's own answer to a refused request, and those of ours that it lacks.

    What describes the body is the app's; what lists names is put together.
    """
    items = list(headers)
    present = {name.lower() for name, _ in items}
    for name, value in denial.headers:
        if name in _OF_THE_BODY:
            continue
        if name not in present:
            items.append((name, value))
        elif name in _LISTS:
            place = next(place for place, item in enumerate(items) if item[0].lower() == name)
            items[place] = (items[place][0], join(items[place][1], value))
    return items


async def send_denial(denial: Denial, scope: Scope, send: Send) -> None:
    """Answer a request, or refuse a websocket that is not accepted yet.

    A websocket gets the same answer where the server can send one, else it is closed with 1008, which
    servers turn into a bare 403.
    """
    prefix = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": denial.title})
            return
        prefix = "websocket.http.response"
    body = b"" if scope.get("method") == "HEAD" else denial.body
    await send({"type": f"{prefix}.start", "status": denial.status, "headers": list(denial.headers)})
    await send({"type": f"{prefix}.body", "body": body})


def _wait_s(reason: Reason, retry_after: timedelta | None) -> int | None:
    """Whole seconds to wait, at least 1; None where waiting does not help."""
    if reason in {"concurrency", "identify", "in_flight", "store"}:
        return 1 if retry_after is None else _seconds(retry_after)
    if retry_after is None or kind_of(reason) != "quota":
        return None
    return _seconds(retry_after)


def _seconds(span: timedelta) -> int:
    whole = span.days * 86_400 + span.seconds
    return max(1, whole + (span.microseconds > 0))


def _limit_fields(refusal: Refusal, *, mode: Headers, now_s: int) -> list[tuple[bytes, bytes]]:
    """The limit fields; ``t`` is the wait where there is one: ``Retry-After`` should not end before it."""
    reset_s, reset_after = refusal.wait_s, refusal.decision.reset_after
    if reset_s is None and reset_after is not None:
        reset_s = _seconds(reset_after)
    return fields(
        mode,
        policies=policy_field(refusal.circumstances.policies),
        limit=refusal.policy,
        remaining=refusal.decision.remaining,
        reset_s=reset_s,
        now_s=now_s,
    )


def _cors(circumstances: Circumstances) -> list[tuple[bytes, bytes]]:
    origin = circumstances.origin
    if origin is None:
        return []
    if "*" in circumstances.cors:
        return [(b"access-control-allow-origin", b"*")]
    if origin.decode("latin-1") in circumstances.cors:
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
    return []
