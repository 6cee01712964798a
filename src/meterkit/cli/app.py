"""The ``meterkit`` command line: its groups, version and exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import meterkit
from meterkit.cli import (
    audit,
    correct,
    customer_links,
    customers,
    delivery,
    demo,
    doctor,
    grants,
    notify,
    outbox,
    plans,
    reconcile,
    revenue,
    routes,
    simulate,
    storage,
    stripe,
    subscriptions,
    usage,
    webhooks,
)
from meterkit.cli.help_pages import TopLevel
from meterkit.cli.output import echo
from meterkit.cli.session import run_command

app = typer.Typer(
    name="meterkit",
    cls=TopLevel,
    help="Usage metering and limit enforcement for ASGI services, billed through Stripe.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (
    demo.commands,
    plans.commands,
    routes.commands,
    doctor.commands,
    delivery.commands,
    outbox.commands,
    usage.commands,
    customers.commands,
    correct.commands,
    grants.commands,
    plans.migration_commands,
    subscriptions.commands,
    reconcile.commands,
    audit.commands,
    revenue.commands,
    simulate.commands,
    storage.commands,
    stripe.commands,
    webhooks.commands,
    notify.commands,
    customer_links.commands,
):
    app.add_typer(commands)


def _print_version(value: bool) -> None:
    if value:
        echo(f"meterkit {meterkit.__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Read the options before the subcommand."""
    del version


def main() -> None:
    """Run the command line; exit 0 done, 1 refused, unhealthy or left undone, 2 wrong usage."""
    sys.exit(run_command(lambda: app(prog_name="meterkit")))
