"""``meterkit demo``: a service, its customers and Stripe in small, checked to the unit."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Annotated

import typer

from meterkit.cli.options import WrongUsageError
from meterkit.cli.session import Session, command

__all__ = ["commands"]

commands = typer.Typer()


@command(commands, unused=("plans", "redis", "json"))
def demo(
    session: Session,
    *,
    lose_one: Annotated[
        bool,
        typer.Option("--break", help="Lose one event on purpose: the comparison must find it, and exit 1."),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Then serve each customer's usage page and the operator pages until Ctrl-C."
        ),
    ] = False,
) -> None:
    """Try everything out: a service, its customers and the bill.

    Starts a small service, three customers and a Stripe emulator. Compares the bill with the served requests,
    unit by unit.
    """
    if session.plans is not None or session.redis is not None:
        raise WrongUsageError(
            "the demonstration uses a plans file and a store of its own; leave --plans and --redis out"
        )
    # Other commands do without what it needs.
    runner = import_module("meterkit.cli.demo.run")
    try:
        good = asyncio.run(runner.run(lose_one=lose_one, keep=keep))
    except asyncio.CancelledError:
        raise typer.Exit(143) from None
    raise typer.Exit(int(not good))
