"""How a request ended, or what the app itself recorded: a settlement for the store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.derived import derived_from
from meterkit.decisions.keys import meter_token, rate_token
from meterkit.decisions.program import rate_numbers, reported_parts
from meterkit.decisions.state import NO_STATE, bounds_of
from meterkit.redis.resp import pack_each

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping

    from meterkit.store.accounts import Account, View

__all__ = ["Ending"]

_logger = logging.getLogger("meterkit.store")

_QUARTER_HOUR_MS: Final = 900_000
_FORTY_DAYS_MS: Final = 3_456_000_000
_NOTHING: Final[dict[str, int]] = {}
_LATE: Final = "late "
_NO_DIMENSIONS: Final[dict[str, str]] = {}


class Ending:
    """One settlement; packed by the state in force when it is sent, and again if it must be sent again.

    Attributes:
        held: meter to the quantity that the decision held.
        flights: meters of whose concurrency the decision held one.
        recorded: meter to the quantity that is recorded.
        rated: meter to the quantity that its rates count in all.
        reserved: meter to what rates have counted of it at the decision.
        decided: the tokens of these rates.
        counted_ms: when that was.
        slot: the hold slot (of five minutes) that the decision added to.
        event_key: the key that remembers an event id of the app; else None.
        occurred_ms: when it happened, if the app says so; else None.
        waiter: done once the store has acknowledged; None where nobody waits.
        dimensions: what is known of the usage, for meters that are derived from others (``where:``).
        measured: meter to the quantity that the dimensions are of.
    """

    __slots__ = (
        *("_packed", "account", "counted_ms", "decided", "dimensions", "event_key", "flights", "held"),
        *("measured", "occurred_ms", "rated", "recorded", "reserved", "slot", "waiter"),
    )

    def __init__(
        self,
        account: Account,
        *,
        held: Mapping[str, int],
        flights: tuple[str, ...],
        recorded: Mapping[str, int],
        rated: Mapping[str, int],
        slot: int,
        reserved: Mapping[str, int] = _NOTHING,
        decided: frozenset[str] = frozenset(),
        counted_ms: int = 0,
        dimensions: Mapping[str, str] = _NO_DIMENSIONS,
        measured: Mapping[str, int] = _NOTHING,
        event_key: str | None = None,
        occurred_ms: int | None = None,
        waiter: asyncio.Future[None] | None = None,
    ) -> None:
        self.account = account
        self.held = held
        self.flights = flights
        self.recorded = recorded
        self.rated = rated
        self.slot = slot
        self.reserved = reserved
        self.decided = decided
        self.counted_ms = counted_ms
        self.dimensions = dimensions
        self.measured = measured
        self._packed: tuple[View, tuple[bytes, bytes]] | None = None
        self.event_key = event_key
        self.occurred_ms = occurred_ms
        self.waiter = waiter

    @property
    def customer(self) -> str:
        """Whose it is."""
        return self.account.customer

    def pack(self) -> tuple[bytes, bytes]:
        """The request up to the writer's key, and from there to the slot and the number."""
        # One view from here on: another thread may learn of another state meanwhile.
        view = self.account.view
        if self._packed is None or self._packed[0] is not view:
            self._packed = view, self._pack(view)
        return self._packed[1]

    def stale(self, reply: list[Any]) -> None:
        """Take the state that the store has come to since."""
        self.account.take(reply)

    def refused(self, field: bytes) -> None:
        """Say that the store can never record this."""
        _logger.error(
            "customer %r: %r was not recorded: the total behind field %s would pass 9 * 10^15",
            self.account.customer,
            dict(self.recorded),
            field.decode(),
        )

    def damaged(self, field: bytes) -> None:
        """Say that the customer's period cannot be closed, and that this is not recorded for it."""
        _logger.error(
            "customer %r: %r was not recorded: the period is over, and field %s of what the store keeps of it"
            " is not a whole number; nothing of this customer is counted until that is mended",
            self.account.customer,
            dict(self.recorded),
            field.decode(),
        )

    def lowered(self, words: list[bytes]) -> None:
        """Say whose balance of which credits is low by now, and that usage came late."""
        accounts, customer = self.account.accounts, self.account.customer
        for word in map(bytes.decode, words):
            if word.startswith(_LATE):
                accounts.alarms.late(customer, self.recorded, int(word.removeprefix(_LATE)))
            else:
                accounts.on_low(customer, word.partition(":")[2])

    def _pack(self, view: View) -> tuple[bytes, bytes]:
        derived: dict[str, tuple[str, ...]] = {}
        if self.dimensions:
            derived = {
                meter: self._derived_from(meter) for meter, quantity in self.measured.items() if quantity
            }
        key = (
            *(tuple(self.held), tuple(self.recorded), tuple(self.rated), tuple(self.reserved), self.flights),
            *(self.decided, any(self.recorded.values()), tuple(derived.items())),
        )
        shape: _Shape | None = view.endings.get(key)
        if shape is None:
            shape = view.endings[key] = self._shape_of(view, derived, key)
        numbers = [*shape.spans, *shape.counts]
        for entry in shape.entries:
            numbers += (self.recorded.get(entry.quantity_of, 0), self.held.get(entry.meter, 0), *entry.terms)
        for rate in shape.rates:
            quantity = self.measured[rate.source] if rate.source else self.rated.get(rate.meter, 0)
            if rate.is_corrected:
                numbers += (*rate.terms, quantity - self.reserved[rate.meter], self.counted_ms)
            else:
                numbers += (*rate.terms, quantity, 0)
        event = () if self.event_key is None else (self.event_key,)
        said = shape.pays if self.occurred_ms is None else self._dated(view, shape.pays, self.occurred_ms)
        own = pack_each((*event, view.rev, view.terms(*numbers, more=said)))
        # The writer's key, the slot, the number and the clock come when it is sent.
        return shape.heads[len(event)], b"".join((shape.names, own, shape.customer, shape.fields))

    def _dated(self, view: View, pays: str, occurred_ms: int) -> str:
        """What is said besides the numbers, with when the usage occurred, and what to do if that is late."""
        own = bounds_of(view.state, view.standing.plan, occurred_ms).start_ms
        dead = int(view.accounts.catalog.billing.late_usage == "dead_letter")
        dated = f'{{"at":{occurred_ms},"own":{own},"dead":{dead}'
        return f"{dated},{pays[1:]}" if pays else f"{dated}}}"

    def _derived_from(self, meter: str) -> tuple[str, ...]:
        meters = self.account.accounts.catalog.meters
        return tuple(found.name for found in derived_from(meters, meter, self.dimensions))

    def _shape_of(self, view: View, derived: Mapping[str, tuple[str, ...]], key: tuple[Any, ...]) -> _Shape:
        """All that does not change with the quantities; without a state it is as another's."""
        like: _Shape | None = None
        if view.alike is not None:
            like = view.alike.get((view.account.anonymous, key))
            if like is None:
                like = view.alike[view.account.anonymous, key] = self._shape(view, derived)
        shape = like or self._shape(view, derived)
        keys, has_grants = view.keys, shape.has_grants
        further = (keys.grants, keys.ledger) if has_grants else ()
        pending = keys.unlinked if view.state.stripe_customer is None else keys.dirty
        named = (keys.counters, keys.state, keys.totals, pending)
        heads: list[bytes] = []
        for events in range(2):
            count = len(named) + 1 + len(further) + events
            parts: tuple[str | int, ...] = ("EVALSHA", view.accounts.settle.sha, count, *named)
            # Behind the keys: rev, terms, customer, fields, slot, number, clock.
            heads.append(b"*%d\r\n%b" % (3 + count + 3 + shape.width + 3, pack_each(parts)))
        return shape._replace(
            heads=tuple(heads), names=pack_each(further), customer=pack_each((view.account.customer,))
        )

    def _shape(self, view: View, derived: Mapping[str, tuple[str, ...]]) -> _Shape:
        linked = view.state.stripe_customer is not None
        purse = view.purse if any(self.recorded.values()) else None
        entries, rates = list(self._entries(view, derived)), list(self._rates(view, derived))
        fields = ["r", "t", "e", "x"]
        for entry in entries:
            token = meter_token(entry.meter)
            pending = token if entry.reported_as is None else meter_token(entry.reported_as)
            fields += [f"{token}i", f"{token}o", f"{pending}p", f"{token}h", f"{token}H"]
            fields += [f"{token}g", f"{token}c"] if purse is not None else []
        for meter in self.flights:
            fields += [f"{meter_token(meter)}{part}" for part in "nN"]
        for rate in rates:
            fields += [f"{rate.token}{part}" for part in "abd"]
        pays = ""
        if purse is not None:
            pays = purse.pays((entry.meter, entry.reported_as is not None) for entry in entries)
        return _Shape(
            heads=(),
            names=b"",
            customer=b"",
            fields=pack_each(fields),
            width=len(fields),
            has_grants=purse is not None,
            spans=(
                _QUARTER_HOUR_MS if view.rev == NO_STATE else _FORTY_DAYS_MS,
                view.accounts.seal_delay_ms if linked else -1,
            ),
            counts=(len(entries), len(self.flights), len(rates)),
            entries=tuple(entries),
            rates=tuple(rates),
            pays=pays,
        )

    def _entries(self, view: View, derived: Mapping[str, tuple[str, ...]]) -> Iterator[_Entry]:
        """What is recorded: each meter as itself, and as the derived ones that its dimensions match."""
        meters = view.accounts.catalog.meters
        for name in dict.fromkeys((*self.held, *self.recorded)):
            found = derived.get(name, ())
            reported_as = next((other for other in found if meters[other].stripe is not None), name)
            for meter, reported in ((name, reported_as), *((other, None) for other in found)):
                entitlement = view.entitlements[meter]
                parts = (0, 0)
                if reported is not None and not view.account.anonymous:
                    parts = reported_parts(entitlement, meters[reported])
                included = -1 if entitlement.included is None else entitlement.included
                yield _Entry(meter, name, reported, (included, parts[0], parts[1]))

    def _rates(self, view: View, derived: Mapping[str, tuple[str, ...]]) -> Iterator[_Rated]:
        """Rates count all that was used; those that counted a reservation before, what it differs by."""
        counted: dict[str, str | None] = dict.fromkeys(self.rated)
        counted.update({other: source for source, found in derived.items() for other in found})
        for meter in (*counted, *(meter for meter in self.reserved if meter not in counted)):
            for rate in view.entitlements[meter].rates:
                token = rate_token(meter, rate.window_ms, rate.algorithm)
                kind, window, _, refill = rate_numbers(rate, meter)
                is_corrected = meter in self.reserved and token in self.decided
                if is_corrected or meter in counted:
                    yield _Rated(token, meter, counted.get(meter), (kind, window, refill), is_corrected)


class _Entry(NamedTuple):
    """One meter of a settlement.

    ``quantity_of`` names the meter whose quantity it is: its own, or for a derived meter its source's;
    ``reported_as`` the meter whose event Stripe gets, None for a derived one, which is never sent by itself.
    """

    meter: str
    quantity_of: str
    reported_as: str | None
    terms: tuple[int, int, int]


class _Rated(NamedTuple):
    """One rate of a settlement; ``source`` is None but for the rates of derived meters."""

    token: str
    meter: str
    source: str | None
    terms: tuple[int, int, int]
    is_corrected: bool


class _Shape(NamedTuple):
    """What settlements of the same meters have in common, packed as far as it can be.

    Attributes:
        heads: the request up to the writer's key, without and with the key of an event.
        names: the keys behind that, but for the one of an event.
        customer: who is settled for.
        fields: the fields that are read, ``width`` of them.
        has_grants: whether the keys of grants are among the names.
    """

    heads: tuple[bytes, ...]
    names: bytes
    customer: bytes
    fields: bytes
    width: int
    has_grants: bool
    spans: tuple[int, int]
    counts: tuple[int, int, int]
    entries: tuple[_Entry, ...]
    rates: tuple[_Rated, ...]
    pays: str
