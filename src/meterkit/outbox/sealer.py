"""Sealer: moves pending usage from the customers' counters into the outbox, as intents to send.

Usage whose invoice is already final is sealed as late, by the terms of the customer's subscription. A context
variable carries late usage into the report of the flush that runs.

All meters of an event name share its minutes, and each minute has one intent: so Stripe's summary of a minute
tells whether that intent arrived.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.customer_state import line_switches
from meterkit.decisions.keys import HEAD_FIELD
from meterkit.decisions.limit_policies import keep_ms_of
from meterkit.decisions.packed import CounterHead
from meterkit.errors import StoreError
from meterkit.outbox.close_queue import CloseQueue
from meterkit.outbox.intents import NONCE_DIGITS, SEALED_DIGITS
from meterkit.outbox.sealing_terms import EndedPeriod, invoice_terms, line_terms
from meterkit.redis.server import is_key_error, is_refusal
from meterkit.store import replies
from meterkit.store.event_names import read_subscribed_meters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from meterkit.redis.admin import Admin
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

_MOVED: Final = "moved"
_TRIES: Final = 5
_NOT_BILLED: Final = 0
_BY_ITEM: Final = 2
_WITHOUT_PRICE: Final = 4
_PAGE: Final = 50
_ASIDE_MS: Final = 600_000
REPORTED: Final = {"is_reported": True}
"""Marks log lines whose content the report of a flush has, too: a caller need not show both."""
_found: ContextVar[list[LateUsage] | None] = ContextVar("late usage of this flush", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnnamedUsage:
    """Usage of a meter without an event name in the plans file and in the store."""

    customer: str
    meter_token: str
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUnits:
    """Usage of a closed period that was sealed too late for the invoice of that period.

    Attributes:
        period_ms: the first instant of the period.
        meter_token: of its meter.
        is_billed: whether the next invoice bills it.
        by_item: whether an invoice item does, at the price at which it was recorded.
        has_price: False: it is not too late, but an invoice line needs a price.
    """

    customer: str
    period_ms: int
    meter_token: str
    quantity: int
    is_billed: bool
    by_item: bool = False
    has_price: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceCut:
    """End of a price segment: pending usage is sealed now, and usage recorded from now on is held.

    Attributes:
        till_ms: until when it is held, unless it is released before.
        labels: of the prices that end, by meter token (see :mod:`meterkit.decisions.price_segments`).
    """

    till_ms: int
    labels: Mapping[str, str]

    def dump(self) -> str:
        """Serialize it for ``seal.lua``."""
        return json.dumps({"till": f"{self.till_ms}", "labels": dict(self.labels)})


@dataclass(slots=True, kw_only=True)
class SealResult:
    """Result of sealing.

    Attributes:
        intents: number of intents.
        now_ms: the store's clock at the last seal; 0: there was none.
        without_event_name: usage that has no event name.
        unreadable: customers whose usage cannot be read, and why.
        sealed_customers: customers whose usage was sealed.
        waiting_lines: number of customers and meters whose usage waits for a free minute.
        late: usage whose invoice is final.
    """

    intents: int = 0
    now_ms: int = 0
    without_event_name: list[UnnamedUsage] = field(default_factory=list[UnnamedUsage])
    unreadable: dict[str, str] = field(default_factory=dict[str, str])
    sealed_customers: list[str] = field(default_factory=list[str])
    waiting_lines: int = 0
    late: list[LateUnits] = field(default_factory=list[LateUnits])


class UsageSealer:
    """Seals the pending usage of one shard.

    Args:
        store: counts the usage.
        admin: connection to the shard's server.
        shard: the shard.
        meters: by token, all meters that are or were delivered.
    """

    def __init__(self, store: Store, admin: Admin, shard: int, meters: Mapping[str, ReportedMeter]) -> None:
        self._store = store
        self._admin = admin
        self._shard = shard
        self._meters = meters
        self._keys = store.keys
        self._client = admin.client

    async def seal(
        self,
        *,
        due_ms: int | None,
        most: int,
        first: Callable[[Mapping[str, int]], Awaitable[object]] | None = None,
    ) -> SealResult:
        """Seal pending usage of ``most`` customers that are due, or of all.

        A customer whose usage cannot be read is skipped for ten minutes.

        Args:
            due_ms: until when usage is due; None: all.
            most: largest number of customers.
            first: awaited before the seal, with the customers and since when each is due (ms).
        """
        dirty = self._keys.shard(self._shard, "dirty")
        # Usage that cannot be sealed yet comes first in this order, and must not fill a page of all.
        limit, most = ("+inf", -1) if due_ms is None else (due_ms, most)
        members: list[tuple[bytes, float]] = await self._admin.ask(
            self._client.zrangebyscore(dirty, "-inf", limit, start=0, num=most, withscores=True)
        )
        due = {member.decode(): int(score) for member, score in members}
        if first is not None:
            await first(due)
        seal_result, customers = SealResult(), list(due)
        for start in range(0, len(customers), _PAGE):
            await self._seal_page(customers[start : start + _PAGE], seal_result)
        for customer in seal_result.unreadable:
            later_ms = self._store.now_ms() + _ASIDE_MS
            await self._admin.ask(self._client.zadd(dirty, {customer: later_ms}, xx=True))
        return seal_result

    async def cut(self, customer: str, cut: PriceCut | None) -> SealResult:
        """Seal a customer's pending usage.

        With a cut, hold usage recorded from now on; without, close a period that another one follows.
        """
        seal_result = SealResult()
        await self._seal_page([customer], seal_result, _MOVED if cut is None else cut.dump())
        return seal_result

    async def seal_customer(self, customer: str) -> SealResult:
        """Seal the pending usage of one customer, whenever it is due."""
        seal_result = SealResult()
        await self._seal_page([customer], seal_result)
        return seal_result

    async def _seal_page(self, customers: Sequence[str], seal_result: SealResult, cut: str = "") -> None:
        script, left = self._store.scripts["seal"], list(customers)
        closes = CloseQueue(self._store, self._admin)
        nonces = _generate_nonces()
        for _ in range(_TRIES):
            views = [self._store.cache.get(customer) for customer in left]
            await closes.note_sealed(self._shard, views)
            ended = await self._read_ended_periods(views)
            pipe = self._client.pipeline(transaction=False)
            pipe.script_load(script.text)
            for view in views:
                keys = self._keys_of(view)
                asked = self._script_arguments(view, next(nonces), cut, ended.get(view.customer))
                pipe.evalsha(script.sha, len(keys), *keys, *asked)
            loaded, *answers = await self._admin.ask(pipe.execute(raise_on_error=False))
            if isinstance(loaded, Exception):
                raise StoreError(f"the store failed: {loaded}") from loaded
            left = [
                view.customer
                for view, reply in zip(views, answers, strict=True)
                if not self._is_sealed(view, reply, seal_result)
            ]
            if not left:
                return
        for customer in left:
            seal_result.unreadable[customer] = f"it changed {_TRIES} times while its usage was sealed"

    def _keys_of(self, view: CustomerView) -> list[str]:
        keys = view.keys
        script_keys = [keys.counters, keys.state, keys.totals, keys.dirty]
        script_keys += [self._keys.shard(self._shard, name) for name in ("intents", "outbox")]
        script_keys += [keys.history, self._keys.shard(self._shard, "items")]
        return [*script_keys, *[self._keys.audit(self._shard)] * self._store.is_audited]

    async def _read_ended_periods(self, views: Iterable[CustomerView]) -> Mapping[str, Sequence[EndedPeriod]]:
        """Read the periods with pending usage of customers that lines bill, by customer."""
        asked = [view for view in views if line_switches(view.state, view.cache.catalog)]
        if not asked:
            return {}
        pipe = self._client.pipeline(transaction=False)
        for view in asked:
            pipe.hget(view.keys.counters, HEAD_FIELD)
            pipe.hgetall(view.keys.totals)
        found = iter(await self._admin.ask(pipe.execute(raise_on_error=False)))
        return {
            view.customer: [*dict.fromkeys(_ended_periods(head, totals))]
            for view, head, totals in zip(asked, found, found, strict=False)
        }

    def _script_arguments(
        self, view: CustomerView, nonce: str, cut: str, ended: Sequence[EndedPeriod] | None
    ) -> list[str | int | bytes]:
        state = view.state
        terms = view.terms(counter_ttl_ms(view))
        now_ms = self._store.now_ms()
        meters = {**self._meters, **read_subscribed_meters(state, view.cache.catalog, now_ms)}
        names = [part for token, counted in meters.items() for part in (token, counted.event_name)]
        asked = [nonce, view.customer, state.stripe_customer or ""]
        if ended is None:
            invoicing = invoice_terms(view, self._meters, now_ms)
        else:
            invoicing = line_terms(view, ended, self._meters, now_ms)
        asked += [json.dumps(state.minutes_taken_ms), invoicing, cut]
        return [view.rev, terms, *asked, *names, self._admin.now_ms()]

    def _is_sealed(self, view: CustomerView, reply: Any, seal_result: SealResult) -> bool:
        """Apply the reply of a seal; False: the seal must be repeated."""
        try:
            return self._apply_reply(view, reply, seal_result)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - an unreadable state holds up no other customer
            seal_result.unreadable[view.customer] = f"its state cannot be read: {error!r:.200}"
            return True

    def _apply_reply(self, view: CustomerView, reply: Any, seal_result: SealResult) -> bool:
        customer = view.customer
        if is_refusal(reply):
            # Damaged keys of one customer do not stop the others of its shard.
            if not is_key_error(reply):
                raise StoreError(f"the store failed: {reply}") from reply
            seal_result.unreadable[customer] = str(reply)
        elif reply[0] == replies.STALE:
            try:
                view.cache.learn(view, reply)
            except StoreError as error:  # It is unreadable; that holds up no other customer.
                seal_result.unreadable[customer] = str(error)
                return True
            return False
        elif reply[0] == replies.BROKEN:
            seal_result.unreadable[customer] = f"the field {reply[2].decode()} is not a whole number"
        else:
            seal_result.sealed_customers.append(customer)
            seal_result.intents += reply[2]
            nameless = reply[5:]
            seal_result.waiting_lines += reply[3] - len(nameless[::2])
            seal_result.late += _late_units(customer, reply[4])
            seal_result.now_ms = max(seal_result.now_ms, reply[1])
            seal_result.without_event_name += [
                UnnamedUsage(customer=customer, meter_token=token.decode(), quantity=int(quantity))
                for token, quantity in zip(nameless[::2], nameless[1::2], strict=True)
            ]
        return True


def _ended_periods(head: Any, totals: Any) -> Iterator[EndedPeriod]:
    """Periods with pending usage; the script reports what is damaged."""
    if is_refusal(head) or is_refusal(totals):
        return
    with suppress(ValueError):
        known = CounterHead.read(head)
        yield EndedPeriod(known.begins_ms, known.ends_ms)
    for name, pending in totals.items():
        if name.endswith(b"p") and pending.strip(b"0") and (begins := name[:-6]).isdigit():
            ends = totals.get(begins + b"|e", b"")
            yield EndedPeriod(int(begins), int(ends) if ends.isdigit() else int(begins) + 1)


def _late_units(customer: str, found: Sequence[Any]) -> Iterator[LateUnits]:
    for period, token, quantity, outcome in found:
        yield LateUnits(
            customer=customer,
            period_ms=int(period),
            meter_token=token.decode(),
            quantity=int(quantity),
            is_billed=outcome not in {_NOT_BILLED, _WITHOUT_PRICE},
            has_price=outcome != _WITHOUT_PRICE,
            by_item=outcome == _BY_ITEM,
        )


def _generate_nonces() -> Iterator[str]:
    """Generate the nonces that identifiers begin with, one for each customer.

    Nonces of a page share most digits, so that packed batches are short; see ``pack_batch``.
    """
    page, digits = token_hex(SEALED_DIGITS // 2), NONCE_DIGITS - SEALED_DIGITS
    return (f"{page}{nth:0{digits}x}" for nth in range(16**digits))


def counter_ttl_ms(view: CustomerView) -> int:
    """Lifetime of a customer's counters: that of its longest rate."""
    found = [given.rates for given in view.entitlements.values()]
    found += [route.rates for route in view.cache.catalog.routes]
    return keep_ms_of(rate for rates in found for rate in rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUsage:
    """Usage that was not delivered before its invoice was final, or before its price ended at Stripe.

    Attributes:
        meter: its name in the plans file, or in an earlier one.
        quantity: in the meter's unit.
        period: the first instant of its billing period, in ISO 8601.
        is_billed: whether the invoice of the open period bills it; otherwise, no invoice does.
        by_item: whether an invoice item bills it, at the price at which it was recorded.
    """

    customer: str
    meter: str
    quantity: int
    period: str
    is_billed: bool
    by_item: bool = False


@contextmanager
def collect_late_usage(found: list[LateUsage]) -> Generator[None]:
    """Collect late usage that is found in this block, and in tasks that begin there, into a list."""
    token = _found.set(found)
    try:
        yield
    finally:
        _found.reset(token)


def add_late_usage(late: Iterable[LateUsage]) -> dict[str, bool] | None:
    """Add late usage to the report of the running flush, if any; return the mark for its log lines."""
    found = _found.get()
    if found is None:
        return None
    found += late
    return REPORTED
