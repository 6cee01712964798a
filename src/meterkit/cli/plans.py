"""``meterkit check`` and ``meterkit schema``: whether a plans file is right, and what it may hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.catalog import json_schema, load
from meterkit.cli.options import NewPlanArgument, OldPlanArgument, plans_path
from meterkit.cli.output import echo, print_json, print_note
from meterkit.cli.session import Session, command
from meterkit.decisions.subscription import ENDED
from meterkit.errors import MeterkitError, PlansError, SettingsError, StoreError, UnknownPlanError

if TYPE_CHECKING:
    from datetime import datetime

    from meterkit.customers.customers import Customer
    from meterkit.kit import MeterKit

commands = typer.Typer()

SHOWN_MAX: Final = 50


@command(commands, unused=("redis",))
def check(
    session: Session,
    file: Annotated[
        str | None,
        typer.Argument(metavar="PLANS", help="The plans file, in place of --plans."),
    ] = None,
) -> None:
    """Check a plans file and name all that is wrong with it.

    It connects to nothing.
    """
    if file is not None and session.plans is not None and file != session.plans:
        raise typer.BadParameter(f"PLANS is {file!r} and --plans is {session.plans!r}; name one file")
    path = plans_path(file or session.plans)
    try:
        catalog = load(path)
    except PlansError as error:
        if not session.json:
            raise
        shown = [asdict(problem) for problem in error.problems[:SHOWN_MAX]]
        print_json({"ok": False, "problems": shown, "more": len(error.problems) - len(shown)})
        raise typer.Exit(1) from None
    found = {
        "meters": list(catalog.meters),
        "plans": list(catalog.plans),
        "routes": [route.match for route in catalog.routes],
    }
    if session.json:
        notes = [asdict(note) for note in catalog.notes]
        hashed = catalog.content_hash
        print_json({"ok": True, "plans_file": path, "content_hash": hashed, **found, "notes": notes})
        return
    counts = ", ".join(
        f"{len(names)} {what.removesuffix('s') if len(names) == 1 else what}" for what, names in found.items()
    )
    echo(f"{path}: valid ({counts})")
    for note in catalog.notes[:SHOWN_MAX]:
        echo(f"note: {note}")
    if len(catalog.notes) > SHOWN_MAX:
        echo(f"and {len(catalog.notes) - SHOWN_MAX} more notes; --json shows all")


@command(commands, unused=("plans", "redis", "json"))
def schema(_: Session) -> None:
    """Print the JSON Schema of plans files, for editors."""
    print_json(json_schema())


migration_commands = typer.Typer(name="plans", no_args_is_help=True)

_STOPS: Final = (SettingsError, StoreError, UnknownPlanError)
"""What would befall all others as well."""


@migration_commands.callback()
def plans() -> None:
    """Change the plans of many customers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """What became of one customer.

    Attributes:
        subscription: its id at Stripe; None: the plan was set by hand.
        at: when the new plan takes effect; None: it has, or it was not looked up.
        error: why the customer stays on the old plan; None: it does not.
    """

    customer: str
    subscription: str | None
    at: datetime | None
    error: str | None


@command(migration_commands)
async def migrate(
    session: Session,
    old: OldPlanArgument,
    new: NewPlanArgument,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show who would be migrated, and change nothing.")
    ] = False,
) -> None:
    """Have all customers of one plan on another.

    A subscription is changed at Stripe, as if its customer had chosen the plan: an upgrade now, a downgrade
    when the period ends, and so is any change between plans that bill one meter with `report: usage`. A plan
    that was set by hand is set anew, at once. FROM may be gone from the plans
    file. Who is migrated already is left alone, so that it may be run again.
    """
    async with session.kit() as kit:
        if new not in kit.catalog.plans:
            raise UnknownPlanError.of(new, kit.catalog.plans, name="TO")
        if old == new:
            raise MeterkitError(f"FROM and TO are both {new!r}; name two plans")
        every = [one async for one in kit.customers.list() if old in (one.plan, one.missing_plan)]
        leaving = sorted((one for one in every if one.pending_plan != new), key=lambda one: one.customer)
        done = [await _migrate(kit, one, new, dry_run=dry_run) for one in leaving]
    failed = sum(one.error is not None for one in done)
    row, empty = partial(_row, old=old, new=new, dry_run=dry_run), f"no customer is on {old}"
    session.show_rows(done, row, rare={"subscription"}, empty=empty)
    if failed:
        print_note(f"{failed} of {len(done)} customers stay on {old}; run it again once that is mended")
        raise typer.Exit(1)


async def _migrate(kit: MeterKit, customer: Customer, new: str, *, dry_run: bool) -> Migrated:
    subscription = None if customer.status in ENDED else customer.subscription
    at, why = None, None
    if not dry_run:
        try:
            if subscription is None:
                await kit.customers.set_plan(customer.customer, new)
            else:
                changed = await kit.subscriptions.change_plan(customer.customer, new)
                pending = changed.subscription.pending_change
                at = None if pending is None else pending.effective_at
        except _STOPS:
            raise
        except MeterkitError as error:
            why = str(error)
    return Migrated(customer=customer.customer, subscription=subscription, at=at, error=why)


def _row(one: Migrated, old: str, new: str, *, dry_run: bool) -> dict[str, object]:
    return {
        "customer": one.customer,
        "subscription": one.subscription,
        "plan": old if one.error else new,
        "from": _when(one, dry_run=dry_run),
    }


def _when(one: Migrated, *, dry_run: bool) -> datetime | str:
    if one.error is not None:
        return f"not migrated: {one.error}"
    if dry_run:
        return "as of the change"
    return one.at or "now"
