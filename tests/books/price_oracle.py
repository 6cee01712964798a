"""The oracle of included quantities: what each plan's part of a period comes to, by Stripe's own events."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any, Final, NamedTuple, TypeAlias

from drivers.world import World
from meterkit import CustomerUsage
from meterkit.catalog import Catalog, Plan

_FIRST_MINUTE_S = 60
_SOLD: Final = "meterkit_line_prices_"
_LOWERED: Final = "meterkit_less_"
_ADDON: Final = "price_addon_"
_RENEWAL: Final = "subscription_cycle"


class Sold(NamedTuple):
    """A plan, and the quantities of add-ons beside it."""

    plan: str
    addons: tuple[tuple[str, int], ...]

    def included(self, meter: str, catalog: Catalog) -> int | None:
        """How much of a meter a whole period includes; None: any quantity."""
        plan = catalog.plans[self.plan]
        own = plan.entitlements[meter].included
        if not isinstance(own, int):
            return None
        added = (
            n * catalog.addons[key].included.get(meter, 0) for key, n in self.addons if key in plan.addons
        )
        return own + sum(added)


class _Seen(NamedTuple):
    """What an event said of a subscription."""

    at_s: int
    plan: Sold | None
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
                seen = _Seen(event["created"], _sold(found, catalog), start_s, end_s)
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
        """Included quantity of a meter in a period by now; None: the rule does not cover it."""
        sold = self.sold(subscription, catalog, heard_of=heard_of)
        parts = [one.included(meter, catalog) for _, one in sold]
        if not parts or catalog.billing.changes.allowance == "whole":
            return parts[-1] if parts else None
        start_s, end_s = _period(subscription)
        bounds = [*(at_s for at_s, _ in sold), end_s]
        total = Fraction(0)
        for part, begin_s, next_s in zip(parts, bounds, bounds[1:], strict=False):
            if not isinstance(part, int):
                return None
            total += Fraction(part * (next_s - begin_s), end_s - start_s)
        return ceil(total)

    def sold(
        self, subscription: Mapping[str, Any], catalog: Catalog, *, heard_of: datetime
    ) -> list[tuple[int, Sold]]:
        """What the period of a subscription has had until now, by its first second; empty: it is not clear.

        ``heard_of``: until when the kit has heard of what happened.
        """
        seen = self._seen.get(subscription["id"], [])
        if not seen or seen[-1].at_s >= int(heard_of.timestamp()):
            return []
        plans = _parts(seen, _period(subscription)[0], int(self.world.clock()))
        known = [(at_s, sold) for at_s, sold in plans if sold is not None]
        is_clear = len(known) == len(plans) and known[-1][1] == _sold(subscription, catalog)
        return known if is_clear else []


def _parts(seen: Sequence[_Seen], start_s: int, now_s: int) -> list[tuple[int, Sold | None]]:
    """Plans and add-ons of a period by their first second; the first minute counts as the start."""
    found: list[tuple[int, Sold | None]] = []
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


def _sold(subscription: Mapping[str, Any], catalog: Catalog) -> Sold | None:
    plan = _plan(subscription, catalog)
    return None if plan is None else Sold(plan, tuple(sorted(_addons(subscription).items())))


def _addons(subscription: Mapping[str, Any]) -> dict[str, int]:
    """How many of each add-on its items sell, by the ids that the shop's prices have."""
    quantities = {item["price"]["id"]: item.get("quantity") for item in subscription["items"]["data"]}
    return {price.removeprefix(_ADDON): n for price, n in quantities.items() if price.startswith(_ADDON)}


def _period(subscription: Mapping[str, Any]) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


