"""What the scripts promise, said once more in plain Python: no Redis, no packing, no floats but shares.

The model keeps counts by name and instant (a count per window, a hold per slot, an owed fraction) and derives
from them what a script must answer and what must be stored afterwards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any, Final

from meterkit.catalog import Catalog, Entitlement, Meter, Plan, Rate
from meterkit.decisions.allowance import Allowance
from meterkit.decisions.compiled_decision import derived_from
from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.keys import meter_field, meter_token, rate_field, rate_token
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.packed import UNCOMPARED, EventMark
from meterkit.redis.settlement_queue import CONFLICT, PARTLY
from meterkit.store.settlement import Settlement
from store.script_counts import DAY_MS, MINUTE_MS, MOST, QUARTER_HOUR_MS, Bucket, Slots, Windows
from store.script_purse import Claims, Means, Part, Purse, credit_of, lowered, room, targets_of

NEVER_MS: Final = 9 * 10**15
JITTER_MS: Final = 1000
NO_REV: Final = NO_STATE

Answer = list[int | bytes]


class Totals(dict[str, Any]):
    """Fields of totals: numbers, and a few texts; what is missing counts 0."""

    def __missing__(self, _: str) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    rev: str
    valid_until_ms: int
    period: tuple[int, int]
    next_end_ms: int
    entitlements: Mapping[str, Entitlement] = field(default_factory=dict[str, "Entitlement"])
    linked: bool = True
    seal_delay_ms: int = 0
    billable: bool = True
    plan: Plan | None = None
    has_purse: bool = False
    own_start: int = 0
    late_is_dead: bool = False
    allowance: Allowance | None = None

    def period_at(self, now: int) -> tuple[int, int]:
        return self.period if now < self.period[1] else (self.period[1], self.next_end_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The store's clock, and a caller's, which decides nothing."""

    wall: int
    claimed: int


