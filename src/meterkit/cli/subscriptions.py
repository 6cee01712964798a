"""``meterkit subscriptions``: show and change subscriptions at Stripe."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from meterkit.catalog.value_parsers import money
from meterkit.cli.help_pages import command_group
from meterkit.cli.options import (
    CustomerArgument,
    PlanArgument,
    WrongUsageError,
    check_known,
    integer_between,
    note_unknown,
)
from meterkit.cli.output import cell_text, echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.decisions.subscription import ENDED
from meterkit.decisions.transitions import addons_text
from meterkit.errors import NoSubscriptionError
from meterkit.subscriptions.change_rules import SEATS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.customers.drift_records import Drift
    from meterkit.subscriptions.change_rules import OverLimit
    from meterkit.subscriptions.service.results import Invoice, Subscription, SubscriptionChange

commands = command_group("subscriptions", "Show and change subscriptions at Stripe.")

_RARE: Final = frozenset({"access", "seats", "trial ends", "ends", "scheduled", "due", "paid", "add-ons"})
"""Columns that are shown where there is something in them."""
_Seats: Final = integer_between(1, SEATS_MAX)
_DIGITS_MAX: Final = 9
_ADDONS_HELP: Final = "An add-on of the plans file, and its new quantity: storage_pack=2."


@command(commands)
async def show(session: Session, customer: CustomerArgument) -> None:
    """Show a customer's subscription.

    Shows the state that was last fetched from Stripe. Exits 1 if there is none.
    """
    async with session.kit(customer, reads=True) as kit:
        await note_unknown(kit, customer)
        found = await kit.subscriptions.get(customer)
        now = await kit.customers.get(customer)
    if found is None:
        raise NoSubscriptionError(customer)
    _show_subscription(session, found)
    if found.status in ENDED and not session.json:
        print_note(f"this subscription has ended; {customer} is on plan {now.plan}, access {now.access}")


@command(commands)
async def preview(
    session: Session,
    customer: CustomerArgument,
    *,
    plan: Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="The plan to change to.")] = None,
    seats: Annotated[
        int | None, typer.Option("--seats", parser=_Seats, metavar="N", help="New total number of seats.")
    ] = None,
    addons: Annotated[
        list[str] | None,
        typer.Option("--addon", metavar="NAME=N", help=f"{_ADDONS_HELP} May be repeated."),
    ] = None,
) -> None:
    """Show what another plan, other seats or add-ons cost.

    With discounts and taxes, without usage. Also shows gauges that exceed the new limits. Changes nothing.
    """
    if plan is None and seats is None and not addons:
        raise WrongUsageError("give --plan PLAN, --seats N, --addon NAME=N, or several of them")
    given = _parse_addons(addons or ())
    async with session.kit(customer, reads=True) as kit:
        found = await kit.subscriptions.preview(customer, plan=plan, seats=seats, addons=given)

    def print_preview() -> None:
        echo(found.proration.description)
        if found.ended_addons:
            echo(f"ends with the plan: {addons_text(found.ended_addons.items())}")
        for line in _over_limit_lines(found.over_limit):
            echo(line)

    session.show(asdict(found), print_preview)


@command(commands)
async def change(session: Session, customer: CustomerArgument, plan: PlanArgument = None) -> None:
    """Change the plan of a subscription.

    An upgrade takes effect now, a downgrade when the period ends. To cancel a scheduled plan, give the
    current plan.
    """
    if plan is None:
        raise WrongUsageError("give PLAN, a plan of the plans file")
    async with session.kit(customer) as kit:
        _print_change(session, await kit.subscriptions.change_plan(customer, plan))


@command(commands)
async def seats(
    session: Session,
    customer: CustomerArgument,
    number: Annotated[int, typer.Argument(metavar="N", parser=_Seats, help="The total number of seats.")],
) -> None:
    """Set the number of seats of a subscription, now."""
    async with session.kit(customer) as kit:
        _print_change(session, await kit.subscriptions.set_seats(customer, number))


@command(commands)
async def addons(
    session: Session,
    customer: CustomerArgument,
    quantities: Annotated[list[str], typer.Argument(metavar="NAME=N", help=_ADDONS_HELP)],
) -> None:
    """Set quantities of add-ons of a subscription.

    More take effect now, fewer when the period ends. Others stay; 0 gives one up. To cancel a scheduled
    change, give the present quantity.
    """
    given = _parse_addons(quantities)
    async with session.kit(customer) as kit:
        _print_change(session, await kit.subscriptions.set_addons(customer, given))


@command(commands)
async def cancel(
    session: Session,
    customer: CustomerArgument,
    *,
    immediately: Annotated[
        bool,
        typer.Option(
            "--immediately", help="End it now instead of with the period; usage until now is billed."
        ),
    ] = False,
    give_back: Annotated[
        bool,
        typer.Option(
            "--give-back",
            help="With --immediately: credit the paid rest of the period to the customer's balance at"
            " Stripe.",
        ),
    ] = False,
) -> None:
    """Cancel a subscription at the end of its period, or now."""
    if give_back and not immediately:
        raise WrongUsageError(
            "--give-back needs --immediately: otherwise the customer keeps the period until its end"
        )
    async with session.kit(customer) as kit:
        ended = await kit.subscriptions.cancel(customer, immediately=immediately, give_back=give_back)
        _show_subscription(session, ended)


@command(commands)
async def resume(session: Session, customer: CustomerArgument) -> None:
    """Undo a scheduled cancellation, or the pause after a trial."""
    async with session.kit(customer) as kit:
        _show_subscription(session, await kit.subscriptions.resume(customer))


@command(commands)
async def invoices(session: Session, customer: CustomerArgument) -> None:
    """List a customer's invoices, newest first."""
    async with session.kit(customer, reads=True) as kit:
        await note_unknown(kit, customer)
        found = await kit.subscriptions.invoices(customer)
    session.show_rows(found, _invoice_row, rare=_RARE, empty=f"{customer} has no invoices")


