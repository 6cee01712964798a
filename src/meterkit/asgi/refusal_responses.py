"""Responses to refused requests: status, fields, problem document (RFC 9457) and offers of top-ups.

Offers have the form of x402: https://github.com/coinbase/x402/blob/main/specs/x402-specification-v2.md
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.asgi.limit_fields import format_fields, join_names, merge_headers, policy_field, reset_instant_s
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.meters import CHARGED
from meterkit.catalog.value_parsers import exact_money, is_money, micro_money, money
from meterkit.decisions.refusal_reasons import UNKNOWN_WAIT_MS
from meterkit.problem_types import CHALLENGE, PROBLEM_JSON, PROBLEM_TYPES, ProblemType
from meterkit.store.input_checks import ALLOWED_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from uuid import UUID

    from starlette.types import Scope, Send

    from meterkit.catalog import Catalog
    from meterkit.catalog.models import Headers
    from meterkit.decisions.decision import Decision, MoneyShortfall, Policy, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemContext:
    """Data of a refusal beside the decision; a field that does not apply keeps its default.

    Attributes:
        policies: the customer's policies on this route.
        feature: the feature that the route asks for.
        plan: the key of the customer's plan.
        available_in: the keys of the plans that have the feature.
        limit: the gauge's limit, in its unit.
        used: the gauge's level, in its unit.
        requested: by how much the request would raise the level.
        unit: of the gauge.
        portal_url: where the customer can pay.
        offer: the top-ups that are sold, or None.
        resource: the address of the request.
        currency: of the plans file.
        origin: the request's ``Origin``.
        cors: the origins owner scripts may read a refusal; ``*`` for all.
        challenge: the value of ``WWW-Authenticate``.
    """

    policies: tuple[Policy, ...] = ()
    feature: str | None = None
    plan: str | None = None
    available_in: tuple[str, ...] = ()
    limit: int | None = None
    used: int | None = None
    requested: int | None = None
    unit: str = "seat"
    portal_url: str | None = None
    offer: Offer | None = None
    resource: str = ""
    currency: str = "usd"
    origin: bytes | None = None
    cors: Collection[str] = ()
    challenge: str = CHALLENGE


Member = str | int | list[str] | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalFacts:
    """Facts that a refusal is worded with; ``wait_s`` is None where waiting does not help."""

    decision: Decision
    reason: Reason
    context: ProblemContext
    wait_s: int | None

    @property
    def policy(self) -> Policy | None:
        """Policy that the decision names as its limit."""
        policies = self.context.policies
        return next((policy for policy in policies if policy.name == self.decision.limit), None)

    @property
    def offer(self) -> Offer | None:
        """Top-ups that would help, or None."""
        return self.context.offer if self.reason == "credits" else None


_Wording = tuple[str, dict[str, Member]]
"""The ``detail`` of a problem, and the members that only its type has."""


def word_shortfall(amounts: MoneyShortfall, currency: str) -> tuple[str | None, str]:
    """The amounts needed and left as people write them, a budget's in this currency."""
    currency = BALANCE_CURRENCY if amounts.is_balance else currency
    needed = None if amounts.needed is None else exact_money(amounts.needed, currency)
    return needed, exact_money(amounts.left, currency)


def _shortfall_members(refusal: RefusalFacts) -> dict[str, Member]:
    amounts = refusal.decision.shortfall
    if amounts is None:
        return {}
    needed, left = word_shortfall(amounts, refusal.context.currency)
    return {"left": left} if needed is None else {"needed": needed, "left": left}


def _word_balance(amounts: MoneyShortfall) -> str:
    """Word that a balance in money does not cover a request."""
    needed, left = word_shortfall(amounts, BALANCE_CURRENCY)
    if needed is None or not amounts.left:
        return "Your balance is empty. Top up to continue."
    return f"This request may cost up to {needed}, and {left} of your balance is left. Top up to continue."


