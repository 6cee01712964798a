"""Draft hold: a renewal invoice stays a draft until Stripe has counted the usage of its period.

It sets the time at which Stripe finalizes the draft by itself, and leaves automatic collection on: a process
that dies delays an invoice, and never strands one (https://docs.stripe.com/invoicing/scheduled-finalization).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.delivery.invoices import MADE_WITHIN_MS
from meterkit.outbox.invoice_ends import InvoiceEnd, finalized_ms
from meterkit.stripe.request import ENDED_HERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.delivery.invoices import PeriodBilling
    from meterkit.stripe.api import StripeApi

HELD: Final = "meterkit_own_finalization"
"""Key in a held invoice's metadata: when Stripe would have finalized it (Unix seconds)."""

_AT: Final = "automatically_finalizes_at"
_SOON_S: Final = 60
_HOUR_S: Final = 3_600


class DraftHold:
    """Holds and releases renewal invoices.

    Each step is idempotent: the invoice itself shows what was done.

    Args:
        api: the way to Stripe.
        hold_invoice_ms: longest hold of a draft after the period's end.
        now_ms: the clock.
    """

    def __init__(self, api: StripeApi, *, hold_invoice_ms: int, now_ms: int) -> None:
        self._api = api
        self._hold_s = hold_invoice_ms // 1000
        self._now_s = now_ms // 1000

    async def settle(
        self,
        invoices: Iterable[Mapping[str, Any]],
        billing: PeriodBilling,
        *,
        is_counted: bool,
    ) -> InvoiceEnd | None:
        """Hold, release or finalize the invoice of a renewal.

        Args:
            invoices: of the customer, as Stripe shows them.
            billing: of the period.
            is_counted: whether Stripe has counted all usage of the period.

        Returns:
            Until when the invoice takes usage, as Stripe says; None: there is no such invoice yet.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        end_s, found = billing.made_ms // 1000, billing.renewals_in(invoices)
        drafts = [one for one in found if one.get("status") == "draft"]
        if not drafts:
            if billing.is_last and not found and self._now_s >= end_s + MADE_WITHIN_MS // 1000:
                return InvoiceEnd(
                    final_ms=billing.made_ms
                )  # Stripe ended the subscription without a last invoice.
            finals = [at_ms for one in found if (at_ms := finalized_ms(one))]
            return InvoiceEnd(final_ms=max(finals)) if finals else None
        found_end: InvoiceEnd | None = None
        for draft in drafts:
            if draft.get("auto_advance") is not True or draft.get(_AT) is None:
                # Stripe does not finalize such a draft, for example of an unpaid subscription.
                if not (billing.is_last and await self._is_ended_here(billing.subscription)):
                    return None
                end = await self._finalize_last(draft, end_s, is_counted=is_counted)
            else:
                end = await (self._release(draft) if is_counted else self._extend_hold(draft, end_s))
            if end.final_ms:
                return end
            found_end = end if found_end is None or end.held_ms > found_end.held_ms else found_end
        return found_end

    async def _extend_hold(self, draft: Mapping[str, Any], end_s: int) -> InvoiceEnd:
        """Postpone the finalization, unless it is late enough already."""
        at_s, until_s = int(draft[_AT]), end_s + self._hold_s
        if until_s <= max(at_s, self._now_s + _SOON_S):
            return InvoiceEnd(held_ms=at_s * 1000)
        default_s = _default_finalization_s(draft) or at_s
        return await self._schedule_finalization(draft, until_s, str(default_s))

    async def _release(self, draft: Mapping[str, Any]) -> InvoiceEnd:
        """Restore Stripe's own time of finalization; if that has passed, finalize the invoice."""
        default_s = _default_finalization_s(draft)
        if not default_s:
            return InvoiceEnd(held_ms=int(draft[_AT]) * 1000)
        if default_s > self._now_s + _SOON_S:
            return await self._schedule_finalization(draft, default_s, "")
        return await self._finalize(draft)

    async def _finalize_last(self, draft: Mapping[str, Any], end_s: int, *, is_counted: bool) -> InvoiceEnd:
        """Finalize and collect the last invoice of a subscription, which Stripe may leave a draft."""
        made_s = int(draft.get("created") or end_s)
        until_s = max(made_s + _HOUR_S, end_s + self._hold_s)
        if self._now_s < (made_s + _HOUR_S if is_counted else until_s):
            return InvoiceEnd(held_ms=until_s * 1000, is_ours=True)
        return await self._finalize(draft)

    async def _is_ended_here(self, subscription: str) -> bool:
        """Whether meterkit ended a subscription, and not an operator: then it asked for a last invoice."""
        found = await self._api.get(f"/v1/subscriptions/{subscription}")
        details: Mapping[str, Any] = found.get("cancellation_details") or {}
        return details.get("comment") == ENDED_HERE

    async def _finalize(self, draft: Mapping[str, Any]) -> InvoiceEnd:
        done = await self._api.post(
            f"/v1/invoices/{draft['id']}/finalize",
            {"auto_advance": True},
            idempotency_key=f"meterkit-finalize-{draft['id']}",
        )
        return InvoiceEnd(final_ms=finalized_ms(done))

    async def _schedule_finalization(self, draft: Mapping[str, Any], at_s: int, held: str) -> InvoiceEnd:
        """Set the time at which Stripe finalizes a draft; its response gives the end."""
        # Stripe remembers a key for a day: meanwhile, a draft may be held, released and held again.
        key = f"meterkit-hold-{draft['id']}-{draft[_AT]}-{at_s}-{self._now_s // _SOON_S}"
        done = await self._api.post(
            f"/v1/invoices/{draft['id']}", {_AT: at_s, "metadata": {HELD: held}}, idempotency_key=key
        )
        return InvoiceEnd(held_ms=int(done.get(_AT) or 0) * 1000, final_ms=finalized_ms(done))


def _default_finalization_s(draft: Mapping[str, Any]) -> int:
    """Read when Stripe would have finalized a held draft by itself (Unix seconds); 0: it is not held."""
    metadata: Mapping[str, str] = draft.get("metadata") or {}
    at_s = metadata.get(HELD, "")
    return int(at_s) if at_s.isdigit() else 0
