"""CSV files of links between customers and Stripe customers: read, and linked line by line."""

from __future__ import annotations

import csv
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.cli.output import print_note
from meterkit.errors import CustomerError, MeterkitError, StoreError, StripeError, StripeUnavailableError
from meterkit.store.unreadable_data import UNREADABLE, is_of_the_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.cli.output import Steps
    from meterkit.customers.customers import Customers

COLUMNS: Final = ["customer", "stripe_customer"]
_ALLOWED: Final = "allowed are two columns, customer,stripe_customer; no line of the file was linked"


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
