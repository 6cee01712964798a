"""Checks that a command's customer is known, with a suggestion for a misspelled id."""

from __future__ import annotations

from contextlib import aclosing
from shlex import quote
from typing import TYPE_CHECKING, Final

from meterkit.catalog.errors import suggestion
from meterkit.cli.output import print_note
from meterkit.customers.states import list_customers
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from meterkit.customers.customers import Customer
    from meterkit.kit import MeterKit

_COMPARED_MAX: Final = 5_000
"""With more customers, no similar id is searched: it would take seconds."""


async def note_unknown(
    kit: MeterKit, customer: str, *, shown: str = " These are the values of a new customer"
) -> None:
    """Print a note about an unknown id, which may be a typo, and about the ``shown`` values."""
    if not await kit.customers.known(customer):
        print_note(f"{await _unknown_customer_text(kit, customer)}{shown}")


def note_missing_plan(kit: MeterKit, customer: Customer) -> None:
    """Print a note if a customer's plan is missing from the plans file."""
    if customer.missing_plan is not None:
        print_note(
            f"customer {customer.customer}: plan `{customer.missing_plan}` is not in {kit.catalog.source}:"
            f" served on `{customer.plan}`"
        )


async def check_known(kit: MeterKit, customer: str) -> None:
    """Check that a customer exists.

    Raises:
        MeterkitError: the id is unknown; the message suggests a similar one.
    """
    if not await kit.customers.known(customer):
        raise MeterkitError(f"{await _unknown_customer_text(kit, customer)} Nothing was changed")


async def new_customer_note(kit: MeterKit, customer: str) -> str:
    """Return the note for a customer that this command creates; empty if it exists."""
    if await kit.customers.known(customer):
        return ""
    hint = await _suggest_customer(kit, customer)
    undo = f" `meterkit customers delete {quote(customer)}` undoes this" if hint else ""
    return f"created customer {customer}{hint}{undo}"


async def _unknown_customer_text(kit: MeterKit, customer: str) -> str:
    hint = await _suggest_customer(kit, customer)
    return f"unknown customer {customer}{hint or '.'}"


async def _suggest_customer(kit: MeterKit, customer: str) -> str:
    """Return ``; did you mean 'x'?`` if there is a customer with a similar id, otherwise nothing."""
    found: list[str] = []
    async with aclosing(list_customers(await kit.store.admin(), kit.store.keys)) as customers:
        async for known in customers:
            found.append(known)
            if len(found) > _COMPARED_MAX:
                return ""
    return suggestion(customer, sorted(found))
