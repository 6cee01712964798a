"""``meterkit customers``: show and change customers; entitlements in the notation of the plans file."""

from __future__ import annotations

import math
import re
from contextlib import aclosing
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Final, cast, get_args

import typer
import yaml

from meterkit.catalog.errors import suggestion
from meterkit.catalog.value_parsers import date_and_time
from meterkit.cli.customer_links import is_linked, link_all, read_links
from meterkit.cli.help_pages import command_group
from meterkit.cli.options import (
    WHEN,
    CustomerArgument,
    PlanArgument,
    WrongUsageError,
    check_known,
    completion,
    date_or_instant,
    new_customer_note,
    note_missing_plan,
    note_unknown,
)
from meterkit.cli.output import JsonArray, cell_text, echo, print_note, print_records, shown_steps
from meterkit.cli.session import Session, command
from meterkit.customers.history import show_value
from meterkit.customers.sorted_customers import customers_by_id
from meterkit.decisions.subscription import Status
from meterkit.decisions.transitions import addons_text
from meterkit.errors import MeterkitError, StripeError
from meterkit.health.plans_file import ignored_overrides

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from meterkit.customers.customers import Customer, Customers
    from meterkit.customers.history import HistoryEntry
    from meterkit.kit import MeterKit


def format_entitlement(given: Mapping[str, object]) -> str:
    """Write an entitlement as it is given on a command line: ``included=5000 rate=[100/hour]``."""
    return " ".join(f"{key}={_flow(value)}" for key, value in sorted(given.items()))


def _flow(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").strip()


commands = command_group("customers", "Show and change customers.")
NO_STATUS: Final = "none"
STATUSES: Final[tuple[str, ...]] = (*get_args(Status), NO_STATUS)
_RARE: Final = frozenset(
    {"access since", "subscription", "seats", "add-ons", "trial ends", "ends", "scheduled"}
)
"""Columns that are shown where there is something in them."""
_ROWS_AT_ONCE: Final = 1_000


def _complete_status(incomplete: str) -> list[str]:
    return [word for word in STATUSES if word.startswith(incomplete)]


@command(commands)
async def show(session: Session, customer: CustomerArgument) -> None:
    """Show one customer.

    A customer without a record is on the default plan.
    """
    async with session.kit(reads=True) as kit:
        await note_unknown(kit, customer)
        _show_customer(session, kit, await kit.customers.get(customer))


@command(commands, "list")
async def list_all(session: Session) -> None:
    """List all customers that have a record."""
    array, is_empty = JsonArray(), True
    async with session.kit(reads=True) as kit, aclosing(customers_by_id(kit.store, _ROWS_AT_ONCE)) as pages:
        async for page in pages:
            is_empty = False
            for customer in page:
                note_missing_plan(kit, customer)
                if session.json:
                    array.add(asdict(customer))
            if not session.json:
                print_records([_row(customer) for customer in page], rare=_RARE)
    if session.json:
        array.end()
    elif is_empty:
        print_note("there are no customers")


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
            help="Link the customers of a file: each line is `customer,stripe_customer`. A header line is"
            " skipped. `-` reads stdin.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Link without checking the Stripe customers at Stripe.")
    ] = False,
) -> None:
    """Link customers to Stripe customers.

    meterkit then delivers their usage, and reads their subscriptions at once. Repeating the command changes
    nothing. With a Stripe key, an unknown Stripe customer is refused; --force links it anyway, and the
    subscription is read later.
    """
    if csv is not None and customer is None:
        links = read_links(csv)
        async with session.kit() as kit:
            with shown_steps() as steps:
                linked, refused, unread = await link_all(kit.customers, links, steps, force=force)
        session.show(
            {"linked": linked, "refused": refused, "unread": unread},
            lambda: echo(
                f"linked {linked}, refused {len(refused)}"
                + (f", to be read later {unread}" if unread else "")
            ),
        )
        raise typer.Exit(int(bool(refused)))
    if csv is not None or customer is None or stripe_customer is None:
        raise WrongUsageError("give CUSTOMER and STRIPE_CUSTOMER, or --csv FILE")
    await _change_and_show(
        session, customer, lambda customers: link_one(customers, customer, stripe_customer, force=force)
    )


@command(commands)
async def unlink(session: Session, customer: CustomerArgument) -> None:
    """Remove a customer's link.

    Usage that was never sent waits for the next link. Usage that was sent stays with the old Stripe customer.
    """
    async with session.kit() as kit:
        await check_known(kit, customer)
        _show_customer(session, kit, await kit.customers.unlink(customer))


@command(commands)
async def set_plan(
    session: Session,
    customer: CustomerArgument,
    plan: PlanArgument = None,
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the plan that was set by hand.")] = False,
) -> None:
    """Set a customer's plan by hand, at once."""
    if clear == (plan is not None):
        raise WrongUsageError("give PLAN or --clear")
    await _change_and_show(session, customer, lambda customers: customers.set_plan(customer, plan))


