"""Invoice ends: the instant until which the invoice of a billing period takes usage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.subscription_periods import is_final, renewals_of
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.outbox.intents import SealedIntent
    from meterkit.store.store import Store

RENEWAL: Final = "subscription_cycle"
"""The ``billing_reason`` of an invoice that a renewal has made."""
STAMPED_AHEAD_MS: Final = 6 * 60_000
"""Largest distance of a shortened period's end from its end at Stripe; see ``close_period.lua``."""
_ENDS_KEPT_MS: Final = 400 * 86_400_000
_YOUNG_MS: Final = 120_000
"""Usage is mostly sent in the minute of its timestamp: usage younger than this is not checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceEnd:
    """End of a period's invoice: the instant until which it takes usage.

    Attributes:
        held_ms: until when Stripe keeps the draft; 0: not known.
        final_ms: when it became final; 0: not known.
        is_ours: whether only meterkit finalizes it.
    """

    held_ms: int = 0
    final_ms: int = 0
    is_ours: bool = False


async def store_invoice_end(store: Store, customer: str, period_ms: int, end: InvoiceEnd) -> bool:
    """Store the end of a period's invoice; whether this is the first time that it is final.

    Raises:
        StoreError: the store does not answer.
    """
    totals, admin = store.keys.customer(customer).totals, (await store.admin()).for_delivery()
    ends = {"h": end.held_ms, "f": end.final_ms}
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
    pipe = admin.client.pipeline(transaction=False)
    for customer, _, period, _ in old:
        customer_keys = keys.customer(customer)
        pipe.hget(customer_keys.state, "data")
        pipe.hmget(customer_keys.totals, [f"{period}|f", f"{period}|h", f"{period}|e"])
    replies = await admin.ask_each(pipe)
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
        renewals = renewals_of(state.subscription, now_ms)
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
