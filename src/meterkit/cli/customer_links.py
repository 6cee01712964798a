"""``meterkit import``: link the customers of a Stripe account; CSV files of links."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from meterkit.cli.help_pages import command_group
from meterkit.cli.output import print_note, print_records, shown_steps
from meterkit.cli.session import Session, command
from meterkit.errors import CustomerError, MeterkitError, StoreError, StripeError, StripeUnavailableError
from meterkit.store.unreadable_data import UNREADABLE, is_of_the_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.cli.output import Steps
    from meterkit.customers.customers import Customers
    from meterkit.subscriptions.service.stripe_import import Imported, ImportProgress

_DOING: Final[Mapping[str, str]] = {
    "customers": "reading customers",
    "subscriptions": "reading subscriptions",
    "links": "linking customers",
}
commands = command_group("import", "Import existing customers and subscriptions.")
COLUMNS: Final = ["customer", "stripe_customer"]
_ALLOWED: Final = "allowed are two columns, customer,stripe_customer; no line of the file was linked"


@command(commands)
async def stripe(
    session: Session,
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the customers to link and their plans, and change nothing."),
    ] = False,
    id_from: Annotated[
        str,
        typer.Option(
            "--id-from",
            metavar="PLACE",
            help="Where Stripe has your own customer ids: `email`, or `metadata.KEY` of a customer or its"
            " subscription.",
        ),
    ] = "metadata.meterkit_customer",
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="A file with your own ids, which override ids at Stripe: each line is"
            " `customer,stripe_customer`. `-` reads stdin.",
        ),
    ] = None,
) -> None:
    """Link the customers of a Stripe account.

    Each gets the plan of its subscription at once. Lists customers that do not fit, with the reason, and then
    exits 1. You may run it again: linked customers are skipped.
    """
    ids = _by_stripe_customer(csv)
    async with session.kit(reads=dry_run) as kit:
        with shown_steps() as steps:

            def progress(now: ImportProgress) -> None:
                steps.update(_DOING[now.step], now.done, now.total)

            done = await kit.subscriptions.import_from_stripe(
                id_from=id_from, ids=ids, dry_run=dry_run, progress=progress
            )
    session.show(asdict(done), lambda: _print_import(done))
    raise typer.Exit(int(bool(done.misfits)))


def _by_stripe_customer(csv: str | None) -> dict[str, str]:
    """Read the ids of a file, by Stripe customer.

    Raises:
        MeterkitError: the file cannot be read, or has a Stripe customer twice.
    """
    ids: dict[str, str] = {}
    for where, customer, linked in [] if csv is None else read_links(csv):
        if ids.setdefault(linked, customer) != customer:
            raise MeterkitError(
                f"{where}: {linked!r:.80} is linked to both {ids[linked]!r:.80} and {customer!r:.80}"
            )
    return ids


def _print_import(done: Imported) -> None:
    rows = [
        {
            "Stripe customer": misfit.stripe_customer,
            "customer": misfit.customer,
            "subscription": misfit.subscription,
            "linked": "yes" if misfit.linked else "no",
            "why": misfit.message,
        }
        for misfit in done.misfits
    ]
    if done.dry_run and done.customers:
        print_records(
            [
                {
                    "Stripe customer": one.stripe_customer,
                    "customer": one.customer,
                    "plan": one.plan,
                    "subscription": one.subscription,
                }
                for one in done.customers
            ]
        )
    if rows:
        print_records(rows)
    doing = "would be linked" if done.dry_run else "linked"
    print_note(
        f"{doing}: {done.linked:,}; linked before: {done.known:,}; without a subscription or an id:"
        f" {done.skipped:,}; do not fit: {len(rows):,}"
    )


class CsvLink(NamedTuple):
    """A line of a CSV file of links.

    Attributes:
        where: the file and the line number.
    """

    where: str
    customer: str
    stripe_customer: str


def read_links(path: str) -> list[CsvLink]:
    """Read all lines of a CSV file of links; ``-`` reads stdin.

    Raises:
        MeterkitError: the file cannot be read, or a line does not have two non-empty columns.
    """
    name = "stdin" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        where = "" if Path(path).is_absolute() else f"; looked for in {Path.cwd()}"
        raise MeterkitError(f"{name} cannot be read: {error.strerror or error}{where}") from error
    except UnicodeDecodeError as error:
        raise MeterkitError(f"{name} cannot be read: byte {error.start} is not UTF-8") from error
    reader = csv.reader(StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        read = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise MeterkitError(f"{name}:{reader.line_num}: the line is not CSV: {error}") from error
    rows = [(line, row) for line, row in read if any(row)]
    if rows and rows[0][1] == COLUMNS:
        del rows[0]
    for line, row in rows:
        if len(row) != len(COLUMNS):
            count = "1 column" if len(row) == 1 else f"{len(row)} columns"
            raise MeterkitError(f"{name}:{line}: found {count}; {_ALLOWED}")
        if not all(row):
            empty = COLUMNS[row.index("")]
            raise MeterkitError(f"{name}:{line}: the column {empty} is empty; {_ALLOWED}")
    return [CsvLink(f"{name}:{line}", *row) for line, row in rows]


async def link_all(
    customers: Customers, links: Sequence[CsvLink], steps: Steps, *, force: bool
) -> tuple[int, list[dict[str, str]], int]:
    """Link the customers of a file; return the count, the refusals, and the count to be read later.

    After a timeout, Stripe is not asked again: each further line would wait for one.
    """
    linked, refused, unread, is_down = 0, list[dict[str, str]](), 0, False
    for done, (where, customer, stripe_customer) in enumerate(links):
        steps.update("linking customers", done, len(links))
        try:
            if is_down and not force and not await is_linked(customers, customer, stripe_customer):
                raise StripeUnavailableError("Stripe does not answer; try again, or use --force")
            await customers.link(customer, stripe_customer, look=not is_down, force=force)
            linked, unread = linked + 1, unread + is_down
        except (CustomerError, StripeError, StoreError, *UNREADABLE) as error:
            if is_of_the_store(error):
                raise
            is_down = is_down or isinstance(error, StripeUnavailableError)
            if isinstance(error, StripeError) and await is_linked(customers, customer, stripe_customer):
                print_note(f"{where}: {error}")
                linked, unread = linked + 1, unread + 1
                continue
            print_note(f"{where}: not linked: {customer!r:.80}, {stripe_customer!r:.80}: {error}")
            refusal = {"customer": customer, "stripe_customer": stripe_customer, "message": str(error)}
            refused.append({"line": where, **refusal})
    return linked, refused, unread


async def is_linked(customers: Customers, customer: str, stripe_customer: str) -> bool:
    """Whether a customer is linked to this Stripe customer."""
    return (await customers.get(customer)).stripe_customer == stripe_customer
