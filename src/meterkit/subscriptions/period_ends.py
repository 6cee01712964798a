"""Ends of billing periods at Stripe, and until when the invoice of each takes usage. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.subscription import ENDED
from meterkit.decisions.subscription_periods import is_cut_short
from meterkit.outbox.invoice_ends import RENEWAL, InvoiceEnd, finalized_ms
from meterkit.subscriptions.stripe_objects import items_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.decisions.subscription import SubscriptionState

_SECOND_MS: Final = 1_000


class PeriodEnd(NamedTuple):
    """The end of a billing period at Stripe.

    Attributes:
        at_ms: first instant after the period.
        invoice: until when its invoice takes usage.
    """

    at_ms: int
    invoice: InvoiceEnd


def usage_period(items: Iterable[Mapping[str, Any]], end_ms: int) -> dict[str, Any]:
    """Read the current period of the metered items, the shortest of theirs.

    Args:
        items: of a subscription, as Stripe shows them.
        end_ms: when the period of the base price ends.

    Returns:
        Fields of the stored subscription; empty: it ends with the base price's.
    """
    periods: list[tuple[int, int]] = []
    for item in items:
        edges = [item.get(f"current_period_{edge}") for edge in ("end", "start")]
        if part_of(part_of(item, "price"), "recurring").get("meter") and all(edges):
            usage_end_s, start_s = map(int, filter(None, edges))
            periods.append((usage_end_s * _SECOND_MS, start_s * _SECOND_MS))
    usage_end_ms, start_ms = min(periods, default=(end_ms, 0))
    return {} if usage_end_ms == end_ms else {"usage_start_ms": start_ms, "usage_end_ms": usage_end_ms}


def voided_span(found: Mapping[str, Any], start_ms: int, end_ms: int) -> dict[str, Any]:
    """From when to when its invoices are voided, where its collection is paused so; empty: they are not.

    Usage invoiced before the pause stays paid: so from the current period on if its invoice is void, else
    from the next one on (https://docs.stripe.com/billing/subscriptions/pause-payment).
    """
    paused = part_of(found, "pause_collection")
    if text_in(paused, "behavior") != "void":
        return {}
    latest = part_of(found, "latest_invoice")
    # A draft that is not to be finalised is one that is about to be voided.
    is_stopped = text_in(latest, "status") == "draft" and latest.get("auto_advance") is False
    is_unpaid = is_stopped or text_in(latest, "status") == "void"
    resumes_s = paused.get("resumes_at")
    resumes_ms = None if resumes_s is None else int(resumes_s) * _SECOND_MS
    return {"void_from_ms": start_ms if is_unpaid else end_ms, "void_until_ms": resumes_ms}


def period_ends(
    found: Sequence[Mapping[str, Any]], before: SubscriptionState | None, after: SubscriptionState | None
) -> list[PeriodEnd]:
    """The latest ends of periods whose invoices are known, or are certainly not to come.

    A renewal makes a draft that takes usage. A period that others ended has its invoice at once, or none: a
    cycle begun anew, a trial of a paid subscription, a subscription canceled or paused amid its period.

    Args:
        found: all subscriptions of a Stripe customer, with ``latest_invoice`` expanded.
        before: the customer's subscription as it was known until now.
        after: the one that counts now.
    """
    ends: dict[int, InvoiceEnd] = {}
    ids = {one.id for one in (before, after) if one is not None}
    for shown in found:
        if shown.get("id") not in ids:
            continue
        if before is not None and shown["id"] == before.id and (at_ms := _cut_ms(shown, before, after)):
            ends[at_ms] = InvoiceEnd(final_ms=at_ms)
        renewal = _renewal_of(shown)
        if renewal is not None:
            ends[renewal.at_ms] = renewal.invoice
    return [PeriodEnd(at_ms, invoice) for at_ms, invoice in sorted(ends.items())]


def _cut_ms(shown: Mapping[str, Any], before: SubscriptionState, after: SubscriptionState | None) -> int:
    """The instant at which a period of the known subscription was cut short; 0: it was not."""
    at_ms = last_edge_ms(shown, before, after)
    return at_ms if at_ms and is_cut_short(before, at_ms) else 0


def last_edge_ms(shown: Mapping[str, Any], before: SubscriptionState, after: SubscriptionState | None) -> int:
    """The end of the known subscription, or the beginning of its present period; 0: not known."""
    if shown.get("status") in ENDED:
        return int(shown.get("ended_at") or 0) * _SECOND_MS
    if after is None or after.id != before.id:
        return 0
    start_ms, end_ms = after.usage_period
    return end_ms if after.status == "paused" else start_ms


def _renewal_of(shown: Mapping[str, Any]) -> PeriodEnd | None:
    """The end of the period whose usage the latest invoice bills; None: it bills no period, or a trial."""
    invoice = part_of(shown, "latest_invoice")
    at_s = invoice.get("period_end")
    if text_in(invoice, "billing_reason") != RENEWAL or not isinstance(at_s, int):
        return None
    if int(shown.get("trial_start") or 0) < at_s <= int(shown.get("trial_end") or 0):
        return None
    held_s = invoice.get("automatically_finalizes_at") if invoice.get("auto_advance") is True else None
    if (
        finalized_ms(invoice) == 0
        and invoice.get("auto_advance") is False
        and shown.get("status") not in ENDED
    ):
        # A draft that waits for a person. After the next renewal no sync of the subscription shows it.
        held_s = min((int(item.get("current_period_end") or 0) for item in items_in(shown)), default=0)
    end = InvoiceEnd(held_ms=int(held_s or 0) * _SECOND_MS, final_ms=finalized_ms(invoice))
    return PeriodEnd(at_s * _SECOND_MS, end)