@dataclass(slots=True)
class Customer:
    """Everything that is known of a customer; ``seen`` is 0 and ``period`` None until something is kept."""

    rev: str = NO_REV
    data: str = ""
    cached: str | None = None
    seen: int = 0
    period: tuple[int, int] | None = None
    lives: int = 0
    stamps: Counter[str] = field(default_factory=Counter[str])
    rates: dict[tuple[str, int, str], Windows | Bucket] = field(default_factory=dict[Any, Any])
    holds: dict[str, Slots] = field(default_factory=lambda: defaultdict(Slots))
    concurrency: dict[str, Slots] = field(default_factory=lambda: defaultdict(Slots))
    credit_holds: dict[str, Slots] = field(default_factory=lambda: defaultdict(Slots))
    included: Counter[str] = field(default_factory=Counter[str])
    overage: Counter[str] = field(default_factory=Counter[str])
    granted: Counter[str] = field(default_factory=Counter[str])
    credited: Counter[str] = field(default_factory=Counter[str])
    over_cap: Counter[str] = field(default_factory=Counter[str])
    pending: Counter[str] = field(default_factory=Counter[str])
    marked: Counter[str] = field(default_factory=Counter[str])
    closed: Totals = field(default_factory=Totals)
    purse: Purse = field(default_factory=Purse)

    def period_at(self, view: View, now: int) -> tuple[int, int]:
        """The period of an instant; one that has begun goes on where the clock went back before it."""
        period = view.period_at(now)
        return self.period if self.period is not None and self.period[0] >= period[1] else period

    def now(self, wall: int) -> int:
        """The customer's time: that of the store, and still while that is set back by a second at most."""
        return self.seen if 0 <= self.seen - wall <= JITTER_MS else wall

    @property
    def begun(self) -> tuple[int, int]:
        assert self.period is not None
        return self.period

    def rate(self, meter: str, rate: Rate) -> Windows | Bucket:
        key = (meter, rate.window_ms, rate.algorithm)
        return self.rates.get(key) or (Bucket() if rate.algorithm == "token-bucket" else Windows())

    def count(self, meter: str, rate: Rate, now: int, quantity: int) -> None:
        counted = self.rates[meter, rate.window_ms, rate.algorithm] = self.rate(meter, rate)
        counted.add(rate, now, quantity)

    def means(self, now: int, view: View) -> Means | None:
        """What grants and credits there are; None for those who cannot have any."""
        if view.plan is None or not view.has_purse:
            return None
        return Means(
            self.purse,
            view.plan,
            self.period_at(view, now),
            now,
            is_named=view.billable,
            allowance=view.allowance,
        )

    def roll(self, now: int, view: View, *, is_moved: bool = False) -> None:
        """Bring to `now` what is kept of a customer, if anything.

        ``is_moved``: whether another period may end when the kept one does.
        """
        if self.period is None:
            return
        start, finish = self.period_at(view, now)
        is_another = is_moved and start >= self.period[0] + 2 * MINUTE_MS
        if self.period[1] == finish and now < finish and not is_another:
            return
        self.seen = now
        began, ends = self.period
        is_cut = start >= began + 2 * MINUTE_MS
        if now >= ends or is_cut:
            till = min(ends, max(start, self.stamped_ms + 2 * MINUTE_MS)) if is_cut else ends
            self._close((began, till))
            self._forget(now)
            self.period = max(start, till), finish
        else:
            self.period = began, finish

    def begin(self, now: int, view: View) -> None:
        if self.period is None:
            self.period = view.period_at(now)

    @property
    def stamped_ms(self) -> int:
        return max(self.stamps.values(), default=0)

    def _close(self, period: tuple[int, int]) -> None:
        for kind, counts in self._classes():
            for meter, count in counts.items():
                if count:
                    self.closed[f"{period[0]}|{meter_token(meter)}{kind}"] += count
                    self.closed[f"{period[0]}|e"] = period[1]
            counts.clear()

    def _classes(self) -> Iterable[tuple[str, Counter[str]]]:
        classes = (self.included, self.overage, self.granted, self.credited, self.over_cap)
        return zip("iogcjpm", (*classes, self.pending, self.marked), strict=True)

    def keeps_until(self, view: View) -> int:
        """How long it is known at least what was recorded in the period."""
        assert self.period is not None
        return self.period[1] + (QUARTER_HOUR_MS if view.rev == NO_REV else 400 * DAY_MS)

    def overdue(self, at: int, view: View, now: int) -> int | None:
        """The closed period that an instant lies in; None: it is of the one that is open."""
        if at >= (self.period or view.period_at(now))[0]:
            return None
        for name, end in self.closed.items():
            start, _, field_ = name.partition("|")
            if field_ == "e" and int(start) <= at < end:
                return int(start)
        return view.own_start

    def _forget(self, now: int) -> None:
        """Closed periods are known for 400 days; longer where something is not delivered."""
        periods = {name.partition("|")[0] for name in self.closed}
        for period in periods:
            names = [name for name in self.closed if name.startswith(f"{period}|")]
            is_open = any(name[-1] in "apqlkxQLKX" and self.closed[name] for name in names)
            ended = self.closed.get(f"{period}|e", int(period))
            if not is_open and ended + 400 * DAY_MS <= now:
                for name in names:
                    del self.closed[name]

    def count_late(self, period: int, parts: Iterable[Part], *, is_dead: bool) -> None:
        for part in parts:
            if part.quantity:
                self.closed[f"{period}|{meter_token(part.meter)}u"] += part.quantity
                self.marked[part.meter] += 0 if is_dead else part.quantity

    def total(self, meter: str) -> int:
        """Recorded units of a meter in this period, in all classes."""
        classes = (self.included, self.overage, self.granted, self.credited, self.over_cap)
        return sum(counts[meter] for counts in classes)

    def over_cap_of(self, given: Entitlement, beyond: int) -> int:
        """How many of some units beyond what is included and prepaid are over the cap, and not billed."""
        if given.overage.mode != "bill" or given.overage.cap is None:
            return 0
        return max(0, beyond - max(0, given.overage.cap - self.overage[given.meter]))

    def live_until(self, lives: int, *, extra: int = 0) -> None:
        if self.lives < lives:
            self.lives = lives + extra

    def fields(self) -> dict[str, int | str]:
        if self.period is None:
            return {}
        head = (self.seen, *self.period, self.lives, self.cached or "")
        kept: dict[str, int | str] = dict(zip("tbexr", head, strict=True))
        for (meter, window_ms, algorithm), rate in self.rates.items():
            token = rate_token(meter, window_ms, algorithm)
            kept.update(zip((f"{token}a", f"{token}b", f"{token}d"), rate.fields(), strict=True))
        for kinds, slots in (("hH", self.holds), ("nN", self.concurrency), ("wW", self.credit_holds)):
            for meter, taken in slots.items():
                for kind, quantity in zip(kinds, taken.live(self.seen), strict=True):
                    kept[meter_token(meter) + kind] = quantity
        for kind, counts in self._classes():
            kept.update({meter_token(meter) + kind: count for meter, count in counts.items()})
        kept.update({f"{meter_token(meter)}z": stamp for meter, stamp in self.stamps.items()})
        return {name: value for name, value in kept.items() if value}


