"""Queue of invoice items that bill late usage at its recorded price, and its operator commands.

See queue_item.lua. ``kit.outbox.items`` lists, redrives and drops queued items.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from math import ceil, floor
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog.value_parsers import exact_money
from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import item_segments, unit_amount_decimal
from meterkit.errors import MeterkitError
from meterkit.outbox.intents import count_members
from meterkit.store import replies
from meterkit.store.input_checks import check_customer, check_text, shown
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

_QUEUE: Final = "items"
_PAGE: Final = 250  # All lines of a period, as a rule, so that late ones are logged together.
_TRIED: Final = 0.5
"""Taken off the score (ms) of an item that Stripe may have."""
_GONE: Final = (
    "no queued invoice item has this identifier; it was made or dropped: `meterkit outbox list` lists them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceItemEntry:
    """A queued invoice item. Money in minor units of the currency.

    Attributes:
        text: as the queue has it.
        id: its identifier; the idempotency key begins with it.
        period_ms: the first instant of the period in which the units were recorded.
        till_ms: the first instant after they were recorded, at the latest.
        metered: prices of the subscription then, as ``METER=PRICE``, separated by blanks.
        label: of the price at which they were recorded (see :mod:`meterkit.decisions.price_segments`).
        queued_ms: when they became late.
        by_line: whether it is a line for usage of its own period, without meters at Stripe.
        parts: labels and units of the prices that it sums, if there are several; see :func:`summed_label`.
        is_tried: whether Stripe may have it. The queue shows it by half a millisecond in the score.
    """

    text: str
    shard: int
    id: str
    customer: str
    stripe_customer: str
    subscription: str
    currency: str
    metered: str
    period_ms: int
    till_ms: int
    meter_token: str
    meter: str
    event_name: str
    label: str
    units: int
    queued_ms: int
    by_line: bool = False
    parts: tuple[tuple[str, int], ...] = ()
    is_tried: bool = True

    @property
    def prices(self) -> int:
        """Number of prices that it sums."""
        return max(1, len(self.parts))

    @classmethod
    def read(cls, shard: int, member: bytes, score: float = _TRIED) -> InvoiceItemEntry:
        """Parse a member of the queue."""
        text = member.decode()
        kept = json.loads(text)
        parts = tuple((str(label), int(units)) for label, units in kept.get("parts", ()))
        return cls(
            text=text,
            shard=shard,
            id=kept["id"],
            customer=kept["customer"],
            stripe_customer=kept["stripe"],
            subscription=kept["subscription"],
            currency=kept["currency"],
            metered=kept["metered"],
            period_ms=int(kept["period"]),
            till_ms=int(kept["till"]),
            meter_token=kept["meter"],
            meter=kept["name"],
            event_name=kept["event"],
            label=summed_label(parts) if parts else kept["label"],
            units=int(kept["value"]),
            queued_ms=int(kept["at"]),
            by_line="by_line" in kept,
            parts=parts,
            is_tried=score % 1 == _TRIED,
        )

    @property
    def usage_key(self) -> str:
        """Hash of customer, meter and period, for the metadata of invoice items."""
        return usage_key_of(self.customer, self.meter_token, self.period_ms)

    def in_words(self) -> str:
        """Quantity, meter and price."""
        if self.prices > 1:
            amount = exact_money(Decimal(item_cents(self.label, self.units)), self.currency)
            return f"{self.units} of {self.meter} at {self.prices} prices, {amount} in all"
        return f"{self.units} of {self.meter} at {price_each(self.label, self.currency)}"


def summed_label(parts: Sequence[tuple[str, int]]) -> str:
    """Label of the mean price of units at several prices: of all units, their whole amount in minor units.

    So the one line costs what the lines of its prices cost together, rounded once.
    """
    cents = sum((Fraction(unit_amount_decimal(label)) * units for label, units in parts), Fraction(0))
    return f"{sum(units for _, units in parts)}/{floor(cents + Fraction(1, 2))}"


def usage_key_of(customer: str, meter_token: str, period_ms: int) -> str:
    """Hash a customer, a meter and a period for the metadata of invoice items."""
    name = f"{customer}\0{meter_token}\0{period_ms}".encode("utf-8", "surrogatepass")
    return blake2b(name, digest_size=16).hexdigest()


def price_each(label: str, currency: str) -> str:
    """Format the price of one unit by its label: ``$0.04 each``."""
    return amount_each(unit_amount_decimal(label), currency)


def amount_each(unit_amount: Decimal, currency: str) -> str:
    """Format the price of one unit, given in minor units."""
    return f"{exact_money(unit_amount, currency)} each"


def item_cents(label: str, units: int) -> int:
    """Compute the amount of an item in minor units, rounded half up, as Stripe rounds a line."""
    return floor(Fraction(unit_amount_decimal(label)) * units + Fraction(1, 2))


class InvoiceItemQueue:
    """Queue of invoice items, in a sorted set of each shard.

    Each method raises :class:`~meterkit.errors.StoreError` if the store does not answer.
    """

    def __init__(self, store: Store, admin: Admin) -> None:
        self._store = store
        self._admin = admin.for_delivery()

    async def due_shards(self, *, due_ms: int | None) -> Sequence[int]:
        """List the shards with items that are due by an instant, or with any (None)."""
        limit = "+inf" if due_ms is None else due_ms
        return [shard for shard, _ in await count_members(self._store, self._admin, (_QUEUE,), limit=limit)]

    async def due_of(self, shard: int, *, due_ms: int | None) -> Sequence[InvoiceItemEntry]:
        """Read a page of a shard's items that are due by an instant, or of all (None)."""
        limit = "+inf" if due_ms is None else due_ms
        found: list[tuple[bytes, float]] = await self._admin.ask(
            self._admin.client.zrangebyscore(
                self._key(shard), "-inf", limit, start=0, num=_PAGE, withscores=True
            )
        )
        return self._read_entries(shard, found)

    async def mark_tried(self, shard: int, items: Iterable[InvoiceItemEntry] | None = None) -> None:
        """Record that Stripe may have some items of a shard, or any of them (None)."""
        if items is None:
            limits: Any = self._admin.client.zrange(self._key(shard), 0, -1, withscores=True)
            scores = {member: ceil(score) - _TRIED for member, score in await self._admin.ask(limits)}
        else:
            due = self._store.now_ms() - _TRIED
            scores = {one.text: due for one in items if not one.is_tried}
        if scores:
            await self._admin.ask(self._admin.client.zadd(self._key(shard), scores, xx=True))

    async def listed(self, customer: str | None = None) -> Sequence[tuple[InvoiceItemEntry, int]]:
        """List the queued items of a customer, or all, each with the instant at which it is due (ms)."""
        if customer is None:
            shards = [at for at, _ in await count_members(self._store, self._admin, (_QUEUE,), limit="+inf")]
        else:
            shards = [self._store.keys.customer(customer).shard]
        found: list[tuple[InvoiceItemEntry, int]] = []
        for shard in shards:
            range_ = self._admin.client.zrange(self._key(shard), 0, -1, withscores=True)
            members: list[tuple[bytes, float]] = await self._admin.ask(range_)
            due_ms = {member: ceil(score) for member, score in members}
            found += [
                (item, due_ms[item.text.encode()])
                for item in self._read_entries(shard, members)
                if customer in {None, item.customer}
            ]
        return found

    def _read_entries(self, shard: int, members: Iterable[tuple[bytes, float]]) -> list[InvoiceItemEntry]:
        """Parse members of the queue; unreadable ones are logged once and left out."""
        found: list[InvoiceItemEntry] = []
        for member, score in members:
            try:
                found.append(InvoiceItemEntry.read(shard, member, score))
            except UNREADABLE:
                self._admin.warn_once(
                    f"an invoice item of shard {shard} cannot be read and is skipped; all others are made:"
                    f" {member!r:.80}"
                )
        return found

    async def count(self) -> int:
        """Count the queued items."""
        return sum((await count_members(self._store, self._admin, (_QUEUE,), limit="+inf")).values())

    async def known_units(self, item: InvoiceItemEntry) -> int:
        """Count the units of the item's meter and period that invoice items bill, or are to bill.

        For a line, only units of its price count, or of the prices that it sums.
        """
        name = f"{item.period_ms}|{item.meter_token}"
        totals = self._store.keys.customer(item.customer).totals
        if item.by_line:
            queued: Any = await self._admin.ask(self._admin.client.hget(totals, f"{name}h"))
            known = item_segments((queued or b"").decode())
            labels = [label for label, _ in item.parts] or [item.label]
            prices = {unit_amount_decimal(label) for label in labels}
            return sum(one.overage for one in known if unit_amount_decimal(one.label) in prices)
        fields = [f"{name}{letter}" for letter in "af"]
        found: list[Any] = await self._admin.ask(self._admin.client.hmget(totals, fields))
        return sum(int(units or 0) for units in found)

    async def settle(
        self, item: InvoiceItemEntry, letter: Literal["d", "f", "t"], *, after: str, cause: str = "clock"
    ) -> bool:
        """Count an item as made (d: by its own invoice, f: by another) or as never billed (t).

        Returns:
            False: another process has settled it.

        Args:
            item: the queued item.
            letter: field of the totals that its units are added to.
            after: the outcome, for the customer's ledger; empty: it gets no entry.
            cause: for that ledger.
        """
        keys = self._store.keys.customer(item.customer)
        entry = ("late", str(self._store.now_ms()), f"{item.period_ms} {item.in_words()}", after, cause)
        names = [self._key(item.shard), keys.totals, keys.history]
        script = self._store.scripts["settle_item"]
        reply = await self._admin.run(script, names, item.text, letter, json.dumps(entry) if after else "")
        return bool(reply == replies.ITEM_SETTLED)

    async def postpone(self, item: InvoiceItemEntry, *, until_ms: int, is_tried: bool = True) -> None:
        """Postpone an item; ``is_tried``: whether Stripe may have it."""
        score = until_ms - (_TRIED if is_tried else 0)
        await self._admin.ask(self._admin.client.zadd(self._key(item.shard), {item.text: score}, xx=True))

    def _key(self, shard: int) -> str:
        return self._store.keys.shard(shard, _QUEUE)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedItem:
    """An invoice item for late usage that Stripe does not have yet. It bills at the price of its usage.

    Attributes:
        identifier: its own; Stripe's item has it in its metadata, as ``meterkit_late_item``.
        stripe_customer: the billed customer at Stripe.
        subscription: the subscription whose next renewal bills it; empty: a line on an invoice of its own.
        meter: its name in the plans file when the usage became late.
        quantity: in the meter's unit.
        cents: its amount in minor units of ``currency``, rounded as Stripe rounds a line.
        period_start: the first instant of the billing period in which the usage was recorded.
        recorded_until: the first instant after the usage was recorded, at the latest.
        queued_at: when the usage became late.
        age_s: seconds since then.
        due_at: when it is made, or tried again.
        is_line: whether it is the line of its own period (``billing: {usage: lines}``), not of late usage.
        state: ``queued``, always.
    """

    identifier: str
    customer: str
    stripe_customer: str
    subscription: str
    meter: str
    event_name: str
    quantity: int
    cents: int
    currency: str
    period_start: datetime
    recorded_until: datetime
    queued_at: datetime
    age_s: int
    due_at: datetime
    is_line: bool = False
    state: Literal["queued"] = "queued"


