"""``meterkit notify``: list and redrive messages, preview e-mails."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from meterkit.cli.help_pages import command_group
from meterkit.cli.output import echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.decisions.periods import from_ms
from meterkit.notify.courier import read_event_and_customer

commands = command_group("notify", "List, resend and preview webhooks and e-mails.")


@command(commands, "list")
async def list_all(session: Session) -> None:
    """List waiting and dead messages.

    Shows the last error of each. Exits 1 if a message is dead.
    """
    async with session.kit(reads=True) as kit:
        found = await kit.notify.list()
    kept = [
        (channel, one, *read_event_and_customer(one))
        for channel, messages in found.items()
        for one in messages
    ]
    rows = [
        {
            "message": one.id,
            "channel": channel,
            "event": event,
            "customer": customer,
            "state": one.state,
            "since": from_ms(one.since_ms),
            "attempts": one.attempts,
            "why": one.why,
        }
        for channel, one, event, customer in kept
    ]
    as_json = [
        {**asdict(one), "channel": channel, "event": event, "customer": customer}
        for channel, one, event, customer in kept
    ]
    for entry in as_json:
        del entry["text"]
    session.show(as_json, lambda: print_records(rows, empty="no message is waiting or dead"))
    if any(one.state == "dead" for _, one, *_ in kept):
        raise typer.Exit(1)


@command(commands)
async def redrive(
    session: Session,
    messages: Annotated[
        list[str] | None,
        typer.Argument(metavar="MESSAGE", help="Such as msg_1f2e…. Default: all dead messages."),
    ] = None,
) -> None:
    """Retry dead messages, for three days."""
    async with session.kit() as kit:
        count = await kit.notify.redrive(*(messages or ()))
    session.show({"redriven": count}, lambda: echo(f"sent again: {count}"))
    if messages and count < len(set(messages)):
        print_note(f"not dead, so not retried: {len(set(messages)) - count}")
        raise typer.Exit(1)


@command(commands)
async def preview(
    session: Session,
    event: Annotated[
        str, typer.Argument(metavar="EVENT", help="The name of an event, such as usage.threshold.")
    ],
    locale: Annotated[
        str | None, typer.Option("--locale", metavar="LOCALE", help="The language of the e-mail, such as de.")
    ] = None,
) -> None:
    """Show the webhook and the e-mail of an event, with sample figures."""
    kit = session.make_kit()
    body, mail = kit.notify.preview(event, locale=locale)

    def as_text() -> None:
        echo(f"Webhook\n\n{body}\n\nE-mail\n\nSubject: {mail.subject}\n\n{mail.text}\n{mail.html}")

    session.show({"webhook": body, **asdict(mail)}, as_text)