@dataclass(slots=True)
class Writer:
    last: int = 0
    fenced: bool = False


class Model:
    """All customers, writers and lists of one shard."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.customers: defaultdict[str, Customer] = defaultdict(Customer)
        self.writers: defaultdict[str, Writer] = defaultdict(Writer)
        self.events: dict[str, dict[str, int]] = {}
        self.dirty: dict[str, int] = {}
        self.unlinked: dict[str, int] = {}
        self.notices: list[tuple[str, str, str, str]] = []

    def decide(
        self,
        name: str,
        view: View,
        demands: Mapping[str, Demand],
        *,
        mode: str,
        times: Times,
        costs: Mapping[str, int],
        billed_always: bool = False,
        rates_only: bool = False,
    ) -> Answer:
        customer = self.customers[name]
        now, ending = stand(customer, view, times, forced=mode == "f")
        if ending:
            return ending
        if mode == "v":
            return [4, now]
        customer.roll(now, view)
        asked = Asked(self.catalog, view.entitlements, demands, costs=costs, rates_only=rates_only)
        means = None if rates_only else customer.means(now, view)
        if means and means.repaid and asked.reads_grants:
            # A customer in debt is refused and records nothing, so the decision keeps what was repaid.
            customer.purse.keep(means, has_state=view.rev != NO_REV)
        ceilings = Ceilings(customer, asked, now, means=means, takes=mode != "c")
        refused, told = weigh(customer, asked, now, ceilings)
        numbers = [number for _, _, numbers in told for number in numbers]
        refusal = [now, customer.period[1] if customer.period else 0, *numbers, *ceilings.had]
        if refused and mode not in "hs":
            return [1, *refusal]
        if mode != "c":
            spans = [span_ms(rate) for given, _ in asked.all for rate in given.rates]
            keep = QUARTER_HOUR_MS + max(spans, default=0)
            take(customer, asked, now, has_purse=view.has_purse)
            has_recorded = False
            if billed_always:
                for given, demand in asked.all:
                    if self.catalog.meters[given.meter].stripe is None and given.included is None:
                        total = customer.included[given.meter] + demand.taken
                        customer.included[given.meter] = min(total, MOST)
                        has_recorded |= demand.taken > 0
            customer.begin(now, view)
            customer.seen = now
            customer.cached = view.rev if mode in "ds" else customer.cached
            lives = now + keep
            if has_recorded:
                lives = max(lives, customer.keeps_until(view))
            customer.live_until(lives, extra=keep // 8)
            _, told = weigh(customer, asked, now, ceilings, taken=True)
        if refused and mode == "s":
            return [5, *refusal]
        shares = [left / max(whole, 1) for left, whole, _ in told]
        nearest = min(range(len(told)), key=shares.__getitem__, default=None)
        if nearest is None:
            return [0, now, 0, 0, 0]
        rates = sum(len(given.rates) for given, _ in asked.all)
        rests = [left for left, _, _ in told[rates:]]
        return [0, now, nearest + 1, told[nearest][0], numbers[3 * nearest + 1], *rests]

    def settle(
        self, name: str, view: View, use: Settlement, writer: str, number: int, times: Times
    ) -> Answer:
        customer = self.customers[name]
        now, ending = stand(customer, view, times)
        if ending:
            return [4, *ending[1:]]
        answer = self._number(writer, number, now, None if use.event is None else self._counted(use.event))
        if answer:
            return answer
        customer.roll(now, view)
        recorded, held = use.used.recorded, use.held
        late = None if use.occurred_ms is None else customer.overdue(use.occurred_ms, view, now)
        before = customer.means(now, view) if any(recorded.values()) else None
        after = customer.means(now, view) if before else None
        parts, is_dead = list[Part](), late is not None and view.late_is_dead
        for meter in dict.fromkeys((*held.quantities, *recorded)):
            parts += self._parts(meter, use, view, customer, after, is_dead=is_dead)
        refused = [meter_field(part.meter).encode() for part in parts if part.is_too_much]
        if use.event is not None:
            self.events.setdefault(use.event.key, {}).update(use.event.quantities)
        self._give_back(customer, use, parts, now)
        customer.begin(now, view)
        customer.seen, customer.cached = now, view.rev
        keep = self._rate(customer, view, use, now)
        self._record(name, customer, view, parts, now, keep, has_recorded=any(recorded.values()))
        words: list[bytes] = []
        for part in parts if use.asks_revenue else ():
            told = f"paid {meter_field(part.meter)} {part.credited} {part.overage}"
            words += [told.encode()] if part.quantity else []
        if before is not None and after is not None:
            customer.purse.keep(after, has_state=view.rev != NO_REV)
            for target, left in lowered(self.catalog, before, after):
                self._notice("credits.low", name, target, (now, *customer.begun, left))
        for part in parts if view.billable else ():
            self._cross(name, customer, view.entitlements[part.meter], part, now)
        if late is not None:
            words.append(f"late {late}".encode())
            customer.count_late(late, parts, is_dead=view.late_is_dead)
        if self.notices:
            words.append(b"notice")
        return [6, refused[0]] if refused else [0, now, *words]

    @staticmethod
    def _give_back(customer: Customer, use: Settlement, parts: Iterable[Part], now: int) -> None:
        held = use.held
        for part in parts:
            customer.holds[part.meter].touch(now)
        for meter, quantity in held.quantities.items():
            customer.holds[meter].give_back(now, use.slot, quantity)
        for meter, cost in held.costs.items():
            customer.credit_holds[meter].give_back(now, use.slot, min(held.quantities[meter] * cost, MOST))
        for meter in held.concurrency:
            customer.concurrency[meter].give_back(now, use.slot, 1)

    def _number(self, writer: str, number: int, now: int, counted: int | None) -> Answer | None:
        """The reply that ends a settlement by its number, or by its event id."""
        numbered = self.writers[writer]
        if counted == PARTLY:
            return [PARTLY, now]
        if numbered.fenced:
            return [3, numbered.last]
        goes_on = number < 0 and not numbered.last
        if not goes_on and number != numbered.last + 1:
            return [1, now] if number <= numbered.last else [2, numbered.last]
        numbered.last = abs(number)
        return None if counted is None else [counted, now]

    def _counted(self, event: EventMark) -> int | None:
        """The reply where an event id has counted meters among these; None: it has counted none."""
        if event.key not in self.events:
            return None
        known = self.events[event.key]
        both = [(known[meter], quantity) for meter, quantity in event.quantities.items() if meter in known]
        if any(before != now and UNCOMPARED not in {before, now} for before, now in both):
            return CONFLICT
        if not known or len(both) == len(event.quantities):
            return 0
        return PARTLY if both else None

    def _cross(self, name: str, customer: Customer, given: Entitlement, part: Part, now: int) -> None:
        """Notice the shares of what is included that these units have reached."""
        after = customer.total(part.meter)
        counted = sum(part.classes)
        included = given.included or 0
        for percent in given.warn_at if included else ():
            if 100 * (after - counted) < included * percent <= 100 * after:
                numbers = (now, *customer.begun, after, percent, included)
                self._notice("usage.threshold", name, meter_token(part.meter), numbers)

    def _notice(self, kind: str, name: str, of: str, numbers: tuple[int, ...]) -> None:
        self.notices.append((kind, name, of, " ".join(map(str, numbers))))

    def _parts(
        self,
        meter: str,
        use: Settlement,
        view: View,
        customer: Customer,
        means: Means | None,
        *,
        is_dead: bool,
    ) -> Iterable[Part]:
        """How units are classified: as the meter's own, and as those of meters derived from it."""
        quantity, meters = use.used.recorded.get(meter, 0), self.catalog.meters
        derived = self._derived(meter, use) if quantity else ()
        reported_as = next((found.name for found in derived if found.stripe is not None), meter)
        for name in (meter, *(found.name for found in derived)):
            given, quantity = view.entitlements[name], use.used.recorded.get(meter, 0)
            is_too_much = customer.total(name) + quantity > MOST
            quantity = within = 0 if is_too_much else quantity
            if is_dead:
                yield Part(name, quantity, 0, 0, 0, 0, 0, 0, reported_as, is_too_much)
                continue
            if given.included is not None:
                within = min(quantity, max(0, given.included - customer.included[name]))
            granted, credited, reported = 0, 0, 0
            if name == meter and means is not None:
                credit, model = credit_of(self.catalog, meter), use.used.dimensions.get("model")
                granted, credited = means.pay(meter, quantity - within, credit, model)
            beyond, stripe = quantity - within - granted - credited, meters[reported_as].stripe
            over_cap = customer.over_cap_of(given, beyond)
            overage, bound = beyond - over_cap, quantity
            if reported_as != name:
                bound -= self._over_cap_of_derived(view.entitlements[reported_as], customer, quantity)
            if name == meter and view.billable and stripe is not None and stripe.report != "none":
                # Units are classified in their order: included first, those over the cap last.
                reported += min(within, bound) if stripe.report == "usage" else 0
                billed = max(0, min(quantity - over_cap, bound) - (quantity - beyond))
                reported += billed if given.overage.mode == "bill" else 0
            yield Part(
                *(name, quantity, within, granted, credited, overage, over_cap),
                *(reported, reported_as, is_too_much),
            )

    def _over_cap_of_derived(self, given: Entitlement, customer: Customer, quantity: int) -> int:
        """How many units a derived meter counts as over its own cap."""
        if given.included is None or customer.total(given.meter) + quantity > MOST:
            return 0
        within = max(0, given.included - customer.included[given.meter])
        return customer.over_cap_of(given, max(0, quantity - within))

    def _derived(self, meter: str, use: Settlement) -> tuple[Meter, ...]:
        return derived_from(
            self.catalog.meters, meter, use.used.dimensions if measured_of(use).get(meter) else {}
        )

    def _rate(self, customer: Customer, view: View, use: Settlement, now: int) -> int:
        """Count into rates; how long they must be kept (ms)."""
        counted, correction = dict(use.used.rated), use.correction
        for source, quantity in measured_of(use).items():
            counted.update({found.name: quantity for found in self._derived(source, use) if quantity})
        keep = QUARTER_HOUR_MS
        for meter in {**counted, **correction.reserved}:
            for rate in view.entitlements[meter].rates:
                key = (meter, rate.window_ms, rate.algorithm)
                quantity, at = counted.get(meter, 0), now
                if meter in correction.reserved and rate_field(*key) in correction.rates:
                    quantity, at = quantity - correction.reserved[meter], correction.at_ms
                elif meter not in counted:
                    continue
                kept = customer.rates[key] = customer.rate(meter, rate)
                kept.correct(rate, now, quantity, at)
                keep = max(keep, QUARTER_HOUR_MS + kept.keeps_ms(rate))
        return keep

    def _record(
        self,
        name: str,
        customer: Customer,
        view: View,
        parts: list[Part],
        now: int,
        keep: int,
        *,
        has_recorded: bool,
    ) -> None:
        assert customer.period is not None
        ends, lives, begins_to_wait = customer.period[1], now + keep, False
        kinds = (customer.included, customer.granted, customer.credited, customer.overage, customer.over_cap)
        for part in parts:
            for counts, units in zip(kinds, part.classes, strict=True):
                counts[part.meter] += units
            begins_to_wait |= part.reported > 0 and customer.pending[part.reported_as] == 0
            customer.pending[part.reported_as] += part.reported
        if has_recorded:
            lives = max(lives, customer.keeps_until(view))
        if begins_to_wait and view.linked:
            lives = NEVER_MS
            self.dirty.setdefault(name, min(now + view.seal_delay_ms, ends))
        elif begins_to_wait:
            lives = max(lives, ends + 35 * DAY_MS)
            waiting = {known: until for known, until in self.unlinked.items() if until > now}
            self.unlinked = waiting | {name: max(waiting.get(name, 0), ends + 35 * DAY_MS)}
        customer.live_until(lives)

    def fence(self, writer: str) -> int:
        known = self.writers[writer]
        if not (known.last or known.fenced):
            known.last = -1  # There is no record of it.
        known.fenced = True
        return known.last

    def amend(self, name: str, rev: str, data: str, *, linked: bool, seal_at_ms: int) -> None:
        customer = self.customers[name]
        customer.rev, customer.data = rev, data
        if customer.period is not None:
            customer.cached = rev
        if linked and self.unlinked.pop(name, None) is not None:
            self.dirty[name] = seal_at_ms
            if customer.period is not None:
                customer.lives = NEVER_MS

    def expire(self, name: str) -> None:
        """The counters are gone; what was set up for the customer and what was closed is not."""
        gone = self.customers[name]
        self.customers[name] = Customer(rev=gone.rev, data=gone.data, closed=gone.closed, purse=gone.purse)

    def sealed(self, name: str, meter: str, minute: int) -> None:
        """What was pending of a meter has become deliveries, stamped with a minute."""
        customer = self.customers[name]
        customer.stamps[meter] = minute
        customer.pending[meter] = 0
        if not any(customer.pending.values()):
            assert customer.period is not None
            self.dirty.pop(name, None)
            customer.lives = customer.period[1] + 400 * DAY_MS