class QueuedItems:
    """Lists, redrives and drops queued invoice lines, and queued invoice items for late usage.

    Each method raises :class:`~meterkit.errors.StoreError` if the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, *, customer: str | None = None, limit: int = 1_000) -> Sequence[QueuedItem]:
        """List the queued items, oldest first.

        Args:
            customer: only of this customer; default: of all.
            limit: largest number of items.

        Raises:
            CustomerError: the id is not allowed.
        """
        if customer is not None:
            customer = check_customer(customer)
        found = await InvoiceItemQueue(self._store, await self._store.admin()).listed(customer)
        shown_items = [self._as_shown(item, due_ms) for item, due_ms in found]
        return sorted(shown_items, key=lambda one: (one.queued_at, one.identifier))[:limit]

    async def redrive(self, identifier: str) -> QueuedItem:
        """Make an item due at the next flush, even if Stripe has just refused it.

        Raises:
            MeterkitError: no queued item has this identifier.
        """
        items, item = await self._find(identifier)
        now_ms = self._store.now_ms()
        await items.postpone(item, until_ms=now_ms)
        return self._as_shown(item, now_ms)

    async def drop(self, identifier: str, *, reason: str, by: str = "api") -> QueuedItem:
        """Drop an item: its units count as late, and no invoice bills them.

        If a flush makes the item meanwhile, Stripe has it, and ``reconcile`` names it.

        Args:
            identifier: of the item.
            reason: for the customer's ledger; required.
            by: the operator, for the ledger.

        Raises:
            MeterkitError: no reason is given, or no queued item has this identifier.
        """
        check_text("reason", reason, may_be_empty=True)
        check_text("by", by, may_be_empty=True)
        if not reason:
            raise MeterkitError("reason: found none; say why the item is dropped")
        items, item = await self._find(identifier)
        if not await items.settle(item, "t", after=f"dropped: {reason}", cause=by or "api"):
            raise MeterkitError(f"item: found {shown(identifier)}; {_GONE}")
        return self._as_shown(item, self._store.now_ms())

    async def _find(self, identifier: str) -> tuple[InvoiceItemQueue, InvoiceItemEntry]:
        items = InvoiceItemQueue(self._store, await self._store.admin())
        for item, _ in await items.listed():
            if item.id == identifier:
                return items, item
        raise MeterkitError(f"item: found {shown(identifier)}; {_GONE}")

    def _as_shown(self, item: InvoiceItemEntry, due_ms: int) -> QueuedItem:
        return QueuedItem(
            identifier=item.id,
            customer=item.customer,
            stripe_customer=item.stripe_customer,
            subscription=item.subscription,
            meter=item.meter,
            event_name=item.event_name,
            quantity=item.units,
            cents=item_cents(item.label, item.units),
            currency=item.currency,
            period_start=from_ms(item.period_ms),
            recorded_until=from_ms(item.till_ms),
            queued_at=from_ms(item.queued_ms),
            age_s=max(0, (self._store.now_ms() - item.queued_ms) // 1000),
            due_at=from_ms(due_ms),
            is_line=item.by_line,
        )
