"""How a request ended, or what the app itself recorded: a settlement for the store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from meterkit.store.keys import meter_token, rate_token
from meterkit.store.program import rate_numbers, reported_parts
from meterkit.store.resp import pack_each
from meterkit.store.state import NO_STATE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from meterkit.store.accounts import Account

__all__ = ["Ending"]

_logger = logging.getLogger("meterkit.store")

_QUARTER_HOUR_MS: Final = 900_000
_FORTY_DAYS_MS: Final = 3_456_000_000


class Ending:
    """One settlement; packed by the state in force when it is sent, and again if it must be sent again.

    Attributes:
        held: meter to the quantity that the decision held.
        flights: meters of whose concurrency the decision held one.
        recorded: meter to the quantity that is recorded.
        rated: meter to the quantity that its rates have not seen yet.
        slot: the hold slot (of five minutes) that the decision added to.
        key: what the packed request is kept under, where the same one recurs; else None.
        event_key: the key that remembers an event id of the app; else None.
        waiter: done once the store has acknowledged; None where nobody waits.
    """

    __slots__ = ("account", "event_key", "flights", "held", "key", "rated", "recorded", "slot", "waiter")

    def __init__(
        self,
        account: Account,
        *,
        held: Mapping[str, int],
        flights: tuple[str, ...],
        recorded: Mapping[str, int],
        rated: Mapping[str, int],
        slot: int,
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

    def _pack(self) -> tuple[bytes, bytes]:
        account = self.account
        keys, linked = account.keys, account.state.stripe_customer is not None
        event = () if self.event_key is None else (self.event_key,)
        fields, numbers = self._arguments()
        head = (
            *("EVALSHA", account.accounts.settle.sha, 5 + len(event), keys.counters, keys.state, keys.totals),
            keys.dirty if linked else keys.unlinked,
        )
        terms = account.terms(
            _QUARTER_HOUR_MS if account.rev == NO_STATE else _FORTY_DAYS_MS,
            account.accounts.seal_delay_ms if linked else -1,
            *numbers,
        )
        tail = (*event, account.rev, terms, account.customer, *fields)
        # The writer's key, the slot, the number and the clock come when it is sent.
        return b"*%d\r\n%b" % (len(head) + len(tail) + 4, pack_each(head)), pack_each(tail)

    def _arguments(self) -> tuple[list[str], list[int]]:
        account = self.account
        catalog = account.accounts.catalog
        meters = dict.fromkeys((*self.held, *self.recorded))
        rates = [(meter, rate) for meter in self.rated for rate in account.entitlements[meter].rates]
        fields = ["r", "t", "e", "x"]
        numbers = [len(meters), len(self.flights), len(rates)]
        for meter in meters:
            token, entitlement = meter_token(meter), account.entitlements[meter]
            fields += [f"{token}{part}" for part in "iophH"]
            included = -1 if entitlement.included is None else entitlement.included
            reported = (0, 0) if account.anonymous else reported_parts(entitlement, catalog)
            numbers += [self.recorded.get(meter, 0), self.held.get(meter, 0), included, *reported]
        for meter in self.flights:
            fields += [f"{meter_token(meter)}{part}" for part in "nN"]
        for meter, rate in rates:
            fields += [f"{rate_token(meter, rate.window_ms, rate.algorithm)}{part}" for part in "abd"]
            kind, window, _, refill = rate_numbers(rate, meter)
            numbers += [kind, window, refill, self.rated[meter]]
        return fields, numbers