@command(commands)
async def sync(session: Session, customer: CustomerArgument) -> None:
    """Fetch a customer's subscription from Stripe now.

    Exits 1 if the customer has none with a plan of the plans file.
    """
    async with session.kit(customer) as kit:
        await check_known(kit, customer)
        found = await kit.subscriptions.sync(customer)
    if found is None:
        raise NoSubscriptionError(customer)
    _show_subscription(session, found)


@command(commands)
async def check(
    session: Session,
    customer: Annotated[
        str | None,
        typer.Argument(metavar="CUSTOMER", help="Show this customer's differences only. Default: all."),
    ] = None,
) -> None:
    """Compare all subscriptions with the plans file.

    Lists differences of linked customers. Exits 1 if there are any.
    """
    empty = "all subscriptions agree with the plans file"
    async with session.kit(customer) as kit:
        found = await kit.subscriptions.check()
        if customer is not None:
            await note_unknown(kit, customer, shown="")
            found = {one: drifts for one, drifts in found.items() if one == customer}
            if await kit.subscriptions.get(customer) is None:
                empty = f"{customer} has no subscription"
            else:
                empty = f"the subscription of {customer} agrees with the plans file"
    rows = [{"customer": one, **_drift_row(drift)} for one, drifts in found.items() for drift in drifts]
    session.show(
        {one: [asdict(drift) for drift in drifts] for one, drifts in found.items()},
        lambda: print_records(rows, empty=empty),
    )
    raise typer.Exit(int(bool(found)))


@command(commands)
async def repair(
    session: Session,
    customer: CustomerArgument,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be repaired, and change nothing.")
    ] = False,
) -> None:
    """Give a subscription exactly the items of its plan.

    Delivers usage before it changes a metered item. Exits 1 if you must decide about something.
    """
    async with session.kit(customer) as kit:
        done = await kit.subscriptions.repair(customer, dry_run=dry_run)
    rows = [
        {
            "": "left" if drift in done.left else "to be repaired" if dry_run else "repaired",
            **_drift_row(drift),
        }
        for drift in (*done.mended, *done.left)
    ]
    session.show(
        asdict(done), lambda: print_records(rows, empty=f"{done.subscription} agrees with the plans file")
    )
    raise typer.Exit(int(bool(done.left)))


def _drift_row(drift: Drift) -> dict[str, object]:
    return {"subscription": drift.subscription, "what": drift.kind, "found": drift.message}


def _show_subscription(session: Session, found: Subscription) -> None:
    session.show(asdict(found), lambda: print_records([_row(found)], rare=_RARE))


def _parse_addons(quantities: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in quantities:
        addon, _, number = text.partition("=")
        if (
            not addon
            or addon in found
            or not number.isascii()
            or not number.isdigit()
            or len(number) > _DIGITS_MAX
        ):
            raise WrongUsageError(
                f"found {text!r:.60}; allowed is NAME=N, such as storage_pack=2, once a name"
            )
        found[addon] = int(number)
    return found


def _print_change(session: Session, changed: SubscriptionChange) -> None:
    def print_change() -> None:
        echo(changed.proration.description)
        if changed.ended_addons:
            echo(f"ends with the plan: {addons_text(changed.ended_addons.items())}")
        print_records([_row(changed.subscription)], rare=_RARE)

    if changed.client_secret is not None:
        print_note("the customer must confirm the payment first; until then nothing changes")
    session.show(asdict(cast("Any", changed)), print_change)


def _over_limit_lines(found: Iterable[OverLimit]) -> Iterable[str]:
    for one in found:
        yield f"{one.meter}: {one.used:,} in use, {one.limit:,} allowed; it cannot grow until it is"
        " below that"


def _row(found: Subscription) -> dict[str, object]:
    pending = found.pending_change
    scheduled = ""
    if pending is not None:
        seats_text = f"{pending.seats} seats" if pending.seats else ""
        texts = (
            pending.plan,
            seats_text,
            addons_text(pending.addons.items()),
            cell_text(pending.effective_at),
        )
        scheduled = " ".join(filter(None, texts))
    return {
        "customer": found.customer,
        "subscription": found.id,
        "plan": found.plan or "not in the plans file",
        "status": found.status,
        "access": "" if found.status in ENDED else found.access,
        "seats": found.seats or "",
        "add-ons": addons_text(found.addons.items()),
        "period": f"{cell_text(found.current_period_start)} to {cell_text(found.current_period_end)}",
        "trial ends": found.trial_end if found.status == "trialing" else "",
        "ends": found.cancel_at,
        "scheduled": scheduled,
    }


def _invoice_row(invoice: Invoice) -> dict[str, object]:
    return {
        "invoice": invoice.number or invoice.id,
        "status": invoice.status,
        "total": money(invoice.total_cents, invoice.currency),
        "due": money(invoice.amount_due_cents, invoice.currency),
        "paid": money(invoice.amount_paid_cents, invoice.currency),
        "created": invoice.created_at,
        "page": invoice.url,
    }
