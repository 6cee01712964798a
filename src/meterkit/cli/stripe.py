"""``meterkit stripe``: what a plans file needs at Stripe, and what stands in for Stripe."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.catalog import load
from meterkit.cli.help_pages import command_group
from meterkit.cli.options import instant, integer_between
from meterkit.cli.output import echo, print_note, print_records
from meterkit.cli.session import Session, command, stop_signal
from meterkit.errors import SettingsError
from meterkit.outbox.sealing_terms import line_products
from meterkit.settings import Settings
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.price_sync import sync as sync_with

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.subscriptions.price_sync import StripeSync
    from meterkit.testing import StripeEmulator

KEY: Final = "sk_test_emulator"

commands = command_group("stripe", "Create meters and prices; run an emulator.")


@command(commands, unused=("redis",))
async def sync(
    session: Session,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be created, and create nothing.")
    ] = False,
) -> None:
    """Create the meters and prices of the plans file at Stripe.

    It finds its own prices by lookup keys, and its products by metadata. Prints each object with its id, and
    each price with its amount. Exits 1 and creates nothing if a price that the file names is missing or has
    another currency or interval, or if something would be billed wrongly.
    """
    settings = Settings.load(plans=session.plans)
    catalog = load(settings.plans or "plans.yaml")
    api = StripeApi(settings)
    try:
        done = await sync_with(api, catalog, dry_run=dry_run)
    finally:
        await api.close()
    session.show(asdict(done), lambda: _print_sync(done, catalog))
    if done.problems:
        raise typer.Exit(1)


def _print_sync(done: StripeSync, catalog: Catalog) -> None:
    rows = [
        {
            "what": line.what,
            "name": line.name,
            "": line.action,
            "charges": line.price,
            "id": line.id,
            "instead of": line.instead_of,
        }
        for line in done.lines
    ]
    if not done.problems:
        print_records(rows, empty="the plans file sells nothing through Stripe")
    if done.paste:
        echo("\nthe plans file names older prices; replace them:")
        echo("plans:")
        replaced = {line.instead_of: line.id for line in done.lines if line.instead_of}
        for name, prices in done.paste.items():
            echo(f"  {name}:")
            for line in dict.fromkeys(line.partition(", ")[0] for line in prices):
                echo(f"    {line}: {{stripe_price: {_ids_to_paste(catalog, name, line, replaced)}}}")
    for note in done.notes:
        print_note(note)
    for problem in done.problems:
        print_note(problem)
    if done.problems:
        print_note("nothing was created")


def _ids_to_paste(catalog: Catalog, plan: str, line: str, replaced: Mapping[str, str]) -> str:
    """Write the ids of a price as the plans file has them: one, or a map with all of its currencies."""
    named = {
        one: getattr(catalog.in_currency(one).plans[plan], line).stripe_price for one in catalog.currencies
    }
    ids = {currency: replaced.get(price, price) for currency, price in named.items()}
    first, *others = dict.fromkeys(ids.values())
    return f"{{{', '.join(f'{currency}: {price}' for currency, price in ids.items())}}}" if others else first


@command(commands, unused=("redis",))
async def emulator(
    session: Session,
    *,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            parser=integer_between(0, 65_535),
            metavar="N",
            help="The port on 127.0.0.1; 0 picks a free one.",
        ),
    ] = 12_111,
    customer: Annotated[
        list[str] | None,
        typer.Option(
            "--customer",
            metavar="STRIPE_CUSTOMER",
            help="A customer of the emulator, such as cus_123. May be repeated.",
        ),
    ] = None,
    clock: Annotated[
        datetime | None,
        typer.Option(
            "--clock",
            parser=instant,
            metavar="INSTANT",
            help="Stop the clock at this instant, such as 2026-04-01T00:00:00Z; POST /_emulator/clock moves"
            " it. Default: this machine's clock.",
        ),
    ] = None,
    forward_to: Annotated[
        str | None,
        typer.Option(
            "--forward-to",
            metavar="URL",
            help="Post webhooks to this URL, such as http://127.0.0.1:8000/billing/webhooks/stripe.",
        ),
    ] = None,
) -> None:
    """Run a Stripe emulator in memory until it is stopped.

    --plans adds the meters and prices of that file, --customer adds customers. POST /_emulator/clock moves
    its clock. POST /_emulator/customers/ID makes a customer's payments fail.
    """
    # Imported here: the emulator is slow to import.
    testing = import_module("meterkit.testing")
    options = {} if clock is None else {"clock": testing.Clock(clock)}
    stand_in: StripeEmulator = testing.StripeEmulator(**options)
    for stripe_customer in customer or ():
        stand_in.add_customer(stripe_customer)
    if session.plans is not None:
        catalog = load(session.plans)
        stand_in.add_plans(catalog)
        for _, product in line_products(catalog) if catalog.billing.is_by_lines else ():
            stand_in.add_product(product["name"], product_id=product["id"])
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(stand_in.serve(port=port))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise SettingsError(
                "port", f"port {port} cannot be opened: {why}; --port 0 picks a free one"
            ) from error
        stop = await stack.enter_async_context(stop_signal())
        settings = {"METERKIT_STRIPE_API_BASE": url, "METERKIT_STRIPE_API_KEY": KEY}
        if forward_to is not None:
            settings["METERKIT_STRIPE_WEBHOOK_SECRET"] = stand_in.add_endpoint(forward_to, has_real_time=True)
        session.show(settings, lambda: _print_settings(settings, has_customers=bool(customer)))
        await stop.wait()


def _print_settings(settings: Mapping[str, str], *, has_customers: bool) -> None:
    for name, value in settings.items():
        echo(f"export {name}={value}")
    print_note("the Stripe emulator runs until Ctrl-C; it accepts any secret key, such as sk_test_1")
    if not has_customers:
        print_note("it has no customers yet: a checkout creates them, or add some with --customer")
