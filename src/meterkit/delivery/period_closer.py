"""Close of billing periods: confirm that Stripe has counted all usage, or alert while the invoice is open.

It sets the time at which Stripe finalizes the draft by itself, and leaves automatic collection on: a process
that dies delays an invoice, and never strands one (https://docs.stripe.com/invoicing/scheduled-finalization).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.customers.billed_usage import UninvoicedUnits, read_uninvoiced, record_uninvoiced
from meterkit.customers.history import read_last_link
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import line_switches
from meterkit.decisions.periods import from_ms, iso, to_ms
from meterkit.decisions.subscription import ENDED
from meterkit.delivery.audit_root import RootWriter
from meterkit.delivery.invoices import MADE_WITHIN_MS, read_period_billing
from meterkit.delivery.pending_lines import bill_pending_lines
from meterkit.delivery.reconciler import Reconciler
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import StoreError, StripeError, StripeUnavailableError
from meterkit.outbox.close_queue import (
    CLOSE_AFTER_MS,
    CloseQueue,
    InvoiceEnd,
    PeriodClose,
    finalized_ms,
    read_invoice_end,
    store_invoice_end,
)
from meterkit.outbox.meters_or_lines import is_usage_invoice
from meterkit.store.task_lease import TaskLease
from meterkit.store.unreadable_data import damage_of, is_of_the_store
from meterkit.stripe.idempotency_keys import key_of
from meterkit.stripe.request import ENDED_HERE, KEY_REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.delivery.audit_root import RootOf
    from meterkit.delivery.invoices import PeriodBilling
    from meterkit.delivery.reconciler import Reconciled
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_logger = logging.getLogger("meterkit.delivery")
_jitter = SystemRandom().uniform
# https://docs.stripe.com/billing/subscriptions/usage-based/meters/configure: an invoice stays a draft for an
# hour by default; usage that comes later is never billed. A quarter of it is left to the operator.
_IN_TIME_MS: Final = 45 * 60_000
_EVERY_S: Final = 60.0
_AGAIN_MS: Final = 5 * 60_000
_LATER_MS: Final = 3_600_000
_GIVEN_UP_MS: Final = 36 * 86_400_000
_LEASE_MS: Final = 60_000
_NAMED_MAX: Final = 5
_FAILURES_MOST: Final = 3
_WAITING: Final = "pending invoice items have usage that waits for an invoice"
_NO_INVOICE: Final = (
    "; their subscription has ended, and they get no invoice of their own: {why}. Make one of the customer's"
    " pending items in the Dashboard"
)
HELD: Final = "meterkit_own_finalization"
"""Key in a held invoice's metadata: when Stripe would have finalized it (Unix seconds)."""

_AT: Final = "automatically_finalizes_at"
_SOON_S: Final = 60
_HOUR_S: Final = 3_600


