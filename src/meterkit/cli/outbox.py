"""``meterkit outbox``: usage that is sealed for Stripe and not delivered, or queued for an invoice."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import timedelta
from getpass import getuser
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.catalog.value_parsers import date_and_time, money, span
from meterkit.cli.help_pages import command_group
from meterkit.cli.options import WrongUsageError, integer_between
from meterkit.cli.output import cell_text, echo, pick, print_note
from meterkit.cli.session import Session, command
from meterkit.delivery.late_usage_items import format_days
from meterkit.errors import MeterkitError
from meterkit.outbox.intents import IntentState
from meterkit.outbox.invoice_item_queue import QueuedItem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit import Intent, Intents, MeterKit

commands = command_group("outbox", "Inspect and retry usage not yet delivered to Stripe.")

_Identifiers = Annotated[
    list[str],
    typer.Argument(metavar="INTENT", help="Identifiers that `outbox list` shows."),
]
_Reason = Annotated[
    str,
    typer.Option(
        "--reason", metavar="TEXT", help="The reason, for the customer's history.", show_default=False
    ),
]
_Customer = Annotated[str | None, typer.Option("--customer", metavar="CUSTOMER", help="Only this customer.")]
_MOST: Final = 100_000


def operator() -> str:
    """Name the user who runs this command, for ledgers."""
    try:
        return f"operator {getuser()}"
    except (KeyError, OSError):  # A container's user may have no name.
        return "operator"


@command(commands, "list")
async def list_all(
    session: Session,
    *,
    state: Annotated[
        IntentState | None,
        typer.Option("--state", metavar="STATE", help="queued, leased, parked or dead. Default: all."),
    ] = None,
    customer: _Customer = None,
    limit: Annotated[
        int,
        typer.Option("--limit", parser=integer_between(1, _MOST), metavar="N", help="List at most N."),
    ] = 1_000,
) -> None:
    """List undelivered usage, oldest first.

    Intents come first, then invoice lines, and invoice items for late usage. Exits 1 if an intent is parked
    or dead: you must decide about it.
    """
    async with session.kit(reads=True) as kit:
        intents = await kit.outbox.list(state=state, customer=customer, limit=limit)
        items: Sequence[QueuedItem] = ()
        if state in {None, "queued"}:
            items = await kit.outbox.items.list(customer=customer, limit=limit)
    empty = "The outbox is empty." if state is customer is None else "The outbox has no such usage."
    rare = ("minute", "first attempt", "attempts", "compared", "why")
    found: list[Intent | QueuedItem] = [*intents, *items]
    session.show_rows(found, _row, rare=rare, empty=empty)
    if limit in {len(intents), len(items)}:
        print_note(f"there may be more: --limit {limit}")
    if any(intent.state in {"parked", "dead"} for intent in intents):
        raise typer.Exit(1)


@command(commands)
async def show(
    session: Session,
    intent: Annotated[str, typer.Argument(metavar="INTENT", help="The identifier that `outbox list` shows.")],
) -> None:
    """Show one intent, invoice item or invoice line in full."""
    async with session.kit(reads=True) as kit:
        found = (await _items_by_id(kit)).get(intent) or await kit.outbox.show(intent)
    session.show(asdict(found), lambda: _print_one(found))


@command(commands)
async def redrive(
    session: Session,
    intents: Annotated[
        list[str] | None, typer.Argument(metavar="INTENT", help="Identifiers that `outbox list` shows.")
    ] = None,
    *,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Redrive all parked and dead intents, except those parked by hand or after a restore.",
        ),
    ] = False,
    customer: _Customer = None,
    reason: _Reason = "",
) -> None:
    """Deliver parked or dead usage.

    meterkit sends an intent again at once if Stripe is sure to count it once. Otherwise the intent stays
    parked: 26 hours after its first attempt meterkit compares it with Stripe's summary, and then sends it.
    The next flush creates the invoice items that you name.
    """
    if bool(intents) == everything:
        raise WrongUsageError("name intents or give --all")
    async with session.kit() as kit:
        chosen, items = intents or await _undelivered(kit, customer), await _items_by_id(kit)

        async def redrive_one(identifier: str, *, reason: str, by: str) -> Intent | QueuedItem:
            if identifier in items:
                return await kit.outbox.items.redrive(identifier)
            return await kit.outbox.redrive(identifier, reason=reason, by=by)

        await _apply_to_each(session, chosen, redrive_one, "redriven", reason=reason)


@command(commands)
async def park(session: Session, intents: _Identifiers, *, reason: _Reason = "") -> None:
    """Hold queued intents back until they are redriven or dropped.

    Invoice items cannot be parked.
    """
    async with session.kit() as kit:
        items = await _items_by_id(kit)

        async def park_one(identifier: str, *, reason: str, by: str) -> Intent:
            if identifier in items:
                raise MeterkitError(
                    f"{identifier} is an invoice item and cannot be parked: let the next flush create it and"
                    " delete it at Stripe, or drop it"
                )
            return await kit.outbox.park(identifier, reason=reason, by=by)

        await _apply_to_each(session, intents, park_one, "parked", reason=reason)


@command(commands)
async def drop(
    session: Session,
    intents: _Identifiers,
    *,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="Required: the reason, for the customer's history."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Drop intents or invoice items for good.

    The usage of an intent is never sent to Stripe and counts as dead. The usage of an invoice item or line
    counts as late and is never billed. Asks for confirmation. `meterkit customers history` shows who dropped
    it, and why.
    """
    if not reason:
        raise WrongUsageError("give --reason TEXT, for the customer's history")
    async with session.kit() as kit:
        items = await _items_by_id(kit)
        if not yes:
            await _confirm_drop(kit.outbox, items, intents)

        async def drop_one(identifier: str, *, reason: str, by: str) -> Intent | QueuedItem:
            queue = kit.outbox.items if identifier in items else kit.outbox
            return await queue.drop(identifier, reason=reason, by=by)

        await _apply_to_each(session, intents, drop_one, "dropped", reason=reason)


