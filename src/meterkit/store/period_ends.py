"""Known ends of invoices: until when the invoice of a billing period is a draft, and since when final."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.finality import is_final, renewals_of
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.store.store import Store

__all__ = ["InvoiceEnd", "Stamped", "keep_invoice_end", "too_late"]

_KEPT_MS: Final = 400 * 86_400_000
_YOUNG_MS: Final = 120_000
"""Usage is mostly sent in the minute that it is stamped with: nothing is asked of what is so young."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """Usage that is to be sent.

    Attributes:
        period: the first instant of its period (ms), as text.
        minute_ms: what it is stamped with.
    """

    customer: str
    stripe_customer: str
    period: str
    minute_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceEnd:
    """Until when the invoice of a period takes up usage.

    Attributes:
        held_ms: until when Stripe keeps the draft, by its word; 0: not known.
        final_ms: when it became final; 0: not known.
        is_ours: whether nothing finalizes it but us.
    """

    held_ms: int = 0
    final_ms: int = 0
    is_ours: bool = False


async def keep_invoice_end(store: Store, customer: str, period_ms: int, end: InvoiceEnd) -> None:
    """Remember what Stripe has said of the invoice of a customer's period.

    Raises:
        StoreError: the store does not answer.
    """
    totals, admin = store.keys.customer(customer).totals, (await store.admin()).for_delivery()
    told = {"h": end.held_ms, "f": end.final_ms}
    fields: Mapping[str, int] = {f"{period_ms}|{name}": at_ms for name, at_ms in told.items() if at_ms}
    if fields:
        pipe = admin.client.pipeline(transaction=False)
        pipe.hset(totals, mapping=fields)
        pipe.pexpire(totals, _KEPT_MS)
        await admin.ask(pipe.execute())


async def too_late(store: Store, shard: int, asked: Iterable[Stamped]) -> set[Stamped]:
    """Of usage of one shard, what its own invoice can no longer have.

    Raises:
        StoreError: the store does not answer.
    """
    now_ms, keys = store.now_ms(), store.keys
    old = [one for one in dict.fromkeys(asked) if now_ms - one.minute_ms > _YOUNG_MS]
    if not old:
        return set()
    admin = await (await store.admin()).for_delivery().at(keys.shard(shard, "intents"))
    pipe = admin.client.pipeline(transaction=False)
    for one in old:
        own = keys.customer(one.customer)
        pipe.hget(own.state, "data")
        pipe.hmget(own.totals, [f"{one.period}|f", f"{one.period}|h"])
    found = iter(await admin.ask(pipe.execute()))
    late: set[Stamped] = set()
    for one, data, (final, held) in zip(old, found, found, strict=False):
        made_ms = _invoiced_ms(one, data or b"", now_ms)
        if made_ms is not None and is_final(
            made_ms, final_ms=_whole(final), held_ms=_whole(held), now_ms=now_ms
        ):
            late.add(one)
    return late


def _invoiced_ms(one: Stamped, data: bytes, now_ms: int) -> int | None:
    """When Stripe made the invoice of a minute; None: none is known, as of a state that cannot be read."""
    try:
        state = CustomerState.parse(data)
        renewals = renewals_of(state.subscription, now_ms)
    except (ValueError, TypeError, AttributeError, MeterkitError):
        return None
    # A customer who was linked to another Stripe customer before has invoices there that we do not know.
    if renewals is None or state.stripe_customer != one.stripe_customer:
        return None
    return renewals.invoiced_ms(one.minute_ms, one.minute_ms)


def _whole(kept: bytes | None) -> int:
    return int(kept) if kept is not None and kept.isdigit() else 0