@dataclass(slots=True)
class _Failures:
    """Failures of a pass. That of one customer delays no other; after some in a row the others wait, too.

    Attributes:
        why: the reason of the latest; empty: there was none since.
        in_a_row: for how many customers in a row.
    """

    why: str = ""
    in_a_row: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the others wait."""
        return self.in_a_row >= _FAILURES_MOST

    def add(self, why: str, *, number: int = 1) -> None:
        """Add a failure that counts as this number."""
        self.why, self.in_a_row = why, self.in_a_row + number

    def forget(self) -> None:
        """Forget all: it has succeeded."""
        self.why, self.in_a_row = "", 0


class CloseChecker:
    """Checks closes one by one. If Stripe does not answer for some in a row, it is not asked for the others.

    Args:
        store: counts the usage.
        api: the way to Stripe.
        reconciler: compares our books with Stripe's.
        roots: writes the root of the audit log into invoices; None: there is no audit log.
    """

    def __init__(
        self, store: Store, api: StripeApi, reconciler: Reconciler, roots: RootWriter | None = None
    ) -> None:
        self._store = store
        self._api = api
        self._reconciler = reconciler
        self._roots = roots
        self._summaries: StripeSummaries | None = None
        self._invoices = reconciler.invoices()
        self._comparing, self._holding, self._marking = _Failures(), _Failures(), _Failures()

    async def explain_open(self, usage: CustomerUsage) -> tuple[str, bool]:
        """Hold or release the draft of an ended period; explain why its close is open (empty: it is not).

        The second value says that the close may wait without an alert: Stripe has yet to update its draft.

        Raises:
            StoreError: the store does not answer.
        """
        found = await self._compare(usage)
        unbilled = await self._bill_pending_lines(usage["customer"], found)
        if found == []:
            await self._write_root_unreported(usage)
            return ("", False) if unbilled is None else _describe_unbilled(_WAITING, unbilled)
        is_counted = found is not None and all(map(_is_counted, found))
        try:
            end, invoicing = await self._settle_invoice(usage, is_counted=is_counted)
            unsettled = ""
            self._holding.forget()
        except StripeError as error:
            end, invoicing, unsettled = None, None, f"its invoice is neither held nor released: {error}"
            if isinstance(error, StripeUnavailableError):
                self._holding.add(str(error))
        held = "" if end is None or is_counted else _describe_hold(end, self._store.now_ms())
        if found is None:
            return f"{self._comparing.why}{held}", False
        is_final = end is not None and bool(end.final_ms)
        prices = {}
        if invoicing is not None:
            prices = {one.meter: invoicing.price_of(one.meter, self._store.catalog) for one in found}
        if is_final and is_counted and await count_uninvoiced(self._store, usage, found, prices=prices):
            (usage,) = await self._store.usage_of_many(
                [usage["customer"]], at_ms=to_ms(usage["period"]["start"]), former=True
            )
            found = await self._compare(usage) or []
        whys = [why for one in found if (why := _explain_meter(one))]
        may_wait = is_counted and all(one.agrees or one.invoice in {"draft", "none"} for one in found)
        waiting = _describe_pending(found) or _WAITING * (unbilled is not None)
        if waiting and not whys:
            return _describe_unbilled(waiting, unbilled or "")
        if end is not None and end.is_ours and not whys:
            return "its invoice is to be finalized", True
        whys += [unsettled] * bool(unsettled)
        return f"{'; '.join(whys)}{held}" if whys else "", may_wait and not is_final and not unsettled

    async def _compare(self, usage: CustomerUsage) -> list[Reconciled] | None:
        """Compare our books with Stripe's; None: Stripe does not answer."""
        if self._comparing.is_over:
            return None
        try:
            if self._summaries is None:
                self._summaries = StripeSummaries(self._api)
            found = await self._reconciler.of_customer(
                usage, self._summaries, self._invoices, is_closing=True
            )
        except StripeError as error:
            why = f"Stripe does not say what it has counted: {error}"
            self._comparing.add(why, number=_count_failures(error))
            return None
        self._comparing.forget()
        return found

    async def _settle_invoice(
        self, usage: CustomerUsage, *, is_counted: bool
    ) -> tuple[InvoiceEnd | None, PeriodBilling | None]:
        """Hold, release or finalize the invoice of the period, and store its end.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        _, state = await CustomerStates(self._store).read(usage["customer"])
        invoicing = await read_period_billing(self._store, self._api, usage, state)
        linked = await self._read_linked(usage, state)
        if linked is not None and is_counted:
            await self._write_usage_root(usage, linked)
        if linked is None or invoicing is None:
            return None, None
        if self._holding.is_over:
            raise StripeUnavailableError(self._holding.why)
        hold_ms = self._store.catalog.billing.hold_invoice_ms
        hold = DraftHold(self._api, hold_invoice_ms=hold_ms, now_ms=self._store.now_ms())
        start_ms = to_ms(usage["period"]["start"])
        invoices = await self._invoices.made(linked, start_ms // 1000)
        if is_counted:
            await self._write_root(usage["customer"], invoicing.renewals_in(invoices))
        end = await hold.settle(invoices, invoicing, is_counted=is_counted)
        if end is None:
            known = await read_invoice_end(self._store, usage["customer"], start_ms)
            is_known = known.final_ms and not invoicing.is_last  # Stripe may yet make a last invoice.
            return (known if is_known else None), invoicing
        await store_invoice_end(self._store, usage["customer"], start_ms, end)
        return end, invoicing

    async def _read_linked(self, usage: CustomerUsage, state: CustomerState) -> str | None:
        """Read the Stripe customer whose invoice has the period; None: there is none."""
        span_s = [to_ms(usage["period"][edge]) // 1000 for edge in ("start", "end")]
        return await read_last_link(self._store, usage["customer"], state.stripe_customer, *span_s)

    async def _bill_pending_lines(self, customer: str, found: Sequence[Reconciled] | None) -> str | None:
        """Bill lines that wait for a subscription that has ended; see :func:`bill_pending_lines`."""
        _, state = await CustomerStates(self._store).read(customer)
        known = state.subscription
        by_lines = bool(line_switches(state, self._store.catalog))
        has_ended = by_lines and known is not None and known.status in ENDED
        is_pending = any(one.invoice == "pending" and not one.event_name for one in found or ())
        if found is None or not (has_ended or is_pending):
            return None
        try:
            return await bill_pending_lines(self._store, self._api, customer, state.stripe_customer)
        except StripeUnavailableError:
            return ""
        except StripeError as error:
            return f"Stripe refuses it: {error}"

    async def _write_root_unreported(self, usage: CustomerUsage) -> None:
        """Write the root into the invoice of a period whose usage does not go to Stripe."""
        if self._roots is None:
            return
        _, state = await CustomerStates(self._store).read(usage["customer"])
        try:
            invoicing = await read_period_billing(self._store, self._api, usage, state)
            linked = await self._read_linked(usage, state)
            if linked is not None and invoicing is not None:
                start_s = to_ms(usage["period"]["start"]) // 1000
                invoices = await self._invoices.made(linked, start_s)
                await self._write_root(usage["customer"], invoicing.renewals_in(invoices))
        except StripeError as error:
            _logger.warning(
                "an invoice of customer %r has no root of the audit log: %s", usage["customer"], error
            )

    async def _write_usage_root(self, usage: CustomerUsage, stripe_customer: str) -> None:
        """Write the root into the invoice that meterkit has made for a period without a subscription."""
        if self._roots is None or not self._store.catalog.billing.is_by_lines:
            return
        start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
        invoices = await self._invoices.made(stripe_customer, start_ms // 1000)
        await self._write_root(usage["customer"], [one for one in invoices if is_usage_invoice(one, end_ms)])

    async def _write_root(self, customer: str, invoices: Sequence[Mapping[str, Any]]) -> None:
        """Write the root of the audit log into invoices; after failures in a row, the others go without."""
        if self._roots is None or self._marking.is_over:
            return
        if await self._roots.mark(self._api, customer, invoices):
            self._marking.forget()
        else:
            self._marking.add("it could not be written")


def _count_failures(error: StripeError) -> int:
    """Number of failures that an error counts as: a refusal concerns its customer, and one of the key all."""
    if error.status in KEY_REFUSALS:
        return _FAILURES_MOST
    return int(isinstance(error, StripeUnavailableError))


def _is_counted(one: Reconciled) -> bool:
    """Whether Stripe has counted all of a meter's usage in the period."""
    is_sent = not (one.waiting or one.parked or one.taking_back)
    return is_sent and (one.difference is None or one.difference >= 0)