async def _items_by_id(kit: MeterKit) -> Mapping[str, QueuedItem]:
    """Read the waiting invoice items, by identifier."""
    return {item.identifier: item for item in await kit.outbox.items.list(limit=_MOST)}


async def _confirm_drop(outbox: Intents, items: Mapping[str, QueuedItem], identifiers: Sequence[str]) -> None:
    if not sys.stdin.isatty():
        raise MeterkitError("stdin is not a terminal, so this cannot ask for confirmation; give --yes")
    for identifier in identifiers:
        found = items.get(identifier) or await outbox.show(identifier)
        print_note(f"{found.state}: {found.quantity:,} of {found.meter} of customer {found.customer}")
    typer.confirm("This is never sent to Stripe. Drop it?", abort=True, err=True)


async def _undelivered(kit: MeterKit, customer: str | None) -> list[str]:
    found: list[Intent] = []
    for state in ("parked", "dead"):
        found += await kit.outbox.list(state=state, customer=customer, limit=_MOST)
    left = sum(intent.is_parked_by_hand for intent in found)
    if left:
        print_note(f"{left} were parked by hand and stay parked: name them to redrive them")
    restored = sum(intent.restored for intent in found)
    if restored:
        print_note(f"{restored} were parked after a restore and stay parked: `meterkit recover` settles them")
    return [intent.identifier for intent in found if not (intent.is_parked_by_hand or intent.restored)]


async def _apply_to_each(
    session: Session,
    identifiers: Sequence[str],
    act: Callable[..., Awaitable[Intent | QueuedItem]],
    done: str,
    *,
    reason: str,
) -> None:
    """Apply a command to each intent; print a refusal and go on."""
    seen: list[Intent | QueuedItem] = []
    refused: list[dict[str, str]] = []
    for identifier in dict.fromkeys(identifiers):
        try:
            seen.append(await act(identifier, reason=reason, by=operator()))
        except MeterkitError as error:
            print_note(f"not {done}: {error}")
            refused.append({"intent": identifier, "message": str(error)})
    shown = {done: [asdict(intent) for intent in seen], "refused": refused}
    session.show(shown, lambda: _print_done(seen, done))
    if refused:
        raise typer.Exit(1)


def _print_done(seen: Sequence[Intent | QueuedItem], done: str) -> None:
    for one in seen:
        line = f"{done}: {one.quantity:,} of {one.meter} of customer {one.customer} ({one.identifier})"
        if isinstance(one, QueuedItem):
            line += f"; {_describe_item(one)}" if done == "redriven" else "; it is not billed"
        elif one.compared_at is not None:
            line += f"; compared with Stripe's summary from {date_and_time(one.compared_at)} on"
        echo(line)
    if not seen:
        print_note(f"nothing was {done}")


def _describe_item(item: QueuedItem) -> str:
    """Describe an invoice item: amount, usage, and the invoice that it is for."""
    used = format_days(item.period_start, item.recorded_until - timedelta(milliseconds=1))
    if item.is_line:
        invoice = f"the invoice of {item.subscription}" if item.subscription else "an invoice of its own"
        return f"invoice line of {money(item.cents, item.currency)} for usage of {used}, on {invoice}"
    return (
        f"invoice item of {money(item.cents, item.currency)} for late usage of {used}, on the next renewal of"
        f" {item.subscription}"
    )


def _row(intent: Intent | QueuedItem) -> dict[str, object]:
    sent = None if isinstance(intent, QueuedItem) else intent
    return {
        "intent": intent.identifier,
        **pick(intent, "state", "customer", "meter", "quantity"),
        "minute": sent and sent.minute,
        "first attempt": sent and sent.first_attempt_at,
        "attempts": sent and sent.attempts,
        "age": span(intent.age_s * 1000),
        "compared": sent and sent.compared_at,
        "why": _describe_item(intent) if isinstance(intent, QueuedItem) else intent.why,
    }


def _print_one(intent: Intent | QueuedItem) -> None:
    rows = {
        **_row(intent),
        "Stripe customer": intent.stripe_customer,
        "event name": intent.event_name,
        "period": intent.period_start,
    }
    if isinstance(intent, QueuedItem):
        rows |= {"queued": intent.queued_at, "due": intent.due_at}
    else:
        rows["sealed"] = intent.sealed_at
    width = max(map(len, rows))
    for name, value in rows.items():
        if text := cell_text(value):
            echo(f"{name:<{width}}  {text}")
