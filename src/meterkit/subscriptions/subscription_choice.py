"""Choose the subscription in effect among those of a Stripe customer. Pure."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.stripe_objects import text_in
from meterkit.subscriptions.subscription_reading import is_sold_here, plan_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Catalog


_LIVELIEST_FIRST: Final[tuple[frozenset[str], ...]] = (
    frozenset({"active", "trialing"}),
    frozenset({"past_due"}),
    frozenset({"unpaid", "paused", "incomplete"}),
    frozenset({"canceled", "incomplete_expired"}),
)


def choose_subscription(
    found: Iterable[Mapping[str, Any]], catalog: Catalog, known: str | None = None
) -> Mapping[str, Any] | None:
    """Choose a Stripe customer's subscription in effect; None if none has a plan of the plans file.

    By status, then by the rank of the plan, then the newest. Of ended ones the last to end: it was billed
    last. One whose price the plans file has lost is chosen only if it was chosen before.

    Args:
        found: all of the customer's, ended ones too, as Stripe shows them.
        catalog: the plans file.
        known: the id of the stored one.
    """
    ours = [one for one in found if is_sold_here(one, catalog) or one["id"] == known]
    return min(ours, key=lambda one: _precedence(one, catalog), default=None)


def _precedence(found: Mapping[str, Any], catalog: Catalog) -> tuple[float, int, float, int, str]:
    """Sort key of a customer's subscriptions: the one in effect is first."""
    status, plan = text_in(found, "status"), plan_of(found, catalog)
    liveliness = next(
        (rank for rank, of in enumerate(_LIVELIEST_FIRST) if status in of), len(_LIVELIEST_FIRST)
    )
    rank = inf if plan is None else -plan.rank
    ended_s, created_s = (int(found.get(instant) or 0) for instant in ("ended_at", "created"))
    return liveliness, -ended_s, rank, -created_s, text_in(found, "id")
