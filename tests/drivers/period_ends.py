"""A subscribed customer, Stripe's invoices and one clock: what tests of the ends of billing periods hold."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from drivers.plans import plans_text
from drivers.webhooks import hooked
from meterkit.catalog import loads
from meterkit.delivery.closing import Closer
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer
from meterkit.stripe.api import StripeApi
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from drivers.webhooks import Hooked
    from meterkit import FlushReport, MeterKit, MeterUsage
    from meterkit.catalog import Catalog
    from meterkit.delivery.closing import Looked

HOUR: Final = timedelta(hours=1)
MINUTE: Final = timedelta(minutes=1)
MAY: Final = datetime(2031, 5, 10, 12, tzinfo=UTC)
JUNE: Final = datetime(2031, 6, 10, 12, tzinfo=UTC)
JULY: Final = datetime(2031, 7, 10, 12, tzinfo=UTC)
EVENTS: Final = "/v1/billing/meter_events"
PLANS: Final = plans_text("period_ends")
HELD: Final = PLANS
UNHELD: Final = PLANS + "billing: {hold_invoice: 0}\n"


@dataclass(kw_only=True)
class Ending:
    """A kit, an emulated account, and a customer ``acme`` who pays for ``pro`` since 10 May.

    ``drainer``: of the audit log; None: there is none.
    """

    found: Hooked
    closer: Closer
    drainer: Drainer | None

    @property
    def kit(self) -> MeterKit:
        return self.found.kit

    @property
    def stripe(self) -> StripeEmulator:
        return self.found.emulator

    @property
    def clock(self) -> Clock:
        return self.found.clock

    def go(self, to: datetime) -> None:
        """Let time pass; at Stripe all happens that is due."""
        self.clock.set(to)
        self.stripe.advance()

    async def reach(self, to: datetime) -> None:
        """The same, and what Stripe tells of it is worked off."""
        self.go(to)
        await self.found.settle()

    async def drain(self) -> None:
        """Have the audit log hold all that was recorded."""
        assert self.drainer is not None
        assert await self.drainer.drain() == 0

    async def close(self) -> None:
        """Have Stripe count all, write the root of the audit log, and finalize the invoice."""
        await self.flush()
        self.clock.advance(11 * MINUTE)
        self.stripe.advance()
        await self.closer.turn()
        self.clock.advance(3 * HOUR)
        self.stripe.advance()
        await self.found.settle()

    async def flush(self, *, everything: bool = True) -> FlushReport:
        return await self.kit.flush(everything=everything, timeout_s=0)

    async def look(self) -> Looked:
        """Look at the closes that are due."""
        return await self.closer.look()

    async def hourly(self, first: datetime, hours: int, *, is_flushing: bool = True) -> list[FlushReport]:
        """Deliver, and look at closes, each quarter of an hour for some hours."""
        reports: list[FlushReport] = []
        for quarter in range(4 * hours):
            self.go(first + quarter * 15 * MINUTE)
            if is_flushing:
                reports.append(await self.flush(everything=False))
            await self.look()
        return reports

    async def counts(self, at: datetime, meter: str = "requests") -> MeterUsage:
        """The counts of a meter in the period of an instant."""
        (usage,) = await self.kit.store.usage_of_many(["acme"], at_ms=int(at.timestamp() * 1000), former=True)
        return usage["meters"][meter]

    def invoices(self) -> list[dict[str, Any]]:
        """The invoices of renewals, as Stripe shows them, oldest first."""
        emulator: Any = self.stripe
        found = [invoice.to_json() for invoice in emulator._account.invoices]
        return [invoice for invoice in found if invoice["billing_reason"] == "subscription_cycle"]

    def billed(self, price: str = "price_pro_requests") -> list[int]:
        """How many units of a price each invoice of a renewal has."""
        return [
            sum(
                line["quantity"]
                for line in invoice["lines"]["data"]
                if line["pricing"]["price_details"]["price"] == price
            )
            for invoice in self.invoices()
        ]


async def look_at_closes(kit: MeterKit, root_of: Any = None) -> Looked:
    """Look once at the closes of periods that are due."""
    api = StripeApi(kit.settings)
    try:
        return await Closer(kit.store, lambda: api, root_of).look()
    finally:
        await api.close()


@asynccontextmanager
async def paying(
    store_url: str,
    plans: str = HELD,
    *,
    clock: Clock | None = None,
    prices: Sequence[str] = ("price_pro", "price_pro_requests", "price_pro_tokens"),
    emulated: Mapping[str, Any] | None = None,
    begun: Mapping[str, Any] | None = None,
    card: str | None = "pm_card_visa",
    **settings: Any,
) -> AsyncGenerator[Ending]:
    """Acme pays for ``pro`` since now; default: 10 May 2031, noon.

    ``emulated``: options of the emulator; ``begun``: further terms of the subscription; ``card``: the
    customer's.
    """
    catalog: Catalog = loads(plans)
    clock = clock or Clock(MAY)
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False, **emulated or {})
    stripe.add_plans(catalog)
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=catalog, **settings) as found:
        found.customer(card=card)
        await found.subscribe(items=[{"price": price} for price in prices], **begun or {})
        await found.settle()
        api, drainer = StripeApi(found.kit.settings), None
        if "audit_url" in settings:
            drainer = Drainer(found.kit.store, Database(settings["audit_url"]), least_age_ms=0)
        closer = Closer(found.kit.store, lambda: api, None if drainer is None else drainer.root_of)
        try:
            yield Ending(found=found, closer=closer, drainer=drainer)
        finally:
            await api.close()


@asynccontextmanager
async def ending(
    store_url: str, plans: str = HELD, *, collects_after_cancel: bool = True, **more: Any
) -> AsyncGenerator[Ending]:
    """Acme pays for ``pro`` since 10 May 2031, noon; it is 10 June, eleven o'clock."""
    emulated = {"collects_after_cancel": collects_after_cancel}
    async with paying(store_url, plans, emulated=emulated, **more) as at:
        at.go(JUNE - HOUR)
        yield at
