"""Whether anything is known of a customer: an id that nothing is known of may be a misspelled one."""

from __future__ import annotations

from contextlib import aclosing
from shlex import quote
from typing import TYPE_CHECKING, Final

from meterkit.catalog.errors import suggestion
from meterkit.cli.output import print_note
from meterkit.customers.customer_ids import customers_set_up
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from meterkit.customers.customers import Customer
    from meterkit.kit import MeterKit

_COMPARED_MAX: Final = 5_000
"""Among more customers than this the nearest one is not looked for: it would take seconds."""


async def note_unknown(
    kit: MeterKit, customer: str, *, shown: str = " This is the state of a new customer"
) -> None:
    """Because an unknown id may be a typo, print a note about it, and about the ``shown`` values."""
    if not await kit.customers.known(customer):
        print_note(f"{await _unknown(kit, customer)}{shown}")


def note_missing_plan(kit: MeterKit, customer: Customer) -> None:
    """Say so where a customer's plan is gone from the plans file."""
    if customer.missing_plan is not None:
        print_note(
            f"customer {customer.customer}: plan `{customer.missing_plan}` is not in {kit.catalog.source}:"
            f" served on `{customer.plan}`"
        )


async def check_known(kit: MeterKit, customer: str) -> None:
    """See that something is known of a customer.

    Raises:
        MeterkitError: nothing is; the nearest customer is named.
    """
    if not await kit.customers.known(customer):
        raise MeterkitError(f"{await _unknown(kit, customer)} Nothing was changed")


async def hint_of_new(kit: MeterKit, customer: str) -> str:
    """What to say where a customer that is about to be changed is a new one, else nothing."""
    if await kit.customers.known(customer):
        return ""
    hint = await _nearest(kit, customer)
    undo = f" `meterkit customers delete {quote(customer)}` takes this back" if hint else ""
    return f"new customer {customer}: nothing was known of it{hint}{undo}"


async def _unknown(kit: MeterKit, customer: str) -> str:
    hint = await _nearest(kit, customer)
    return f"nothing is known of customer {customer}{hint or '.'}"


async def _nearest(kit: MeterKit, customer: str) -> str:
    """``; did you mean 'x'?`` if a customer with a similar id has a record, else nothing."""
    found: list[str] = []
    async with aclosing(customers_set_up(await kit.store.admin(), kit.store.keys)) as customers:
        async for known in customers:
            found.append(known)
            if len(found) > _COMPARED_MAX:
                return ""
    return suggestion(customer, sorted(found))