def stand(customer: Customer, view: View, times: Times, *, forced: bool = False) -> tuple[int, Answer | None]:
    """The time, and the reply where that ends it."""
    now = customer.now(times.wall)
    is_current = customer.rev == view.rev and view.period[0] <= now
    if not (forced or (is_current and now < min(view.valid_until_ms, view.next_end_ms))):
        return now, [2, now, customer.rev.encode(), customer.data.encode()]
    return now, None


def measured_of(use: Settlement) -> Mapping[str, int]:
    """The quantities whose dimensions are known."""
    return use.used.rated if use.used.measured is None else use.used.measured


LimitFields = list[tuple[int, int, tuple[int, int, int]]]
"""Of each policy what is left, of how much, and the numbers that a refusal tells."""


class Asked:
    def __init__(
        self,
        catalog: Catalog,
        entitlements: Mapping[str, Entitlement],
        demands: Mapping[str, Demand],
        *,
        costs: Mapping[str, int],
        rates_only: bool,
    ) -> None:
        self.catalog, self.entitlements, self.costs = catalog, entitlements, costs
        self.all = [(entitlements[meter], demand) for meter, demand in demands.items()]
        self.held = [] if rates_only else self.all
        self.capped = [asked for asked in self.held if ceiling_of(asked[0]) is not None]
        # Without a ceiling of their own, and paid with a credit that others share: what they hold claims it.
        self.unbounded = [
            (given, demand)
            for given, demand in self.held
            if ceiling_of(given) is None and given.included is not None and credit_of(catalog, given.meter)
        ]

    @property
    def reads_grants(self) -> bool:
        return bool(self.capped) or any(demand.taken for _, demand in self.unbounded)


