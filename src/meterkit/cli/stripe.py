"""``meterkit stripe``: what stands in for Stripe."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit import testing
from meterkit.catalog import load
from meterkit.cli.options import Command, JsonOption, PlansOption, UnusedRedisOption, whole_number
from meterkit.cli.output import print_json, print_note
from meterkit.cli.session import stop_signal
from meterkit.errors import SettingsError

if TYPE_CHECKING:
    from meterkit.testing import StripeEmulator

__all__ = ["commands"]

KEY: Final = "sk_test_emulator"

commands = typer.Typer(no_args_is_help=True)


@commands.callback()
def stripe() -> None:
    """Run a stand-in for Stripe."""


@commands.command(cls=Command)
def emulator(
    *,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            parser=whole_number(0, 65_535),
            metavar="N",
            help="The port on 127.0.0.1; 0 takes a free one.",
        ),
    ] = 12_111,
    customer: Annotated[
        list[str] | None,
        typer.Option(
            "--customer",
            metavar="STRIPE_CUSTOMER",
            help="A customer that Stripe has, such as cus_123. May be given several times.",
        ),
    ] = None,
    plans: PlansOption = None,
    redis: UnusedRedisOption = None,
    json: JsonOption = False,
) -> None:
    """Run a Stripe emulator in memory until it is stopped.

    With --plans it has the meters of that file, with --customer these customers.
    """
    del redis
    stand_in = testing.StripeEmulator()
    for stripe_customer in customer or ():
        stand_in.add_customer(stripe_customer)
    if plans is not None:
        for meter in load(plans).meters.values():
            if meter.stripe is not None:
                stand_in.add_meter(meter.stripe.event_name)
    asyncio.run(_serve(stand_in, port=port, json=json, has_customers=bool(customer)))


async def _serve(stand_in: StripeEmulator, *, port: int, json: bool, has_customers: bool) -> None:
    serving = stand_in.serve(port=port)
    try:
        url = await serving.__aenter__()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(
            "port", f"port {port} cannot be listened on: {why}; --port 0 takes a free one"
        ) from error
    try:
        async with stop_signal() as stop:
            told = {"METERKIT_STRIPE_API_BASE": url, "METERKIT_STRIPE_API_KEY": KEY}
            if json:
                print_json(told)
            else:
                for name, value in told.items():
                    typer.echo(f"export {name}={value}")
                print_note("Stripe stands in here until Ctrl-C; any sk_test_… key will do")
                if not has_customers:
                    print_note("it has no customers yet: name some with --customer, or create them over HTTP")
            await stop.wait()
    finally:
        await serving.__aexit__(None, None, None)
