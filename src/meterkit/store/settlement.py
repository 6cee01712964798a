"""Settlements: release holds and record usage, exactly once, by the newest state of the customer."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, cast

from meterkit.catalog.models import CREDITS_MAX, SPEND
from meterkit.decisions.compiled_decision import derived_from
from meterkit.decisions.grants import MICRO
from meterkit.decisions.keys import concurrency_field, credit_hold_field, meter_field, meter_token
from meterkit.decisions.packed import merge_json
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.decisions.price_segments import billed_labels, earned_micros, price_line
from meterkit.errors import MeterkitError
from meterkit.redis.connection import pack_each
from meterkit.store.call_amounts import price_quantities
from meterkit.store.script_arguments import NOTHING_PACKED
from meterkit.store.settlement_parts import (
    NO_CAP,
    NOTHING_USED,
    OWN_EVENT,
    THRESHOLD_NUMBERS,
    HeldQuantities,
    RateCorrection,
    RepeatMark,
    SettlementShape,
    UsedQuantities,
    add_spend,
    audit_keys,
    audit_script,
    build_entries,
    build_rates,
    find_paid_prices,
    find_price_rows,
    format_audit_lines,
    pack_subject_settlement,
    pack_thresholds,
    placeholder_of,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from meterkit.decisions.packed import EventMark
    from meterkit.store.script_arguments import PackedSubjects, Subjects
    from meterkit.store.views import CustomerView, PreparedDecision

_logger = logging.getLogger("meterkit.store")

_BACKDATED: Final = "late "
_NOTICE: Final = "notice"
_NO_ROOM: Final = "subjects"
_PAID: Final = "paid "
# The numbers of a request in flight: like a meter with one unit held, and none recorded.
_ONE_IN_FLIGHT: Final = (0, 1, 0, NO_CAP, 0, 0, OWN_EVENT)
_NOTHING_HELD: Final = HeldQuantities()
_NOTHING_TO_CORRECT: Final = RateCorrection()


@dataclass(slots=True, eq=False)
class Settlement:
    """Immutable change of a customer's counters, applied exactly once.

    It has quantities only. It is packed by the newest state when it is sent, and again if that was not the
    store's: amounts of money follow from the state by which the store has applied it.

    Args:
        view: the customer.
        held: hold to release.
        used: usage to record and to count into rates.
        correction: earlier counts of rates, replaced by ``used``.
        event: mark of the event id; None: none.
        occurred_ms: time of the usage, if the app gives it or it waited in the spool; None: now.
        rated_ms: past time at which rates count the usage; 0: now.
        mark: mark of an idempotency key, which excludes an event id; None: none.
        waiter: resolved when the store has acknowledged; None: no caller waits.
        keeps_shape: whether the view caches the shape.
        asks_revenue: whether to ask the store for the revenue.

    Attributes:
        revenue: revenue in micro-units of the currency; None: not asked, or no reply yet.
        spooled: cached end of its spool record; see :mod:`meterkit.store.spool_replay`.
    """

    view: CustomerView
    held: HeldQuantities = _NOTHING_HELD
    used: UsedQuantities = NOTHING_USED
    correction: RateCorrection = _NOTHING_TO_CORRECT
    event: EventMark | None = None
    occurred_ms: int | None = None
    rated_ms: int = 0
    mark: RepeatMark | None = None
    waiter: asyncio.Future[None] | None = None
    keeps_shape: bool = True
    asks_revenue: bool = False
    revenue: Fraction | None = field(default=None, init=False)
    spooled: bytes | None = field(default=None, init=False)
    _packed: tuple[CustomerView, tuple[bytes, bytes]] | None = field(default=None, init=False)
    _priced: tuple[Subjects, dict[str, Fraction]] | None = field(default=None, init=False)
    _spent: dict[str, tuple[Fraction, int]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        used = self.used
        if used.charged or used.costs or used.unpriced:
            self.used = round_charges(self.view, used)

    @property
    def is_single(self) -> bool:
        """Whether it must not be reused: it leaves a fraction of a micro-unit to the next one."""
        subjects = self.view.subjects
        return subjects is not None and any(cost.denominator > 1 for cost in self._price(subjects).values())

    @property
    def customer(self) -> str:
        """Id of the customer."""
        return self.view.customer

    @property
    def slot(self) -> int:
        """Slot of the released hold."""
        return self.held.slot

    def pack(self) -> tuple[bytes, bytes]:
        """Pack the request: up to the producer's key, and from there to the slot and the number."""
        view, cache = self.view, self.view.cache
        # Found without a call: most customers are identified and have no subjects.
        is_plain = not view.anonymous and view.subjects is None
        view = (cache.named.get(view.customer) if is_plain else None) or cache.newest(view)
        if self._packed is None or self._packed[0] is not view:
            self._packed = view, self._pack(view)
        return self._packed[1]

    def on_stale(self, reply: list[Any]) -> None:
        """Learn the newer state of the reply."""
        self.view.cache.learn(self.view, reply)

    def on_refused(self, field: bytes) -> None:
        """Log that the store can never record this."""
        _logger.error(
            "customer %r: %r was not recorded: the total behind field %s would pass 9 * 10^15",
            self.customer,
            dict(self.used.recorded),
            field.decode(),
        )

    def on_damaged(self, field: bytes) -> None:
        """Log that the customer's stored counters are damaged, and that this is not recorded."""
        _logger.error(
            "customer %r: %r was not recorded: field %s of what the store keeps of it has no whole numbers;"
            " nothing of this customer is counted there until that is mended",
            self.customer,
            dict(self.used.recorded),
            field.decode(),
        )

    def on_conflict(self, kept: bytes) -> MeterkitError:
        """Log that the event id has counted another quantity; return the error for the caller."""
        refusal = cast("EventMark", self.event).refusal(self.customer, kept)
        _logger.error("not recorded: %s", refusal)
        return MeterkitError(refusal)

    def uncounted(self, kept: bytes) -> Self:
        """The part that the event id has not counted yet, with the charge for it."""
        given, cache = cast("EventMark", self.event), self.view.cache
        event = given.uncounted(kept)
        used = self.used.only(event.quantities)
        if cache.charges and cache.charges.keys().isdisjoint(given.quantities):
            named: Any = {name: self.used.dimensions.get(name) for name in ("model", "provider")}
            left = price_quantities(used.rated, cache, **named, at_ms=self.occurred_ms)
            used = used._replace(charged=left.charged)
        return replace(self, used=used, event=event)

    def split_unknown(self) -> tuple[Self, dict[str, int]]:
        """Split off the usage of meters that are no counters of the plans file, such as removed ones.

        Returns:
            The other part, and the quantities that are split off.
        """
        meters, held, used = self.view.cache.catalog.meters, self.held, self.used
        counters = {name for name, meter in meters.items() if meter.kind == "counter"}
        given = {**used.rated, **used.recorded}
        unknown = {meter: quantity for meter, quantity in given.items() if meter not in counters}
        reserved = self.correction.reserved
        if not unknown and held.quantities.keys() | reserved.keys() <= meters.keys():
            return self, {}
        event = self.event
        if event is not None and event.quantities:
            # The id may count the other meters later.
            kept = {meter: quantity for meter, quantity in event.quantities.items() if meter in counters}
            event = event._replace(quantities=kept) if kept else None
        return replace(
            self,
            held=held._replace(
                quantities={name: held.quantities[name] for name in held.quantities if name in meters}
            ),
            used=used.only(counters)._replace(units=used.units, unpriced=used.unpriced),
            correction=self.correction._replace(
                reserved={name: reserved[name] for name in reserved if name in counters}
            ),
            event=event,
        ), unknown

    def on_notices(self, notices: list[bytes]) -> None:
        """Handle the reply's notices: backdated usage, full subjects, revenue, app events."""
        cache = self.view.cache
        for notice in map(bytes.decode, notices):
            if notice.startswith(_BACKDATED):
                view = self.view if self._packed is None else self._packed[0]
                period_ms, _, free = notice.removeprefix(_BACKDATED).partition(" ")
                is_free = bool(free) or view.period_of(self.occurred_ms or 0)[1]
                cache.alarms.log_backdated_usage(
                    self.customer, self.used.recorded, int(period_ms), is_free=is_free
                )
            elif notice == _NO_ROOM:
                cache.alarms.log_full_subjects(self.customer)
            elif notice.startswith(_PAID):
                view = self.view if self._packed is None else self._packed[0]
                self.revenue = (self.revenue or 0) + earned_micros(
                    notice.removeprefix(_PAID), view.entitlements, view.catalog, is_trial=view.is_trial
                )
            elif notice == _NOTICE:
                cache.on_notice(self.view.shard)

    def _pack(self, view: CustomerView) -> tuple[bytes, bytes]:
        held, used, correction = self.held, self.used, self.correction
        measured = used.rated if used.measured is None else used.measured
        derived: dict[str, tuple[str, ...]] = {}
        if used.dimensions:
            derived = {meter: self._list_derived(meter) for meter, quantity in measured.items() if quantity}
        if view.cache.has_rows:
            derived |= find_price_rows(view, self.used, derived)
        costs: dict[str, int] = {}
        if view.prepaid is not None and view.prepaid.by_model:
            costs = view.prepaid.costs_of(used.dimensions.get("model"))
        recorded = tuple(used.recorded), any(used.recorded.values())
        of_holds = tuple(held.quantities), held.concurrency, tuple(held.costs)
        of_rates = tuple(used.rated), tuple(correction.reserved), correction.rates
        key = recorded, of_holds, of_rates, tuple(derived.items()), tuple(costs.values())
        shape: SettlementShape = view.settlements.get(key) or self._find_shape(view, derived, costs, key)
        others = self._pack_subjects(view)
        numbers = [*shape.counts, max(0, len(others.keys) - 1), shape.priced]
        for entry in shape.entries:
            quantity = used.recorded.get(entry.quantity_of, 0)
            if entry.quantity_of != entry.meter:
                quantity += used.recorded.get(entry.meter, 0)
            numbers += (quantity, held.quantities.get(entry.meter, 0), *entry.terms)
        numbers += _ONE_IN_FLIGHT * len(held.concurrency)
        for meter, cost in held.costs.items():
            micros = min(held.quantities.get(meter, 0) * cost, CREDITS_MAX * MICRO)
            numbers += (0, micros, 0, NO_CAP, 0, 0, OWN_EVENT)
        for rate in shape.rates:
            quantity = measured[rate.source] if rate.source else used.rated.get(rate.meter, 0)
            if rate.is_corrected:
                numbers += (*rate.terms, quantity - correction.reserved[rate.meter], correction.at_ms)
            elif self.rated_ms:
                left = rate.unleaked(quantity, view.cache.now_ms() - self.rated_ms)
                numbers += (*rate.terms, left, self.rated_ms)
            else:
                numbers += (*rate.terms, quantity, 0)
        numbers += shape.thresholds + shape.spending
        event: tuple[str, ...] = () if self.event is None else (self.event.key,)
        if self.mark is not None:
            event = (view.keys.marks,)
        details = self._details_json(view, shape.paying)
        own = pack_each((view.rev, view.terms(*numbers), self.customer, details))
        audit_lines = self._pack_audit_lines(view, shape) if shape.audit else b""
        # The producer's key, the slot, the number and the clock come when it is sent.
        head = (
            self._pack_head(view, shape, events=len(event), others=others)
            if event or others.width
            else shape.head
        )
        keys = pack_each((*event,)), shape.audit, pack_each(others.keys)
        return head, b"".join((shape.names, *keys, own, shape.fields, audit_lines, others.arguments))

    def _details_json(self, view: CustomerView, paying: str) -> str:
        """Further terms as JSON; empty: none."""
        if self.occurred_ms is not None:
            paying = self._add_occurrence(view, paying, self.occurred_ms)
        if self.event is not None:
            paying = merge_json(self.event.terms(), paying)
        if self.asks_revenue:
            paying = merge_json('{"tells":1}', paying)
        if self.mark is not None:
            marked = f'{{"digest":"{self.mark.digest}","billed":{int(self.mark.billed)}}}'
            paying = merge_json(marked, paying)
        return paying

    def _pack_subjects(self, view: CustomerView) -> PackedSubjects:
        if view.subjects is None:
            return NOTHING_PACKED
        if view.has_reply:
            view.cache.alarms.log_undeclared_subjects(view.subjects, view.effective.plan.key)
        passed_ms = view.cache.now_ms() - self.rated_ms if self.rated_ms else 0
        return pack_subject_settlement(
            view.subjects,
            view.catalog,
            self.held,
            self.used,
            self.correction,
            self._count_spend(view.subjects),
            rated_ms=self.rated_ms,
            passed_ms=passed_ms,
        )

    def _price(self, subjects: Subjects) -> dict[str, Fraction]:
        """Exact price of the recorded units in micro-units, by kind of the subjects with a budget."""
        if self._priced is None or self._priced[0] is not subjects:
            given, model = self.used.recorded, self.used.dimensions.get("model")
            derived = {name: given[meter] for meter in given for name in self._list_derived(meter)}
            self._priced = subjects, subjects.price_units({**given, **derived}, model)
        return self._priced[1]

    def _count_spend(self, subjects: Subjects) -> dict[str, int]:
        """Price in whole micro-units; of one that an earlier state has priced, the difference is counted."""
        due, spent, remainders = self._price(subjects), self._spent or {}, self.view.cache.remainders
        for kind, subject in subjects.given:
            cost, (priced, units) = due.get(kind, Fraction(0)), spent.get(kind, (Fraction(0), 0))
            name = f"{self.customer}\0{kind}\0{subject}"
            spent[kind] = cost, units + remainders.count_units(name, SPEND, cost - priced)
        self._spent = spent
        return {kind: units for kind, (_, units) in spent.items()}

    def _pack_audit_lines(self, view: CustomerView, shape: SettlementShape) -> bytes:
        catalog, used = view.cache.catalog, self.used
        version = used.version or f"plans/{catalog.content_hash}"
        meters = {entry.meter for entry in shape.entries}
        priced = price_line(version, used.costs, shape.prices, meters=sorted(meters))
        subjects = "" if view.subjects is None else view.subjects.dump_declared()
        event_id = "" if self.event is None else self.event.name
        return pack_each((format_audit_lines(used, self.occurred_ms, priced, subjects, event_id),))

    def _add_occurrence(self, view: CustomerView, paying: str, occurred_ms: int) -> str:
        """Add the time of the usage and the rule for backdated usage to the JSON terms."""
        own, is_free = view.period_of(occurred_ms)
        dead = int(is_free or view.cache.catalog.billing.late_usage == "dead_letter")
        return merge_json(f'{{"at":{occurred_ms},"own":{own.start_ms},"dead":{dead}}}', paying)

    def _list_derived(self, meter: str) -> tuple[str, ...]:
        meters = self.view.cache.catalog.meters
        return tuple(found.name for found in derived_from(meters, meter, self.used.dimensions))

    def _find_shape(
        self,
        view: CustomerView,
        derived: Mapping[str, tuple[str, ...]],
        costs: Mapping[str, int],
        key: tuple[Any, ...],
    ) -> SettlementShape:
        """Shape for these meters, shared by customers with the same entitlements."""
        given, cache, keys = view.entitlements, view.cache, view.keys
        effective = view.effective
        own: tuple[object, ...] = id(given), effective.plan.key, effective.follows_prices
        own = *own, view.prepaid is None, view.linked, view.anonymous
        make = partial(self._build_shape, view, derived, costs)
        shape = cache.cache_shape((own, view.is_trial, key), make) if cache.is_shared(given) else make()
        shape = shape._replace(
            audit=pack_each(audit_keys(view)),
            head=self._pack_head(view, shape, events=0),
            names=pack_each((keys.grants, keys.ledger, keys.notices) if shape.has_more else ()),
        )
        if self.keeps_shape:
            view.settlements = {**view.settlements, key: shape}
        return shape

    def _pack_head(
        self,
        view: CustomerView,
        shape: SettlementShape,
        *,
        events: int,
        others: PackedSubjects = NOTHING_PACKED,
    ) -> bytes:
        """Pack the request up to the producer's key."""
        keys = view.keys
        pending = keys.dirty if view.linked else keys.unlinked
        named = (keys.counters, keys.state, keys.totals, pending)
        audited = audit_script(view)
        is_audited = audited is not None
        count = len(named) + 1 + 3 * shape.has_more + events + is_audited + len(others.keys)
        parts: tuple[str | int, ...] = ("EVALSHA", (audited or view.cache.settle).sha, count, *named)
        # Behind the keys: rev, terms, customer, further terms, fields, subjects, slot and number, clock.
        arguments = 4 + is_audited + shape.width + others.width + 2
        return b"*%d\r\n%b" % (3 + count + arguments, pack_each(parts))

    def _build_shape(
        self, view: CustomerView, derived: Mapping[str, tuple[str, ...]], costs: Mapping[str, int]
    ) -> SettlementShape:
        has_recorded = any(self.used.recorded.values())
        prepaid, given = view.prepaid if has_recorded else None, view.entitlements
        entries = list(build_entries(view, self.held, self.used, derived))
        rates = list(build_rates(view, self.used, self.correction, derived))
        spending = tuple[int, ...]()
        if has_recorded and view.cache.catalog.counts_spend:
            spending = add_spend(view, entries, rates)
        fields = [meter_field(entry.meter) for entry in entries]
        fields += [concurrency_field(meter) for meter in self.held.concurrency]
        fields += [credit_hold_field(meter) for meter in self.held.costs]
        fields += [rate.field for rate in rates]
        thresholds = pack_thresholds(view, entries) if has_recorded else ()
        paying = ""
        if prepaid is not None:
            meters = ((entry.meter, entry.quantity_of == entry.meter) for entry in entries)
            is_named = not view.anonymous
            owes = view.cache.owes and is_named
            paying = prepaid.payment_terms(meters, costs, owes=owes, is_named=is_named)
        if has_recorded and view.effective.follows_prices and not view.anonymous:
            labels = billed_labels(given, view.catalog)
            tokens = {meter_token(entry.meter) for entry in entries} & labels.keys()
            paying = merge_json(json.dumps({"prices": {token: labels[token] for token in tokens}}), paying)
        return SettlementShape(
            head=b"",
            names=b"",
            audit=b"",
            fields=pack_each(fields),
            width=len(fields),
            has_more=prepaid is not None or bool(thresholds),
            counts=(
                view.cache.seal_delay_ms if view.linked else -1,
                len(entries) + len(self.held.concurrency) + len(self.held.costs),
                len(rates),
                len(thresholds) // THRESHOLD_NUMBERS,
            ),
            priced=len(spending) // 3,
            entries=tuple(entries),
            rates=tuple(rates),
            thresholds=thresholds,
            spending=spending,
            paying=paying,
            prices=find_paid_prices(view, entries),
        )


