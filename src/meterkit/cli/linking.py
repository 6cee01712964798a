"""Links of customers to Stripe customers: one, and those of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.cli.output import print_note
from meterkit.errors import CustomerError, StripeError, StripeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.cli.importing import CsvLink
    from meterkit.cli.progress import Steps
    from meterkit.customers.customers import Customer, Customers


async def link_one(customers: Customers, customer: str, stripe_customer: str, *, force: bool) -> Customer:
    """Link a customer; one whose subscription cannot be read is linked, with a note."""
    try:
        return await customers.link(customer, stripe_customer, force=force)
    except StripeError as error:
        if not await _is_linked(customers, customer, stripe_customer):
            raise
        print_note(str(error))
        return await customers.get(customer)


async def link_all(
    customers: Customers, links: Sequence[CsvLink], steps: Steps, *, force: bool
) -> tuple[int, list[dict[str, str]], int]:
    """Link what can be linked: how many were, what was refused and why, how many are read later.

    After an outage Stripe is not asked again: each further line would wait for a timeout.
    """
    linked, refused, unread, is_down = 0, list[dict[str, str]](), 0, False
    for done, (where, customer, stripe_customer) in enumerate(links):
        steps.update("linking customers", done, len(links))
        try:
            if is_down and not force and not await _is_linked(customers, customer, stripe_customer):
                raise StripeUnavailableError(
                    "Stripe does not answer, so it was not asked; try again, or use --force"
                )
            await customers.link(customer, stripe_customer, look=not is_down, force=force)
            linked, unread = linked + 1, unread + is_down
        except (CustomerError, StripeError) as error:
            is_down = is_down or isinstance(error, StripeUnavailableError)
            if isinstance(error, StripeError) and await _is_linked(customers, customer, stripe_customer):
                print_note(f"{where}: {error}")
                linked, unread = linked + 1, unread + 1
                continue
            print_note(f"{where}: not linked: {customer!r:.80}, {stripe_customer!r:.80}: {error}")
            told = {"customer": customer, "stripe_customer": stripe_customer, "message": str(error)}
            refused.append({"line": where, **told})
    return linked, refused, unread


async def _is_linked(customers: Customers, customer: str, stripe_customer: str) -> bool:
    return (await customers.get(customer)).stripe_customer == stripe_customer