def _describe_hold(end: InvoiceEnd, now_ms: int) -> str:
    if end.held_ms <= now_ms:
        return ""
    return f" (its invoice stays a draft until {from_ms(end.held_ms):%Y-%m-%d %H:%M} UTC)"


def _describe_pending(found: Sequence[Reconciled]) -> str:
    """Describe units in pending items, which Stripe may drop when a paused subscription ends; empty: none."""
    parts = [f"{one.invoiced} of {one.meter}" for one in found if one.invoice == "pending"]
    return f"{_WAITING}: {', '.join(parts)}" * bool(parts)


def _describe_unbilled(waiting: str, why: str) -> tuple[str, bool]:
    """Explain why lines wait for an invoice, and whether the close may wait without an alert."""
    return (f"{waiting}{_NO_INVOICE.format(why=why)}", False) if why else (waiting, True)


def _explain_meter(one: Reconciled) -> str:
    """Explain why the close of a meter's period is open; empty: it is not."""
    if one.waiting or one.parked or one.taking_back:
        left = one.waiting + one.parked + 2 * one.taking_back
        back = f", less {one.taking_back} that take units back" * bool(one.taking_back)
        return f"{left} of {one.meter} are not delivered ({one.waiting} wait, {one.parked} parked{back})"
    return "" if one.agrees else f"{one.meter}: {one.advice}"


