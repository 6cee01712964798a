"""Maker of the queued invoice items for late usage: each is made once at Stripe.

Before an item is made, Stripe's items are listed; each has its own idempotency key. If the store has lost
items of the same customer, meter and period, their units are not billed again.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from random import SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import unit_amount_decimal
from meterkit.delivery.invoice_lines import LineWriter, is_refusal
from meterkit.delivery.invoices import units_of
from meterkit.delivery.sender import stopwatch
from meterkit.errors import StoreError, StripeError, StripeUnavailableError
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.outbox.invoice_item_queue import InvoiceItemQueue, price_each, usage_key_of
from meterkit.store.concurrent_calls import run_together
from meterkit.stripe.idempotency_keys import key_of
from meterkit.stripe.prices import PRICES
from meterkit.stripe.request import KEY_REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.sender import ShardLease
    from meterkit.outbox.invoice_item_queue import InvoiceItemEntry
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_logger = logging.getLogger("meterkit.delivery")
USAGE_KEY: Final = "meterkit_late_usage"
"""Key in an invoice item's metadata for the hash of customer, meter and period; see ``usage_key_of``."""
ITEM_KEY: Final = "meterkit_late_item"
"""Key in an invoice item's metadata for its identifier in the queue."""
_SINCE_KEY: Final = "meterkit_late_since"
_PATH: Final = "/v1/invoiceitems"
_LATER_MS: Final = 60_000
_LATEST_MS: Final = 3_600_000
_AWAITED_MS: Final = 10 * 60_000
_SHARDS_AT_ONCE: Final = 8
_CUSTOMERS_AT_ONCE: Final = 4
_WRITTEN_WITHIN_S: Final = 20.0
"""Time that the calls for a line may take."""
_LEASED_S: Final = 0.2
_shuffle: Final = SystemRandom().shuffle
_UNANSWERED_MOST: Final = 3
_STALE_S: Final = 3_600.0
"""Largest age of the list of Stripe's items when an item is made."""
_IDEMPOTENCY: Final = "idempotency_error"
_OTHER_MODE: Final = "a similar object exists in"