def _word_quota(refusal: RefusalFacts) -> _Wording:
    policy = refusal.policy
    members: dict[str, Member] = {"violated-policies": list(refusal.decision.violated)}
    if policy is None:
        return f"A limit on this request is used up. {_word_wait(refusal.wait_s)}", members
    if policy.kind == "concurrency":
        allows = f"{_word_quantity(policy.quota, 'request')} at a time"
    else:
        span = (
            "in this billing period"
            if policy.window_s is None
            else f"per {_word_window(policy.window_s).removeprefix('1 ')}"
        )
        unit = policy.quota_unit or "request"
        quota = micro_money(policy.quota, unit) if is_money(unit) else _word_quantity(policy.quota, unit)
        allows = f"{quota} {span}"
    return f'Policy "{policy.name}" allows {allows}. {_word_wait(refusal.wait_s)}', members


def _word_payment(refusal: RefusalFacts) -> _Wording:
    members: dict[str, Member] = {"reason": refusal.reason, **_shortfall_members(refusal)}
    if refusal.reason == "credits":
        why, cure = "The remaining prepaid credits and grants do not cover this request.", "Buy more"
    elif refusal.reason == "suspended":
        why, cure = "This account is suspended until its payments are settled.", "Pay"
    else:
        why, cure = "This request needs a payment.", "Pay"
    portal, offer = refusal.context.portal_url, refusal.offer
    if portal is not None:
        members["portal_url"] = portal
    if offer is not None:
        members["offer"] = offer.member
    where = portal if offer is None else offer.url
    amounts = refusal.decision.shortfall
    if amounts is not None and amounts.is_balance:
        if where is not None:
            members["top_up_url"] = where
        return _word_balance(amounts), members
    return f"{why} {cure} to continue." if where is None else f"{why} {cure} at {where} to continue.", members


def _word_spend(refusal: RefusalFacts) -> _Wording:
    level, currency = refusal.decision.spend, refusal.context.currency
    limit, spent = (0, 0) if level is None else (level.limit_cents, level.spent_cents)
    policy, after = refusal.policy, refusal.decision.reset_after
    span = "billing period" if policy is None or policy.window_s is None else _word_window(policy.window_s)
    owner = next((kind for kind in _subject_kinds(refusal.decision.violated)), "account")
    why = (
        f"This {owner} may spend {money(limit, currency)} per {span.removeprefix('1 ')};"
        f" {money(spent, currency)} is spent or reserved by requests in progress."
    )
    members: dict[str, Member] = {"limit_cents": limit, "spent_cents": spent, "currency": currency}
    amounts = _shortfall_members(refusal)
    members |= amounts
    if "needed" in amounts:
        why += f" This request may cost up to {amounts['needed']}."
    if owner != "account":
        members["violated-policies"] = list(refusal.decision.violated)
    if after is None:
        known = (
            "Ask for less." if "needed" in amounts else "This request may cost more than that: ask for less."
        )
        return f"{why} {known}", members
    members["reset_after_s"] = _round_up_seconds(after)
    return f"{why} {_word_wait(_round_up_seconds(after)).replace('Retry', 'More can be spent')}", members


def _subject_kinds(violated: Iterable[str]) -> list[str]:
    """List the kinds of subjects in names of policies, such as ``user`` of ``user:spend-1d``."""
    return [name.partition(":")[0] for name in violated if ":" in name]


def _word_feature(refusal: RefusalFacts) -> _Wording:
    feature, plan = refusal.context.feature or "", refusal.context.plan or ""
    elsewhere = list(refusal.context.available_in)
    cure = f"It is available in {', '.join(map(repr, elsewhere))}." if elsewhere else "No plan includes it."
    members: dict[str, Member] = {"feature": feature, "plan": plan, "available_in": elsewhere}
    return f"The plan {plan!r} does not include the feature {feature!r}. {cure}", members


def _word_seats(refusal: RefusalFacts) -> _Wording:
    limit, used, unit = refusal.context.limit or 0, refusal.context.used or 0, refusal.context.unit
    allowed = f"This plan allows {_word_quantity(limit, unit)}; in use: {used}."
    return f"{allowed} Free a {unit} or choose a plan with more.", {"limit": limit, "used": used}