@command(commands)
async def override(
    session: Session,
    customer: CustomerArgument,
    meter: Annotated[
        str | None,
        typer.Argument(
            metavar="METER",
            help="A meter of the plans file. Leave it out to change only features.",
            autocompletion=completion("meters"),
        ),
    ] = None,
    entries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="An entitlement in the notation of the plans file: 'included=5_000' 'rate=[100/hour]'"
            " 'overage={bill: {cap: 100}}'. It replaces this customer's earlier override of the meter.",
        ),
    ] = None,
    *,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="NAME", help="A feature to add; may be repeated."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="NAME", help="A feature to remove; may be repeated."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="WHEN", help=f"End of the override: {WHEN}. Default: never."),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject",
            metavar="KIND=ID",
            help="A user or team of the customer, such as user=u_7. METER may then be budget.",
        ),
    ] = None,
    clear: Annotated[
        bool,
        typer.Option(
            "--clear", help="Remove the override of METER; without METER, remove those of features."
        ),
    ] = False,
) -> None:
    """Override limits or features of a customer's plan.

    Values that you leave out stay as in the plan.
    """
    features = {**dict.fromkeys(feature or (), True), **dict.fromkeys(without or (), False)}
    if subject is not None:
        if features:
            raise WrongUsageError("--subject excludes --feature and --without: users have no features")
        change = subject_override(customer, subject, meter, entries or [], until, clear=clear)
        await _change_and_show(session, customer, change)
        return
    if clear == bool(entries or features) or (meter is not None) != bool(entries or (clear and meter)):
        raise WrongUsageError(
            "give METER and KEY=VALUE, such as included=5_000, or --feature NAME, or --clear"
        )
    overrides = {} if meter is None else {meter: parse_entitlement(entries or [])}
    given = features if features or meter is None else None
    ends = date_or_instant("--until", until)
    changed = await _change_and_show(
        session, customer, lambda customers: customers.override(customer, overrides, given, ends)
    )
    if clear and meter is None:
        _note_remaining(changed)


@command(commands)
async def set_status(
    session: Session,
    customer: CustomerArgument,
    status: Annotated[
        str,
        typer.Argument(
            metavar="STATUS",
            help="A subscription status of Stripe, or none.",
            autocompletion=_complete_status,
        ),
    ],
) -> None:
    """Set a subscription's status by hand.

    STATUS is a status of Stripe, such as active, past_due or canceled. `none` removes it.
    """
    if status not in STATUSES:
        raise MeterkitError(
            f"status: found {status!r:.80}; allowed are {', '.join(STATUSES)}{suggestion(status, STATUSES)}"
        )
    wanted = None if status == NO_STATUS else cast("Status", status)
    await _change_and_show(session, customer, lambda customers: customers.set_status(customer, wanted))


@command(commands)
async def delete(
    session: Session,
    customer: CustomerArgument,
    *,
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="First end the customer's subscription, and bill its usage."),
    ] = False,
) -> None:
    """Delete a customer and print what was erased.

    Refused while the customer has a subscription or undelivered usage.
    """
    async with session.kit() as kit:
        await check_known(kit, customer)
        deleted = asdict(await kit.customers.delete(customer, cancel=cancel))
    del deleted["customer"]
    session.show(
        {"deleted": customer, "erased": deleted},
        lambda: echo(f"deleted {customer}: {_erased(deleted)}"),
    )


@command(commands)
async def history(session: Session, customer: CustomerArgument) -> None:
    """Show the changes of a customer and their causes.

    Oldest first; shows about the last thousand changes.
    """
    async with session.kit(reads=True) as kit:
        await note_unknown(kit, customer)
        found = await kit.customers.history(customer)
    session.show_rows(found, _history_row, empty=f"no changes of {customer} are recorded")


def _history_row(entry: HistoryEntry) -> dict[str, object]:
    return {
        "at": entry.at,
        "what": entry.kind,
        "before": show_value(entry.kind, entry.before),
        "after": show_value(entry.kind, entry.after),
        "cause": entry.cause,
    }


async def _change_and_show(
    session: Session, customer: str, change: Callable[[Customers], Awaitable[Customer]]
) -> Customer:
    """Change a customer, show and return it, with a note if it is new: the id may be misspelled."""
    async with session.kit() as kit:
        hint = await new_customer_note(kit, customer)
        changed = await change(kit.customers)
        if hint:
            print_note(hint)
        _show_customer(session, kit, changed)
        return changed


def _note_remaining(changed: Customer) -> None:
    """Print that ``--clear`` without METER leaves the overrides of meters."""
    if not changed.overrides:
        return
    names = ", ".join(changed.overrides)
    command = f"meterkit customers override {quote(changed.customer)} {next(iter(changed.overrides))} --clear"
    print_note(f"only overrides of features were removed; those of {names} remain, remove each by {command}")


