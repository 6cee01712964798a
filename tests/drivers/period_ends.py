"""A subscribed customer, Stripe's invoices and one clock: what tests of the ends of billing periods hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from drivers.delivery import Desk, api_of, deliver
from drivers.plans import plans_text
from drivers.webhooks import Hooked, hooked
from meterkit import FlushReport, MeterKit, MeterUsage
from meterkit.catalog import Catalog, loads
from meterkit.decisions.keys import meter_token
from meterkit.delivery.period_closer import CloseResults, PeriodCloser
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import AuditDrainer
from meterkit.insights.store_readings import read_deliveries
from meterkit.stripe.api import StripeApi
from meterkit.testing import Clock, StripeEmulator

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
    """A kit, an emulated account, and a customer ``acme`` who pays for ``pro`` since 10 May."""

    found: Hooked
    closer: PeriodCloser
    drainer: AuditDrainer | None

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
        assert self.drainer is not None
        assert await self.drainer.drain() == 0

    async def close(self) -> None:
        """Have Stripe count all, write the root of the audit log, and finalize the invoice."""
        await self.flush()
        self.clock.advance(11 * MINUTE)
        self.stripe.advance()
        await self.closer.run_once()
        self.clock.advance(3 * HOUR)
        self.stripe.advance()
        await self.found.settle()

    async def flush(self, *, everything: bool = True) -> FlushReport:
        return await deliver(self.kit, everything=everything, timeout_s=0)

    async def look(self) -> CloseResults:
        return await self.closer.confirm_due()

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
        (usage,) = await self.kit.store.usage_of_many(["acme"], at_ms=int(at.timestamp() * 1000), former=True)
        return usage["meters"][meter]

    def invoices(self) -> list[dict[str, Any]]:
        """The invoices of renewals, as Stripe shows them, oldest first."""
        emulator: Any = self.stripe
        found = [invoice.to_json() for invoice in emulator._account.invoices]
        return [invoice for invoice in found if invoice["billing_reason"] == "subscription_cycle"]

    def billed(self, price: str = "price_pro_requests") -> list[int]:
        return [
            sum(
                line["quantity"]
                for line in invoice["lines"]["data"]
                if line["pricing"]["price_details"]["price"] == price
            )
            for invoice in self.invoices()
        ]


def root_reader(kit: MeterKit, audit_url: str) -> Any:
    """Reader of the roots of an audit log that has all entries at once."""
    return AuditDrainer(kit.store, Database(audit_url), least_age_ms=0).root_of


@asynccontextmanager
async def checking_closes(kit: MeterKit, root_of: Any = None) -> AsyncGenerator[PeriodCloser]:
    """The process that checks closes, again and again: no other one can within a minute."""
    async with api_of(kit) as api:
        yield PeriodCloser(kit.store, lambda: api, root_of)


async def look_at_closes(kit: MeterKit, root_of: Any = None) -> CloseResults:
    async with checking_closes(kit, root_of) as closer:
        return await closer.confirm_due()


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
    """Acme pays for ``pro`` since now, with terms ``begun``; default: 10 May 2031, noon."""
    catalog: Catalog = loads(plans)
    clock = clock or Clock(MAY)
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False, **emulated or {})
    stripe.add_plans(catalog)
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=catalog, **settings) as found:
        found.customer(card=card)
        await found.subscribe(items=[{"price": price} for price in prices], **begun or {})
        await found.settle()
        drainer = None
        if "audit_url" in settings:
            drainer = AuditDrainer(found.kit.store, Database(settings["audit_url"]), least_age_ms=0)
        async with api_of(found.kit) as api:
            closer = PeriodCloser(found.kit.store, lambda: api, None if drainer is None else drainer.root_of)
            yield Ending(found=found, closer=closer, drainer=drainer)


@asynccontextmanager
async def ending(
    store_url: str, plans: str = HELD, *, collects_after_cancel: bool = True, **more: Any
) -> AsyncGenerator[Ending]:
    """Acme pays for ``pro`` since 10 May 2031, noon; it is 10 June, eleven o'clock."""
    emulated = {"collects_after_cancel": collects_after_cancel}
    async with paying(store_url, plans, emulated=emulated, **more) as at:
        at.go(JUNE - HOUR)
        yield at


AFTER_JUNE: Final = datetime(2031, 7, 1, tzinfo=UTC)


class Closing:
    """Looks at the closes of a desk, as a process does that delivers."""

    def __init__(self, at: Desk, api: StripeApi) -> None:
        self._at = at
        self.closer = PeriodCloser(at.kit.store, lambda: api)

    async def at(self, minutes: int) -> tuple[int, int, int]:
        """Look so many minutes after June; how many are confirmed, open and late now."""
        self._at.clock.set(AFTER_JUNE + timedelta(minutes=minutes))
        confirmed, left, late = await self.closer.confirm_due()
        return confirmed, left, len(late)

    async def unconfirmed(self) -> tuple[int, float]:
        """How many closes the metrics count, and for how long the oldest period is over."""
        found = (await read_deliveries(self._at.kit.store))["unconfirmed"]
        return found.items, found.age_s


@asynccontextmanager
async def closing_of(at: Desk) -> AsyncGenerator[Closing]:
    async with api_of(at.kit) as api:
        yield Closing(at, api)


_PLACES = "pqlkdxztaf"


async def assert_books(at: Ending) -> None:
    """See that the reportable part of each closed period is somewhere, once."""
    admin = await at.kit.store.admin()
    found = await admin.ask(admin.client.hgetall(at.kit.store.keys.customer("acme").totals))
    totals = {name.decode(): int(value) for name, value in found.items() if value.isdigit()}
    for period in {name.partition("|")[0] for name in totals if name.endswith("|e")}:
        for meter in ("requests", "tokens"):
            counts = {
                name[-1]: value
                for name, value in totals.items()
                if name.startswith(f"{period}|{meter_token(meter)}")
            }
            assert counts.get("o", 0) == sum(counts.get(place, 0) for place in _PLACES), (period, counts)
