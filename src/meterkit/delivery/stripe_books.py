"""Stripe's side of a comparison: counted units and invoice lines of a customer in a billing period."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

from meterkit.decisions.periods import stamped_span_s, to_ms
from meterkit.decisions.subscription import NEVER_MS
from meterkit.decisions.subscription_periods import stops_billing_ms
from meterkit.delivery.cut_periods import invoiced_units
from meterkit.errors import StripeError
from meterkit.store.event_names import former_events

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.delivery.invoices import Invoiced, Invoices
    from meterkit.delivery.summaries import Summaries
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

_T = TypeVar("_T")
_NOT_THERE: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)


class StripeBooks:
    """Asks Stripe for what it has of one customer in one period.

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses, or does not answer.

    Args:
        store: whose clock counts.
        usage: of the customer in the period.
        state: the customer's.
        summaries: give counted units.
        invoices: give invoice lines; None: no invoice bills the period.
    """

    def __init__(
        self,
        store: Store,
        usage: CustomerUsage,
        state: CustomerState,
        summaries: Summaries,
        invoices: Invoices | None,
    ) -> None:
        self._store = store
        self._customer = usage["customer"]
        self._now_ms = store.now_ms()
        self._start_ms, self._end_ms = (to_ms(usage["period"][edge]) for edge in ("start", "end"))
        self._state = state
        self._former = former_events(state, store.catalog, self._start_ms)
        self._summaries = summaries
        self._invoices = invoices

    async def confirmed(self, event_name: str) -> int | None:
        """Units of an event name and its earlier ones that Stripe has counted; None: it has no such meter."""
        start_s, end_s = stamped_span_s(self._start_ms, self._now_ms, end_ms=self._end_ms)
        linked = self._state.stripe_customer
        if linked is None or start_s >= end_s:
            return None
        counted = [
            await unless_gone(self._summaries.counted(name, linked, start_s, end_s))
            for name in self._names(event_name)
        ]
        known = [one for one in counted if one is not None]
        return int(sum(known)) if known else None

    async def invoiced(self, event_name: str, counted: int) -> Invoiced | None:
        """Units of an event name on invoice lines; None: Stripe has no such customer, or makes no invoice.

        Args:
            event_name: of the meter.
            counted: what Stripe has counted in the period.
        """
        linked = self._state.stripe_customer
        if linked is None or self._invoices is None:
            return None
        subscription = self._state.subscription
        is_its = subscription is not None and subscription.created_ms <= self._start_ms
        asking = invoiced_units(
            self._store,
            self._customer,
            linked,
            self._names(event_name),
            (self._start_ms, self._end_ms),
            summaries=self._summaries,
            invoices=self._invoices,
            counted=counted,
            stops_ms=stops_billing_ms(subscription) if subscription is not None and is_its else NEVER_MS,
        )
        return await unless_gone(asking)

    async def sent_by_others(self, events: set[str], used: set[str], *, is_closing: bool) -> set[str]:
        """The event names, of those without own usage, that Stripe has units of.

        Args:
            events: all event names.
            used: those with own usage.
            is_closing: whether invoice lines alone are to tell, as these cost no further call.
        """
        linked, subscription = self._state.stripe_customer, self._state.subscription
        unused = events - {name for event in used for name in self._names(event)}
        if linked is None or not unused:
            return set()
        billed: set[str] = set()
        if self._invoices is not None:
            billed = await unless_gone(self._invoices.usage_meters(linked, *self._span_s)) or set()
        found = {event for event in unused if not billed.isdisjoint(self._summaries.meter_ids(event))}
        if is_closing or subscription is None:
            return found
        items = {item.partition("=")[0] for item in subscription.metered.split()}
        for event in sorted(unused - found):
            is_item = not items.isdisjoint(self._summaries.meter_ids(event))
            if is_item and await self.confirmed(event):
                found.add(event)
        return found

    def _names(self, event_name: str) -> Sequence[str]:
        """An event name, and the earlier ones of its meter in the period."""
        return event_name, *self._former.get(event_name, ())

    @property
    def _span_s(self) -> tuple[int, int]:
        return self._start_ms // 1000, self._end_ms // 1000


async def unless_gone(asked: Awaitable[_T]) -> _T | None:
    """Stripe's answer; None: it has no such customer or meter."""
    try:
        return await asked
    except StripeError as error:
        if error.status not in _NOT_THERE:
            raise
        return None
