"""Signatures of Stripe's webhooks: verify one, and parse the event that it signs.

https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Any, Final, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

Event = Mapping[str, Any]
"""A Stripe event: of a snapshot destination, or the notification of a thin one."""
TOLERANCE_S: Final = 300
"""Largest difference between Stripe's clock and ours, both ways."""
ForgeryReason = Literal["missing", "malformed", "no_match", "stale", "future", "unreadable"]

# Stripe signs with each secret that is valid, two while one is rolled.
_PARTS_MAX: Final = 16
_HEADER_MAX: Final = 2048
_TIME: Final = re.compile(r"[0-9]{1,12}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[\x21-\x7e]{1,255}")
_OBJECTS: Final = ("event", "v2.core.event")
_FORGERY_TEXTS: Final[Mapping[ForgeryReason, str]] = {
    "missing": "no Stripe-Signature header, or several",
    "malformed": "the Stripe-Signature header lacks one t (Unix seconds) and a v1 of 64 hexadecimal digits",
    "no_match": "no signature in it was made with a secret in METERKIT_STRIPE_WEBHOOK_SECRET: add that of"
    " this destination at Stripe",
    "stale": f"it was signed more than {TOLERANCE_S} s ago",
    "future": f"it was signed more than {TOLERANCE_S} s from now",
    "unreadable": "it is signed, and is no event",
}


@dataclass(frozen=True, slots=True)
class ForgedEvent:
    """A body that is not a verified event of Stripe.

    Attributes:
        why: the reason.
    """

    why: ForgeryReason

    def __str__(self) -> str:
        return _FORGERY_TEXTS[self.why]


def verify_signature(
    body: bytes, headers: Iterable[bytes], secrets: Iterable[str], *, now_s: float
) -> Event | ForgedEvent:
    """Verify a webhook request; return its event if it was signed with one of the secrets lately.

    Args:
        body: of the request, byte for byte.
        headers: the values of its ``Stripe-Signature`` headers.
        secrets: the signing secrets, ``whsec_…``: of each endpoint, two while one is rolled.
        now_s: the current time (Unix seconds).
    """
    values = list(headers)
    if len(values) != 1 or not values[0].strip():
        return ForgedEvent("missing")
    signed = _parse_signature_header(values[0])
    if signed is None:
        return ForgedEvent("malformed")
    at, signatures = signed
    is_ours = False
    for secret in secrets:
        expected = digest(secret.encode(), b"%b.%b" % (at.encode(), body), sha256).hex().encode()
        for signature in signatures:
            is_ours |= compare_digest(expected, signature.encode())
    if not is_ours:
        return ForgedEvent("no_match")
    if abs(now_s - int(at)) > TOLERANCE_S:
        return ForgedEvent("stale" if int(at) < now_s else "future")
    return _parse_event(body)


def _parse_signature_header(header: bytes) -> tuple[str, list[str]] | None:
    """Return the time and the v1 signatures of a Stripe-Signature header; None if it is malformed."""
    if len(header) > _HEADER_MAX:
        return None
    parts = [part.strip().partition("=") for part in header.decode("latin-1").split(",")]
    times = [value for name, _, value in parts if name == "t"]
    signatures = [value for name, _, value in parts if name == "v1" and _SIGNATURE.fullmatch(value)]
    if len(times) != 1 or not _TIME.fullmatch(times[0]) or not signatures:
        return None
    return times[0], signatures[:_PARTS_MAX]


def _parse_event(body: bytes) -> Event | ForgedEvent:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        return ForgedEvent("unreadable")
    event = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    texts = [event.get(name) for name in ("id", "type")]
    is_named = all(isinstance(text, str) and _NAME.fullmatch(text) for text in texts)
    return event if is_named and event.get("object") in _OBJECTS else ForgedEvent("unreadable")
