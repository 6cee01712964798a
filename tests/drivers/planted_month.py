"""A month at Stripe with a planted error in the books of each customer, and what the commands say of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import connect
from typing import Any, Final, Literal, NamedTuple

from drivers.audit_database import Database, RecordedRoot, read_root, verify
from drivers.audited_kit import sqlite_in
from drivers.period_ends import HOUR, JUNE, MINUTE, Ending, paying
from drivers.plans import plans_text
from meterkit import MeterKit, Statement

DAY: Final = timedelta(days=1)
PLANS: Final = plans_text("planted_month")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    at: Ending
    database: str

    @property
    def kit(self) -> MeterKit:
        return self.at.kit

    @property
    def stripe(self) -> Any:
        return self.at.found.client.v1

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at.clock(), tz=UTC)

    async def subscription(self, customer: str) -> Any:
        found = await self.stripe.subscriptions.list_async({"customer": f"cus_{customer}", "status": "all"})
        return found.data[-1]

    async def change(self, customer: str, params: dict[str, Any]) -> None:
        """Change the customer's subscription at Stripe, as the Dashboard does."""
        found = await self.subscription(customer)
        await self.stripe.subscriptions.update_async(found.id, params)

    async def item(self, customer: str, price: str) -> Any:
        items = (await self.subscription(customer))["items"]["data"]
        return next(one for one in items if one["price"]["id"] == price)

    async def change_item(self, customer: str, price: str, params: dict[str, Any]) -> None:
        item = await self.item(customer, price)
        await self.stripe.subscription_items.update_async(item["id"], params)

    async def add_item(self, customer: str, price: str) -> None:
        found = await self.subscription(customer)
        await self.stripe.subscription_items.create_async({"subscription": found.id, "price": price})

    async def switch_price(self, customer: str, meter: str, terms: dict[str, Any]) -> None:
        """Put the item of a meter on a new price."""
        price = (await self.item(customer, f"price_pro_{meter}"))["price"]
        recurring = {"interval": "month", "usage_type": "metered", "meter": price["recurring"]["meter"]}
        made = {"currency": "usd", "product": price["product"], "recurring": recurring, **terms}
        new = await self.stripe.prices.create_async(made)
        await self.change_item(customer, f"price_pro_{meter}", {"price": new.id})

    async def invoice(self, customer: str) -> Any:
        return (await self.stripe.invoices.list_async({"customer": f"cus_{customer}"})).data[0]

    def change_line(self, customer: str, change: Callable[[list[Any]], None]) -> None:
        """Change the lines of the last invoice, as the Dashboard does while it is a draft."""
        emulator: Any = self.at.stripe
        own = [one for one in emulator._account.invoices if one.customer == f"cus_{customer}"]
        change(max(own, key=lambda one: one.created).usage_lines)

    async def send(self, customer: str, event: str, value: int, at: datetime) -> None:
        """Send a meter event past the kit, as another program with the key does."""
        payload = {"stripe_customer_id": f"cus_{customer}", "value": str(value)}
        fields = {"event_name": event, "timestamp": int(at.timestamp()), "payload": payload}
        await self.stripe.billing.meter_events.create_async(fields)

    async def cancel(self, customer: str, event: str = "requests") -> None:
        sent = [one for one in self.at.stripe.events if one.customer == f"cus_{customer}"]
        last = [one for one in sent if one.event_name == event][-1]
        fields = {"event_name": event, "type": "cancel", "cancel": {"identifier": last.identifier}}
        await self.stripe.billing.meter_event_adjustments.create_async(fields)

    def rows(self, statement: str, *values: Any) -> None:
        with closing(connect(self.database)) as connection, connection:
            connection.execute(statement, values)


Command = Literal["reconcile", "check", "statement", "verify"]


class Error(NamedTuple):
    """An error; with no words, what is none.

    ``named_by`` has the words that each command must have, ``later`` plants the rest when the invoice is a
    draft.
    """

    plant: Callable[[World, str], Awaitable[None]]
    named_by: dict[Command, str]
    later: Callable[[World, str], Awaitable[None]] | None = None


class Planted(NamedTuple):
    """Errors by when they are planted: amid the period, or when the invoice is final.

    Of those ``before_the_webhook`` no webhook tells until more was used.
    """

    when_used: Sequence[Error]
    before_the_webhook: Sequence[Error] = ()
    when_final: Sequence[Error] = ()

    @property
    def every(self) -> dict[str, Error]:
        return customers_of([one for errors in self for one in errors])


def customers_of(errors: Sequence[Error]) -> dict[str, Error]:
    """Each error with a customer of its own, named for it."""
    found: dict[str, Error] = {}
    for one in errors:
        name = one.plant.__name__
        found[name if one.later is None else one.later.__name__] = one
    return found


