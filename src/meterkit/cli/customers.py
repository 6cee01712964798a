"""``meterkit customers``: show and change customers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, cast, get_args

import typer

from meterkit.catalog.errors import suggestion
from meterkit.cli.links import read_links
from meterkit.cli.notation import format_entitlement, parse_entitlement
from meterkit.cli.options import CustomerArgument, MeterArgument, PlanArgument
from meterkit.cli.output import print_note, print_table
from meterkit.cli.session import Session, command
from meterkit.cli.unknown_customers import check_known, hint_of_new, note_missing_plan, note_unknown
from meterkit.decisions.customer_state import Status
from meterkit.errors import CustomerError, MeterkitError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from meterkit.kit import MeterKit
    from meterkit.store.customers import Customer, Customers

__all__ = ["commands"]

commands = typer.Typer(name="customers", help="Show and change customers.", no_args_is_help=True)

NO_STATUS: Final = "none"
STATUSES: Final[tuple[str, ...]] = (*get_args(Status), NO_STATUS)


def _complete_status(incomplete: str) -> list[str]:
    return [word for word in STATUSES if word.startswith(incomplete)]


@command(commands)
async def show(session: Session, customer: CustomerArgument) -> None:
    """Show one customer.

    One that nobody set up is on the default plan.
    """
    async with session.kit() as kit:
        await note_unknown(kit, customer)
        _show(session, kit, await kit.customers.get(customer))


@command(commands, "list")
async def list_all(session: Session) -> None:
    """List all customers that somebody set up."""
    async with session.kit() as kit:
        every = sorted([one async for one in kit.customers.list()], key=lambda one: one.customer)
        for customer in every:
            note_missing_plan(kit, customer)
    session.show([asdict(customer) for customer in every], lambda: _print(every))


@command(commands)
async def link(
    session: Session,
    customer: Annotated[
        str | None,
        typer.Argument(metavar="CUSTOMER", help="Your own id of the customer."),
    ] = None,
    stripe_customer: Annotated[
        str | None,
        typer.Argument(metavar="STRIPE_CUSTOMER", help="Its id at Stripe, such as cus_123."),
    ] = None,
    *,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Link every line `customer,stripe_customer` of a file; a first line with just these words is"
            " skipped. - reads stdin.",
        ),
    ] = None,
) -> None:
    """Link customers to Stripe customers.

    From now on their usage is delivered. Repeated, it changes nothing.
    """
    if csv is not None and customer is None:
        links = read_links(csv)
        async with session.kit() as kit:
            linked, refused = await _link_all(kit.customers, links)
        session.show(
            {"linked": linked, "refused": refused},
            lambda: typer.echo(f"linked {linked}, refused {len(refused)}"),
        )
        raise typer.Exit(int(bool(refused)))
    if csv is not None or customer is None or stripe_customer is None:
        raise typer.BadParameter("give CUSTOMER and STRIPE_CUSTOMER, or --csv FILE")
    await _change(session, customer, lambda customers: customers.link(customer, stripe_customer))


@command(commands)
async def unlink(session: Session, customer: CustomerArgument) -> None:
    """Undo a link.

    Usage that was never sent waits for the next link; what was sent stays where it went.
    """
    async with session.kit() as kit:
        await check_known(kit, customer)
        _show(session, kit, await kit.customers.unlink(customer))


@command(commands)
async def set_plan(session: Session, customer: CustomerArgument, plan: PlanArgument) -> None:
    """Put a customer on a plan, at once."""
    await _change(session, customer, lambda customers: customers.set_plan(customer, plan))


@command(commands)
async def override(
    session: Session,
    customer: CustomerArgument,
    meter: MeterArgument,
    entries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="An entitlement in the notation of the plans file: 'included=5_000' 'rate=[100/hour]'"
            " 'overage={bill: {cap: 100}}'. It replaces this customer's earlier override of the meter.",
        ),
    ] = None,
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Take the meter's override back.")] = False,
) -> None:
    """Give a customer other limits of one meter than the plan.

    What is not named stays as the plan has it.
    """
    if clear == bool(entries):
        raise typer.BadParameter("give KEY=VALUE, for example 'included=5_000', or --clear")
    overrides = {meter: parse_entitlement(entries or [])}
    await _change(session, customer, lambda customers: customers.override(customer, overrides))


@command(commands)
async def set_status(
    session: Session,
    customer: CustomerArgument,
    status: Annotated[
        str,
        typer.Argument(
            metavar="STATUS",
            help="What Stripe says of the subscription, or none.",
            autocompletion=_complete_status,
        ),
    ],
) -> None:
    """Set the status of a customer's subscription.

    The words are those of Stripe, such as active, past_due or canceled; none takes the status back.
    """
    if status not in STATUSES:
        raise MeterkitError(
            f"status: found {status!r:.80}; allowed are {', '.join(STATUSES)}{suggestion(status, STATUSES)}"
        )
    wanted = None if status == NO_STATUS else cast("Status", status)
    await _change(session, customer, lambda customers: customers.set_status(customer, wanted))


@command(commands)
async def delete(session: Session, customer: CustomerArgument) -> None:
    """Forget a customer: state, link and counters.

    Refused while usage of the customer is not delivered.
    """
    async with session.kit() as kit:
        await check_known(kit, customer)
        await kit.customers.delete(customer)
    session.show({"deleted": customer}, lambda: typer.echo(f"deleted {customer}"))


async def _change(
    session: Session, customer: str, change: Callable[[Customers], Awaitable[Customer]]
) -> None:
    """Change a customer, show it, and say so where it is a new one: the id may be misspelled."""
    async with session.kit() as kit:
        hint = await hint_of_new(kit, customer)
        changed = await change(kit.customers)
        if hint:
            print_note(hint)
        _show(session, kit, changed)


async def _link_all(
    customers: Customers, links: Iterable[tuple[str, str]]
) -> tuple[int, list[dict[str, str]]]:
    """Link what can be linked: how many were, and what was refused and why."""
    linked, refused = 0, list[dict[str, str]]()
    for customer, stripe_customer in links:
        try:
            await customers.link(customer, stripe_customer)
        except CustomerError as error:
            print_note(f"not linked: {customer!r:.80}, {stripe_customer!r:.80}: {error}")
            refused.append({"customer": customer, "stripe_customer": stripe_customer, "message": str(error)})
        else:
            linked += 1
    return linked, refused


def _show(session: Session, kit: MeterKit, customer: Customer) -> None:
    note_missing_plan(kit, customer)
    session.show(asdict(customer), lambda: _print([customer]))


def _print(found: Sequence[Customer]) -> None:
    print_table(
        ("customer", "plan", "status", "access", "Stripe customer", "overrides"),
        (
            (
                *(customer.customer, customer.plan, customer.status or NO_STATUS, customer.access),
                *(customer.stripe_customer or "not linked", _overrides(customer)),
            )
            for customer in found
        ),
        empty="no customer has been set up",
    )


def _overrides(customer: Customer) -> str:
    return "; ".join(f"{meter}: {format_entitlement(given)}" for meter, given in customer.overrides.items())
