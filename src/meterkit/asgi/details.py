"""The words of a refusal, for the developer of the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, assert_never

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from meterkit.decisions.decision import Decision, Policy, Reason

__all__ = ["Circumstances", "Kind", "Member", "Refusal", "kind_of", "tell"]

Kind = Literal[
    "quota", "payment", "feature", "seats", "storage", "unknown", "invalid", "in_flight", "capacity"
]

CHALLENGE: Final = 'Bearer realm="api"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a refusal speaks of beside the decision; a field that does not apply keeps its default.

    Attributes:
        policies: the customer's policies on this route.
        feature: the feature that the route asks for.
        plan: the key of the customer's plan.
        available_in: the keys of the plans that have the feature.
        limit: the gauge's limit, in its unit.
        used: the gauge's level, in its unit.
        requested: by how much the request would raise the level.
        portal_url: where the customer can pay.
        origin: the request's ``Origin``.
        cors: the origins whose scripts may read a refusal; ``*`` for all.
        challenge: the value of ``WWW-Authenticate``.
    """

    policies: tuple[Policy, ...] = ()
    feature: str | None = None
    plan: str | None = None
    available_in: tuple[str, ...] = ()
    limit: int | None = None
    used: int | None = None
    requested: int | None = None
    portal_url: str | None = None
    origin: bytes | None = None
    cors: Collection[str] = ()
    challenge: str = CHALLENGE


def kind_of(reason: Reason) -> Kind:
    """Which problem a reason is told as."""
    match reason:
        case "rate" | "concurrency" | "included" | "cap":
            return "quota"
        case "suspended" | "payment_required" | "credits":
            return "payment"
        case "feature" | "seats" | "storage" | "in_flight":
            return reason
        case "anonymous":
            return "unknown"
        case "invalid_customer":
            return "invalid"
        case "identify" | "store":
            return "capacity"
    assert_never(reason)


Member = str | int | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """All that the words of one refusal draw on; ``wait_s`` is None where waiting does not help."""

    decision: Decision
    reason: Reason
    circumstances: Circumstances
    wait_s: int | None

    @property
    def policy(self) -> Policy | None:
        """The policy that the decision names as its limit."""
        policies = self.circumstances.policies
        return next((policy for policy in policies if policy.name == self.decision.limit), None)


def tell(kind: Kind, refusal: Refusal) -> tuple[str, dict[str, Member]]:
    """The ``detail`` of a problem, and the members that only its type has."""
    return _TELLERS[kind](refusal)


_Telling = tuple[str, dict[str, Member]]


def _tell_quota(refusal: Refusal) -> _Telling:
    policy = refusal.policy
    members: dict[str, Member] = {"violated-policies": list(refusal.decision.violated)}
    if policy is None:
        return f"A limit on this request is used up. {_retry(refusal.wait_s)}", members
    if policy.kind == "concurrency":
        allows = f"{_count(policy.quota, 'request')} at a time"
    else:
        span = "billing period" if policy.window_s is None else _window(policy.window_s)
        allows = f"{_count(policy.quota, policy.quota_unit or 'request')} per {span.removeprefix('1 ')}"
    return f'Policy "{policy.name}" allows {allows}. {_retry(refusal.wait_s)}', members


def _tell_payment(refusal: Refusal) -> _Telling:
    members: dict[str, Member] = {"reason": refusal.reason}
    if refusal.reason == "credits":
        why, cure = "What is left of the prepaid credits or grants does not cover this request.", "Buy more"
    elif refusal.reason == "suspended":
        why, cure = "This account is suspended until its payments are settled.", "Pay"
    else:
        why, cure = "This request needs a payment.", "Pay"
    portal = refusal.circumstances.portal_url
    if portal is None:
        return f"{why} {cure} to go on.", members
    return f"{why} {cure} at {portal} to go on.", members | {"portal_url": portal}


def _tell_feature(refusal: Refusal) -> _Telling:
    feature, plan = refusal.circumstances.feature or "", refusal.circumstances.plan or ""
    elsewhere = list(refusal.circumstances.available_in)
    cure = f"It is available in {', '.join(map(repr, elsewhere))}." if elsewhere else "No plan includes it."
    members: dict[str, Member] = {"feature": feature, "plan": plan, "available_in": elsewhere}
    return f"The plan {plan!r} does not include the feature {feature!r}. {cure}", members


def _tell_seats(refusal: Refusal) -> _Telling:
    limit, used = refusal.circumstances.limit or 0, refusal.circumstances.used or 0
    detail = (
        f"This plan allows {_count(limit, 'seat')}; in use: {used}. Free a seat or choose a plan with more."
    )
    return detail, {"limit": limit, "used": used}


def _tell_storage(refusal: Refusal) -> _Telling:
    limit, used = refusal.circumstances.limit or 0, refusal.circumstances.used or 0
    requested = refusal.circumstances.requested or 0
    detail = (
        f"This plan allows {_count(limit, 'byte')}; in use: {used}, requested: {requested}. "
        "Delete something or choose a plan with more."
    )
    return detail, {"limit": limit, "used": used, "requested": requested}


def _tell_unknown(_: Refusal) -> _Telling:
    return "This request does not say which customer it belongs to. Send valid credentials.", {}


def _tell_invalid(_: Refusal) -> _Telling:
    allowed = "a text of 1 to 256 bytes of UTF-8 without control characters"
    return f"The customer id of this request is not valid. Allowed is {allowed}.", {}


def _tell_in_flight(refusal: Refusal) -> _Telling:
    return f"The first request with this idempotency key has not ended yet. {_retry(refusal.wait_s)}", {}


def _tell_capacity(refusal: Refusal) -> _Telling:
    why = "Limits cannot be checked at the moment"
    if refusal.reason == "identify":
        why = "The customer of this request could not be determined"
    return f"{why}; the request was not served. {_retry(refusal.wait_s)}", {}


_TELLERS: Final[Mapping[Kind, Callable[[Refusal], _Telling]]] = {
    "quota": _tell_quota,
    "payment": _tell_payment,
    "feature": _tell_feature,
    "seats": _tell_seats,
    "storage": _tell_storage,
    "unknown": _tell_unknown,
    "invalid": _tell_invalid,
    "in_flight": _tell_in_flight,
    "capacity": _tell_capacity,
}


def _retry(wait_s: int | None) -> str:
    if wait_s is None:
        return "Waiting does not help: ask for less at once, or choose a plan with more."
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if wait_s >= 2 * size:
            return f"Retry in {_count(-(-wait_s // size), unit)}."
    return f"Retry in {_count(wait_s, 'second')}."


def _window(seconds: int) -> str:
    """The largest unit that writes a window without a rest."""
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            return _count(seconds // size, unit)
    return _count(seconds, "second")


def _count(quantity: int, unit: str) -> str:
    return f"{quantity} {unit}" if quantity == 1 or unit.endswith("s") else f"{quantity} {unit}s"