def settle_decision(decision: PreparedDecision, slot: int, *, billed: bool) -> Settlement:
    """Settlement that releases a decision's hold and, if billed, records its quantities.

    The decision caches it from the second request in a slot of holds on.
    """
    kept = decision.settlements
    settlement: Settlement | None = kept.get(billed)
    if settlement is None or settlement.slot != slot:
        settlement = Settlement(
            decision.view,
            held=HeldQuantities.of(decision, slot),
            used=UsedQuantities(recorded=decision.recorded) if billed else NOTHING_USED,
            mark=RepeatMark.of(decision, billed=billed),
            keeps_shape=bool(decision.digest),
        )
        is_repeated = kept is placeholder_of(slot) or any(other.slot == slot for other in kept.values())
        if not settlement.is_single:
            decision.settlements = {**kept, billed: settlement} if is_repeated else placeholder_of(slot)
    return settlement


def round_charges(view: CustomerView, used: UsedQuantities) -> UsedQuantities:
    """Convert charges and costs to whole units; the remainders are carried over to the next call."""
    remainders, tallies = view.cache.remainders, view.cache.tallies
    for model, calls in used.unpriced.items():
        if tallies is not None:
            tallies.add_unpriced(model, used.dimensions.get("provider"), calls)
        if view.cache.unpriced is not None:
            view.cache.unpriced.note(model, calls)
    exact = [Fraction(cost) for cost in used.costs.values() if isinstance(cost, Fraction)]
    if tallies is not None and (exact or used.charged):
        named = used.dimensions.get("model"), used.dimensions.get("provider")
        charged = sum(used.charged.values(), Fraction(0))
        tallies.count_call(*named, cost=sum(exact, Fraction(0)), charged=charged)
    units = {
        meter: remainders.count_units(view.customer, meter, amount) for meter, amount in used.charged.items()
    }
    costs: dict[str, Fraction | int] = {}
    for meter, cost in used.costs.items() if used.recorded or units else ():
        # Remainders are kept for each model.
        of_model = f"{meter}\0{used.dimensions.get('model')}"
        costs[meter] = (
            cost if isinstance(cost, int) else remainders.count_units(view.customer, of_model, cost)
        )
    return used._replace(
        recorded={**used.recorded, **units},
        rated={**used.rated, **units},
        charged={},
        costs=costs,
        unpriced={},
    )


def undo_decision(decision: PreparedDecision, decided_ms: int) -> Settlement:
    """Settlement that undoes an allowed decision whose caller is gone.

    Args:
        decision: the decision.
        decided_ms: time of the decision by the store's clock.
    """
    slot = decided_ms // HOLD_SLOT_MS
    if not decision.reserved:
        return settle_decision(decision, slot, billed=False)
    correction = RateCorrection(decision.reserved, decision.program.rates, decided_ms)
    mark = RepeatMark.of(decision, billed=False)
    return Settlement(decision.view, held=HeldQuantities.of(decision, slot), correction=correction, mark=mark)
