"""Lists of undelivered work on the operator pages, and its redrive."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from meterkit.catalog.amount_texts import money
from meterkit.customers.history import enter
from meterkit.customers.links import owner_of
from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError, StoreError
from meterkit.notify.courier import read_event_and_customer
from meterkit.outbox.intents import IntentState
from meterkit.pages.operator_lists import Asked, Column, Listing, Row, Rows, first_of, page_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.outbox.late_items import QueuedItem
    from meterkit.outbox.operator_commands import Intents
    from meterkit.pages.figures import PagesKit
    from meterkit.store.message_queue import Channel, KeptMessage
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.pages")

Queue = Literal["outbox", "webhooks", "messages"]
QUEUES: Final[Mapping[str, Queue]] = {queue: queue for queue in get_args(Queue)}

_MOST: Final = 10_000
_STATES: Final[Mapping[str, IntentState]] = {state: state for state in get_args(IntentState)}
_ON_THEIR_WAY: Final = ("queued", "leased")
_OUTBOX: Final = (
    Column("intent", "Intent"),
    Column("customer", "Customer", opens="ledger"),
    Column("state", "State"),
    Column("meter", "Meter"),
    Column("quantity", "Quantity", "number"),
    Column("minute", "Minute (UTC)", "time"),
    Column("attempts", "Attempts", "number"),
    Column("why", "Why"),
)
_WEBHOOKS: Final = (
    Column("stripe_customer", "Stripe customer"),
    Column("customer", "Customer", opens="ledger"),
    Column("since", "Dead since (UTC)", "time"),
    Column("why", "Why"),
)
_MESSAGES: Final = (
    Column("message", "Message"),
    Column("channel", "Channel"),
    Column("event", "Event"),
    Column("customer", "Customer", opens="ledger"),
    Column("state", "State"),
    Column("since", "Since (UTC)", "time"),
    Column("attempts", "Attempts", "number"),
    Column("why", "Why"),
)
_LEDGER: Final = (
    Column("at", "At (UTC)", "time"),
    Column("kind", "Kind"),
    Column("before", "Before"),
    Column("after", "After"),
    Column("cause", "Cause"),
)


class Redriven(NamedTuple):
    """What a redrive did.

    Attributes:
        redriven: what is tried again.
        refused: by id, why it is not.
    """

    redriven: Sequence[str]
    refused: Mapping[str, str]


def queue_lists(kit: PagesKit) -> Sequence[Listing]:
    """The ledger of a customer; the outbox (at most ten thousand intents), dead webhooks, and messages."""

    async def ledger(asked: Asked) -> Rows:
        """The last change first."""
        found = reversed(await kit.customers.history(asked.of))
        return Rows([{column.name: getattr(entry, column.name) for column in _LEDGER} for entry in found])

    async def outbox(asked: Asked) -> Rows:
        queued = await kit.outbox.list(state=_STATES.get(asked.of), limit=_MOST)
        found = [one for one in queued if asked.of or one.state in _ON_THEIR_WAY]
        names = ("customer", "state", "meter", "quantity", "minute", "attempts", "why")
        rows: list[Row] = [
            {"intent": one.identifier, **{name: getattr(one, name) for name in names}} for one in found
        ]
        if asked.of in {"", "queued"}:
            rows += [_item_row(item) for item in await kit.outbox.items.list(limit=_MOST)]
        return first_of(rows, asked, len(queued) == _MOST)

    async def webhooks(asked: Asked) -> Rows:
        dead = await kit.webhooks.dead()
        owners = await _owners(kit.store, [one.stripe_customer for one in dead])
        rows: list[Row] = [
            {
                "stripe_customer": one.stripe_customer,
                "customer": owners[one.stripe_customer],
                "since": from_ms(one.at_ms),
                "why": one.why,
            }
            for one in dead
        ]
        return page_of(rows, asked)

    async def messages(asked: Asked) -> Rows:
        found = await kit.notify.list()
        rows = [_message(channel, one) for channel, kept in found.items() for one in kept]
        return page_of([row for row in rows if asked.of in {"", row["state"]}], asked)

    unchanged, delivered = "Nothing has changed for this customer.", "All usage that is sealed is delivered."
    no_message = "No message waits or is dead."
    return (
        Listing("ledger", "Ledger of {of}", _LEDGER, ledger, unchanged, needs_of=True),
        Listing("outbox", "Usage that is not delivered", _OUTBOX, outbox, delivered, "redrive"),
        Listing("webhooks", "Dead webhooks of Stripe", _WEBHOOKS, webhooks, "No webhook is dead.", "redrive"),
        Listing("messages", "Messages that wait or are dead", _MESSAGES, messages, no_message, "redrive"),
    )


async def redrive(kit: PagesKit, queue: Queue, ids: Sequence[str], *, operator: str, reason: str) -> Redriven:
    """Have entries of a queue tried again, each entered into its customer's ledger first.

    Raises:
        StoreError: the store does not answer; what was redriven before stays so.
    """
    if queue == "outbox":
        return await _redrive_intents(kit.outbox, ids, by=f"operator {operator}", reason=reason)
    if queue == "webhooks":
        owners = await _owners(kit.store, [one.stripe_customer for one in await kit.webhooks.dead()])
    else:
        found = await kit.notify.list()
        dead = [one for kept in found.values() for one in kept if one.state == "dead"]
        owners = {one.id: read_event_and_customer(one)[1] or "" for one in dead}
    chosen = [one for one in dict.fromkeys(ids) if one in owners]
    for one in chosen:
        what = f"{'webhooks of ' if queue == 'webhooks' else ''}{one}"
        # First the ledger: after a kill in between, a line without its redrive tells the operator to look.
        await _enter(kit.store, owners[one], what, operator=operator, reason=reason)
    if chosen:
        await (kit.webhooks.redrive if queue == "webhooks" else kit.notify.redrive)(*chosen)
    return Redriven(chosen, {one: "it is not dead" for one in dict.fromkeys(ids) if one not in owners})


async def _redrive_intents(outbox: Intents, ids: Sequence[str], *, by: str, reason: str) -> Redriven:
    redriven, refused = list[str](), dict[str, str]()
    items = {item.identifier for item in await outbox.items.list(limit=_MOST)}
    for one in dict.fromkeys(ids):
        try:
            if one in items:
                await outbox.items.redrive(one)
            else:
                await outbox.redrive(one, reason=reason, by=by)
        except StoreError:
            raise
        except MeterkitError as error:
            refused[one] = str(error)
        else:
            redriven.append(one)
    return Redriven(redriven, refused)


async def _enter(store: Store, customer: str, what: str, *, operator: str, reason: str) -> None:
    after = f"redriven: {reason}" if reason else "redriven"
    _logger.info("operator %r redrives %s of customer %r", operator, what, customer)
    if customer:
        await enter(
            store, customer, kind="redrive", before=f"dead: {what}", after=after, cause=f"operator {operator}"
        )


async def _owners(store: Store, stripe_customers: Sequence[str]) -> Mapping[str, str]:
    """The customer that each Stripe customer is linked to; empty: none."""
    if not stripe_customers:
        return {}
    admin = await store.admin()
    pipe = admin.client.pipeline(transaction=False)
    for name in stripe_customers:
        pipe.get(store.keys.link(name))
    claims: list[bytes | None] = await admin.ask(pipe.execute())
    return {
        name: owner_of((claim or b"").decode(errors="replace"))
        for name, claim in zip(stripe_customers, claims, strict=True)
    }


def _item_row(item: QueuedItem) -> Row:
    names = ("customer", "state", "meter", "quantity")
    why = f"invoice item of {money(item.cents, item.currency)} for late usage"
    return {"intent": item.identifier, **{name: getattr(item, name) for name in names}, "why": why}


def _message(channel: Channel, kept: KeptMessage) -> Row:
    event, customer = read_event_and_customer(kept)
    return {
        "message": kept.id,
        "channel": channel,
        "event": event,
        "customer": customer,
        "state": kept.state,
        "since": from_ms(kept.since_ms),
        "attempts": kept.attempts,
        "why": kept.why,
    }