def _word_storage(refusal: RefusalFacts) -> _Wording:
    limit, used = refusal.context.limit or 0, refusal.context.used or 0
    requested = refusal.context.requested or 0
    detail = (
        f"This plan allows {_word_quantity(limit, 'byte')}; in use: {used}, requested: {requested}. "
        "Delete something or choose a plan with more."
    )
    return detail, {"limit": limit, "used": used, "requested": requested}


def _word_unknown(_: RefusalFacts) -> _Wording:
    return "This request does not say which customer it belongs to. Send valid credentials.", {}


def _word_invalid(refusal: RefusalFacts) -> _Wording:
    fault = refusal.decision.fault
    which = "The customer id of this request is not valid"
    which = which if fault is None else f"An id of this request is not valid: {fault}"
    return f"{which}. Allowed is {ALLOWED_ID}.", {}


def _word_in_flight(refusal: RefusalFacts) -> _Wording:
    return f"The first request with this idempotency key has not ended yet. {_word_wait(refusal.wait_s)}", {}


def _word_capacity(refusal: RefusalFacts) -> _Wording:
    why = "Limits cannot be checked at the moment"
    if refusal.reason == "identify":
        why = "The customer of this request could not be determined"
    return f"{why}; the request was not served. {_word_wait(refusal.wait_s)}", {}


def _word_wait(wait_s: int | None) -> str:
    if wait_s is None:
        return "Waiting does not help: ask for less at once, or choose a plan with more."
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if wait_s >= 2 * size:
            return f"Retry in {_word_quantity(-(-wait_s // size), unit)}."
    return f"Retry in {_word_quantity(wait_s, 'second')}."


