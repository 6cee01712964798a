"""Whether a bill is right: what was served, what was recorded of it and what Stripe has, unit by unit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.catalog import override, with_addons
from meterkit.customers.history import read_links
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_overrides import has_end_within
from meterkit.decisions.customer_state import effective_plan
from meterkit.decisions.periods import to_ms
from meterkit.store.customer_usage import BILLED_STATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Entitlement, Report
    from meterkit.kit import MeterKit
    from meterkit.testing.emulator import StripeEmulator

_CHANGES: Final = frozenset({"plan", "addons", "overrides"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BillLine:
    """One meter of one customer in the present period.

    Attributes:
        served: what the caller saw of it.
        recorded: what the store has of it.
        included: the part of ``served`` that the plan's price covers.
        prepaid: the part of it that grants and credits have paid for.
        due: what Stripe is to have of it, by the plan.
        billed: what Stripe has; with ``billing: {usage: lines}``, what lines have, or will have once the
            period has ended.
    """

    customer: str
    plan: str
    meter: str
    served: int
    recorded: int
    included: int
    prepaid: int
    due: int
    billed: int

    @property
    def is_right(self) -> bool:
        """Whether all that was served was recorded, and Stripe has what is due, to the unit."""
        return self.served == self.recorded and self.due == self.billed

    def __str__(self) -> str:
        return (
            f"{self.customer}, {self.meter}: {self.served:,} served, {self.recorded:,} recorded,"
            f" {self.due:,} to be billed, but Stripe has {self.billed:,}."
        )


async def check_bill(
    kit: MeterKit, stripe: StripeEmulator, served: Mapping[str, Mapping[str, int]]
) -> list[BillLine]:
    """Compare what customers were served with what was recorded and, after a flush, what Stripe has.

    There is a line for each customer and each meter with a Stripe event, without derived meters
    (``from:``) and those that they are derived from. What is due follows from the plan, add-ons and
    overrides of now. If they changed or ended in the period and Stripe has another quantity, the units that
    the store has sent or will send are due: each was classified by the plan at its time. The ledger of grants
    tells what credits have paid; of meters whose cost depends on the model, what the store has as overage.

    Args:
        kit: whose plans file and store.
        stripe: where the kit delivers to.
        served: customer to meter to the quantity that was served in the present period.
    """
    meters, by_events = kit.catalog.meters.values(), not kit.catalog.billing.is_by_lines
    derived = {name for meter in meters if meter.source for name in (meter.name, meter.source)}
    by_model = {name for credit in kit.catalog.credits.values() for name in credit.by_model}
    lines, now_ms = list[BillLine](), kit.store.now_ms()
    for customer_id, quantities in served.items():
        customer, usage = await kit.customers.get(customer_id), await kit.usage(customer_id)
        addons = tuple(usage["addons"].items())
        plan = with_addons(kit.catalog.plan_or_default(customer.plan), addons, kit.catalog)
        _, state = await CustomerStates(kit.store).read(customer_id)
        # Without a subscription nothing bills an override's price.
        overrides = effective_plan(state, kit.catalog, now_ms).overrides
        entitlements = override(kit.catalog, plan, overrides)
        begin, end = usage["period"]["start"], usage["period"]["end"]
        history = await kit.customers.history(customer_id)
        has_changed = any(entry.kind in _CHANGES and begin <= entry.at < end for entry in history)
        has_changed = has_changed or has_end_within(state.overrides, to_ms(begin), now_ms)
        prepaid = Counter[str]()
        for entry in await kit.grants.ledger(customer_id):
            if entry.entry == "burn" and entry.meter is not None and entry.period_start == begin:
                cost = kit.catalog.credits[entry.name].costs[entry.meter] if entry.kind == "credit" else 1
                prepaid[entry.meter] -= entry.quantity // cost
        billed, linked = Counter[str](), {customer.stripe_customer, *await read_links(kit.store, customer_id)}
        for event in stripe.events:
            is_of_period = begin.timestamp() <= event.timestamp < end.timestamp()
            if event.counted and is_of_period and event.customer in linked:
                billed[event.event_name] += int(event.value)
        for meter in meters:
            if meter.stripe is None or meter.name in derived:
                continue
            quantity, entitlement = quantities.get(meter.name, 0), entitlements[meter.name]
            row = usage["meters"][meter.name]
            if meter.name in by_model:
                prepaid[meter.name] = (
                    row["recorded"] - row["overage"] - row["over_cap"] - _included(quantity, entitlement)
                )
            stored = sum(row[place] for place in BILLED_STATES)
            has = billed[meter.stripe.event_name] if by_events else stored
            due = due_of(quantity, entitlement, meter.stripe.report, prepaid=prepaid[meter.name])
            if has_changed and due != has:
                due = stored
            lines.append(
                BillLine(
                    customer=customer_id,
                    plan=customer.plan,
                    meter=meter.name,
                    served=quantity,
                    recorded=row["recorded"],
                    included=_included(quantity, entitlement),
                    prepaid=prepaid[meter.name],
                    due=due,
                    billed=has,
                )
            )
    return lines


def due_of(quantity: int, entitlement: Entitlement, report: Report, *, prepaid: int = 0) -> int:
    """Return the part of a quantity that is reported to Stripe.

    ``report: usage`` sends included and overage, ``report: overage`` what is beyond included; overage is
    sent only on a plan that bills it, and no more than its cap.
    """
    if report == "none":
        return 0
    included = _included(quantity, entitlement)
    overage = quantity - included - prepaid if entitlement.overage.mode == "bill" else 0
    overage = min(overage, overage if entitlement.overage.cap is None else entitlement.overage.cap)
    return overage + (included if report == "usage" else 0)


def _included(quantity: int, entitlement: Entitlement) -> int:
    return quantity if entitlement.included is None else min(quantity, entitlement.included)