_Place: TypeAlias = tuple[str, str, datetime]
_STAMPED_WITHIN: Final = timedelta(minutes=15)
"""Usage is stamped when it is sealed: an item of the same price that a person puts in by then may bill it."""
_ENDED: Final = frozenset({"canceled", "incomplete_expired", "incomplete"})
_FREE: Final = frozenset({"trialing", "paused"})
"""Usage of these times is never billed: https://docs.stripe.com/billing/subscriptions/trials/free-trials."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Usage that was recorded.

    ``beyond`` is how much of it is beyond what is included, ``overage`` what of that goes to Stripe.
    ``prices`` are what a unit may cost, in cents: by the plan that decided, and by the one that Stripe
    charged for then, where somebody has just changed it there; none: it was on trial. ``is_behind_the_end``:
    Stripe had no subscription any more, and the last invoice may have it.
    """

    customer: str
    meter: str
    quantity: int
    beyond: int
    overage: int
    at: datetime
    plan: str
    period: datetime
    prices: tuple[Decimal, ...]
    is_behind_the_end: bool = False


class _AtStripe(NamedTuple):
    """What Stripe charges for usage: cents for a unit, by meter, and whether it charges nothing now."""

    prices: Mapping[str, Decimal]
    is_free: bool


@dataclass(kw_only=True)
class Line:
    """A line of an invoice that charges usage. ``left``: what no recorded usage accounts for yet."""

    customer: str
    meter: str
    price: Decimal
    quantity: int
    amount: int
    start: datetime
    end: datetime
    invoice: str
    left: int = 0

    def __str__(self) -> str:
        return (
            f"{self.quantity} {self.meter} at {self.price} in {self.start:%m-%d %H:%M}/{self.end:%m-%d %H:%M}"
        )


