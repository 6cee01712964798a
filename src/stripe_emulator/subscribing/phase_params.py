"""Parameters of a schedule's phases: items, dates, terms, discounts, and what Stripe refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.billing import read_tax
from stripe_emulator.protocol import (
    ApiError,
    missing_parameter,
)
from stripe_emulator.selling.price_params import named_price
from stripe_emulator.selling.prices import Recurring
from stripe_emulator.selling.redeeming import read_discounts
from stripe_emulator.subscribing.billing_cycle import boundary
from stripe_emulator.subscribing.params import recurring_price, refuse_same_price
from stripe_emulator.subscribing.schedules import (
    AddedItem,
    GivenDiscount,
    Phase,
    PhaseItem,
)
from stripe_emulator.subscribing.terms import (
    ADDED_TERMS,
    DEFAULT_PERIOD,
    ITEM_TERMS,
    PHASE_TERMS,
    read_terms,
    shown_terms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Params
    from stripe_emulator.selling.coupons import Discount
    from stripe_emulator.subscribing.subscriptions import Subscription

PHASES_MAX: Final = 10
DISCOUNT_NAMES: Final = ("coupon", "discount", "promotion_code")
PRORATIONS: Final = ("create_prorations", "always_invoice", "none")


def read_phases(
    account: Account,
    params: Params,
    *,
    start: int,
    customer: str,
    known: Sequence[Phase] = (),
    of: Subscription | None = None,
) -> list[Phase]:
    """Return the phases of a call, from ``start`` on.

    A phase without ``discounts`` has none: "if not specified, inherits the discount from the subscription's
    customer" (https://docs.stripe.com/api/subscription_schedules/update), and customers have none here.

    Args:
        account: of the schedule.
        params: of the call.
        start: where the first phase begins (Unix seconds).
        customer: the id.
        known: the phases that the schedule has now; a coupon that is sent again for the phase that has it
            is not redeemed again.
        of: the subscription, if it has begun: the first phase has to name its start.
    """
    given = params.hashes("phases")
    if not given:
        raise missing_parameter("phases")
    if len(given) > PHASES_MAX:
        raise ApiError(f"A schedule can have at most {PHASES_MAX} current and future phases.", param="phases")
    phases: list[Phase] = []
    for each in given:
        start = phases[-1].end if phases else start
        own = [] if of is None else [*of.discounts, *of.item_discounts]
        beside = [given.discount for phase in known for given in phase.every_discount]
        before = next((phase for phase in known if phase.start == start), None)
        reader = DiscountReader(account=account, customer=customer, before=before, known=[*own, *beside])
        phases.append(_read_phase(reader, each, start=start, is_first=of is not None and not phases))
    return phases


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscountReader:
    """Reads the discounts of one phase and of its items.

    Attributes:
        before: the phase as it is; a coupon that it has is not redeemed again.
        known: those that a call may name by their ids.
    """

    account: Account
    customer: str
    before: Phase | None
    known: Sequence[Discount]

    def read(self, params: Params, *, currency: str, price: str | None = None) -> list[GivenDiscount]:
        """Return the discounts of the phase, or of its item of a price.

        Raises:
            ApiError: Stripe would refuse one.
        """
        hashes = params.hashes("discounts") if params.is_hash("discounts") else []
        named = [next((name for name in DISCOUNT_NAMES if name in each), "") for each in hashes]
        again = {
            place: kept
            for place, each in enumerate(hashes)
            for kept in self._given(price)
            if kept.named == named[place] != "discount"
            and kept.to_json()[named[place]] == each.text(named[place])
        }
        for each in hashes:
            each.only(*DISCOUNT_NAMES)
        fresh = iter(
            read_discounts(
                self.account,
                params.without_hashes("discounts", again),
                customer=self.customer,
                currency=currency,
                known=self.known,
            )
        )
        return [
            again[place] if place in again else GivenDiscount(discount=next(fresh), named=named[place])
            for place in range(len(hashes))
        ]

    def _given(self, price: str | None) -> list[GivenDiscount]:
        """The discounts that the phase or its item has, as they began."""
        if self.before is None:
            return []
        own = [each for item in self.before.items if item.price.id == price for each in item.discounts]
        begun = {discount.id: discount for discount in reversed(self.known)}
        given = self.before.given if price is None else own
        return [replace(each, discount=begun.get(each.discount.id, each.discount)) for each in given]


def _read_phase(reader: DiscountReader, params: Params, *, start: int, is_first: bool) -> Phase:
    account = reader.account
    params.only(
        "add_invoice_items",
        "duration",
        "end_date",
        "items",
        "metadata",
        "proration_behavior",
        "discounts",
        "start_date",
        "trial",
        "trial_end",
        "currency",
        *PHASE_TERMS,
    )
    read_tax(account, params)
    began = params.integer("start_date")
    if is_first and began is None:
        raise missing_parameter(params.path("start_date"))
    if began is not None and began != start:
        message = (
            "You can not modify the start date of the current phase."
            if is_first
            else "Each phase must start where the one before it ends."
        )
        raise ApiError(message, param=params.path("start_date"))
    items = [_phase_item(reader, item) for item in params.hashes("items")]
    if not items:
        raise missing_parameter(params.path("items"))
    refuse_same_price([item.price.id for item in items], param=params.path("items"))
    metadata, trial, currency = params.metadata(), params.boolean("trial"), items[0].price.currency
    if params.text("currency") not in {None, currency}:
        message = "The currency of a phase must be that of its prices."
        raise ApiError(message, param=params.path("currency"))
    finish = _end_of(params, start=start, items=items)
    if finish <= max(start, account.now):
        message = "The end date of a phase must be in the future and after its start."
        raise ApiError(message, param=params.path("end_date"))
    return Phase(
        start=start,
        end=finish,
        items=items,
        proration_behavior=params.choice("proration_behavior", PRORATIONS) or "create_prorations",
        metadata=metadata,
        trial=trial,
        trial_end=finish if trial and "trial_end" not in params else params.integer("trial_end"),
        given=reader.read(params, currency=currency),
        terms=read_terms(params, PHASE_TERMS),
        added=[_read_added(reader, each, currency=currency) for each in params.hashes("add_invoice_items")],
    )


def _end_of(params: Params, *, start: int, items: list[PhaseItem]) -> int:
    """By ``end_date`` or ``duration``, else one interval; ``iterations`` are gone (facts/stripe.md 6.4)."""
    duration, end_date = params.hash("duration"), params.integer("end_date")
    params.refuse_both("end_date", "duration", param="duration")
    if end_date is not None:
        return end_date
    if duration is None:
        return boundary(start, items[0].price.cycle, 1)
    duration.only("interval", "interval_count")
    duration.required("interval")
    interval = duration.choice("interval", ("day", "week", "month", "year")) or ""
    count = duration.integer("interval_count") or 1
    return boundary(start, Recurring(interval=interval, interval_count=count), 1)


def _phase_item(reader: DiscountReader, params: Params) -> PhaseItem:
    params.only("discounts", "metadata", "plan", "price", "price_data", "quantity", *ITEM_TERMS)
    price = recurring_price(reader.account, params, currency=None)
    quantity = params.integer("quantity")
    if price.is_metered and quantity is not None:
        message = "You cannot set the quantity for metered plans."
        raise ApiError(message, param=params.path("quantity"))
    return PhaseItem(
        price=price,
        quantity=None if price.is_metered else 1 if quantity is None else quantity,
        metadata=params.metadata(),
        terms=read_terms(params, ITEM_TERMS),
        discounts=tuple(reader.read(params, currency=price.currency, price=price.id)),
    )


def _read_added(reader: DiscountReader, params: Params, *, currency: str) -> AddedItem:
    """https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-phases-add_invoice_items."""
    params.only("metadata", "price", "price_data", "quantity", "discounts", *ADDED_TERMS)
    quantity = params.at_least("quantity", 0)
    terms = shown_terms(read_terms(params, ADDED_TERMS), ADDED_TERMS)
    return AddedItem(
        price=named_price(reader.account, params, currency=currency, recurs=False),
        quantity=1 if quantity is None else quantity,
        shown={
            **terms,
            "discountable": terms["discountable"] is not False,
            "discounts": [each.to_json() for each in reader.read(params, currency=currency)],
            "metadata": params.metadata(),
            "period": terms["period"] or DEFAULT_PERIOD,
        },
    )