class CloseResults(NamedTuple):
    """Results of the due closes.

    Attributes:
        confirmed: number of closes that Stripe confirms.
        open: number of closes that still have time.
        late: closes not confirmed in time, with the reason; each is reported once.
    """

    confirmed: int
    open: int
    late: Sequence[str]


class PeriodCloser:
    """Confirms the closes of periods, in one process at a time: the one that holds the lease.

    Args:
        store: counts the usage.
        api: the way to Stripe.
        root_of: gives the root of a customer's audit log; None: there is none.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], root_of: RootOf | None = None) -> None:
        self._store = store
        self._api = api
        self._roots = None if root_of is None else RootWriter(root_of)
        self._reconciler = Reconciler(store, api)
        self._lease = TaskLease(store, store.keys.shard(0, "closing"), lasts_ms=_LEASE_MS)
        self._has_failed = False

    async def run(self) -> None:
        """Confirm due closes each minute, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S * _jitter(0.8, 1.2))
            await self.run_once()

    async def run_once(self) -> None:
        """Confirm due closes, unless another process does. Raises nothing but cancellation."""
        try:
            async with self._lease.held() as is_held:
                if is_held:
                    await self.confirm_due()
            self._has_failed = False
        except StoreError as error:
            if not self._has_failed:
                _logger.warning("closes of billing periods are confirmed later: %s", error)
            self._has_failed = True
        except Exception:
            _logger.exception("closes of billing periods are confirmed later")

    async def confirm_due(self) -> CloseResults:
        """Confirm the due closes, and log once those that are not confirmed in time.

        Raises:
            StoreError: the store does not answer.
        """
        closes = CloseQueue(self._store, (await self._store.admin()).for_delivery())
        confirmed, left, late = 0, 0, list[str]()
        checker = CloseChecker(self._store, self._api(), self._reconciler, self._roots)
        async for close in closes.due():
            if not await self._lease.acquire():
                break
            why, may_wait = await self._explain_close(closes, close, checker)
            if why is None:
                confirmed += 1
                continue
            left += 1
            is_late = await self._postpone_check(closes, close) and not may_wait
            if is_late and await closes.mark_unconfirmed(close):
                late.append(f"customer {close.customer!r}, until {close.end_text}: {why}")
        if late:
            self._log_late(late)
        return CloseResults(confirmed, left - len(late), late)

    async def _explain_close(
        self, closes: CloseQueue, close: PeriodClose, checker: CloseChecker
    ) -> tuple[str | None, bool]:
        """Explain why a close is open, and whether it may wait; None: it is confirmed, and removed."""
        try:
            (usage,) = await self._store.usage_of_many([close.customer], at_ms=close.end_ms - 1, former=True)
            end_ms = to_ms(usage["period"]["end"])
            if end_ms > self._store.now_ms():
                # A change of plan or of the subscription has moved the period's end.
                moved = replace(close, end_ms=end_ms)
                await closes.note(close.shard, {moved.member: end_ms + CLOSE_AFTER_MS})
                await closes.forget(close)
                return None, False
            why, may_wait = await checker.explain_open(usage)
        except Exception as error:  # damaged records of one customer do not stop the others
            if is_of_the_store(error):
                raise
            return f"it cannot be read: {damage_of(error)!r:.200}", False
        if not why and await closes.forget(close):
            _logger.info(
                "the close of the period of customer %r until %s is confirmed now",
                close.customer,
                from_ms(close.end_ms),
            )
        return why or None, may_wait

    async def _postpone_check(self, closes: CloseQueue, close: PeriodClose) -> bool:
        """Schedule the next check of a close, or give it up; whether an alert is due."""
        now_ms = self._store.now_ms()
        if now_ms > close.end_ms + _GIVEN_UP_MS:
            await closes.forget(close)
            return False
        is_late = now_ms >= close.end_ms + _IN_TIME_MS
        await closes.postpone(close, now_ms + (_LATER_MS if is_late else _AGAIN_MS))
        return is_late

    def _log_late(self, late: Sequence[str]) -> None:
        named = "; ".join(late[:_NAMED_MAX])
        more = f"; and {len(late) - _NAMED_MAX:,} more" if len(late) > _NAMED_MAX else ""
        number = len(late)
        what = "the close of 1 billing period is"
        if number > 1:
            what = f"the closes of {number:,} billing periods are"
        _logger.error(
            "%s not confirmed %d minutes after the period's end, and Stripe makes an invoice final after"
            " an hour: %s%s. `meterkit reconcile CUSTOMER --period DATE` has the figures",
            what,
            _IN_TIME_MS // 60_000,
            named,
            more,
        )