class Ceilings:
    """What each ceiling leaves but for its holds, the holds, and whether anything stood behind it.

    The demands of one decision claim a credit one after the other; a mere check claims nothing for what has a
    ceiling of its own.
    """

    def __init__(
        self, customer: Customer, asked: Asked, now: int, *, means: Means | None, takes: bool
    ) -> None:
        meters = asked.catalog.meters if means else ()
        held = Counter({meter: sum(customer.holds[meter].live(now)) for meter in meters})
        credit = Counter({meter: sum(customer.credit_holds[meter].live(now)) for meter in meters})
        claims = Claims(customer.included.__getitem__, held.__getitem__, credit.__getitem__)

        def claim(meter: str, quantity: int) -> None:
            held[meter] += quantity
            credit[meter] += quantity * asked.costs.get(meter, 0)

        for given, demand in asked.unbounded:
            claim(given.meter, demand.taken)
        self.left: list[int] = []
        self.had: list[int] = []
        for given, demand in asked.capped:
            left = own_of(given, customer.included[given.meter], customer.overage[given.meter])
            if means is not None:
                cost = asked.costs.get(given.meter)
                left += room(given.meter, means, asked.catalog, asked.entitlements, claims, cost)
                self.had.append(int(means.had(targets_of(asked.catalog, given.meter))))
            self.left.append(left)
            if takes:
                claim(given.meter, demand.taken)
        self.live = [customer.holds[given.meter].live(now) for given, _ in asked.capped]


