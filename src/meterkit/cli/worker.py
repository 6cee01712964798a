"""``meterkit worker``: delivers to Stripe until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import asdict
from json import dumps
from random import SystemRandom
from typing import TYPE_CHECKING, Final

import typer

from meterkit.cli.flush import summary
from meterkit.cli.options import JsonOption, PlansOption, RedisOption
from meterkit.cli.output import print_note
from meterkit.cli.session import open_kit, stop_signal
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from meterkit.delivery.flusher import FlushReport

__all__ = ["commands"]

_log: Final = logging.getLogger("meterkit.cli")
_PASS_EVERY_S: Final = 5.0
_random: Final = SystemRandom()

commands = typer.Typer()


@commands.command()
def worker(*, plans: PlansOption = None, redis: RedisOption = None, json: JsonOption = False) -> None:
    """Deliver usage to Stripe until SIGTERM or SIGINT; the pass under way is finished. Several may run."""
    asyncio.run(_work(plans=plans, redis=redis, json=json))


async def _work(*, plans: str | None, redis: str | None, json: bool) -> None:
    async with stop_signal() as stop, open_kit(plans=plans, redis=redis) as kit:
        every_s = min(_PASS_EVERY_S, kit.settings.flush_interval)
        print_note(f"delivering from {kit.store.address}; stop with Ctrl-C")
        while not stop.is_set():
            try:
                _tell(await kit.flush(), json=json)
            except StoreError as error:
                _log.error("this pass failed, the next one goes on from there: %s", error)
            with suppress(TimeoutError):
                # Spread, so that several workers do not come at the same moment.
                await asyncio.wait_for(stop.wait(), _random.uniform(0.8, 1.2) * every_s)
    print_note("stopped")


def _tell(report: FlushReport, *, json: bool) -> None:
    if json:
        typer.echo(dumps(asdict(report)))
    elif report.sealed or report.delivered or report.retried or report.parked or report.dead:
        typer.echo(summary(report))
