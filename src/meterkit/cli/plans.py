"""``meterkit check``, ``schema`` and ``plans migrate``: validate a plans file, migrate customers."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from meterkit.catalog import json_schema, load
from meterkit.catalog.match_lines import WEBSOCKET, unnamed_methods
from meterkit.cli.help_pages import command_group
from meterkit.cli.options import NewPlanArgument, OldPlanArgument, WrongUsageError, choice_option, plans_path
from meterkit.cli.output import echo, print_json, print_note
from meterkit.cli.session import Session, command
from meterkit.customers.states import list_states
from meterkit.decisions.customer_state import effective_plan, plan_named
from meterkit.decisions.route_holds import find_route_holds
from meterkit.decisions.subscription import ENDED
from meterkit.errors import MeterkitError, PlansError, SettingsError, StoreError, UnknownPlanError
from meterkit.store.unreadable_data import UNREADABLE, is_of_the_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.kit import MeterKit

commands = typer.Typer()

SHOWN_MAX: Final = 50
_PAGE: Final = 500


@command(commands, unused=("redis",))
def check(
    session: Session,
    file: Annotated[
        str | None,
        typer.Argument(metavar="PLANS", help="The plans file, instead of --plans."),
    ] = None,
) -> None:
    """Check a plans file and print every mistake.

    Works offline.
    """
    if file is not None and session.plans is not None and file != session.plans:
        raise WrongUsageError(f"PLANS is {file!r} and --plans is {session.plans!r}; name one file")
    path = plans_path(file or session.plans)
    try:
        catalog = load(path)
    except PlansError as error:
        if not session.json:
            raise
        shown = [asdict(problem) for problem in error.problems[:SHOWN_MAX]]
        print_json({"ok": False, "problems": shown, "more": len(error.problems) - len(shown)})
        raise typer.Exit(1) from None
    found: dict[str, list[str]] = {
        "meters": [name for name, one in catalog.meters.items() if not (one.is_row or one.is_spend)],
        "plans": list(catalog.plans),
        "routes": [route.match for route in catalog.routes],
    }
    if catalog.addons:
        found["addons"] = list(catalog.addons)
    if catalog.other_currencies:
        found["currencies"] = list(catalog.currencies)
    gates = [
        {
            "route": route.match,
            "feature": route.feature,
            "methods": unnamed_methods(route.match, found["routes"]),
        }
        for route in catalog.routes
        if route.feature is not None and route.method not in {None, WEBSOCKET} and route.mcp is None
    ]
    holds = list(find_route_holds(catalog, datetime.now(UTC)))
    if session.json:
        notes = [asdict(note) for note in catalog.notes]
        hashed = catalog.content_hash
        print_json(
            {
                "ok": True,
                "plans_file": path,
                "content_hash": hashed,
                **found,
                "gates": gates,
                "holds": [one._asdict() for one in holds],
                "notes": notes,
            }
        )
        return
    counts = ", ".join(
        f"{len(names)} {what.removesuffix('s') if len(names) == 1 else what}".replace("addon", "add-on")
        for what, names in found.items()
    )
    echo(f"{path}: valid ({counts})")
    for gate in gates:
        echo(f"feature {gate['feature']}: {gate['route']}, and {', '.join(gate['methods'])} of its path")
    for hold in holds[:SHOWN_MAX]:
        echo(str(hold))
    for note in catalog.notes[:SHOWN_MAX]:
        echo(f"note: {note}")
    if len(catalog.notes) > SHOWN_MAX:
        echo(f"and {len(catalog.notes) - SHOWN_MAX} more notes; --json shows all")


@command(commands, unused=("plans", "redis", "json"))
def schema(_: Session) -> None:
    """Print the JSON Schema of plans files, for editors."""
    print_json(json_schema())


migration_commands = command_group("plans", "Change the plans of many customers.")


UsageWay = Literal["lines", "meters"]
"""Ways of usage onto invoices, as ``billing.usage`` has them."""
_FATAL_ERRORS: Final = (SettingsError, UnknownPlanError)
"""Errors that would stop every migration, beside those of a store that does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationResult:
    """The migration of one customer.

    Attributes:
        subscription: its id at Stripe; None: the plan was set by hand.
        at: when the new plan, or way of usage, takes effect; None: now, or not known.
        error: why nothing changes for the customer; None: migrated.
    """

    customer: str
    subscription: str | None
    at: datetime | None
    error: str | None


@command(migration_commands)
async def migrate(
    session: Session,
    old: OldPlanArgument = None,
    new: NewPlanArgument = None,
    *,
    usage: Annotated[
        UsageWay | None,
        choice_option(
            "--usage",
            "lines",
            "meters",
            text="Instead of FROM and TO: bill usage by lines or meters, as `billing.usage` of the plans file"
            " has it, from each subscription's next period on.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the customers to migrate, and change nothing.")
    ] = False,
) -> None:
    """Move customers to another plan, or to lines or meters.

    A subscription changes at Stripe as if the customer had chosen the plan: an upgrade now, a downgrade when
    the period ends. Between plans that bill one meter with `report: usage`, each change waits for the end of
    the period. A plan that was set by hand changes at once; a subscription of another plan stays. Customers
    with restricted access are migrated, too. FROM may be missing from the plans file. You may run it again:
    migrated customers are skipped.
    """
    if usage is not None and old is None:
        await _migrate_usage(session, usage, dry_run=dry_run)
        return
    if usage is not None or old is None or new is None:
        raise WrongUsageError("give FROM and TO, or --usage lines, or --usage meters")
    async with session.kit() as kit:
        if new not in kit.catalog.plans:
            raise UnknownPlanError.of(new, kit.catalog.plans, name="TO")
        if old == new:
            raise MeterkitError(f"FROM and TO are both {new!r}; name two plans")
        unreadable = list[str]()
        leaving = await _find_leaving(kit, old, new, unreadable)
        done = [
            await _migrate_customer(kit, customer, subscription, new, dry_run=dry_run)
            for customer, subscription in sorted(leaving.items())
        ]
    row, empty = partial(_migration_row, old=old, new=new, dry_run=dry_run), f"no customer is on {old}"
    session.show_rows(done, row, rare={"subscription"}, empty=empty)
    _exit_if_failed(done, f"stay on {old}", unreadable)