def weigh(
    customer: Customer, asked: Asked, now: int, ceilings: Ceilings, *, taken: bool = False
) -> tuple[bool, LimitFields]:
    """Whether a demand is refused, and what each policy says, before or after the demands are taken."""
    refused, told = False, LimitFields()
    for given, demand in asked.all:
        for rate in given.rates:
            counted = customer.rate(given.meter, rate)
            left = rate.burst - counted.used(rate, now)
            refused |= demand.needed > left
            told.append((left, rate.burst, (*counted.numbers(rate, now), 0)))
    for (given, demand), left, live in zip(asked.capped, ceilings.left, ceilings.live, strict=True):
        free = left - sum(live)
        refused |= demand.needed > free
        told.append((free - demand.taken * taken, ceiling_of(given) or 0, (left, *live)))
    for given, _ in asked.held:
        if given.concurrency is not None:
            live = customer.concurrency[given.meter].live(now)
            refused |= sum(live) >= given.concurrency
            told.append((given.concurrency - sum(live), given.concurrency, (given.concurrency, *live)))
    return refused, told


def take(customer: Customer, asked: Asked, now: int, *, has_purse: bool) -> None:
    for given, demand in asked.all:
        for rate in given.rates:
            customer.count(given.meter, rate, now, demand.taken)
    for given, demand in asked.capped + (asked.unbounded if has_purse else []):
        customer.holds[given.meter].take(now, demand.taken)
        if has_purse and given.meter in asked.costs:
            customer.credit_holds[given.meter].take(now, demand.taken * asked.costs[given.meter])
    for given, _ in asked.held:
        if given.concurrency is not None:
            customer.concurrency[given.meter].take(now, 1)


def own_of(given: Entitlement, covered: int, overage: int) -> int:
    """What a meter's own limits leave, for a meter that has any."""
    ceiling = ceiling_of(given)
    assert ceiling is not None
    assert given.included is not None
    left = max(0, given.included - covered)
    return left + max(0, ceiling - given.included - overage) if given.overage.mode == "bill" else left


def ceiling_of(given: Entitlement) -> int | None:
    """The most that a period admits but for grants and credits; None: no ceiling."""
    if given.included is None or given.overage.mode == "deny":
        return given.included
    cap = given.overage.cap
    return None if cap is None else min(given.included + cap, 10**15 - 1)


def span_ms(rate: Rate) -> int:
    """How long what a demand counts may matter."""
    return max(2 * rate.window_ms, ceil(Fraction(rate.burst * rate.window_ms, rate.limit)))
