"""Findings about webhooks and about subscriptions that differ from the plans file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.amount_texts import span
from meterkit.customers.drifts import Drifts
from meterkit.health.findings import Finding, named, single
from meterkit.insights.store_readings import read_webhooks
from meterkit.store.sync_queue_counts import read_waiting_syncs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.customers.drifts import Drift


async def look_at_subscriptions(parts: Parts) -> tuple[str, list[Finding]]:
    """How many differ, and which.

    Raises:
        StoreError: the store does not answer.
    """
    found = await Drifts(parts.store).all()
    return f"{len(found):,} differ", drifting(found)


def drifting(found: Mapping[str, Sequence[Drift]]) -> list[Finding]:
    """The customers whose subscriptions are not what the plans file says."""
    inexact = {
        customer: odd
        for customer, drifts in found.items()
        if (odd := [one.message for one in drifts if one.kind == "inexact_price"])
    }
    found = {
        customer: drifts
        for customer, drifts in found.items()
        if any(one.kind != "inexact_price" for one in drifts)
    }
    return [*_differing(found), *_inexact(inexact)]


def _inexact(found: Mapping[str, Sequence[str]]) -> list[Finding]:
    """The prices that no price of a unit says, by customer."""
    if not found:
        return []
    whose = named(
        [f"of customer {customer}: {message}" for customer, said in found.items() for message in said]
    )
    return single(
        check="subscriptions",
        problem=f"prices at Stripe that cannot be computed exactly, {whose}",
        cure="move the subscription at Stripe to a price for each unit in the plans file's currency, or leave"
        " it if it is meant so; `meterkit subscriptions check` lists all",
    )


def _differing(found: Mapping[str, Sequence[Drift]]) -> list[Finding]:
    if not found:
        return []
    count = "1 subscription differs" if len(found) == 1 else f"{len(found):,} subscriptions differ"
    firsts = {
        customer: next(one.message for one in drifts if one.kind != "inexact_price")
        for customer, drifts in found.items()
    }
    whose = named([f"of customer {customer} ({message})" for customer, message in firsts.items()])
    return single(
        check="subscriptions",
        problem=f"{count} from the plans file: {whose}",
        cure="`meterkit subscriptions check` looks again and lists all; `meterkit subscriptions repair"
        " CUSTOMER` mends one, or says what a person has to decide",
    )


OVERDUE_MS: Final = 5 * 60_000
"""How long a sync may be overdue: workers look for due ones every second."""
FAILING_MS: Final = 60 * 60_000
"""How long a look may fail: by then it has failed ten times, and is tried once an hour."""
_ENTRIES_MAX: Final = 1_000


class Failing(NamedTuple):
    """A Stripe customer whose sync fails.

    Attributes:
        stripe_customer: whom.
        why: what failed last.
        since_ms: when the sync was requested.
    """

    stripe_customer: str
    why: str
    since_ms: int


async def look_at_webhooks(parts: Parts) -> tuple[str, list[Finding]]:
    """The backlog in short, and the findings about it.

    Raises:
        StoreError: the store does not answer.
    """
    now_ms, waiting = parts.store.now_ms(), await read_webhooks(parts.store)
    entries = await read_waiting_syncs(parts.store, _ENTRIES_MAX)
    tried = [Failing(name, entry["why"], int(entry["since"])) for name, entry in entries if entry["why"]]
    dead = [Failing(entry.stripe_customer, entry.why, entry.at_ms) for entry in await parts.webhooks.dead()]
    due = waiting["due"]
    seen = f"{due.items + waiting['later'].items:,} wait, {len(dead):,} given up"
    return seen, [*overdue(due.items, int(due.age_s * 1000)), *failing(tried, now_ms), *given_up(dead)]


def overdue(count: int, oldest_ms: int) -> list[Finding]:
    """Syncs that no worker makes: how many are due, and for how long the oldest."""
    if not count or oldest_ms <= OVERDUE_MS:
        return []
    whose = "1 Stripe customer has" if count == 1 else f"{count:,} Stripe customers have"
    return single(
        check="webhooks",
        problem=f"{whose} waited for a sync for up to {span(oldest_ms)}: Stripe's events about"
        " them have no effect here yet",
        cure="run `meterkit worker`, or set the Stripe key where the app runs; the log of one that runs"
        " says why it does not ask Stripe",
    )


def failing(tried: Sequence[Failing], now_ms: int) -> list[Finding]:
    """Looks that have failed for long, and are made again."""
    found = [one for one in tried if now_ms - one.since_ms > FAILING_MS]
    if not found:
        return []
    oldest_ms = now_ms - min(one.since_ms for one in found)
    return single(
        check="webhooks",
        problem=f"looks at {named([one.stripe_customer for one in found])} have failed for up to"
        f" {span(oldest_ms)}: {found[0].why}",
        cure="see to the reason; each is made again within the hour, and given up after twelve refusals",
    )


def given_up(dead: Sequence[Failing]) -> list[Finding]:
    """Stripe customers whose sync was given up."""
    if not dead:
        return []
    count = "1 Stripe customer is" if len(dead) == 1 else f"{len(dead):,} Stripe customers are"
    return single(
        check="webhooks",
        problem=f"{count} given up, {named([one.stripe_customer for one in dead])}: {dead[0].why}",
        cure="`meterkit webhooks list` has each reason; see to them, then `meterkit webhooks redrive`",
    )