def _explain_failure(error: Exception) -> str:
    """Explain why one customer cannot be migrated; raise the error if it would stop every migration."""
    if isinstance(error, _FATAL_ERRORS) or is_of_the_store(error):
        raise error
    is_damaged = isinstance(error, (StoreError, *UNREADABLE))
    return f"the stored data of the customer cannot be read: {error!r:.200}" if is_damaged else str(error)


def _exit_if_failed(done: Sequence[MigrationResult], what: str, unreadable: Sequence[str]) -> None:
    if failed := sum(one.error is not None for one in done):
        print_note(f"{failed} of {len(done)} customers {what}; remove the cause, then run it again")
    if failed or unreadable:
        raise typer.Exit(1)


async def _migrate_usage(session: Session, usage: UsageWay, *, dry_run: bool) -> None:
    """Move the usage of all subscriptions; those that are moved already are skipped."""
    async with session.kit() as kit:
        if kit.catalog.billing.usage != usage:
            raise MeterkitError(
                f"the plans file has `usage: {kit.catalog.billing.usage}`: write `billing: {{usage:"
                f" {usage}}}` first, and deploy it"
            )
        now_ms, unreadable, every = kit.store.now_ms(), list[str](), dict[str, str]()
        admin = await kit.store.admin()
        async with aclosing(list_states(admin, kit.store.keys, _PAGE, unreadable)) as states:
            async for customer, state in states:
                status = effective_plan(state, kit.catalog, now_ms).status
                if state.subscription is not None and status not in ENDED:
                    every[customer] = state.subscription.id
        asked = [await _move_usage(kit, *one, dry_run=dry_run) for one in sorted(every.items())]
    done = [one for one in asked if one is not None]
    row, empty = partial(_usage_row, usage=usage, dry_run=dry_run), f"all subscriptions have {usage}"
    session.show_rows(done, row, rare=set(), empty=empty)
    _exit_if_failed(done, "are not moved", unreadable)


async def _move_usage(
    kit: MeterKit, customer: str, subscription: str, *, dry_run: bool
) -> MigrationResult | None:
    at, why = None, None
    try:
        at = await kit.subscriptions.move_usage(customer, dry_run=dry_run)
        if at is None:
            return None
    except (MeterkitError, *UNREADABLE) as error:
        why = _explain_failure(error)
    return MigrationResult(customer=customer, subscription=subscription, at=at, error=why)


def _usage_row(one: MigrationResult, usage: UsageWay, *, dry_run: bool) -> dict[str, object]:
    return {
        "customer": one.customer,
        "subscription": one.subscription,
        "usage": usage,
        "from": _when(one, dry_run=False) if one.error or not dry_run else one.at,
    }


async def _find_leaving(kit: MeterKit, old: str, new: str, unreadable: list[str]) -> dict[str, str | None]:
    """Find the customers of a plan, also of one that restricted access replaces for now.

    Returns:
        Each with the subscription that sells the plan, unless that will change to the new one already; None:
        the plan was set by hand, or is the default one.
    """
    now_ms, leaving = kit.store.now_ms(), dict[str, str | None]()
    admin = await kit.store.admin()
    async with aclosing(list_states(admin, kit.store.keys, _PAGE, unreadable)) as states:
        async for customer, state in states:
            status, sold = effective_plan(state, kit.catalog, now_ms).status, state.subscription
            if (plan_named(state, status, now_ms) or kit.catalog.default_plan) != old:
                continue
            pays = sold is not None and status not in ENDED and sold.has_begun_at(now_ms)
            if sold is None or not pays or sold.plan_at(now_ms) != old:
                leaving[customer] = None  # If another plan is paid for, that stays.
            elif sold.pending_plan != new:
                leaving[customer] = sold.id
    return leaving


async def _migrate_customer(
    kit: MeterKit, customer: str, subscription: str | None, new: str, *, dry_run: bool
) -> MigrationResult:
    at, why = None, None
    if not dry_run:
        try:
            if subscription is None:
                await kit.customers.set_plan(customer, new)
            else:
                changed = await kit.subscriptions.change_plan(customer, new)
                found = changed.subscription
                # With the new plan, fewer add-ons may stay scheduled.
                pending = None if found.plan == new else found.pending_change
                at = None if pending is None else pending.effective_at
        except (MeterkitError, *UNREADABLE) as error:
            why = _explain_failure(error)
    return MigrationResult(customer=customer, subscription=subscription, at=at, error=why)


def _migration_row(one: MigrationResult, old: str, new: str, *, dry_run: bool) -> dict[str, object]:
    return {
        "customer": one.customer,
        "subscription": one.subscription,
        "plan": old if one.error else new,
        "from": _when(one, dry_run=dry_run),
    }


def _when(one: MigrationResult, *, dry_run: bool) -> datetime | str:
    if one.error is not None:
        return f"not migrated: {one.error}"
    if dry_run:
        return "as of the change"
    return one.at or "now"