async def count_uninvoiced(
    store: Store, usage: CustomerUsage, found: Sequence[Reconciled], *, prices: Mapping[str, str]
) -> bool:
    """Count units as late that Stripe has counted and final invoices lack; whether there were any.

    Args:
        store: counts the units.
        usage: of a customer in a period whose invoices are final, or that has no invoice.
        found: the comparison with Stripe's books; all usage is delivered.
        prices: by meter, the price as a suffix for a quantity.

    Raises:
        StoreError: the store does not answer.
    """
    missing: dict[str, int] = {}
    for one in found:
        is_compared = one.event_name and one.difference == 0
        if is_compared and one.invoiced is not None and one.invoice != "draft":
            missing.setdefault(one.event_name, -one.invoiced)
            missing[one.event_name] += one.delivered
    known, late = await read_uninvoiced(store, usage), list[UninvoicedUnits]()
    for one in found:
        units = min(one.delivered, missing.get(one.event_name, 0))
        if units > 0:
            missing[one.event_name] -= units
            late.append(UninvoicedUnits(one.meter, units, known[one.meter], prices[one.meter]))
    if late:
        await record_uninvoiced(store, usage, late)
        _logger.error(
            "late usage of customer %r: Stripe has counted it in the period from %s and has it on no invoice;"
            " %s: no invoice bills it",
            usage["customer"],
            iso(usage["period"]["start"]),
            ", ".join(f"{one.quantity} of {one.meter}{one.price}" for one in late),
        )
    return bool(late)


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
            idempotency_key=key_of("finalize", draft["id"]),
        )
        return InvoiceEnd(final_ms=finalized_ms(done))

    async def _schedule_finalization(self, draft: Mapping[str, Any], at_s: int, held: str) -> InvoiceEnd:
        """Set the time at which Stripe finalizes a draft; its response gives the end."""
        # Stripe remembers a key for a day: meanwhile, a draft may be held, released and held again.
        key = key_of("hold", draft["id"], draft[_AT], at_s, self._now_s // _SOON_S)
        done = await self._api.post(
            f"/v1/invoices/{draft['id']}", {_AT: at_s, "metadata": {HELD: held}}, idempotency_key=key
        )
        return InvoiceEnd(held_ms=int(done.get(_AT) or 0) * 1000, final_ms=finalized_ms(done))


def _default_finalization_s(draft: Mapping[str, Any]) -> int:
    """Read when Stripe would have finalized a held draft by itself (Unix seconds); 0: it is not held."""
    metadata: Mapping[str, str] = draft.get("metadata") or {}
    at_s = metadata.get(HELD, "")
    return int(at_s) if at_s.isdigit() else 0