def _erased(counts: Mapping[str, int]) -> str:
    parts = [f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count]
    return ", ".join(parts) or "nothing to erase"


def _show_customer(session: Session, kit: MeterKit, customer: Customer) -> None:
    note_missing_plan(kit, customer)
    for problem in ignored_overrides(customer, kit.catalog):
        print_note(f"customer {customer.customer}: an override has no effect: {problem}")
    session.show(asdict(customer), lambda: print_records([_row(customer)], rare=_RARE))


def _row(customer: Customer) -> dict[str, object]:
    seats = None if customer.pending_seats is None else f"{customer.pending_seats} seats"
    addons = (
        None
        if customer.pending_addons is None
        else addons_text(customer.pending_addons.items()) or "no add-ons"
    )
    pending = (customer.pending_plan, seats, addons, cell_text(customer.pending_at))
    return {
        "customer": customer.customer,
        "plan": customer.plan,
        "status": customer.status or NO_STATUS,
        "access": customer.access,
        "access since": customer.access_since,
        "subscription": customer.subscription,
        "seats": customer.seats or None,
        "add-ons": addons_text(customer.addons.items()) or None,
        "trial ends": customer.trial_end,
        "ends": customer.cancel_at,
        "scheduled": " ".join(filter(None, pending)),
        "Stripe customer": customer.stripe_customer or "not linked",
        "overrides": _overrides(customer),
    }


def _overrides(customer: Customer) -> str:
    ends = {name: f" until {date_and_time(until)}" for name, until in customer.override_ends.items()}
    prices = {name: f", price from {date_and_time(at)}" for name, at in customer.price_changes.items()}
    meters = (
        f"{meter}: {format_entitlement(customer.overrides.get(meter, {})) or 'removed'}"
        f"{ends.get(meter, '')}{prices.get(meter, '')}"
        for meter in dict.fromkeys((*customer.overrides, *customer.price_changes))
    )
    features = (
        f"{'' if has else 'no '}feature {name}{ends.get(f'feature {name}', '')}"
        for name, has in customer.feature_overrides.items()
    )
    subjects = (
        f"{subject} {meter}: {format_entitlement(cast('Mapping[str, object]', given))}"
        f"{ends.get(f'subject {subject}', '')}"
        for subject, limits in customer.subject_overrides.items()
        for meter, given in limits.items()
    )
    return "; ".join((*meters, *features, *subjects))


async def link_one(customers: Customers, customer: str, stripe_customer: str, *, force: bool) -> Customer:
    """Link a customer; print a note if Stripe cannot read the subscription."""
    try:
        return await customers.link(customer, stripe_customer, force=force)
    except StripeError as error:
        if not await is_linked(customers, customer, stripe_customer):
            raise
        print_note(str(error))
        return await customers.get(customer)


class _PlansFileLoader(yaml.SafeLoader):
    """Loader that reads integers as the plans file does: to YAML `010` is eight, and `1:30` ninety."""


def _read_integer(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int | str:
    text = str(node.value)
    return int(text.replace("_", "")) if re.fullmatch(r"[0-9][0-9_]*", text) else text


_loaders: Any = _PlansFileLoader
_loaders.add_constructor("tag:yaml.org,2002:int", _read_integer)


def parse_entitlement(entries: Iterable[str]) -> dict[str, object]:
    """Parse ``KEY=VALUE`` entries; a value is YAML in flow style, or JSON.

    Raises:
        MeterkitError: an entry cannot be read, or a key is given twice.
    """
    found: dict[str, object] = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key or not text:
            raise MeterkitError(
                f"override: found {entry!r:.80}; allowed is KEY=VALUE, such as included=5_000"
            )
        if key in found:
            raise MeterkitError(f"override: found {key!r:.80} twice; give it once")
        try:
            found[key] = yaml.load(text, _PlansFileLoader)  # noqa: S506 - a safe one
        except (yaml.YAMLError, ValueError, RecursionError):
            # ValueError: an impossible date, or a number that is too long.
            raise MeterkitError(
                f"override: the value of {key:.80} cannot be read; write it as in the plans file, such as"
                " 'rate=[100/hour]'"
            ) from None
    return found


def subject_override(
    customer: str, subject: str, meter: str | None, entries: list[str], until: str | None, *, clear: bool
) -> Callable[[Customers], Awaitable[Customer]]:
    """Make the change of a subject's overrides, ``KIND=ID``; ``clear`` removes all of them."""
    kind, _, name = subject.partition("=")
    if not name or clear == bool(entries) or (meter is None) != clear:
        raise WrongUsageError("--subject KIND=ID needs METER and KEY=VALUE, or --clear without METER")
    limits = {} if meter is None else {meter: parse_entitlement(entries)}
    ends = date_or_instant("--until", until)
    return lambda customers: customers.subject(customer, **{kind: name}).override(limits, ends)
