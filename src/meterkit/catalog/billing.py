"""The blocks about money and failure: ``billing:``, ``dunning:`` and the words of the top level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import (
    BILLED_ON_ATTEMPT,
    BILLED_ON_SUCCESS,
    OUTCOMES,
    Anonymous,
    Billing,
    Changes,
    Dunning,
    Enforcement,
    Headers,
    Outcome,
    StoreFailure,
)
from meterkit.catalog.proxies import UNIX, proxy_network
from meterkit.catalog.report import RefusedError, unknown
from meterkit.catalog.scalars import DAY_MS, NAME, duration, scalar, text
from meterkit.catalog.shapes import Built, Choice, Forms, Key, ListOf, Nullable, Shape, Table, Values

if TYPE_CHECKING:
    from collections.abc import Collection

    from meterkit.catalog.report import Problems

ENFORCEMENTS: Final[Choice[Enforcement]] = Choice(("on", "shadow"))
STORE_FAILURES: Final[Choice[StoreFailure]] = Choice(("allow", "deny"))
HEADERS: Final[Choice[Headers]] = Choice(("ietf", "x-ratelimit", "both", "none"))
_WHEN: Final = Choice(("now", "period_end"))
_CHARGES: Final = {"success": BILLED_ON_SUCCESS, "attempt": BILLED_ON_ATTEMPT}

HEADER_NAME: Final = text(
    64, pattern=r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", allowed="the name of a header, such as Idempotency-Key"
)
_URL: Final = text(
    2048, pattern=r"https?://[^\s/?#]+[^\s]*", allowed="an address that starts with https:// or http://"
)


_PROXIES: Final = "an address or a network, such as 10.0.0.7 or 10.0.0.0/8, or unix"


def _proxy(text: str) -> str:
    try:
        if text != UNIX:
            proxy_network(text)
    except ValueError:
        raise RefusedError(f"allowed: {_PROXIES}") from None
    return text


_PROXY: Final = scalar(_proxy, _PROXIES, pattern=r"^(unix|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$")


def _outcomes(charged: str | tuple[Outcome, ...], _: Problems) -> frozenset[Outcome]:
    return _CHARGES[charged] if isinstance(charged, str) else frozenset(charged)


_OUTCOMES: Final = ", ".join(OUTCOMES)
_CHARGE_ON: Final[Shape[str | tuple[Outcome, ...]]] = Forms(
    f"success, attempt, or a list of {_OUTCOMES}",
    scalar=Choice(tuple(_CHARGES), others=f", or a list of {_OUTCOMES}"),
    items=ListOf(Choice(OUTCOMES), "outcomes", 1),
)
CHARGE_ON_SHAPE: Final = Built(_CHARGE_ON, _outcomes)

UPGRADE: Final = Key("upgrade", _WHEN, "now (default) or period_end.")
DOWNGRADE: Final = Key("downgrade", _WHEN, "period_end (default) or now.")
OVER_LIMIT: Final = Key("over_limit", Choice(("block_growth", "allow")), "block_growth (default) or allow.")
CHANGES_TABLE: Final = Table("changes", (UPGRADE, DOWNGRADE, OVER_LIMIT))

CHARGE_ON: Final = Key(
    "charge_on", CHARGE_ON_SHAPE, "Outcomes that are billed: success (default), attempt or a list."
)
SOURCES: Final = Key(
    "sources",
    ListOf(Choice(("reported", "partial", "estimated", "missing")), "sources", 1),
    "Which token figures are billed.",
)
IDEMPOTENCY_HEADER: Final = Key(
    "idempotency_header",
    Nullable(HEADER_NAME),
    "Header that marks a repeat; default: null.",
    without_effect="a repeated request is counted and billed again",
)
PORTAL_URL: Final = Key(
    "portal_url", Nullable(_URL), "Where customers pay; named in 402 answers; default: null."
)
CHANGES: Final = Key(
    "changes",
    CHANGES_TABLE,
    "When plan changes bind.",
    without_effect="a change of plan binds at once, whichever it is",
)
LATE_USAGE: Final = Key(
    "late_usage",
    Choice(("next_period", "dead_letter")),
    "Usage for a closed period: next_period (default) or dead_letter.",
)
BILLING_TABLE: Final = Table(
    "billing", (CHARGE_ON, SOURCES, IDEMPOTENCY_HEADER, PORTAL_URL, CHANGES, LATE_USAGE)
)

GRACE: Final = Key(
    "grace", duration(), "Full access for so long after the first failed payment; default: 7d."
)
RESTRICT_TO: Final = Key("restrict_to", NAME, "The plan in force after grace; default: default_plan.")
SUSPEND_AFTER: Final = Key(
    "suspend_after", duration(), "No access so long after the first failed payment; default: 14d."
)
DUNNING_TABLE: Final = Table("dunning", (GRACE, RESTRICT_TO, SUSPEND_AFTER))

ANONYMOUS_PLAN: Final = Key("plan", NAME, "The plan of requests without a customer.", required=True)
ANONYMOUS_BY: Final = Key("by", Choice(("ip",)), "What counts as one customer.", required=True)
ANONYMOUS_PROXIES: Final = Key(
    "trusted_proxies",
    ListOf(_PROXY, "addresses and networks"),
    "Addresses, networks and `unix` that X-Forwarded-For is believed from; default: none.",
)
ANONYMOUS_TABLE: Final = Table("anonymous", (ANONYMOUS_PLAN, ANONYMOUS_BY, ANONYMOUS_PROXIES))
ANONYMOUS_SHAPE: Final[Shape[str | Values]] = Forms(
    "deny, or a map such as {plan: free, by: ip}",
    scalar=Choice(("deny",), others=", or a map such as {plan: free, by: ip}"),
    fields=ANONYMOUS_TABLE,
)


def build_billing(values: Values | None) -> Billing:
    """The ``billing:`` block with its defaults."""
    if values is None:
        return Billing()
    given = values.given(CHARGE_ON, SOURCES, IDEMPOTENCY_HEADER, PORTAL_URL, LATE_USAGE)
    if sources := values.get(SOURCES):
        given["sources"] = frozenset(sources)
    changes = values.get(CHANGES)
    if changes is not None:
        given["changes"] = Changes(**changes.given(UPGRADE, DOWNGRADE, OVER_LIMIT))
    return Billing(**given)


def build_dunning(
    values: Values | None, *, default_plan: str, plans: Collection[str], problems: Problems
) -> Dunning:
    """The ``dunning:`` block with its defaults; the word ``default_plan`` is resolved."""
    if values is None:
        return Dunning(grace_ms=7 * DAY_MS, restrict_to=default_plan, suspend_after_ms=14 * DAY_MS)
    grace_ms = values.get(GRACE, 7 * DAY_MS)
    suspend_after_ms = values.get(SUSPEND_AFTER, 14 * DAY_MS)
    restrict_to = values.get(RESTRICT_TO, "default_plan")
    if restrict_to != "default_plan" and restrict_to not in plans:
        problems.refuse(values.place(RESTRICT_TO), unknown("plan", restrict_to, plans) + " (or default_plan)")
    if suspend_after_ms < grace_ms and not values.is_refused(SUSPEND_AFTER):
        place = values.place(SUSPEND_AFTER if values.has(SUSPEND_AFTER) else GRACE)
        message = "both count from the first failure; allowed: a suspend_after that is at least grace"
        problems.refuse(place, message)
    return Dunning(
        grace_ms=grace_ms,
        restrict_to=default_plan if restrict_to == "default_plan" else restrict_to,
        suspend_after_ms=suspend_after_ms,
    )


def build_anonymous(values: Values, *, plans: Collection[str], problems: Problems) -> Anonymous:
    """The map form of ``anonymous:``."""
    plan = values.get(ANONYMOUS_PLAN, "")
    if plan and plan not in plans:
        problems.refuse(values.place(ANONYMOUS_PLAN), unknown("plan", plan, plans))
    return Anonymous(plan=plan, by="ip", trusted_proxies=values.get(ANONYMOUS_PROXIES, ()))
