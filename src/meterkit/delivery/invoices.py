"""Invoices at Stripe: units, prices and exact charges of their lines, and the invoice of a billing period."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.customers.history import plan_until, read_billed_links, read_history
from meterkit.decisions.free_usage import PAUSE, free_reasons
from meterkit.decisions.item_prices import NO_PRICES, with_item_prices
from meterkit.decisions.periods import from_ms, to_ms
from meterkit.decisions.subscription import ENDED
from meterkit.decisions.subscription_periods import renewals_of
from meterkit.outbox.close_queue import RENEWAL, STAMPED_AHEAD_MS, read_invoice_end
from meterkit.outbox.meters_or_lines import metadata_of, subscription_of
from meterkit.outbox.sealing_terms import format_overage_price
from meterkit.stripe.prices import OPTIONS, PRICES, shown_in, with_option_tiers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

MADE_WITHIN_MS: Final = 2 * 3_600_000
"""Stripe makes a renewal's invoice within about an hour."""
_TOLERANCE_S: Final = 86_400
"""Largest excess of a line's span over the period, which begins and ends at whole minutes."""
InvoiceState = Literal["none", "pending", "draft", "final", "unknown"]
_PENDING: Final = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicedUnits:
    """Units of one event name on a customer's invoices of a period.

    Attributes:
        quantity: units on invoice lines, and in pending items.
        state: ``none``: no invoice has such a line; ``pending``: invoice items have, which wait for an
            invoice; ``draft``: one of the invoices may change; ``unknown``: the lines do not show units.
        invoices: the ids of those invoices.
        subscriptions: the ids of their subscriptions.
        prices: units by unit price, in minor units; None: a line does not show it, or is not in the
            customer's currency.
        charges: the lines by price and span, in order; empty: a line has another currency than its price.
        voided: units on lines of void invoices, by invoice; no other figure includes them.
        why: ``unknown``: the reason.
    """

    quantity: Decimal = Decimal(0)
    state: InvoiceState = "none"
    invoices: Sequence[str] = ()
    subscriptions: Sequence[str] = ()
    prices: Mapping[Fraction, Decimal] | None = None
    charges: Sequence[LineCharge] = ()
    voided: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    why: str = ""

    @property
    def cents(self) -> int | None:
        """Amount of these lines before discounts and taxes; None: not known."""
        return sum(one.cents for one in self.charges) if self.charges else None


def join_invoiced(found: Sequence[InvoicedUnits]) -> InvoicedUnits:
    """Join the units on the invoices of several Stripe customers that one customer was linked to."""
    if len(found) == 1 or any(one.state == "unknown" for one in found):
        return next((one for one in found if one.state == "unknown"), found[0])
    known = [one for one in found if one.state != "none"]
    priced: dict[Fraction, Decimal] = {}
    for one in known:
        for price, units in (one.prices or {}).items():
            priced[price] = priced.get(price, Decimal(0)) + units
    states: tuple[InvoiceState, ...] = (_PENDING, "draft", "final")
    those: list[InvoiceState] = [state for state in states if any(one.state == state for one in known)]
    return InvoicedUnits(
        quantity=sum((one.quantity for one in found), Decimal(0)),
        state=those[0] if those else "none",
        invoices=[name for one in found for name in one.invoices],
        subscriptions=[name for one in found for name in one.subscriptions],
        prices=None if any(one.prices is None for one in known) else priced,
        charges=[charge for one in known for charge in one.charges]
        if all(one.charges for one in known)
        else (),
        voided={name: units for one in found for name, units in one.voided.items()},
    )


class LineCharge(NamedTuple):
    """The invoice lines of one price in one span of a period.

    Attributes:
        price: the terms of their price.
        units: the sum of their quantities.
        cents: the sum of their amounts, before discounts and taxes.
        lines: the number of lines; Stripe rounds each.
    """

    price: PriceTerms
    units: Decimal
    cents: int
    lines: int

    @property
    def rounding(self) -> Fraction:
        """Largest difference between the sum of rounded lines and the exact charge."""
        return Fraction(self.lines, 2)


class ListedLine(NamedTuple):
    """A line as Stripe shows it, with its invoice; None: a pending invoice item."""

    invoice: Mapping[str, Any] | None
    line: Mapping[str, Any]


def _list_lines(invoices: Iterable[Mapping[str, Any]]) -> list[ListedLine]:
    found: list[ListedLine] = []
    for invoice in invoices:
        lines: Mapping[str, Any] = invoice.get("lines") or {}
        found += [ListedLine(invoice, line) for line in lines.get("data") or ()]
    return found


