"""How a request ended, or what the app itself recorded: a settlement for the store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.store.derived import derived_from
from meterkit.store.keys import meter_token, rate_token
from meterkit.store.program import rate_numbers, reported_parts
from meterkit.store.resp import pack_each
from meterkit.store.state import NO_STATE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Mapping

    from meterkit.catalog import Meter
    from meterkit.store.accounts import Account

__all__ = ["Ending"]

_logger = logging.getLogger("meterkit.store")

_QUARTER_HOUR_MS: Final = 900_000
_FORTY_DAYS_MS: Final = 3_456_000_000
_NOTHING: Final[dict[str, int]] = {}
_NO_DIMENSIONS: Final[dict[str, str]] = {}


class Ending:
    """One settlement; packed by the state in force when it is sent, and again if it must be sent again.

    Attributes:
        held: meter to the quantity that the decision held.
        flights: meters of whose concurrency the decision held one.
        recorded: meter to the quantity that is recorded.
        rated: meter to the quantity that its rates have not seen yet.
        corrected: meter to what its rates saw too little of at the decision (below 0: too much).
        counted_ms: when that was.
        slot: the hold slot (of five minutes) that the decision added to.
        key: what the packed request is kept under, where the same one recurs; else None.
        event_key: the key that remembers an event id of the app; else None.
        waiter: done once the store has acknowledged; None where nobody waits.
        dimensions: what is known of the usage, for meters that are derived from others (``where:``).
        measured: the meters that the dimensions are of.
    """

    __slots__ = (
        *("account", "corrected", "counted_ms", "dimensions", "event_key", "flights", "held", "key", "rated"),
        *("measured", "recorded", "slot", "waiter"),
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
        corrected: Mapping[str, int] = _NOTHING,
        counted_ms: int = 0,
        dimensions: Mapping[str, str] = _NO_DIMENSIONS,
        measured: Collection[str] = (),
        key: Any = None,
        event_key: str | None = None,
        waiter: asyncio.Future[None] | None = None,
    ) -> None:
        self.account = account
        self.held = held
        self.flights = flights
        self.recorded = recorded
        self.rated = rated
        self.slot = slot
        self.corrected = corrected
        self.counted_ms = counted_ms
        self.dimensions = dimensions
        self.measured = measured
        self.key = key
        self.event_key = event_key
        self.waiter = waiter

    def pack(self) -> tuple[bytes, bytes]:
        """The request up to the writer's key, and from there to the slot and the number."""
        account = self.account
        packed = account.endings.get(self.key) if self.key is not None else None
        if packed is None:
            packed = self._pack()
            if self.key is not None:
                account.endings[self.key] = packed
        return packed

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

    def lowered(self, credits_: list[bytes]) -> None:
        """Say whose balance of which credits is low by now."""
        for target in credits_:
            self.account.accounts.on_low(self.account.customer, target.decode().partition(":")[2])

    def _pack(self) -> tuple[bytes, bytes]:
        account = self.account
        keys, linked = account.keys, account.state.stripe_customer is not None
        purse = account.purse if any(self.recorded.values()) else None
        further = (
            *(() if purse is None else (keys.grants, keys.ledger)),
            *(() if self.event_key is None else (self.event_key,)),
        )
        entries = self._entries()
        fields, numbers = self._arguments(entries, paid=purse is not None)
        names = (keys.counters, keys.state, keys.totals, keys.dirty if linked else keys.unlinked)
        head = ("EVALSHA", account.accounts.settle.sha, 5 + len(further), *names)
        terms = account.terms(
            _QUARTER_HOUR_MS if account.rev == NO_STATE else _FORTY_DAYS_MS,
            account.accounts.seal_delay_ms if linked else -1,
            *numbers,
            more=""
            if purse is None
            else purse.pays((entry.meter, entry.reported_as is not None) for entry in entries),
        )
        tail = (*further, account.rev, terms, account.customer, *fields)
        # The writer's key, the slot, the number and the clock come when it is sent.
        return b"*%d\r\n%b" % (len(head) + len(tail) + 4, pack_each(head)), pack_each(tail)

    def _entries(self) -> list[_Entry]:
        """What is recorded: each meter as itself, and as the derived ones that these dimensions match."""
        meters = self.account.accounts.catalog.meters
        entries: list[_Entry] = []
        for name in dict.fromkeys((*self.held, *self.recorded)):
            quantity = self.recorded.get(name, 0)
            derived = self._derived_from(name) if quantity else ()
            reported_as = next((found for found in derived if found.stripe is not None), meters[name])
            entries.append(_Entry(name, quantity, self.held.get(name, 0), reported_as))
            entries += [_Entry(found.name, quantity, 0, None) for found in derived]
        return entries

    def _derived_from(self, meter: str) -> tuple[Meter, ...]:
        if meter not in self.measured:
            return ()
        return derived_from(self.account.accounts.catalog.meters, meter, self.dimensions)

    def _arguments(self, entries: list[_Entry], *, paid: bool) -> tuple[list[str], list[int]]:
        account = self.account
        rated = [(meter, quantity, 0) for meter, quantity in self.rated.items()]
        rated += [
            (derived.name, quantity, 0)
            for meter, quantity in self.recorded.items()
            for derived in self._derived_from(meter)
            if derived.name not in self.corrected
        ]
        rated += [
            (meter, quantity, self.counted_ms) for meter, quantity in self.corrected.items() if quantity
        ]
        rates = [
            (meter, rate, quantity, at)
            for meter, quantity, at in rated
            for rate in account.entitlements[meter].rates
        ]
        fields = ["r", "t", "e", "x"]
        numbers = [len(entries), len(self.flights), len(rates)]
        for meter, quantity, held, reported_as in entries:
            token, entitlement = meter_token(meter), account.entitlements[meter]
            pending = token if reported_as is None else meter_token(reported_as.name)
            fields += [f"{token}i", f"{token}o", f"{pending}p", f"{token}h", f"{token}H"]
            fields += [f"{token}g", f"{token}c"] if paid else []
            included = -1 if entitlement.included is None else entitlement.included
            reported = (0, 0)
            if reported_as is not None and not account.anonymous:
                reported = reported_parts(entitlement, reported_as)
            numbers += [quantity, held, included, *reported]
        for meter in self.flights:
            fields += [f"{meter_token(meter)}{part}" for part in "nN"]
        for meter, rate, quantity, at in rates:
            fields += [f"{rate_token(meter, rate.window_ms, rate.algorithm)}{part}" for part in "abd"]
            kind, window, _, refill = rate_numbers(rate, meter)
            numbers += [kind, window, refill, quantity, at]
        return fields, numbers


class _Entry(NamedTuple):
    """One meter of a settlement; ``reported_as``: whose event Stripe gets, None for a derived meter."""

    meter: str
    quantity: int
    held: int
    reported_as: Meter | None