@dataclass(kw_only=True)
class Ledger:
    world: World
    catalog: Catalog
    log: list[Recorded] = field(default_factory=list[Recorded])
    sent_back: Counter[str] = field(default_factory=Counter[str])
    heard_of: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    wrong: list[str] = field(default_factory=list[str])
    plan_times: PlanTimes = field(init=False)
    _names: dict[str, str] = field(default_factory=dict[str, str])
    _cents: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    _ends: dict[tuple[str, datetime], datetime] = field(default_factory=dict[tuple[str, datetime], datetime])
    _known: dict[str, _AtStripe | None] = field(default_factory=dict[str, "_AtStripe | None"])

    def __post_init__(self) -> None:
        self.plan_times = PlanTimes(world=self.world)

    def complain(self, wrong: str) -> None:
        self.wrong.append(f"{self.world.now:%m-%d %H:%M} {wrong}")

    async def record(self, customer: str, meter: str, quantity: int) -> None:
        world, kit = self.world, self.world.kit
        before = await world.do(kit.usage(customer))
        found = await self.subscription(customer)
        if found is not None:
            await self._check_included(found, meter, before)
        await world.do(kit.record(customer, meter, quantity))
        after = await world.do(kit.usage(customer))
        beyond = after["meters"][meter]["overage"]
        if before["period"]["start"] == after["period"]["start"]:
            beyond -= before["meters"][meter]["overage"]
            self._check_classified(customer, meter, before, quantity, beyond)
        plan = self.catalog.plans[after["plan"]]
        is_billed = plan.entitlements[meter].overage.mode == "bill"
        known = self._known.get(customer)
        shown = None if found is None else await self._terms_of(found)
        self._known[customer] = shown
        own: set[Decimal | None] = set()
        if self.has_lines:  # The price that the kit decided by, and said; it may not know of an end yet.
            sold = found or next(iter(await self._all(customer)), None)
            own = set() if sold is None else {self._sold_prices(sold, plan.key).get(meter)}
        elif shown is not None:
            own = {None if at is None else at.prices.get(meter) for at in (known, shown)}
        is_free = shown is not None and shown.is_free
        prices: set[Decimal | None] = set() if is_free else own - {None} or {self._price(plan, meter)}
        self.log.append(
            Recorded(
                customer=customer,
                meter=meter,
                quantity=quantity,
                beyond=beyond,
                overage=beyond if is_billed else 0,
                at=world.now,
                plan=plan.key,
                period=after["period"]["start"],
                prices=tuple(sorted(price for price in prices if price is not None)),
                is_behind_the_end=shown is None,
            )
        )

    async def _check_included(self, found: Mapping[str, Any], meter: str, usage: CustomerUsage) -> None:
        """Compare what is included, and the price beyond it, with what Stripe and the plans file say."""
        if not usage_terms(usage, found, self.catalog):
            return
        await self.plan_times.learn(self.catalog)
        shown = usage["meters"][meter]
        wanted = self.plan_times.included(found, meter, self.catalog, heard_of=self.heard_of)
        included = shown["included"]
        is_less = self.plan_times.was_cut and isinstance(included, int) and included <= (wanted or 0)
        if wanted is not None and included != wanted and not is_less:
            self.complain(f"{included} {meter} are included, not {wanted}")
        price, charged = shown.get("price"), (await self._prices_of(found)).get(meter)
        if wanted is not None and price is not None and charged is not None:
            cents = Decimal(price["amount_cents"]) / price["per"]
            if cents != charged and not price.get("estimated"):
                self.complain(f"{meter} are shown at {cents}, and charged at {charged}")

    def _check_classified(
        self, customer: str, meter: str, usage: CustomerUsage, quantity: int, beyond: int
    ) -> None:
        """Compare what counts as overage with what was included and not used up."""
        included, period = usage["meters"][meter]["included"], usage["period"]["start"]
        paid = sum(
            entry.quantity - entry.beyond
            for entry in self.log
            if (entry.customer, entry.meter, entry.period) == (customer, meter, period)
        )
        left = max(0, included - paid) if isinstance(included, int) else quantity
        has_credits = any(meter in credit.costs for credit in self.catalog.credits.values())
        is_plain = usage["meters"][meter]["granted"] == 0 and not has_credits
        if is_plain and beyond != max(0, quantity - left):
            self.complain(
                f"of {quantity} {meter} {beyond} are overage, of {included} included {paid} are used"
            )

    async def subscription(self, customer: str) -> dict[str, Any] | None:
        """The newest subscription that has not ended."""
        found = await self._all(customer)
        return next((each for each in found if each["status"] not in _ENDED), None)

    async def _all(self, customer: str) -> list[dict[str, Any]]:
        """All subscriptions, the newest first."""
        return await self.world.list("/v1/subscriptions", customer=f"cus_{customer}", status="all")

    async def charged(self) -> dict[str, Mapping[str, Decimal]]:
        found = await self.world.list("/v1/subscriptions")
        return {each["id"]: await self._prices_of(each) for each in found}

    def expect_charged(
        self, before: Mapping[str, Mapping[str, Decimal]], after: Mapping[str, object], what: str
    ) -> None:
        """Expect what a present customer pays for usage to be as before."""
        self.wrong += [
            f"{what} changed the prices of {name} from {before[name]} to {after[name]}"
            for name in before.keys() & after.keys()
            if before[name] != after[name]
        ]

    async def prices_now(self, customer: str) -> Mapping[str, Decimal] | None:
        """What the customer's subscription charges for usage; None: there is none."""
        found = await self.subscription(customer)
        return None if found is None else await self._prices_of(found)

    async def expect_sold(self, subscription: str, plan: str) -> None:
        wanted = {name: self._price(self.catalog.plans[plan], name) for name in self.catalog.meters}
        found = await self._prices_of(await self.world.ask("GET", f"/v1/subscriptions/{subscription}"))
        if found != {name: price for name, price in wanted.items() if price is not None}:
            self.complain(f"{plan} was sold with the prices {found}, the plans file has {wanted}")

    async def plan_at_stripe(self) -> str | None:
        """The plan whose base price the subscription has."""
        (found, *_) = [*await self.world.list("/v1/subscriptions"), None]
        bases = {item["price"]["id"] for item in found["items"]["data"]} if found else set[str]()
        return next(
            (plan.key for plan in self.catalog.plans.values() if plan.price.stripe_price in bases), None
        )

    async def addons_at_stripe(self) -> dict[str, int]:
        """How many of each add-on the subscription has."""
        found = await self.world.list("/v1/subscriptions")
        return _addons(found[0]) if found else {}

    async def _terms_of(self, subscription: Mapping[str, Any]) -> _AtStripe:
        return _AtStripe(await self._prices_of(subscription), subscription["status"] in _FREE)

    @property
    def has_lines(self) -> bool:
        return self.catalog.billing.usage == "lines"

    async def _prices_of(self, subscription: Mapping[str, Any]) -> dict[str, Decimal]:
        if self.has_lines:
            return self._sold_prices(subscription, _plan(subscription, self.catalog))
        names = await self._meters()
        return {
            names[price["recurring"]["meter"]]: await self._cents_of(price)
            for item in subscription["items"]["data"]
            if (price := item["price"])["recurring"]["usage_type"] == "metered"
        }

    async def _cents_of(self, price: Mapping[str, Any]) -> Decimal:
        """What a price takes for a unit in the customer's currency."""
        if price["currency"] == self.catalog.currency:
            return Decimal(price["unit_amount_decimal"])
        if price["id"] not in self._cents:
            shown = await self.world.ask(
                "GET", f"/v1/prices/{price['id']}", **{"expand[0]": "currency_options"}
            )
            options = shown["currency_options"][self.catalog.currency]
            self._cents[price["id"]] = Decimal(options["unit_amount_decimal"])
        return self._cents[price["id"]]

    def _sold_prices(self, subscription: Mapping[str, Any], plan: str | None) -> dict[str, Decimal]:
        """What lines charge for usage on a plan: what the subscription was sold at, else as in the file."""
        metadata: Mapping[str, str] = subscription["metadata"]
        if metadata.get("meterkit_line_plan") == plan:
            named = {
                meter.stripe.event_name: name for name, meter in self.catalog.meters.items() if meter.stripe
            }
            values = [json.loads(text) for name, text in metadata.items() if name.startswith(_SOLD)]
            labels: dict[str, str] = {
                named[event]: label for value in values for event, label in value.items()
            }
            amounts = {name: label.partition("/") for name, label in labels.items()}
            return {name: Decimal(cents) / int(per) for name, (per, _, cents) in amounts.items()}
        of_file = self.catalog.plans.get(plan or "")
        priced = {} if of_file is None else {name: self._price(of_file, name) for name in self.catalog.meters}
        return {name: price for name, price in priced.items() if price is not None}

    async def _meters(self) -> Mapping[str, str]:
        if not self._names:
            names = {
                meter.stripe.event_name: name for name, meter in self.catalog.meters.items() if meter.stripe
            }
            listed = await self.world.list("/v1/billing/meters")
            self._names |= {one["id"]: names[one["event_name"]] for one in listed}
        return self._names

    def _price(self, plan: Plan, meter: str) -> Decimal | None:
        """Cents for a unit beyond what is included."""
        overage = plan.entitlements[meter].overage
        if overage.mode != "bill" or overage.amount_cents is None:
            return None
        return Decimal(overage.amount_cents) / (overage.per or 1)

    async def metered_prices(self, plan: str) -> list[str]:
        """The prices at Stripe of what a plan bills beyond what is included.

        They are the plan's own, not those of another plan with the same amount.
        """
        if self.has_lines:
            return []
        events = {meter["event_name"]: meter["id"] for meter in await self.world.list("/v1/billing/meters")}
        prices = await self.world.list("/v1/prices", active="true")
        found: list[str] = []
        for name, meter in self.catalog.meters.items():
            cents = self._price(self.catalog.plans[plan], name)
            if cents is not None and meter.stripe is not None:
                own = f"meterkit:{plan}:meter:{name}"
                fitting = {
                    price["lookup_key"]: price["id"]
                    for price in prices
                    if price["recurring"]["meter"] == events[meter.stripe.event_name]
                    and await self._cents_of(price) == cents
                }
                found.append(fitting.get(own) or next(iter(fitting.values())))
        return found

    async def change_at_stripe(
        self, subscription: dict[str, Any], plan: str, *, proration_behavior: str
    ) -> None:
        """Give a subscription the items of another plan, as a person does in the Dashboard or in a portal."""
        base = str(self.catalog.plans[plan].price.stripe_price)
        items: list[dict[str, str]] = []
        for item in subscription["items"]["data"]:
            is_base = item["price"]["id"] in self._bases()
            items.append({"id": item["id"], **({"price": base} if is_base else {"deleted": "true"})})
        items += [{"price": price} for price in await self.metered_prices(plan)]
        params = {
            f"items[{place}][{name}]": value
            for place, item in enumerate(items)
            for name, value in item.items()
        }
        params["proration_behavior"] = proration_behavior
        await self.world.ask("POST", f"/v1/subscriptions/{subscription['id']}", **params)

    def _bases(self) -> set[str | None]:
        return {plan.price.stripe_price for plan in self.catalog.plans.values()}

    async def lines(self) -> list[Line]:
        """All lines of Stripe's invoices that charge usage, and the items that wait for an invoice.

        Of void invoices those that a person forgives count.
        """
        names = await self._meters()
        found: list[Line] = []
        # A pause puts usage into items that wait for the invoice of its resumption.
        pending: dict[str, Any] = {"id": "pending", "status": "pending", "customer": ""}
        for invoice in [pending, *await self.world.list("/v1/invoices")]:
            if invoice["status"] == "void" and not invoice["metadata"].get("forgiven"):
                continue
            of = f"/v1/invoices/{invoice['id']}/lines"
            lines = self.world.list(of) if invoice is not pending else self._pending_items()
            for line in await lines:
                meter = await self._metered(line, names)
                if meter is None or not written_units(line):
                    continue
                quantity = written_units(line)
                found.append(
                    Line(
                        customer=str(invoice["customer"] or line["customer"]).removeprefix("cus_"),
                        meter=meter,
                        price=Decimal(line["pricing"]["unit_amount_decimal"]),
                        quantity=quantity,
                        amount=written_cents(line),
                        start=_instant(line["period"]["start"]),
                        end=_instant(line["period"]["end"]),
                        invoice=invoice["id"],
                        left=quantity,
                    )
                )
        return sorted(found, key=lambda line: (line.start, line.meter, line.price))

    async def _pending_items(self) -> list[dict[str, Any]]:
        return await self.world.list("/v1/invoiceitems", pending="true")

    async def _metered(self, line: dict[str, Any], names: Mapping[str, str]) -> str | None:
        """The meter of a line that charges usage; None: it charges something else."""
        if self.has_lines:
            is_ours = "meterkit_line" in line["metadata"]
            return str(line["metadata"]["meterkit_meter"]) if is_ours else None
        pricing: dict[str, Any] = line.get("pricing") or {}
        details: dict[str, Any] = pricing.get("price_details") or {}
        if details.get("price") is None:
            return None
        price = await self.world.ask("GET", f"/v1/prices/{details['price']}")
        recurring: dict[str, Any] = price.get("recurring") or {}
        return names[recurring["meter"]] if recurring.get("usage_type") == "metered" else None

    async def audit(self) -> list[str]:
        """All that is wrong with the invoices and with the books, in words; nothing, where all is right."""
        lines = await self.lines()
        void = await self.world.list("/v1/invoices", status="void")
        # A renewal that Stripe voids, as a person has paused collection so, forgives its lines.
        renewals = [one for one in void if self.has_lines and one["billing_reason"] == _RENEWAL]
        forgiven = {one["id"] for one in void if one in renewals or one["metadata"].get("forgiven")}
        wrong = [
            f"{line}: {line.amount} cents" for line in lines if line.amount != line.quantity * line.price
        ]
        unbilled = _match(self.log, lines)
        late, agree, advice = await self._books()
        again = self._billed_again(lines, late)
        for place, units in self._voided({one["period_end"] for one in renewals}).items():
            free = min(max(0, unbilled[place] - late[place]), units)
            unbilled[place] -= free
            again[place[0], place[1]] += free
        self._forgive_sent_back(lines, advice)
        for customer, meter, period in sorted({*unbilled, *late}):
            units, told = unbilled[customer, meter, period], late[customer, meter, period]
            # Late units that a later price bills may stand on the line that others were taken off.
            if not units <= told <= units + again[customer, meter]:
                wrong.append(
                    f"{units} {meter} of {customer} in the period from {period:%m-%d} are on no invoice at"
                    f" their price, {told} are told to be late"
                )
                if agree[customer, meter, period]:
                    wrong.append(
                        f"and the books of {meter} of {customer} from {period:%m-%d} say all is right"
                    )
        # Usage that met a change by others may have two prices: the books name it where they differ.
        doubtful = {
            (entry.customer, entry.meter, entry.period) for entry in self.log if len(entry.prices) > 1
        }
        wrong += [
            f"the books of {meter} of {customer} from {period:%m-%d}: {said}"
            for (customer, meter, period), said in sorted(advice.items())
            if said and (customer, meter, period) not in doubtful and not any(one in said for one in forgiven)
        ]
        # What is late in its own period may be billed in one that follows.
        later = Counter[tuple[str, str]]()
        for (customer, meter, _), units in late.items():
            later[customer, meter] += units
        for line in lines:
            billed_late = min(line.left, later[line.customer, line.meter])
            later[line.customer, line.meter] -= billed_late
            if line.left > billed_late:
                wrong.append(
                    f"{line}: {line.left - billed_late} of it were never recorded at that price then"
                )
        return self.wrong + wrong + self._accepted(late) + await self._remembered(late)

    def _voided(self, ends_s: Container[int]) -> Counter[_Place]:
        """Usage of periods that end with a void invoice, by customer, meter and period."""
        found = Counter[_Place]()
        for entry in self.log:
            ends = self._ends.get((entry.customer, entry.period))
            if ends is not None and int(ends.timestamp()) in ends_s:
                found[entry.customer, entry.meter, entry.period] += entry.overage
        return found

    def _forgive_sent_back(self, lines: Sequence[Line], advice: dict[_Place, str]) -> None:
        """Take off lines what the books tell people to credit, up to what corrections have sent back.

        A negative event that is on its way while others end its price comes too late for its line.
        """
        for (customer, meter, period), said in advice.items():
            credited = re.search(r"credit (\d+) units", said)
            if credited is None or int(credited[1]) > self.sent_back[meter]:
                continue
            left, advice[customer, meter, period] = int(credited[1]), ""
            self.sent_back[meter] -= left
            for line in lines:
                taken = min(left, line.left) if (line.customer, line.meter) == (customer, meter) else 0
                line.left -= taken
                left -= taken

    async def _remembered(self, told: Mapping[_Place, int]) -> list[str]:
        """Where the kit shows another quantity of a period than was recorded in it.

        Late units are recorded once more, in the period that bills them.
        """
        recorded, late, wrong = Counter[_Place](), Counter[tuple[str, str]](), list[str]()
        for (customer, meter, _), units in told.items():
            late[customer, meter] += units
        for entry in self.log:
            recorded[entry.customer, entry.meter, entry.period] += entry.quantity
        for (customer, meter, period), units in sorted((+recorded).items()):
            usage = await self.world.do(self.world.kit.usage(customer, period=period))
            shown = usage["meters"][meter]["recorded"]
            again = late[customer, meter]
            if usage["period"]["start"] != period or not units <= shown <= units + again:
                wrong.append(
                    f"{units} {meter} of {customer} were recorded in the period from {period:%m-%d}, the kit"
                    f" shows {shown} of that from {usage['period']['start']:%m-%d}"
                )
        return wrong

    def _billed_again(self, lines: Sequence[Line], late: Mapping[_Place, int]) -> Counter[tuple[str, str]]:
        """By customer and meter: how many late units are on an invoice after all."""
        found = Counter[tuple[str, str]]()
        for line in lines:
            found[line.customer, line.meter] += line.quantity
        for (customer, meter, _), units in late.items():
            found[customer, meter] += units
        for entry in self.log:
            found[entry.customer, entry.meter] -= entry.overage if entry.prices else 0
        return found

    async def _books(self) -> tuple[Counter[_Place], dict[_Place, bool], dict[_Place, str]]:
        """By customer, meter and period: the late units, whether the books agree, what they say."""
        late, agree, advice = Counter[_Place](), defaultdict[_Place, bool](bool), dict[_Place, str]()
        for customer, period in sorted({(one.customer, one.period) for one in self.log}):
            for one in await self.world.do(self.world.kit.reconcile(customer, at=period)):
                if one.period_start != period:  # All of it was taken back, and another period is there.
                    continue
                self._ends[customer, period] = one.period_end
                late[customer, one.meter, period] = one.late
                agree[customer, one.meter, period] = one.agrees
                advice[customer, one.meter, period] = one.advice if one.is_closed else ""
        return late, agree, advice

    def _accepted(self, late: Counter[_Place]) -> list[str]:
        """Where Stripe has more than was recorded; what is late may have come to it twice."""
        recorded, wrong = Counter[tuple[str, str]](), list[str]()
        for entry in self.log:
            recorded[entry.customer, entry.meter] += entry.overage
        for (customer, meter, _), units in late.items():
            recorded[customer, meter] += units
        for (customer, meter), units in sorted(recorded.items()):
            stripe = self.catalog.meters[meter].stripe
            has = 0 if stripe is None else self.world.emulator.accepted(f"cus_{customer}", stripe.event_name)
            if has > units:
                wrong.append(f"Stripe has {has} {meter} of {customer}, {units} were recorded")
        return wrong


