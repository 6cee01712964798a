"""The oracle of included quantities: what each plan's part of a period comes to, by Stripe's own events."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from drivers.world import World
    from meterkit.catalog import Catalog

_FIRST_MINUTE_S = 60


class _Seen(NamedTuple):
    """What an event said of a subscription."""

    at_s: int
    plan: str | None
    start_s: int
    end_s: int


@dataclass(kw_only=True)
class PlanTimes:
    """Which plans subscriptions had, and when.

    ``was_cut``: whether a period was cut short. What was used beyond its part may be missing in later ones.
    ``changes``: how many events of subscriptions were read.
    """

    world: World
    was_cut: bool = False
    changes: int = 0
    _seen: dict[str, list[_Seen]] = field(default_factory=dict[str, "list[_Seen]"])
    _known: set[str] = field(default_factory=set[str])
    _since_s: int = 0

    async def learn(self, catalog: Catalog) -> None:
        """Read what has happened to subscriptions since the last time, which is less than 30 days ago."""
        events = await self.world.list("/v1/events", **{"created[gte]": str(self._since_s)})
        for event in reversed(events):
            self._since_s = max(self._since_s, event["created"])
            if event["id"] not in self._known and event["type"].startswith("customer.subscription."):
                self.changes += 1
                found = event["data"]["object"]
                start_s, end_s = _period(found)
                seen = _Seen(event["created"], _plan(found, catalog), start_s, end_s)
                known = self._seen.setdefault(found["id"], [])
                last = known[-1] if known else seen
                is_shorter = last.start_s == start_s and end_s < last.end_s  # It is paused.
                is_moved = last.start_s < start_s < last.end_s
                self.was_cut |= is_moved or is_shorter or (found["ended_at"] or end_s) < end_s
                known.append(seen)
            self._known.add(event["id"])

    def included(
        self, subscription: Mapping[str, Any], meter: str, catalog: Catalog, *, heard_of: datetime
    ) -> int | None:
        """Included quantity of a meter in a period by now; None: the rule does not cover it.

        Args:
            subscription: as Stripe shows it.
            meter: its name.
            catalog: the plans file.
            heard_of: until when the kit has heard of what happened.
        """
        seen = self._seen.get(subscription["id"], [])
        start_s, end_s = _period(subscription)
        if not seen or seen[-1].at_s >= int(heard_of.timestamp()):
            return None
        plans = _parts(seen, start_s, int(self.world.clock()))
        if plans[-1][1] != _plan(subscription, catalog) or any(plan is None for _, plan in plans):
            return None
        parts = [catalog.plans[str(plan)].entitlements[meter].included for _, plan in plans]
        if catalog.billing.changes.allowance == "whole":
            return parts[-1] if isinstance(parts[-1], int) else None
        bounds = [*(at_s for at_s, _ in plans), end_s]
        total = Fraction(0)
        for part, begin_s, next_s in zip(parts, bounds, bounds[1:], strict=False):
            if not isinstance(part, int):
                return None
            total += Fraction(part * (next_s - begin_s), end_s - start_s)
        return ceil(total)


def _parts(seen: Sequence[_Seen], start_s: int, now_s: int) -> list[tuple[int, str | None]]:
    """The plans of a period by their first second; a change in the first minute counts from the start."""
    found: list[tuple[int, str | None]] = []
    for one in seen:
        if one.at_s <= start_s + _FIRST_MINUTE_S:
            found = [(start_s, one.plan)]
        elif one.at_s <= now_s and (not found or found[-1][1] != one.plan):
            found.append((one.at_s if found else start_s, one.plan))
    return found


def usage_terms(usage: Mapping[str, Any], subscription: Mapping[str, Any], catalog: Catalog) -> bool:
    """Whether the kit and Stripe say the same of plan and period, and nothing restricts the customer."""
    start_s, end_s = (datetime.fromtimestamp(at_s, UTC) for at_s in _period(subscription))
    return bool(
        usage["plan"] == _plan(subscription, catalog)
        and (usage["period"]["start"], usage["period"]["end"]) == (start_s, end_s)
        and usage["access"] in {"full", "grace"}
    )


def _plan(subscription: Mapping[str, Any], catalog: Catalog) -> str | None:
    bases = {item["price"]["id"] for item in subscription["items"]["data"]}
    return next((plan.key for plan in catalog.plans.values() if plan.price.stripe_price in bases), None)


def _period(subscription: Mapping[str, Any]) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]