@asynccontextmanager
async def month(store_url: str, directory: Path, planted: Planted) -> AsyncGenerator[World]:
    """From 10 May to 10 June: usage, errors, and an invoice for each customer that is final."""
    prices = ("price_pro", "price_pro_requests", "price_pro_words", "price_pro_spare")
    items: list[dict[str, Any]] = [
        *({"price": one} for one in prices),
        {"price": "price_seat", "quantity": 2},
    ]
    emulated = {"tax_percent": 20}
    async with paying(
        store_url, PLANS, prices=prices, audit_url=sqlite_in(directory), emulated=emulated
    ) as at:
        world = World(at=at, database=f"{directory}/audit.db")
        customers = list(planted.every)
        for customer in customers:
            at.found.customer(customer)
            await at.found.subscribe(customer, items=items)
        await at.found.settle()
        at.clock.advance(10 * DAY)
        for customer in customers:
            await at.kit.record(customer, "requests", 110)
            await at.kit.record(customer, "words", 150)
        await at.flush()
        at.clock.advance(10 * MINUTE)
        await plant(world, planted.when_used)
        await at.found.settle()
        await plant(world, planted.before_the_webhook)
        at.clock.advance(10 * MINUTE)
        for customer in customers:
            await at.kit.record(customer, "requests", 10)
            await at.kit.record(customer, "words", 10)
        await at.flush()
        await at.reach(JUNE + 11 * MINUTE)
        await at.drain()
        await at.look()
        for name, one in customers_of(planted.when_used).items():
            if one.later is not None:
                await one.later(world, name)
        await at.reach(JUNE + 26 * HOUR)
        await plant(world, planted.when_final)
        yield world


async def plant(world: World, errors: Sequence[Error]) -> None:
    for name, one in customers_of(errors).items():
        await one.plant(world, name)


async def reports(world: World, customers: Collection[str]) -> dict[str, dict[Command, str]]:
    """By customer, all that each command names."""
    found: dict[str, dict[Command, list[str]]] = {}

    def add(customer: str, command: Command, words: str) -> None:
        found.setdefault(customer, {}).setdefault(command, []).append(words)

    for customer, drifts in (await world.kit.subscriptions.check()).items():
        for drift in drifts:
            add(customer, "check", f"{drift.kind}: {drift.message}")
    for at in (JUNE - HOUR, world.now):
        for one in await world.kit.reconcile(at=at):
            if one.advice:
                begins = "" if at < JUNE else f"from {one.period_start:%Y-%m-%d}: "
                add(one.customer, "reconcile", f"{begins}{one.meter}: {one.advice}")
    async for chain in verify(Database(f"sqlite:///{world.database}"), None, InvoiceRoots(world, customers)):
        if not chain.is_right:
            add(chain.customer, "verify", chain.words)
    for customer in customers:
        for words in words_of(await world.kit.statement(customer, JUNE - HOUR, most=0)):
            add(customer, "statement", words)
    return {
        customer: {command: "\n".join(words) for command, words in by_command.items()}
        for customer, by_command in found.items()
    }


def words_of(statement: Statement) -> Iterator[str]:
    """All of a statement that is not a right line of the plan or of usage."""
    for line in statement.lines:
        if "the invoice has" in line.note or line.kind not in {"usage", "subscription"}:
            yield f"{line.kind}: {line.description}: {line.note}"
    for entry in statement.balance:
        if entry.entry == "adjustment":
            yield f"adjustment of {entry.grant_id}: {entry.amount_micros}"
    for invoice in statement.invoices:
        if invoice.credit_notes_cents:
            yield f"credit notes {invoice.credit_notes_cents}"


@dataclass(frozen=True, slots=True)
class InvoiceRoots:
    """The roots in the metadata of invoices, as ``meterkit audit verify --stripe`` reads them."""

    world: World
    customers: Collection[str]

    async def of(self, customer: str) -> list[RecordedRoot]:
        found = await self.world.stripe.invoices.list_async({"customer": f"cus_{customer}"})
        roots = (read_root(one.to_dict()) for one in found.data)
        return [RecordedRoot(*one) for one in roots if one is not None]

    async def linked(self) -> AsyncGenerator[str]:
        for customer in self.customers:
            yield customer


def misnamed(every: Mapping[str, Error], found: Mapping[str, Mapping[Command, str]]) -> dict[str, object]:
    """By customer, the words that commands lack, or that they have of what is no error; and all they say."""
    wrong: dict[str, object] = {}
    for name, error in every.items():
        said = found.get(name, {})
        missing = {
            command: words for command, words in error.named_by.items() if words not in said.get(command, "")
        }
        alarms: Mapping[Command, str] = {} if error.named_by else said
        if missing or alarms:
            wrong[name] = (missing, said)
    return wrong
