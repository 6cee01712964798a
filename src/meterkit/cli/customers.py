"""``meterkit customers``: show and change customers."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from meterkit.catalog.report import suggestion
from meterkit.cli.completion import NO_STATUS, STATUSES, complete_status
from meterkit.cli.known import check_known, hint_of_new, note_unknown
from meterkit.cli.links import read_links
from meterkit.cli.notation import format_entitlement, parse_entitlement
from meterkit.cli.options import (
    Command,
    CustomerArgument,
    JsonOption,
    MeterArgument,
    PlanArgument,
    PlansOption,
    RedisOption,
)
from meterkit.cli.output import note_missing_plan, print_json, print_note, print_table
from meterkit.cli.session import open_kit
from meterkit.errors import CustomerError, MeterkitError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from meterkit.decisions.state import Status
    from meterkit.kit import MeterKit
    from meterkit.store.customers import Customer, Customers

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True)
_Found = TypeVar("_Found")


@commands.command(cls=Command)
def show(
    customer: CustomerArgument,
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Show one customer.

    One that nobody set up is on the default plan.
    """

    async def act(kit: MeterKit) -> Customer:
        await note_unknown(kit, customer)
        return await _noted(kit, kit.customers.get(customer))

    _show(_run(act, plans, redis), json=json)


@commands.command("list", cls=Command)
def list_all(*, plans: PlansOption = None, redis: RedisOption = None, json: JsonOption = False) -> None:
    """List all customers that somebody set up."""

    async def collect(kit: MeterKit) -> list[Customer]:
        every = [customer async for customer in kit.customers.list()]
        every.sort(key=lambda customer: customer.customer)
        for customer in every:
            note_missing_plan(customer, plans=kit.catalog.source)
        return every

    found = _run(collect, plans, redis)
    if json:
        print_json([asdict(customer) for customer in found])
    else:
        _print(found)


@commands.command(cls=Command)
def link(
    customer: Annotated[
        str | None,
        typer.Argument(metavar="CUSTOMER", help="Your own id of the customer.", show_default=False),
    ] = None,
    stripe_customer: Annotated[
        str | None,
        typer.Argument(
            metavar="STRIPE_CUSTOMER", help="Its id at Stripe, such as cus_123.", show_default=False
        ),
    ] = None,
    *,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Link every line `customer,stripe_customer` of a file; a first line of just these words is"
            " passed over. - reads stdin.",
        ),
    ] = None,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Link customers to Stripe customers.

    From now on their usage is delivered. Repeated, it changes nothing.
    """
    if csv is not None and customer is None:
        links = read_links(csv)
        linked, refused = _run(lambda kit: _link_all(kit.customers, links), plans, redis)
        if json:
            print_json({"linked": linked, "refused": refused})
        else:
            typer.echo(f"linked {linked}, refused {len(refused)}")
        raise typer.Exit(int(bool(refused)))
    if csv is not None or customer is None or stripe_customer is None:
        raise typer.BadParameter("give CUSTOMER and STRIPE_CUSTOMER, or --csv FILE")
    _change(customer, lambda customers: customers.link(customer, stripe_customer), plans, redis, json=json)


@commands.command(cls=Command)
def unlink(
    customer: CustomerArgument,
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Undo a link.

    Usage that was never sent waits for the next link; what was sent stays where it went.
    """

    async def act(kit: MeterKit) -> Customer:
        await check_known(kit, customer)
        return await _noted(kit, kit.customers.unlink(customer))

    _show(_run(act, plans, redis), json=json)


@commands.command(cls=Command)
def set_plan(
    customer: CustomerArgument,
    plan: PlanArgument,
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Put a customer on a plan, at once."""
    _change(customer, lambda customers: customers.set_plan(customer, plan), plans, redis, json=json)


@commands.command(cls=Command)
def override(
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
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Give a customer other limits of one meter than the plan.

    What is not named stays as the plan has it.
    """
    if clear == bool(entries):
        raise typer.BadParameter("give KEY=VALUE, for example 'included=5_000', or --clear")
    overrides = {meter: parse_entitlement(entries or [])}
    _change(customer, lambda customers: customers.override(customer, overrides), plans, redis, json=json)


@commands.command(cls=Command)
def set_status(
    customer: CustomerArgument,
    status: Annotated[
        str,
        typer.Argument(
            metavar="STATUS",
            help="What Stripe says of the subscription, or none.",
            autocompletion=complete_status,
        ),
    ],
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Set the status of a customer's subscription.

    The words are those of Stripe, such as active, past_due or canceled; none takes the status back.
    """
    if status not in STATUSES:
        raise MeterkitError(
            f"status: found {status!r:.80}; allowed are {', '.join(STATUSES)}{suggestion(status, STATUSES)}"
        )
    wanted = None if status == NO_STATUS else cast("Status", status)
    _change(customer, lambda customers: customers.set_status(customer, wanted), plans, redis, json=json)


@commands.command(cls=Command)
def delete(
    customer: CustomerArgument,
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Forget a customer: state, link and counters.

    Refused while usage of the customer is not delivered.
    """

    async def forget(kit: MeterKit) -> None:
        await check_known(kit, customer)
        await kit.customers.delete(customer)

    _run(forget, plans, redis)
    if json:
        print_json({"deleted": customer})
    else:
        typer.echo(f"deleted {customer}")


def _run(action: Callable[[MeterKit], Awaitable[_Found]], plans: str | None, redis: str | None) -> _Found:
    async def act() -> _Found:
        async with open_kit(plans=plans, redis=redis) as kit:
            return await action(kit)

    return asyncio.run(act())


def _change(
    customer: str,
    change: Callable[[Customers], Awaitable[Customer]],
    plans: str | None,
    redis: str | None,
    *,
    json: bool,
) -> None:
    """Change a customer, show it, and say so where it is a new one: the id may be misspelled."""

    async def act(kit: MeterKit) -> Customer:
        hint = await hint_of_new(kit, customer)
        found = await _noted(kit, change(kit.customers))
        if hint:
            print_note(hint)
        return found

    _show(_run(act, plans, redis), json=json)


async def _noted(kit: MeterKit, answer: Awaitable[Customer]) -> Customer:
    customer = await answer
    note_missing_plan(customer, plans=kit.catalog.source)
    return customer


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


def _show(customer: Customer, *, json: bool) -> None:
    if json:
        print_json(asdict(customer))
    else:
        _print([customer])


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
