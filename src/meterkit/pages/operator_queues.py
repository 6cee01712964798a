"""Lists of undelivered work on the operator pages, and of a customer's ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from meterkit.catalog.value_parsers import money
from meterkit.customers.links import claim_owner
from meterkit.decisions.periods import from_ms
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
    pipe = admin.client.pipeline(transaction=False)
    for name in stripe_customers:
        pipe.get(store.keys.link(name))
    claims: list[bytes | None] = await admin.ask(pipe.execute())
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