def written_units(line: Mapping[str, Any]) -> int:
    """The units of a line, with those that corrections have taken off it while its invoice was a draft."""
    metadata: Mapping[str, str] = line.get("metadata") or {}
    lowered = sum(int(units) for name, units in metadata.items() if name.startswith(_LOWERED))
    return int(Decimal(line["quantity_decimal"])) + lowered


def written_cents(line: Mapping[str, Any]) -> int:
    """The cents of a line, with those of the units that corrections have taken off it."""
    lowered = written_units(line) - int(Decimal(line["quantity_decimal"]))
    return int(line["amount"] + lowered * Decimal(line["pricing"]["unit_amount_decimal"]))


def _match(log: Sequence[Recorded], lines: Sequence[Line]) -> Counter[_Place]:
    """Take what was recorded off the lines that charge it; what is on none, by customer, meter and period."""
    left = Counter[int]({place: entry.overage for place, entry in enumerate(log) if entry.prices})
    entries = list(enumerate(log))
    # What may have one price only comes first.
    entries.sort(key=lambda found: (len(found[1].prices), found[1].at))
    for stamped_within in (timedelta(), _STAMPED_WITHIN):
        for place, entry in entries:
            for line in lines:
                is_its = (line.customer, line.meter) == (entry.customer, entry.meter)
                is_then = line.start - stamped_within <= entry.at and (
                    entry.at < line.end or (entry.is_behind_the_end and entry.period < line.end)
                )
                if is_its and is_then and line.price in entry.prices:
                    taken = min(left[place], line.left)
                    line.left -= taken
                    left[place] -= taken
    unbilled = Counter[_Place]()
    for place, entry in entries:
        unbilled[entry.customer, entry.meter, entry.period] += left[place]
    return +unbilled


def _instant(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)