def _word_window(seconds: int) -> str:
    """Word a window in the largest unit that divides it."""
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            return _word_quantity(seconds // size, unit)
    return _word_quantity(seconds, "second")


def _word_quantity(quantity: int, unit: str) -> str:
    return f"{quantity} {unit}" if quantity == 1 or unit.endswith("s") else f"{quantity} {unit}s"


RETRY_WAIT_MAX_S: Final = 60
"""A retry helps within less than this; from here on a refusal carries ``x-should-retry: false``."""

POLICY_VIOLATION: Final = 1008
"""The websocket close code for a message or client that breaks a rule (RFC 6455 section 7.4.1)."""
_BODY_HEADERS: Final = frozenset({b"content-type", b"content-length"})
_LIST_HEADERS: Final = frozenset({b"access-control-expose-headers", b"vary"})


class RefusalType(NamedTuple):
    """Problem type of refusals, and the function that words one."""

    problem: ProblemType
    words: Callable[[RefusalFacts], _Wording]


_QUOTA: Final = RefusalType(PROBLEM_TYPES["quota-exceeded"], _word_quota)
_PAYMENT: Final = RefusalType(PROBLEM_TYPES["payment-required"], _word_payment)
_CAPACITY: Final = RefusalType(PROBLEM_TYPES["temporary-reduced-capacity"], _word_capacity)
REFUSAL_TYPES: Final[Mapping[Reason, RefusalType]] = {
    "rate": _QUOTA,
    "concurrency": _QUOTA,
    "included": _QUOTA,
    "cap": _QUOTA,
    "suspended": _PAYMENT,
    "payment_required": _PAYMENT,
    "credits": _PAYMENT,
    "spend": RefusalType(PROBLEM_TYPES["spend-limit-reached"], _word_spend),
    "feature": RefusalType(PROBLEM_TYPES["feature-not-in-plan"], _word_feature),
    "seats": RefusalType(PROBLEM_TYPES["seats-limit-exceeded"], _word_seats),
    "storage": RefusalType(PROBLEM_TYPES["storage-limit-exceeded"], _word_storage),
    "anonymous": RefusalType(PROBLEM_TYPES["customer-unknown"], _word_unknown),
    "invalid_customer": RefusalType(PROBLEM_TYPES["customer-invalid"], _word_invalid),
    "in_flight": RefusalType(PROBLEM_TYPES["request-in-flight"], _word_in_flight),
    "identify": _CAPACITY,
    "store": _CAPACITY,
}


def problem_type_of(refusal: Decision) -> ProblemType:
    """Find the problem type of a refusal; one without a reason is of the store."""
    if refusal.problem is not None:
        return PROBLEM_TYPES[refusal.problem.code]
    return REFUSAL_TYPES[refusal.reason or "store"].problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Refusal, ready to be sent."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    title: str
    instance: str


def problem(
    decision: Decision, context: ProblemContext, *, mode: Headers, now_ms: int, instance: UUID
) -> Denial:
    """Build the response to a refused request.

    Args:
        decision: why; a decision without a reason is reported as one of the store.
        context: what the words and members need.
        mode: which family of limit fields the route sends.
        now_ms: milliseconds since the epoch.
        instance: the name of this occurrence.
    """
    reason: Reason = decision.reason or "store"
    problem_type, asked = problem_type_of(decision), decision.problem
    wait_s = _wait_s(reason, decision.retry_after) if asked is None else None
    refusal = RefusalFacts(decision=decision, reason=reason, context=context, wait_s=wait_s)
    detail, members = REFUSAL_TYPES[reason].words(refusal) if asked is None else (asked.detail, asked.members)
    body = problem_type.document(detail, members, instance=instance.urn)
    headers = [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    ours = _limit_fields(refusal, mode=mode, now_ms=now_ms)
    if wait_s is not None:
        ours.append((b"retry-after", b"%d" % wait_s))
    if wait_s is None or wait_s >= RETRY_WAIT_MAX_S:
        ours.append((b"x-should-retry", b"false"))
    if reason == "anonymous":
        ours.append((b"www-authenticate", context.challenge.encode("latin-1")))
    if refusal.offer is not None:
        ours.append(payment_field(detail, context.resource, refusal.offer))
    headers = merge_headers(headers, ours, expose=context.origin is not None)
    headers += _cors_fields(context)
    return Denial(
        status=problem_type.status,
        headers=tuple(headers),
        body=body,
        title=problem_type.title,
        instance=instance.urn,
    )


def complete_headers(headers: Iterable[tuple[bytes, bytes]], denial: Denial) -> list[tuple[bytes, bytes]]:
    """Add our headers to the app's own response to a refused request.

    Headers about the body are the app's; lists of names are joined.
    """
    items = list(headers)
    present = {name.lower() for name, _ in items}
    for name, value in denial.headers:
        if name in _BODY_HEADERS:
            continue
        if name not in present:
            items.append((name, value))
        elif name in _LIST_HEADERS:
            place = next(place for place, item in enumerate(items) if item[0].lower() == name)
            items[place] = (items[place][0], join_names(items[place][1], value))
    return items


def can_answer(scope: Scope) -> bool:
    """Whether the server can send a response: for websockets some cannot."""
    return scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {})


async def send_denial(denial: Denial, scope: Scope, send: Send) -> None:
    """Answer a request, or refuse a websocket that is not accepted yet.

    A websocket gets the same response if the server can send one. Otherwise it is closed with 1008, which
    servers turn into a bare 403.
    """
    if not can_answer(scope):
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": denial.title})
        return
    prefix = "http.response" if scope["type"] == "http" else "websocket.http.response"
    body = b"" if scope.get("method") == "HEAD" else denial.body
    await send({"type": f"{prefix}.start", "status": denial.status, "headers": list(denial.headers)})
    await send({"type": f"{prefix}.body", "body": body})


def _wait_s(reason: Reason, retry_after: timedelta | None) -> int | None:
    """Whole seconds to wait, at least 1; None where waiting does not help."""
    if reason in {"concurrency", "identify", "in_flight", "store"}:
        return UNKNOWN_WAIT_MS // 1000 if retry_after is None else _round_up_seconds(retry_after)
    if retry_after is None or REFUSAL_TYPES[reason] is not _QUOTA:
        return None
    return _round_up_seconds(retry_after)


def _round_up_seconds(span: timedelta) -> int:
    whole = span.days * 86_400 + span.seconds
    return max(1, whole + (span.microseconds > 0))


def _limit_fields(refusal: RefusalFacts, *, mode: Headers, now_ms: int) -> list[tuple[bytes, bytes]]:
    """Format the limit fields; ``t`` is the wait if there is one: ``Retry-After`` must not end before it."""
    reset_s, reset_after = refusal.wait_s, refusal.decision.reset_after
    if reset_after is None and reset_s is not None:
        reset_after = timedelta(seconds=reset_s)
    elif reset_s is None and reset_after is not None:
        reset_s = _round_up_seconds(reset_after)
    return format_fields(
        mode,
        policies=policy_field(refusal.context.policies),
        limit=refusal.policy,
        remaining=refusal.decision.remaining,
        reset_s=reset_s,
        reset_at_s=None if reset_after is None else reset_instant_s(now_ms, reset_after),
    )


def _cors_fields(context: ProblemContext) -> list[tuple[bytes, bytes]]:
    origin = context.origin
    if origin is None:
        return []
    if "*" in context.cors:
        return [(b"access-control-allow-origin", b"*")]
    if origin.decode("latin-1") in context.cors:
        named = [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]
        return [*named, (b"vary", b"Origin")]
    return []


X402_VERSION: Final = 2
PAGE_VALID_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Top-ups that a customer can buy.

    Attributes:
        credit: the balance that they add to.
        url: the page where they are bought.
        amounts_cents: the amounts, the smallest first.
        currency: of the amounts.
    """

    credit: str
    url: str
    amounts_cents: tuple[int, ...]
    currency: str

    @classmethod
    def of(cls, catalog: Catalog, refusal: Decision) -> Offer | None:
        """Find the top-ups that help; None: another limit refuses, none are sold, or without a page."""
        violated = (refusal.limit or "", *refusal.violated)
        for credit in catalog.credits.values():
            url = credit.top_up and (credit.top_up.url or catalog.billing.portal_url)
            if (
                credit.top_up is not None
                and url
                and any(name.startswith(f"{credit.name}{CHARGED}-") for name in violated)
            ):
                amounts = tuple(sorted(credit.top_up.packs))
                return cls(credit=credit.name, url=url, amounts_cents=amounts, currency=BALANCE_CURRENCY)
        return None

    @property
    def member(self) -> dict[str, Any]:
        """Member ``offer`` of a problem document."""
        return {
            "credit": self.credit,
            "top_up_url": self.url,
            "amounts_cents": list(self.amounts_cents),
            "currency": self.currency,
        }


def payment_required(error: str, resource: str, offer: dict[str, Any]) -> dict[str, Any]:
    """``PaymentRequired`` of x402: each amount as a payment on a page, with the scheme ``checkout``.

    Args:
        error: what is the matter, in words.
        resource: the address of the request.
        offer: see :attr:`Offer.member`.
    """
    accepts: list[dict[str, Any]] = [
        {
            "scheme": "checkout",
            "network": f"fiat:{offer['currency']}",
            "amount": str(amount),
            "asset": str(offer["currency"]).upper(),
            "payTo": "merchant",
            "maxTimeoutSeconds": PAGE_VALID_S,
            "extra": {"url": offer["top_up_url"], "credit": offer["credit"]},
        }
        for amount in offer["amounts_cents"]
    ]
    return {"x402Version": X402_VERSION, "error": error, "resource": {"url": resource}, "accepts": accepts}


def payment_field(error: str, resource: str, offer: Offer) -> tuple[bytes, bytes]:
    """Format ``PAYMENT-REQUIRED``, the HTTP header of x402 with the same data."""
    return (b"payment-required", b64encode(compact_json(payment_required(error, resource, offer.member))))


def compact_json(value: object) -> bytes:
    """JSON without blanks."""
    return json.dumps(value, separators=(",", ":")).encode()