class InvoiceReader:
    """Reads invoices, each customer's once, and each price once: its terms never change.

    Each method raises :class:`~meterkit.errors.StripeError` if Stripe refuses, or does not answer.

    Args:
        api: the way to Stripe.
        prices: cache of price terms by id.
        currency: the first of the plans file.
    """

    def __init__(self, api: StripeApi, prices: dict[str, Any], currency: str) -> None:
        self._api = api
        self._currency = currency
        self._prices: dict[str, PriceTerms] = prices
        self._made: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._pending: dict[str, list[dict[str, Any]]] = {}

    async def made(self, stripe_customer: str, since_s: int) -> list[dict[str, Any]]:
        """Read a customer's invoices made since an instant, with the first of their lines."""
        name = stripe_customer, since_s
        if name not in self._made:
            asked: dict[str, Parameter] = {"customer": stripe_customer, "created": {"gte": since_s}}
            self._made[name] = await self._api.list("/v1/invoices", asked)
        return self._made[name]

    async def of(self, stripe_customer: str, since_s: int) -> list[dict[str, Any]]:
        """Read a customer's invoices made since an instant, with all their lines."""
        known = self._found.get((stripe_customer, since_s))
        if known is not None:
            return known
        found = await self.made(stripe_customer, since_s)
        for invoice in found:
            lines: dict[str, Any] = invoice.get("lines") or {}
            # The list may show the first lines of a draft, and not its present ones.
            if lines.get("has_more") or invoice.get("status") == "draft":
                lines = {"data": await self._api.list(f"/v1/invoices/{invoice['id']}/lines")}
            invoice["lines"] = lines
        self._found[stripe_customer, since_s] = found
        return found

    async def invoiced(
        self,
        stripe_customer: str,
        meters: Sequence[str],
        start_s: int,
        end_s: int,
        *,
        counted: int = 0,
        currency: str = "",
    ) -> InvoicedUnits:
        """Sum a customer's units of some meters on invoices of a period (Unix seconds).

        Pending items are read if no draft has the usage and the lines have less than Stripe has ``counted``.
        Prices are read in the customer's ``currency``.
        """
        sum_units = partial(self._sum_units, currency=currency or self._currency)
        lines = await self.lines(stripe_customer, start_s)
        found = await sum_units(lines, meters, start_s, end_s)
        if found.state in {"draft", "unknown"} or found.quantity >= counted:
            return found
        pending = await self.pending_lines(stripe_customer)
        return await sum_units([*lines, *pending], meters, start_s, end_s) if pending else found

    async def lines(self, stripe_customer: str, since_s: int) -> list[ListedLine]:
        """Read the lines of all invoices made since an instant."""
        return _list_lines(await self.of(stripe_customer, since_s))

    async def shown_lines(self, stripe_customer: str, since_s: int) -> list[ListedLine]:
        """Read the lines that the list of invoices shows: it may lack further lines, and the latest ones."""
        return _list_lines(await self.made(stripe_customer, since_s))

    async def pending_lines(self, stripe_customer: str) -> list[ListedLine]:
        """Read a customer's invoice items that are on no invoice yet, such as usage at an ended price."""
        if stripe_customer not in self._pending:
            asked: dict[str, Parameter] = {"customer": stripe_customer, "pending": True}
            self._pending[stripe_customer] = await self._api.list("/v1/invoiceitems", asked)
        return [ListedLine(None, item) for item in self._pending[stripe_customer]]

    async def _sum_units(
        self, lines: Iterable[ListedLine], meters: Iterable[str], start_s: int, end_s: int, *, currency: str
    ) -> InvoicedUnits:
        found = list[_MeteredLine]()
        for (invoice, line), price in await self._price_metered_lines(lines, meters):
            place = _place_in_period(line, start_s, end_s, is_yearly=price.is_yearly)
            if place == "outside":
                continue
            if place == "beyond":
                return InvoicedUnits(state="unknown", why="one invoice line is of several of these periods")
            if price.is_packed:
                return InvoicedUnits(state="unknown", why="its price is of packages of several units")
            status = _PENDING if invoice is None else str(invoice.get("status"))
            found.append(_MeteredLine(str((invoice or line)["id"]), status, price, line))
        return _sum_lines(found, currency)

    async def _price_metered_lines(
        self, lines: Iterable[ListedLine], meters: Iterable[str]
    ) -> list[tuple[ListedLine, PriceTerms]]:
        """The lines that bill some meters, with their prices."""
        wanted = set(meters)
        priced = [(one, await self._price_of(one.line)) for one in lines]
        return [(one, price) for one, price in priced if price is not None and price.meter in wanted]

    async def edges(
        self, stripe_customer: str, meters: Iterable[str], start_s: int, end_s: int
    ) -> tuple[int, int]:
        """Read the start and the end at Stripe of a period of ours, by its usage lines (Unix seconds).

        A shortened period ends, in our books, after the timestamps of all its events.
        """
        known = set[int]()
        for (_, line), _ in await self._price_metered_lines(
            await self.lines(stripe_customer, start_s), meters
        ):
            known.update(line["period"].values())

        def edge(ours_s: int) -> int:
            near = (at_s for at_s in known if ours_s - STAMPED_AHEAD_MS // 1000 < at_s <= ours_s)
            return max(near, default=ours_s)

        return edge(start_s), edge(end_s)

    async def usage_meters(self, stripe_customer: str, start_s: int, end_s: int) -> set[str]:
        """List the meters with units on invoice lines of a period (Unix seconds)."""
        found: set[str] = set()
        for _, line in await self.lines(stripe_customer, start_s):
            if _place_in_period(line, start_s, end_s) == "inside" and units_of(line):
                price = await self._price_of(line)
                found |= {price.meter} if price is not None and price.meter is not None else set()
        return found

    async def billed_meter(self, line: Mapping[str, Any]) -> tuple[str | None, bool]:
        """Read the id of the meter that a line or a pending item bills, and whether it bills packages."""
        price = await self._price_of(line)
        return (None, False) if price is None else (price.meter, price.is_packed)

    async def _price_of(self, line: Mapping[str, Any]) -> PriceTerms | None:
        pricing: Mapping[str, Any] = line.get("pricing") or {}
        details: Mapping[str, Any] = pricing.get("price_details") or {}
        price = details.get("price")
        if not isinstance(price, str):
            return None
        currency = str(line.get("currency") or "")
        name = f"{price} {currency}"
        if name not in self._prices:
            found = await self._api.get(f"{PRICES}/{price}", {"expand": ["tiers", OPTIONS]})
            shown = shown_in(found, currency)
            if shown is None:  # Its tiers may have to be expanded.
                shown = shown_in(await with_option_tiers(self._api, found), currency) or found
            self._prices[name] = read_price_terms({**shown, "id": price})
        return self._prices[name]


class _MeteredLine(NamedTuple):
    """An invoice line that bills usage.

    Attributes:
        invoice: the id of its invoice; of a pending item, its own.
        status: of the invoice; ``pending``: there is none.
        price: of the line.
        line: as Stripe shows it.
    """

    invoice: str
    status: str
    price: PriceTerms
    line: Mapping[str, Any]


def _sum_lines(lines: Sequence[_MeteredLine], currency: str) -> InvoicedUnits:
    """Sum the invoice lines of one event name."""
    priced = dict[Fraction | None, Decimal]()
    voided = dict[str, Decimal]()
    charges = dict[tuple[int, int, str], LineCharge]()
    valid = [one for one in lines if one.status != "void"]
    for one in lines:
        if one.status == "void":
            voided[one.invoice] = voided.get(one.invoice, Decimal(0)) + units_of(one.line)
    for one in valid:
        unit, units = None if one.price.tiers else _unit_price(one.line, currency), units_of(one.line)
        priced[unit] = priced.get(unit, Decimal(0)) + units
        span: Mapping[str, int] = one.line.get("period") or {}
        key = (int(span.get("end") or 0), int(span.get("start") or 0), one.price.id)
        charge = charges.get(key, LineCharge(one.price, Decimal(0), 0, 0))
        cents = charge.cents + int(one.line.get("amount") or 0)
        charges[key] = charge._replace(units=charge.units + units, cents=cents, lines=charge.lines + 1)
    states: tuple[InvoiceState, ...] = (_PENDING, "draft")
    unsettled: list[InvoiceState] = [state for state in states if any(one.status == state for one in valid)]
    is_comparable = all(one.line.get("currency") == one.price.currency for one in valid)
    return InvoicedUnits(
        quantity=sum(priced.values(), Decimal(0)),
        state=unsettled[0] if unsettled else "final" if valid else "none",
        invoices=list(dict.fromkeys(one.invoice for one in valid)),
        subscriptions=list(dict.fromkeys(filter(None, (subscription_of(one.line) for one in valid)))),
        prices={unit: units for unit, units in priced.items() if unit is not None and units}
        if not priced.get(None)
        else None,
        charges=[charges[key] for key in sorted(charges)] if is_comparable else (),
        voided=voided,
    )


def is_renewal_of(invoice: Mapping[str, Any], subscription: str, end_s: int) -> bool:
    """Whether an invoice is that of a subscription's renewal at an instant."""
    return (
        invoice.get("billing_reason") == RENEWAL
        and invoice.get("period_end") == end_s
        and subscription_of(invoice) == subscription
    )


def _place_in_period(
    line: Mapping[str, Any], start_s: int, end_s: int, *, is_yearly: bool = False
) -> Literal["inside", "outside", "beyond"]:
    """Locate the span of a line: inside a period, outside, or beyond it (over several periods).

    The line of a yearly price may be short because the price was switched, and still be of several months.
    """
    span: Mapping[str, int] = line.get("period") or {}
    first_s, last_s = int(span.get("start") or 0), int(span.get("end") or 0)
    within_s = max(0, min(last_s, end_s) - max(first_s, start_s))
    if last_s - first_s - (within_s if is_yearly else end_s - start_s) > _TOLERANCE_S:
        return "beyond" if within_s else "outside"
    return "inside" if start_s <= (first_s + last_s) // 2 < end_s else "outside"


def units_of(line: Mapping[str, Any]) -> Decimal:
    """Read the units of an invoice line or an invoice item."""
    return Decimal(str(line.get("quantity_decimal") or line.get("quantity") or 0))


LOWERED_KEY: Final = "meterkit_less_"
"""Begins the keys in a line's metadata for units that corrections have taken off the line."""


def written_units(line: Mapping[str, Any]) -> Decimal:
    """Read the units of a line without the corrections that have lowered it."""
    known = metadata_of(line).items()
    lowered = [units for key, units in known if key.startswith(LOWERED_KEY) and units.isdecimal()]
    return units_of(line) + sum(map(int, lowered))


def _unit_price(line: Mapping[str, Any], currency: str) -> Fraction | None:
    """Read the unit price of a line, in minor units; None: it does not show it in the currency."""
    pricing: Mapping[str, Any] = line.get("pricing") or {}
    unit = pricing.get("unit_amount_decimal")
    return Fraction(str(unit)) if unit is not None and line.get("currency") == currency else None


class PeriodBilling(NamedTuple):
    """Billing of a period's usage by a subscription.

    Attributes:
        subscription: the id of the subscription.
        plan: its plan then, by key; None: no plan of the plans file.
        made_ms: when Stripe made the invoice.
        is_last: whether the subscription ended with the period.
        prices: of the customer's own metered items when the period ended.
        currency: of the customer; empty: the first of the plans file.
    """

    subscription: str
    plan: str | None
    made_ms: int
    is_last: bool
    prices: ItemPrices = NO_PRICES
    currency: str = ""

    def renewals_in(self, invoices: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """List the invoices of the renewal that bills the period."""
        end_s = self.made_ms // 1000
        return [one for one in invoices if is_renewal_of(one, self.subscription, end_s)]

    def price_of(self, meter: str, catalog: Catalog) -> str:
        """Format the price of a unit as a suffix for a quantity; empty: not known."""
        catalog = catalog.in_currency(self.currency)
        plan = catalog.find_plan(self.plan)
        if plan is None:
            return ""
        given = with_item_prices(plan.entitlements, self.prices, catalog)
        return format_overage_price(given.get(meter), catalog.currency)


async def read_period_billing(
    store: Store, api: StripeApi, usage: CustomerUsage, state: CustomerState
) -> PeriodBilling | None:
    """Find how a period is billed; None: it costs nothing, as in a trial or a pause, or has no invoice yet.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    start_ms, end_ms = (to_ms(usage["period"][edge]) for edge in ("start", "end"))
    subscription, now_ms = state.subscription, store.now_ms()
    if PAUSE in free_reasons(state, start_ms):
        return None
    span_s = start_ms // 1000, end_ms // 1000
    links = await read_billed_links(store, usage["customer"], state.stripe_customer, *span_s)
    is_present = bool(links) and links[-1].stripe_customer == state.stripe_customer
    is_former = not is_present and [one.until_s for one in links] == [span_s[1]]
    if not is_former and (subscription is None or not is_present):
        return None  # A link that ended within the period may have another invoice than ours.
    if is_present and subscription and start_ms >= (subscription.created_ms or subscription.start_ms):
        renewals = renewals_of(subscription, now_ms, state.terms)
        # By its start: the last period of an ended subscription may end some minutes later.
        made_ms = None if renewals is None else renewals.invoiced_ms(start_ms, end_ms)
        if made_ms is None:
            # Before a trial of a paid subscription, say.
            made_ms = (await read_invoice_end(store, usage["customer"], start_ms)).final_ms
        if not made_ms:
            return None
        is_last = subscription.status in ENDED and made_ms == subscription.ends_ms()
        prices = state.prices_at(min(end_ms, made_ms) - 1)
        return PeriodBilling(subscription.id, subscription.plan, made_ms, is_last, prices, state.currency)
    entries = await read_history(store, usage["customer"])
    formers = dict.fromkeys(entry.before for entry in reversed(entries) if entry.kind == "subscription")
    for former in filter(None, formers):
        found = await api.find(f"/v1/subscriptions/{former}")
        if found is not None and start_ms >= int(found.get("start_date") or 0) * 1000:
            invoicing = _of_former(found, start_ms, end_ms)
            if invoicing is None:
                return None
            ended = plan_until(entries, from_ms(invoicing.made_ms)) or usage["plan"]
            prices = state.prices_at(min(end_ms, invoicing.made_ms) - 1)
            return invoicing._replace(plan=ended, prices=prices, currency=state.currency)
    return None


def _of_former(found: Mapping[str, Any], start_ms: int, end_ms: int) -> PeriodBilling | None:
    """Find how an earlier subscription bills a period, as Stripe shows it."""
    since_ms = int(found.get("trial_end") or 0) * 1000
    ended_ms = int(found.get("ended_at") or 0) * 1000
    if start_ms < since_ms or (ended_ms and start_ms >= ended_ms):
        return None
    is_last = bool(ended_ms) and end_ms >= ended_ms
    return PeriodBilling(str(found["id"]), None, ended_ms if is_last else end_ms, is_last)


class PriceTier(NamedTuple):
    """A tier of a price.

    Attributes:
        up_to: its last unit; None: no limit.
        unit: the price of a unit in it, in minor units.
        flat: the charge for reaching it.
    """

    up_to: int | None
    unit: Fraction
    flat: Fraction


class PriceTerms(NamedTuple):
    """The terms of a price.

    Attributes:
        id: ``price_…``.
        meter: the id of its meter; None: it is not metered.
        currency: of the amounts.
        unit: the price of a unit; None: it has tiers, or charges packages of several units.
        is_packed: whether it charges packages of several units.
        tiers: in order; empty: there are none.
        is_volume: whether the tier of the last unit applies to all units.
        is_yearly: whether it is charged once a year.
    """

    id: str
    meter: str | None
    currency: str
    unit: Fraction | None
    is_packed: bool
    tiers: Sequence[PriceTier]
    is_volume: bool
    is_yearly: bool = False

    def charge(self, quantity: Decimal, *, after: Decimal = Decimal(0)) -> Fraction | None:
        """Compute the exact charge for units that follow others of the period; None: not computable.

        Args:
            quantity: the units.
            after: earlier units of the period.
        """
        total, before = self._charge_all(after + quantity), self._charge_all(after) if after else Fraction(0)
        return None if total is None or before is None else total - before

    def _charge_all(self, quantity: Decimal) -> Fraction | None:
        if self.tiers:
            return self._charge_by_tier(quantity)
        return None if self.unit is None else Fraction(quantity) * self.unit

    def _charge_by_tier(self, quantity: Decimal) -> Fraction:
        total, below = Fraction(0), Decimal(0)
        for number, tier in enumerate(self.tiers):
            end = quantity if tier.up_to is None else min(quantity, Decimal(tier.up_to))
            if self.is_volume and (tier.up_to is None or quantity <= tier.up_to):
                return Fraction(quantity) * tier.unit + tier.flat
            if not self.is_volume and (end > below or number == 0):
                total += Fraction(end - below) * tier.unit + tier.flat
            below = max(below, end)
        return total


def read_price_terms(found: Mapping[str, Any]) -> PriceTerms:
    """Read a price with expanded tiers."""
    recurring: Mapping[str, Any] = found.get("recurring") or {}
    unit, is_packed = found.get("unit_amount_decimal"), found.get("transform_quantity") is not None
    return PriceTerms(
        id=str(found["id"]),
        meter=recurring.get("meter"),
        currency=str(found.get("currency") or ""),
        unit=None if unit is None or is_packed else Fraction(str(unit)),
        is_packed=is_packed,
        tiers=[
            PriceTier(tier.get("up_to"), _amount(tier, "unit_amount"), _amount(tier, "flat_amount"))
            for tier in found.get("tiers") or ()
        ],
        is_volume=found.get("tiers_mode") == "volume",
        is_yearly=recurring.get("interval") == "year",
    )


def _amount(tier: Mapping[str, Any], name: str) -> Fraction:
    amount = tier.get(f"{name}_decimal")
    return Fraction(str(amount if amount is not None else tier.get(name) or 0))