async def late_units_at_stripe(
    api: StripeApi, stripe_customer: str, since_ms: int
) -> Mapping[str, Sequence[dict[str, Any]]]:
    """List a Stripe customer's invoice items for late usage, by usage key.

    Args:
        api: the way to Stripe.
        stripe_customer: the customer at Stripe.
        since_ms: when the first of them may have been made.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    asked: dict[str, Parameter] = {"customer": stripe_customer, "created": {"gte": since_ms // 1000}}
    found: dict[str, list[dict[str, Any]]] = {}
    for item in await api.list(_PATH, asked):
        metadata: Mapping[str, str] = item.get("metadata") or {}
        if USAGE_KEY in metadata:
            found.setdefault(metadata[USAGE_KEY], []).append(item)
    return found


def late_item_token(line: Mapping[str, Any], customer: str, tokens: Iterable[str]) -> str | None:
    """Find the meter, among some, whose late usage a line or an invoice item bills; None: none."""
    metadata: Mapping[str, str] = line.get("metadata") or {}
    since, key = metadata.get(_SINCE_KEY, ""), metadata.get(USAGE_KEY)
    if key is None or ITEM_KEY not in metadata or not since.isdigit():
        return None
    return next((token for token in tokens if usage_key_of(customer, token, int(since)) == key), None)


ShardLeaser: TypeAlias = "Callable[[int], AbstractAsyncContextManager[ShardLease | None]]"
"""Leases a shard during a block; gives None if another process has it."""


@dataclass(slots=True)
class _MakingRun:
    """State of one run over the queue.

    Attributes:
        items: the queue.
        report: of the flush.
        lease_shard: leases a shard.
        deadline: when to stop, on the monotonic clock.
        unanswered: customers for whom Stripe did not answer.
    """

    items: InvoiceItemQueue
    report: FlushReport
    lease_shard: ShardLeaser
    deadline: float
    unanswered: set[str] = field(default_factory=set[str])

    def is_over(self) -> bool:
        """Whether nothing more is to be made."""
        return len(self.unanswered) >= _UNANSWERED_MOST or monotonic() >= self.deadline


class InvoiceItemMaker:
    """Makes due items. Any number of processes may do so at once.

    Args:
        store: has the queue.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: StripeApi) -> None:
        self._store = store
        self._api = api
        self._products: dict[str, str | None] = {}
        self._failures = Throttle(HOUR_S)

    async def make_due(
        self, report: FlushReport, *, everything: bool, lease_shard: ShardLeaser, deadline: float
    ) -> None:
        """Make the due items, or all; those of each shard under its lease, and of each customer in order.

        If Stripe does not answer, an item is tried again later; after three customers, the others wait, too.

        Args:
            report: of the flush.
            everything: whether to make all items, and to wait for shards that another process has leased.
            lease_shard: leases a shard during a block; None: another process has it.
            deadline: when to stop, on the monotonic clock.

        Raises:
            StoreError: the store does not answer.
        """
        items = InvoiceItemQueue(self._store, await self._store.admin())
        due_ms = None if everything else self._store.now_ms()
        run = _MakingRun(items, report, lease_shard, deadline)
        left = [*await items.due_shards(due_ms=due_ms)]
        while left:
            _shuffle(left)
            calls = [partial(self._make_of_shard, run, shard, due_ms) for shard in left]
            is_done = await run_together(calls, at_once=_SHARDS_AT_ONCE)
            left = [shard for shard, done in zip(left, is_done, strict=True) if not done]
            if not everything or run.is_over():
                return
            await asyncio.sleep(_LEASED_S * bool(left))

    async def _make_of_shard(self, run: _MakingRun, shard: int, due_ms: int | None) -> bool:
        """Make due items of a shard; False: another process has leased it."""
        if run.is_over():
            return True
        async with run.lease_shard(shard) as lease:
            if lease is None:
                return False
            by_customer: dict[str, list[InvoiceItemEntry]] = {}
            for item in await run.items.due_of(shard, due_ms=due_ms):
                by_customer.setdefault(item.customer, []).append(item)
            calls = [partial(self._make_of_customer, run, lease, due) for due in by_customer.values()]
            await run_together(calls, at_once=_CUSTOMERS_AT_ONCE)
        return True

    async def _make_of_customer(
        self, run: _MakingRun, lease: ShardLease, due: Sequence[InvoiceItemEntry]
    ) -> None:
        """Make due items of a customer, one by one."""
        lines = LineWriter(self._store, self._api)
        await run.items.mark_tried(lease.shard, [item for item in due if item.by_line])
        try:
            await self._make_in_order(run, lease, lines, due)
        finally:
            lines.late.log()

    async def _make_in_order(
        self, run: _MakingRun, lease: ShardLease, lines: LineWriter, due: Sequence[InvoiceItemEntry]
    ) -> None:
        for item in due:
            if run.is_over() or not await lease.outlives(_WRITTEN_WITHIN_S):
                return
            try:
                await self._make_due_item(run, lines, item)
            except StripeError as error:
                if isinstance(error, StripeUnavailableError):
                    run.unanswered.add(item.customer)
                items_named = "invoice lines" if item.by_line else "invoice items for late usage"
                run.report.why = f"{items_named}: {error}"
                self._log_failure(item, items_named, error)
                wait_ms = self._backoff_ms(item, _LATEST_MS) if is_refusal(error) else _LATER_MS
                await run.items.postpone(item, until_ms=self._store.now_ms() + wait_ms)
            except StoreError as error:  # The records of one customer may be damaged.
                _logger.warning("an invoice item of customer %r is made later: %s", item.customer, error)
                await run.items.postpone(item, until_ms=self._store.now_ms() + _LATER_MS)

    async def _make_due_item(self, run: _MakingRun, lines: LineWriter, item: InvoiceItemEntry) -> None:
        if not item.by_line:
            run.report.items += await self._make_item(run.items, item)
        elif await lines.write(run.items, item):
            run.report.lines += 1
        else:  # Stripe has yet to make the invoice.
            until_ms = self._store.now_ms() + self._backoff_ms(item, _AWAITED_MS)
            await run.items.postpone(item, until_ms=until_ms, is_tried=item.is_tried)

    def _backoff_ms(self, item: InvoiceItemEntry, most_ms: int) -> int:
        """Time until the next try: as long as the item has been queued, within a minute and a maximum."""
        return min(max(self._store.now_ms() - item.queued_ms, _LATER_MS), most_ms)

    def _log_failure(self, item: InvoiceItemEntry, items_named: str, error: StripeError) -> None:
        """Log once an hour that Stripe refuses an item of a customer, or that it does not answer."""
        if is_refusal(error):
            if self._failures.is_due(item.customer):
                text = "Stripe refuses %s of customer %r, and they are tried again: %s"
                _logger.error(text, items_named, item.customer, error)
        elif self._failures.is_due(type(error)):
            _logger.warning("%s are made later: %s", items_named, error)

    async def _make_item(self, items: InvoiceItemQueue, item: InvoiceItemEntry) -> bool:
        """Make an item unless Stripe has it; whether it was settled as made.

        Raises:
            StripeError: Stripe does not answer, or the key may not do this.
            StoreError: the store does not answer.
        """
        asked = stopwatch(self._store.clock)
        try:
            known = (await late_units_at_stripe(self._api, item.stripe_customer, item.period_ms)).get(
                item.usage_key, ()
            )
            there = [one for one in known if one["metadata"].get(ITEM_KEY) == item.id]
            left = await items.known_units(item) - int(sum(map(units_of, known)))
            if there or left <= 0:
                names = ", ".join(str(one["id"]) for one in there or known)
                return await items.settle(item, "f", after=f"billed by the invoice item {names}")
            units = min(item.units, left)
            params = await self._item_parameters(item, units)
            if asked() > _STALE_S:
                return False
            made = await self._post_item(item, units, params)
        except StripeError as error:
            if not _is_final(error):
                raise
            if await items.settle(item, "t", after=f"not billed: Stripe refuses an invoice item: {error}"):
                _logger.error(  # noqa: TRY400 - the text says all
                    "late usage of customer %r: no invoice bills %s, as Stripe refuses an invoice item: %s",
                    item.customer,
                    item.in_words(),
                    error,
                )
            return False
        return await items.settle(item, "f", after=f"billed by the invoice item {made['id']}")

    async def _post_item(
        self, item: InvoiceItemEntry, units: int, params: Mapping[str, Parameter]
    ) -> dict[str, Any]:
        """Post an item for the meter's product; without a product if Stripe refuses that."""

        async def post(price: Mapping[str, Parameter]) -> dict[str, Any]:
            key = key_of("late-usage", item.id, units, *price)
            return await self._api.post(
                _PATH, {**params, **price}, idempotency_key=key, find=partial(self._find_item, item)
            )

        product = await self._find_product(item)
        amount = f"{unit_amount_decimal(item.label):f}"
        if product is not None:
            data: Parameter = {"currency": item.currency, "product": product, "unit_amount_decimal": amount}
            try:
                return await post({"price_data": data})
            except StripeError as error:
                if not (error.param or "").startswith("price_data"):
                    raise
        return await post({"currency": item.currency, "unit_amount_decimal": amount})

    async def _find_item(self, item: InvoiceItemEntry) -> dict[str, Any] | None:
        """Find the invoice item that was made for an entry of the queue; None: there is none."""
        known = await late_units_at_stripe(self._api, item.stripe_customer, item.period_ms)
        own = (one for one in known.get(item.usage_key, ()) if one["metadata"].get(ITEM_KEY) == item.id)
        return next(own, None)

    async def _item_parameters(self, item: InvoiceItemEntry, units: int) -> dict[str, Parameter]:
        meter = self._store.catalog.meters.get(item.meter)
        title = item.meter if meter is None else meter.title
        start, end = from_ms(item.period_ms), from_ms(item.till_ms - 1)
        return {
            "customer": item.stripe_customer,
            "subscription": item.subscription,
            "description": f"{title}, {units:,} units of {format_days(start, end)}",
            "quantity_decimal": f"{units}",
            "period": {"start": item.period_ms // 1000, "end": max(item.period_ms, item.till_ms) // 1000},
            "metadata": {
                USAGE_KEY: item.usage_key,
                ITEM_KEY: item.id,
                "meterkit_meter": item.meter,
                _SINCE_KEY: f"{item.period_ms}",
                "meterkit_price": price_each(item.label, item.currency),
            },
        }

    async def _find_product(self, item: InvoiceItemEntry) -> str | None:
        """Find the product of the meter's price in the subscription; None: not known."""
        prices = {meter: price for meter, _, price in (pair.partition("=") for pair in item.metered.split())}
        try:
            meters = [
                str(meter["id"])
                for meter in await self._api.list("/v1/billing/meters")
                if meter["event_name"] == item.event_name
            ]
            price = next((prices[meter] for meter in meters if meter in prices), None)
            if price is None:
                return None
            if price not in self._products:
                found = await self._api.get(f"{PRICES}/{price}")
                product: object = found.get("product")
                self._products[price] = product if isinstance(product, str) else None
        except StripeUnavailableError:
            raise
        except StripeError:
            return None
        return self._products[price]


def format_days(start: datetime, end: datetime) -> str:
    """Format a span of days, with the month once if it is the same."""
    last = f"{end.day} {end:%b %Y}"
    if start.date() >= end.date():
        return last
    if (start.year, start.month) == (end.year, end.month):
        return f"{start.day}\N{EN DASH}{last}"
    first = f"{start.day} {start:%b}" + f" {start:%Y}" * (start.year != end.year)
    return f"{first} \N{EN DASH} {last}"


def _is_final(error: StripeError) -> bool:
    """Whether Stripe refuses this item for good."""
    is_waiting = isinstance(error, StripeUnavailableError) or error.status in KEY_REFUSALS
    is_of_the_key = is_waiting or _OTHER_MODE in str(error).lower()
    return not is_of_the_key and error.type != _IDEMPOTENCY
