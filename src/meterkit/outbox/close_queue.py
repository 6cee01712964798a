"""Queue of period closes that Stripe has not confirmed yet, and the ends of their invoices.

A close is noted before its usage is sealed, since nothing lists the periods that have just ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.customer_state import CustomerState, bounds_of
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import ENDED
from meterkit.decisions.subscription_periods import is_final, renewals_of
from meterkit.errors import MeterkitError, StoreError
from meterkit.outbox.intents import count_members

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping

    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.outbox.intents import SealedIntent
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

CLOSE_AFTER_MS: Final = 10 * 60_000
"""Delay of the first check: by then the period's pending usage is sealed, sent and counted."""
_AFTER_A_RENEWAL_MS: Final = 2 * 60_000
_RENEWED_WITHIN_MS: Final = 26 * 3_600_000
_AFTER_A_ROLL_MS: Final = 2 * 3_600_000
_KEPT_MS: Final = 45 * 86_400_000
_PAGE: Final = 100
# Instants that datetime can show.
_BEGIN_MS: Final = 0
_NEVER_MS: Final = 250_000_000_000_000
RENEWAL: Final = "subscription_cycle"
"""The ``billing_reason`` of an invoice that a renewal has made."""
STAMPED_AHEAD_MS: Final = 6 * 60_000
"""Largest distance of a shortened period's end from its end at Stripe; see ``close_period.lua``."""
_ENDS_KEPT_MS: Final = 400 * 86_400_000
_YOUNG_MS: Final = 120_000
"""Usage is mostly sent in the minute of its timestamp: usage younger than this is not checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodClose:
    """The close of one customer's period.

    Attributes:
        end_ms: the first instant after the period, as it was known when the close was queued.
    """

    shard: int
    customer: str
    end_ms: int

    @property
    def member(self) -> str:
        """Its member in the sorted set."""
        return f"{self.end_ms}:{self.customer}"

    @property
    def end_text(self) -> str:
        """End of the period, for people."""
        return f"{from_ms(self.end_ms):%Y-%m-%d %H:%M} UTC"

    @classmethod
    def read(cls, shard: int, member: bytes) -> PeriodClose:
        """Parse a member of the sorted set.

        Raises:
            ValueError: it is damaged.
        """
        end, _, customer = member.decode().partition(":")
        close = cls(shard=shard, customer=customer, end_ms=int(end))
        if not customer or not _BEGIN_MS <= close.end_ms < _NEVER_MS or close.member.encode() != member:
            raise ValueError("no close of a customer's period")
        return close


def ends_to_close(views: Iterable[CustomerView], now_ms: int) -> dict[str, int]:
    """List closes of periods whose usage is being sealed: member to the instant of its first check.

    For two hours after a period has begun, the previous period is listed, too: its pending usage is sealed
    then.

    Args:
        views: of the customers whose usage is sealed.
        now_ms: now.
    """
    found: dict[str, int] = {}
    for view in views:
        if not view.linked:
            continue
        bounds, state = view.effective.bounds, view.state
        if state.subscription is not None or not bounds.start_ms <= now_ms < bounds.end_ms:
            # By the clock: the view may still be of the previous period.
            bounds = bounds_of(state, view.effective.counting, now_ms)
        ends = [bounds.end_ms]
        if bounds.start_ms <= now_ms < bounds.start_ms + _AFTER_A_ROLL_MS:
            ends.append(bounds.start_ms)
        for end_ms in ends:
            close = PeriodClose(shard=view.keys.shard, customer=view.customer, end_ms=end_ms)
            found[close.member] = end_ms + CLOSE_AFTER_MS
    return found


async def note_renewal(
    store: Store,
    customer: str,
    state: CustomerState,
    *,
    known: SubscriptionState | None,
) -> None:
    """Queue the close of a period that a subscription's renewal, end or successor has just ended.

    A seal queues closes, too, but the flusher may have been down, and the end of a subscription may become
    known days later.

    Args:
        store: has the queue.
        customer: the customer's id.
        state: with the subscription as Stripe shows it.
        known: the customer's subscription as it was known before.

    Raises:
        StoreError: the store does not answer.
    """
    subscription = state.subscription
    sells_usage = any(meter.stripe is not None for meter in store.catalog.meters.values())
    if subscription is None or not subscription.has_begun or not sells_usage:
        return
    now_ms, ends = store.now_ms(), list[int]()
    renewals = renewals_of(state.subscription, now_ms, state.terms)
    was_open = known is not None and known.status not in ENDED
    has_ended = was_open and subscription.status in ENDED
    if renewals is not None and (has_ended or now_ms < renewals.latest_ms + _RENEWED_WITHIN_MS):
        ends.append(renewals.latest_ms)
    if was_open and known is not None and known.id != subscription.id:
        # The new subscription ended the period of the previous one.
        ends.append(subscription.created_ms or subscription.start_ms)
    await note_ends(store, customer, ends)


async def note_ends(store: Store, customer: str, ends: Iterable[int]) -> None:
    """Queue the closes of periods that have just ended, at these instants (ms).

    Raises:
        StoreError: the store does not answer.
    """
    shard, now_ms = store.keys.customer(customer).shard, store.now_ms()
    found = {
        PeriodClose(shard=shard, customer=customer, end_ms=end_ms).member: max(
            now_ms, end_ms + _AFTER_A_RENEWAL_MS
        )
        for end_ms in ends
    }
    closes = CloseQueue(store, (await store.admin()).for_delivery())
    await closes.note(shard, found, sooner=True)


class CloseQueue:
    """Queue of the closes to confirm, in a sorted set of each shard.

    Each method except :meth:`note_sealed` raises :class:`~meterkit.errors.StoreError` if the store does not
    answer.
    """

    def __init__(self, store: Store, admin: Admin) -> None:
        self._store = store
        self._admin = admin

    async def note_sealed(self, shard: int, views: Iterable[CustomerView]) -> None:
        """Queue the closes of periods whose usage is being sealed; a failure does not stop delivery."""
        try:
            await self.note(shard, ends_to_close(views, self._store.now_ms()))
        except StoreError as error:
            self._admin.warn_once(f"ends of billing periods cannot be stored, and are not confirmed: {error}")

    async def note(self, shard: int, ends: dict[str, int], *, sooner: bool = False) -> None:
        """Queue closes with their first checks. A queued close keeps its time, or is checked ``sooner``."""
        if not ends:
            return
        key = self._store.keys.shard(shard, "closes")
        pipe = self._admin.client.pipeline(transaction=False)
        pipe.zadd(key, ends, nx=not sooner, lt=sooner)
        pipe.pexpire(key, _KEPT_MS)
        await self._admin.ask(pipe.execute())

    async def due(self) -> AsyncGenerator[PeriodClose]:
        """Yield the due closes; each must be postponed or forgotten. Damaged ones are removed."""
        now_ms = self._store.now_ms()
        for shard, _ in await count_members(self._store, self._admin, ("closes",), limit=now_ms):
            key = self._store.keys.shard(shard, "closes")
            while True:
                members: list[bytes] = await self._admin.ask(
                    self._admin.client.zrangebyscore(key, "-inf", now_ms, start=0, num=_PAGE)
                )
                closes, damaged = self._read_closes(shard, members)
                if damaged:
                    await self._admin.ask(self._admin.client.zrem(key, *damaged))
                for close in closes:
                    yield close
                if len(members) < _PAGE:
                    break

    def _read_closes(self, shard: int, members: Iterable[bytes]) -> tuple[list[PeriodClose], list[bytes]]:
        """Parse members of the queue; also return the damaged ones, which are logged once."""
        closes, damaged = list[PeriodClose](), list[bytes]()
        for member in members:
            try:
                closes.append(PeriodClose.read(shard, member))
            except ValueError:
                damaged.append(member)
                self._admin.warn_once(
                    f"a close of a billing period in shard {shard} cannot be read and is skipped; all others"
                    f" are confirmed: {member!r:.80}"
                )
        return closes, damaged

    async def postpone(self, close: PeriodClose, at_ms: int) -> None:
        """Schedule the next check of a close."""
        key = self._store.keys.shard(close.shard, "closes")
        await self._admin.ask(self._admin.client.zadd(key, {close.member: at_ms}))

    async def mark_unconfirmed(self, close: PeriodClose) -> bool:
        """Record that a close is not confirmed in time; whether this is the first alert of it."""
        key = self._store.keys.shard(close.shard, "unclosed")
        pipe = self._admin.client.pipeline(transaction=False)
        pipe.zadd(key, {close.member: close.end_ms}, nx=True)
        pipe.pexpire(key, _KEPT_MS)
        added, _ = await self._admin.ask(pipe.execute())
        return bool(added)

    async def forget(self, close: PeriodClose) -> bool:
        """Remove a close; whether an alert had named it."""
        keys = [self._store.keys.shard(close.shard, name) for name in ("closes", "unclosed")]
        _, was_unconfirmed = await self._admin.ask_all(("zrem", key, close.member) for key in keys)
        return bool(was_unconfirmed)

    async def unconfirmed(self, *, most: int) -> list[PeriodClose]:
        """List closes that were not confirmed in time and still are not, oldest first."""
        found: list[PeriodClose] = []
        for shard, _ in await count_members(self._store, self._admin, ("unclosed",), limit="+inf"):
            key = self._store.keys.shard(shard, "unclosed")
            members: list[Any] = await self._admin.ask(self._admin.client.zrange(key, 0, most - 1))
            found += self._read_closes(shard, members)[0]
        return sorted(found, key=lambda close: close.end_ms)[:most]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceEnd:
    """End of a period's invoice: the instant until which it takes usage.

    Attributes:
        held_ms: until when Stripe keeps the draft; 0: not known.
        final_ms: when it became final; 0: not known.
        is_ours: whether only meterkit finalizes it.
        is_void: whether a pause of collection has voided it: no usage of the period is paid for.
    """

    held_ms: int = 0
    final_ms: int = 0
    is_ours: bool = False
    is_void: bool = False


async def store_invoice_end(store: Store, customer: str, period_ms: int, end: InvoiceEnd) -> bool:
    """Store the end of a period's invoice; whether this is the first time that it is final.

    Raises:
        StoreError: the store does not answer.
    """
    totals, admin = store.keys.customer(customer).totals, (await store.admin()).for_delivery()
    ends = {"h": end.held_ms, "f": end.final_ms, "v": int(end.is_void)}
    fields: Mapping[str, int] = {f"{period_ms}|{name}": at_ms for name, at_ms in ends.items() if at_ms}
    if not fields:
        return False
    pipe = admin.client.pipeline(transaction=False)
    pipe.hget(totals, f"{period_ms}|f")
    pipe.hset(totals, mapping=fields)
    pipe.pexpire(totals, _ENDS_KEPT_MS)
    known, *_ = await admin.ask(pipe.execute())
    return bool(end.final_ms) and known is None


async def read_invoice_end(store: Store, customer: str, period_ms: int) -> InvoiceEnd:
    """Read the stored end of a period's invoice.

    Raises:
        StoreError: the store does not answer.
    """
    totals, admin = store.keys.customer(customer).totals, (await store.admin()).for_delivery()
    found = await admin.ask(admin.client.hmget(totals, [f"{period_ms}|h", f"{period_ms}|f"]))
    held_ms, final_ms = map(_parse_int, found)
    return InvoiceEnd(held_ms=held_ms, final_ms=final_ms)


async def find_too_late(store: Store, shard: int, asked: Iterable[SealedIntent]) -> set[str]:
    """Find the intents of a shard whose invoices are final; return their identifiers.

    Raises:
        StoreError: the store does not answer.
    """
    now_ms, keys = store.now_ms(), store.keys
    old: dict[tuple[str, str, str, int], list[SealedIntent]] = {}
    for one in asked:
        if now_ms - one.timestamp * 1000 > _YOUNG_MS:
            old.setdefault((one.customer, one.stripe_customer, one.period, one.timestamp), []).append(one)
    if not old:
        return set()
    admin = await (await store.admin()).for_delivery().at(keys.shard(shard, "intents"))
    commands: list[tuple[Any, ...]] = []
    for customer, _, period, _ in old:
        commands.append(("hget", keys.customer(customer).state, "data"))
        commands.append(("hmget", keys.customer(customer).totals, [f"{period}|{letter}" for letter in "fhe"]))
    replies = await admin.ask_each(commands)
    late = set[str]()
    for same, data, ends in zip(old.values(), replies[::2], replies[1::2], strict=True):
        if isinstance(data, Exception) or isinstance(ends, Exception):
            continue  # Damaged keys of one customer delay no other.
        final, held, ended = ends
        end = InvoiceEnd(held_ms=_parse_int(held), final_ms=_parse_int(final))
        if _is_too_late(same[0], data or b"", end, now_ms, is_closed=ended is not None):
            late.update(one.identifier for one in same)
    return late


def _is_too_late(one: SealedIntent, data: bytes, end: InvoiceEnd, now_ms: int, *, is_closed: bool) -> bool:
    """Whether the invoice of an intent is final; false if none is known, or the state is unreadable."""
    minute_ms = one.timestamp * 1000
    try:
        state = CustomerState.parse(data)
        renewals = renewals_of(state.subscription, now_ms, state.terms)
    except (ValueError, TypeError, AttributeError, MeterkitError):
        return False
    # A customer linked to another Stripe customer before has unknown invoices there.
    if state.stripe_customer != one.stripe_customer:
        return False
    if renewals is not None and minute_ms >= renewals.latest_ms:
        return False  # The next invoice takes it, in whichever period it was recorded.
    made_ms = None if renewals is None else renewals.invoiced_ms(minute_ms, minute_ms)
    if made_ms is None and not is_closed:
        return False  # The sync that ends the period has not closed it yet.
    return is_final(made_ms, final_ms=end.final_ms, held_ms=end.held_ms, now_ms=now_ms)


def _parse_int(kept: bytes | None) -> int:
    return int(kept) if kept is not None and kept.isdigit() else 0


def finalized_ms(invoice: Mapping[str, Any]) -> int:
    """Instant at which an invoice became final (ms); 0: it is a draft."""
    moves: Mapping[str, Any] = invoice.get("status_transitions") or {}
    if invoice.get("status") == "draft":
        return 0
    # An invoice that was marked uncollectible as a draft was never finalized.
    at_s = moves.get("finalized_at") or moves.get("marked_uncollectible_at") or moves.get("voided_at")
    return int(at_s or invoice.get("created") or 0) * 1000
