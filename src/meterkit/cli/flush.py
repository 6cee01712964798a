"""``meterkit flush``: deliver to Stripe now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from meterkit.cli.options import JsonOption, PlansOption, RedisOption
from meterkit.cli.output import print_json
from meterkit.cli.session import open_kit

if TYPE_CHECKING:
    from meterkit.delivery.flusher import FlushReport

__all__ = ["commands", "summary"]

commands = typer.Typer()


@commands.command()
def flush(
    *,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also seal what is still open, try at once what waits for a retry, and wait for what may not"
            " be sent yet.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="With --all: how long to wait.")
    ] = 300.0,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Deliver to Stripe what is due, once. Exits 1 if usage of a linked customer is still to be delivered."""
    report = asyncio.run(_flush(everything=everything, timeout_s=timeout, plans=plans, redis=redis))
    if json:
        print_json(asdict(report))
    else:
        typer.echo(summary(report))
        for customer in report.unlinked:
            cure = f"meterkit customers link {quote(customer)} cus_…"
            typer.echo(f"unlinked: {customer} has usage and no Stripe customer; {cure}")
        if report.why:
            typer.echo(f"tried again later: {report.why}")
    raise typer.Exit(int(report.left > 0 or report.parked > 0 or report.dead > 0))


async def _flush(*, everything: bool, timeout_s: float, plans: str | None, redis: str | None) -> FlushReport:
    async with open_kit(plans=plans, redis=redis) as kit:
        return await kit.flush(everything=everything, timeout_s=timeout_s)


def summary(report: FlushReport) -> str:
    """One line about a pass."""
    return (
        f"sealed {report.sealed}, delivered {report.delivered}, retried {report.retried},"
        f" parked {report.parked}, dead {report.dead}, left {report.left}, unlinked {len(report.unlinked)}"
    )
