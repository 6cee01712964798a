"""Lists of undelivered work on the operator pages, its redrive, and a customer's ledger."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from meterkit.catalog.value_parsers import money
from meterkit.customers.history import add_entry
from meterkit.customers.links import claim_owner
from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError, StoreError
from meterkit.notify.courier import read_event_and_customer
from meterkit.outbox.intents import IntentState
from meterkit.pages.operator_lists import Column, OperatorList, PageRequest, Row, Rows, first_of, page_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.outbox.invoice_item_queue import QueuedItem
    from meterkit.pages.usage_figures import PagesKit
    from meterkit.store.message_queue import Channel, KeptMessage
    from meterkit.store.store import Store

LISTED_MOST: Final = 10_000
"""Most intents, and most invoice items, that are read at once."""
_STATES: Final[Mapping[str, IntentState]] = {state: state for state in get_args(IntentState)}
_BEING_SENT: Final = ("queued", "leased")
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
    Column("before", "Before", "change"),
    Column("after", "After", "change"),
    Column("cause", "Cause"),
)
_logger = logging.getLogger("meterkit.pages")
Queue = Literal["outbox", "webhooks", "messages"]
QUEUES: Final[Mapping[str, Queue]] = {queue: queue for queue in get_args(Queue)}


def queue_lists(kit: PagesKit) -> Sequence[OperatorList]:
    """Make the lists: ledger of a customer, outbox (ten thousand intents at most), webhooks, messages."""

    async def ledger(asked: PageRequest) -> Rows:
        """Read the ledger, newest change first."""
        found = reversed(await kit.customers.history(asked.of))
        return Rows([{column.name: getattr(entry, column.name) for column in _LEDGER} for entry in found])

    async def outbox(asked: PageRequest) -> Rows:
        queued = await kit.outbox.list(state=_STATES.get(asked.of), limit=LISTED_MOST)
        found = [one for one in queued if asked.of or one.state in _BEING_SENT]
        names = ("customer", "state", "meter", "quantity", "minute", "attempts", "why")
        rows: list[Row] = [
            {"intent": one.identifier, **{name: getattr(one, name) for name in names}} for one in found
        ]
        if asked.of in {"", "queued"}:
            rows += [_item_row(item) for item in await kit.outbox.items.list(limit=LISTED_MOST)]
        return first_of(rows, asked, len(queued) == LISTED_MOST)

    async def webhooks(asked: PageRequest) -> Rows:
        dead = await kit.webhooks.dead()
        owners = await read_owners(kit.store, [one.stripe_customer for one in dead])
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

    async def messages(asked: PageRequest) -> Rows:
        found = await kit.notify.list()
        rows = [_message_row(channel, one) for channel, kept in found.items() for one in kept]
        return page_of([row for row in rows if asked.of in {"", row["state"]}], asked)

    unchanged, delivered = "This customer has no changes.", "All sealed usage is delivered."
    no_message = "No message is waiting or dead."
    return (
        OperatorList("ledger", "Ledger of {of}", _LEDGER, ledger, unchanged, needs_of=True),
        OperatorList("outbox", "Undelivered usage", _OUTBOX, outbox, delivered, "redrive"),
        OperatorList(
            "webhooks", "Dead Stripe webhooks", _WEBHOOKS, webhooks, "No webhook is dead.", "redrive"
        ),
        OperatorList("messages", "Waiting and dead messages", _MESSAGES, messages, no_message, "redrive"),
    )


async def read_owners(store: Store, stripe_customers: Sequence[str]) -> Mapping[str, str]:
    """Read the customer that each Stripe customer is linked to; empty if none."""
    if not stripe_customers:
        return {}
    admin = await store.admin()
    claims: list[bytes | None] = await admin.ask_all(
        ("get", store.keys.link(name)) for name in stripe_customers
    )
    return {
        name: claim_owner((claim or b"").decode(errors="replace"))
        for name, claim in zip(stripe_customers, claims, strict=True)
    }


def _item_row(item: QueuedItem) -> Row:
    names = ("customer", "state", "meter", "quantity")
    amount = money(item.cents, item.currency)
    why = f"invoice line of {amount}" if item.is_line else f"invoice item of {amount} for late usage"
    return {"intent": item.identifier, **{name: getattr(item, name) for name in names}, "why": why}


def _message_row(channel: Channel, kept: KeptMessage) -> Row:
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


class RedriveResult(NamedTuple):
    """The result of a redrive.

    Attributes:
        redriven: the ids that are retried.
        refused: id to the reason.
    """

    redriven: Sequence[str]
    refused: Mapping[str, str]


async def redrive(
    kit: PagesKit, queue: Queue, ids: Sequence[str], *, operator: str, reason: str
) -> RedriveResult:
    """Retry entries of a queue; each is recorded in its customer's ledger first.

    Raises:
        StoreError: the store does not answer; earlier entries stay redriven.
    """
    if queue == "outbox":
        return await _redrive_intents(kit, ids, operator=operator, reason=reason)
    if queue == "webhooks":
        owners = await read_owners(kit.store, [one.stripe_customer for one in await kit.webhooks.dead()])
    else:
        found = await kit.notify.list()
        dead = [one for kept in found.values() for one in kept if one.state == "dead"]
        owners = {one.id: read_event_and_customer(one)[1] or "" for one in dead}
    chosen = [one for one in dict.fromkeys(ids) if one in owners]
    for one in chosen:
        what = f"{'webhooks of ' if queue == 'webhooks' else ''}{one}"
        # Ledger first: after a kill in between, the operator finds a line without its redrive.
        await _record_redrive(kit.store, owners[one], what, operator=operator, reason=reason)
    if chosen:
        await (kit.webhooks.redrive if queue == "webhooks" else kit.notify.redrive)(*chosen)
    return RedriveResult(chosen, {one: "it is not dead" for one in dict.fromkeys(ids) if one not in owners})


async def _redrive_intents(kit: PagesKit, ids: Sequence[str], *, operator: str, reason: str) -> RedriveResult:
    redriven, refused, outbox = list[str](), dict[str, str](), kit.outbox
    items = {item.identifier: item for item in await outbox.items.list(limit=LISTED_MOST)}
    for one in dict.fromkeys(ids):
        try:
            if one in items:
                await _record_redrive(
                    kit.store, items[one].customer, one, operator=operator, reason=reason, state="queued"
                )
                await outbox.items.redrive(one)
            else:
                await outbox.redrive(one, reason=reason, by=f"operator {operator}")
        except StoreError:
            raise
        except MeterkitError as error:
            refused[one] = str(error)
        else:
            redriven.append(one)
    return RedriveResult(redriven, refused)


async def _record_redrive(
    store: Store, customer: str, what: str, *, operator: str, reason: str, state: str = "dead"
) -> None:
    after = f"redriven: {reason}" if reason else "redriven"
    _logger.info("operator %r redrives %s of customer %r", operator, what, customer)
    if customer:
        await add_entry(
            store,
            customer,
            kind="redrive",
            before=f"{state}: {what}",
            after=after,
            cause=f"operator {operator}",
        )
