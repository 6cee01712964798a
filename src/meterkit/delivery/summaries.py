"""What Stripe has counted of meter events, by its own summaries."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Protocol

from meterkit.stripe.summaries import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.stripe.api import StripeApi

__all__ = ["StripeSummaries", "Summaries"]


class Summaries(Protocol):
    """Tells what Stripe has counted."""

    @property
    def server_time_s(self) -> int | None:
        """Stripe's clock at its last answer, in Unix seconds; None: it has told none."""
        ...

    async def refresh(self) -> None:
        """Ask which meters there are, before the next questions."""
        ...

    def meter_ids(self, event_name: str) -> Sequence[str]:
        """The ids of the meters of an event name, by the last answer."""
        ...

    async def counted(
        self, event_name: str, stripe_customer: str, start_s: int, end_s: int
    ) -> Decimal | None:
        """What Stripe has counted of a customer from one whole minute to another; None: there is no meter."""
        ...


class StripeSummaries:
    """Asks Stripe for summaries (https://docs.stripe.com/api/billing/meter-event-summary/list).

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses, and
    :class:`~meterkit.errors.StripeUnavailableError` where it does not answer.
    """

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._meters: Mapping[str, Sequence[str]] = {}

    @property
    def server_time_s(self) -> int | None:
        """Stripe's clock at its last answer, in Unix seconds; None: it has told none."""
        return self._api.server_time_s

    async def refresh(self) -> None:
        """Ask which meters there are, those that are deactivated included."""
        found: dict[str, list[str]] = {}
        for meter in await self._api.list("/v1/billing/meters"):
            found.setdefault(meter["event_name"], []).append(meter["id"])
        self._meters = found

    def meter_ids(self, event_name: str) -> Sequence[str]:
        """The ids of the meters of an event name, by the last answer."""
        return self._meters.get(event_name, ())

    async def counted(
        self, event_name: str, stripe_customer: str, start_s: int, end_s: int
    ) -> Decimal | None:
        """What all meters of an event name have counted of a Stripe customer.

        Args:
            event_name: of the meters.
            stripe_customer: whose events.
            start_s: the first second, a whole minute.
            end_s: the first one after it, a whole minute.

        Returns:
            None where there is no such meter.
        """
        meters = self._meters.get(event_name)
        if meters is None:
            return None
        total = Decimal(0)
        for meter in meters:
            total += await counted(self._api, meter, stripe_customer, start_s, end_s)
        return total.to_integral_value() if total == total.to_integral_value() else total

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        await self._api.close()
