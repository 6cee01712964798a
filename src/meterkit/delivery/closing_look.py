"""One look at closes: what Stripe has counted and invoiced of a period, and what is done with its draft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.periods import from_ms, to_ms
from meterkit.delivery.draft_hold import DraftHold
from meterkit.delivery.invoicing import invoicing_of
from meterkit.delivery.late_usage import count_uninvoiced
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import StripeError, StripeUnavailableError
from meterkit.store.period_ends import InvoiceEnd, keep_invoice_end
from meterkit.store.state_changes import States

if TYPE_CHECKING:
    from meterkit.delivery.invoicing import Invoicing
    from meterkit.delivery.reconciling import Reconciled, Reconciler
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["ClosingLook"]


class ClosingLook:
    """Looks at closes one after the other; what Stripe does not answer once is not asked for again.

    Args:
        store: where usage is counted.
        api: the way to Stripe.
        reconciler: compares our books with Stripe's.
    """

    def __init__(self, store: Store, api: StripeApi, reconciler: Reconciler) -> None:
        self._store = store
        self._api = api
        self._reconciler = reconciler
        self._summaries: StripeSummaries | None = None
        self._invoices = reconciler.invoices()
        self._silent = self._holds_silent = ""

    async def why_open(self, usage: CustomerUsage) -> tuple[str, bool]:
        """Hold or release the draft of a period that is over; why its close is not confirmed, empty: it is.

        The second value says that it may wait: its invoice is a draft that has yet to be brought up to date.

        Raises:
            StoreError: the store does not answer.
        """
        found = await self._compared(usage)
        if found == []:
            return "", False
        is_counted = found is not None and all(map(_is_counted, found))
        try:
            end, invoicing = await self._settled(usage, is_counted=is_counted)
            unsettled = ""
        except StripeError as error:
            end, invoicing, unsettled = None, None, f"its invoice is neither held nor released: {error}"
            if isinstance(error, StripeUnavailableError):
                self._holds_silent = str(error)
        held = "" if end is None or is_counted else _held_in_words(end, self._store.now_ms())
        if found is None:
            return f"{self._silent}{held}", False
        is_final = end is not None and bool(end.final_ms)
        prices = {}
        if invoicing is not None:
            prices = {one.meter: invoicing.price_of(one.meter, self._store.catalog) for one in found}
        if is_final and is_counted and await count_uninvoiced(self._store, usage, found, prices=prices):
            (usage,) = await self._store.usage_of_many(
                [usage["customer"]], at_ms=to_ms(usage["period"]["start"]), former=True
            )
            found = await self._compared(usage) or []
        whys = [why for one in found if (why := _why_meter_is_open(one))]
        may_wait = is_counted and all(one.agrees or one.invoice in {"draft", "none"} for one in found)
        if end is not None and end.is_ours and not whys:
            return "its invoice is to be finalized", True
        whys += [unsettled] * bool(unsettled)
        return f"{'; '.join(whys)}{held}" if whys else "", may_wait and not is_final and not unsettled

    async def _compared(self, usage: CustomerUsage) -> list[Reconciled] | None:
        """Our books and Stripe's; None: Stripe does not say."""
        if self._silent:
            return None
        try:
            if self._summaries is None:
                summaries = StripeSummaries(self._api)
                await summaries.refresh()
                self._summaries = summaries
            return await self._reconciler.of_customer(usage, self._summaries, self._invoices)
        except StripeError as error:
            self._silent = f"Stripe does not say what it has counted: {error}"
            return None

    async def _settled(
        self, usage: CustomerUsage, *, is_counted: bool
    ) -> tuple[InvoiceEnd | None, Invoicing | None]:
        """Do what is due with the invoice of the period, and remember until when it takes up usage.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        _, state = await States(self._store).read(usage["customer"])
        invoicing = await invoicing_of(self._store, self._api, usage, state)
        if state.stripe_customer is None or invoicing is None:
            return None, None
        if self._holds_silent:
            raise StripeUnavailableError(self._holds_silent)
        hold_ms = self._store.catalog.billing.hold_invoice_ms
        hold = DraftHold(self._api, hold_invoice_ms=hold_ms, now_ms=self._store.now_ms())
        start_ms = to_ms(usage["period"]["start"])
        invoices = await self._invoices.of(state.stripe_customer, start_ms // 1000)
        end = await hold.settle(
            invoices,
            invoicing.subscription,
            invoicing.made_ms,
            is_counted=is_counted,
            is_last=invoicing.is_last,
        )
        if end is not None:
            await keep_invoice_end(self._store, usage["customer"], start_ms, end)
        return end, invoicing


def _is_counted(one: Reconciled) -> bool:
    """Whether Stripe has counted all of a meter's usage in the period."""
    is_sent = not (one.waiting or one.parked or one.taking_back)
    return is_sent and (one.difference is None or one.difference >= 0)


def _held_in_words(end: InvoiceEnd, now_ms: int) -> str:
    if end.held_ms <= now_ms:
        return ""
    return f" (its invoice stays a draft until {from_ms(end.held_ms):%Y-%m-%d %H:%M} UTC)"


def _why_meter_is_open(one: Reconciled) -> str:
    """Why the close of a meter's period is not confirmed; empty: it is."""
    if one.waiting or one.parked or one.taking_back:
        left = one.waiting + one.parked + 2 * one.taking_back
        back = f", less {one.taking_back} that take units back" * bool(one.taking_back)
        return f"{left} of {one.meter} are not delivered ({one.waiting} wait, {one.parked} parked{back})"
    return "" if one.agrees else f"{one.meter}: {one.advice}"
