"""Notes about balances in money: what they do not hold, and what they do not pay for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.catalog.asked_limits import place_of
from meterkit.catalog.notes import first_of
from meterkit.catalog.units import USAGE_METERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog.errors import Place, Problems
    from meterkit.catalog.model_prices import Credit
    from meterkit.catalog.models import Plan, Route
    from meterkit.catalog.plans import PlanTable


def note_unheld_money(
    routes: Iterable[Route],
    credits_: Iterable[Credit],
    written: Iterable[PlanTable],
    place: Place,
    problems: Problems,
) -> None:
    """Say which lines spend a balance in money, or a budget, and hold nothing for it.

    Args:
        routes: the lines of the file.
        credits_: those of the file.
        written: the plans, as the file has them.
        place: where the routes stand.
        problems: the list to add to.
    """
    unheld = [route.match for route in routes if route.usage != "none" and not route.reserve]
    has_balance = any(credit.is_money for credit in credits_)
    if unheld and (has_balance or any(plan.budget is not None for plan in written)):
        shown = first_of([repr(match) for match in unheld])
        what = "balance" if has_balance else "budget"
        message = (
            f"requests that race can spend more than the {what} where nothing is held: {shown}; write"
            " `reserve: {output_tokens: {from: max_tokens, default: N, ceiling: M}}` to hold what a call"
            " can cost at most"
        )
        problems.note(place, "informs", message)


def note_unpaid_meters(
    named: frozenset[str | None],
    plans: Mapping[str, Plan],
    written: Mapping[str, PlanTable],
    credits_: Iterable[Credit],
    problems: Problems,
) -> None:
    """Name each meter of tokens that a plan denies: a balance in money does not pay for it.

    Args:
        named: the meters that routes name; see :func:`named_by`.
        plans: by their keys.
        written: the same, as the file has them.
        credits_: those of the file.
        problems: the list to add to.
    """
    found = list(credits_)
    money = next((credit.name for credit in found if credit.is_money), None)
    if money is None:
        return
    paid = {meter for credit in found for meter in credit.costs}
    for key, plan in plans.items():
        granted = {grant.name for grant in plan.grants}
        for name, given in plan.entitlements.items():
            is_denied = given.included == 0 and given.overage.mode == "deny"
            if is_denied and name in named and name in USAGE_METERS and name not in paid | granted:
                message = (
                    f"no request that uses {name} is served: nothing is included, overage is denied, and the"
                    f" balance {money!r} pays for calls, not for this meter; leave {name} out of the plan, or"
                    " include a quantity"
                )
                problems.note(place_of(name, written[key]), "informs", message)
