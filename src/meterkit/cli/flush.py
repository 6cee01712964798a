"""``meterkit flush``: deliver to Stripe now."""

from __future__ import annotations

import asyncio
import logging
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.cancellation import start_task
from meterkit.catalog.amount_texts import units
from meterkit.cli.options import seconds
from meterkit.cli.output import echo, print_note
from meterkit.cli.progress import shown_steps
from meterkit.cli.session import Session, command, started
from meterkit.delivery.late_usage import late_in_words
from meterkit.insights.audit.draining import drainer_of
from meterkit.spool.directory import look_at_spools

if TYPE_CHECKING:
    from meterkit import MeterKit
    from meterkit.cli.progress import Steps
    from meterkit.delivery.flusher import Flusher, FlushReport
    from meterkit.delivery.report import LateUsage

commands = typer.Typer()

_LOOK_EVERY_S: Final = 0.2


@command(commands)
async def flush(
    session: Session,
    *,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also send the spools of processes that are gone, seal what is still open, try at once what"
            " waits for a retry, and wait for what may not be sent yet.",
        ),
    ] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            parser=seconds,
            metavar="SECONDS",
            help="With --all: how long to wait without progress. Default: 300.",
            show_default=False,
        ),
    ] = 300.0,
) -> None:
    """Deliver to Stripe what is due, once.

    Drains the audit log, too, where there is one. Exits 1 if Stripe does not have all that linked customers
    used, or a spool could not be sent. Without a Stripe key, --all only sends the spools.
    """
    kit = session.make_kit()
    for room in ("delivery", "store"):
        logging.getLogger(f"meterkit.{room}").addFilter(lambda record: not hasattr(record, "is_reported"))
    if everything and kit.settings.stripe_api_key is None:
        async with started(kit):
            report = await kit.flush(everything=True)
            await _drain_audit_log(kit)
        print_note("nothing is delivered: no Stripe key is set; to deliver, set METERKIT_STRIPE_API_KEY")
    else:
        report = await _deliver(kit, everything=everything, timeout_s=timeout_s)

    if everything:
        await asyncio.to_thread(_note_foreign_spools, kit)

    def tell() -> None:
        if report.spooled:
            echo(f"spools of processes that are gone: {report.spooled} settlements sent")
        for refused in report.spools_left:
            echo(f"spool left as it is: {refused}")
        _tell(report)

    session.show(report.as_json(), tell)
    raise typer.Exit(int(not report.is_complete))


async def _deliver(kit: MeterKit, *, everything: bool, timeout_s: float) -> FlushReport:
    # Report a missing key before waiting for the store.
    async with kit.flusher() as flusher, started(kit):
        with shown_steps() as steps:
            watching = start_task(_watch(flusher, steps))
            try:
                report = await flusher.flush(everything=everything, timeout_s=timeout_s)
            finally:
                watching.cancel()
        await _drain_audit_log(kit)
    return report


async def _drain_audit_log(kit: MeterKit) -> None:
    if kit.settings.audit_url is not None:
        await drainer_of(kit.store, kit.settings).once()


def _note_foreign_spools(kit: MeterKit) -> None:
    """Name left spools of other stores: the settings may not be those of the app that left them."""
    store = kit.store
    if store.spool_dir is None:
        return
    for seen in look_at_spools(store.spool_dir, store.keys, store=str(store.address), now_ms=store.now_ms()):
        if seen.state == "foreign":
            print_note(f"spool not sent: {seen.path}: {seen.why}")


async def _watch(flusher: Flusher, steps: Steps) -> None:
    """Show how much is delivered, until cancelled."""
    while True:
        steps.update("delivering", flusher.report.delivered)
        await asyncio.sleep(_LOOK_EVERY_S)


def _tell(report: FlushReport) -> None:
    echo(summary(report))
    for customer in report.unlinked:
        cure = f"meterkit customers link {quote(customer)} cus_…"
        echo(f"unlinked: {customer} has usage and no Stripe customer; {cure}")
    if report.why:
        echo(f"will be tried again: {report.why}")
    for unsealed in report.unsealed:
        what = "usage" if unsealed.quantity is None else f"{unsealed.quantity} of {unsealed.meter}"
        echo(f"not sealed: {what} of customer {unsealed.customer}: {unsealed.why}")
    for line in late_lines(report):
        echo(line)
    for line in undelivered_lines(report):
        echo(line)


def late_lines(report: FlushReport) -> list[str]:
    """Lines about usage that missed its invoice, one for each customer and period."""
    groups: dict[tuple[str, str], list[LateUsage]] = {}
    for one in report.late:
        groups.setdefault((one.customer, one.period), []).append(one)
    return [
        f"late: usage of customer {customer} in the period from {period}: {late_in_words(found)}"
        for (customer, period), found in groups.items()
    ]


def undelivered_lines(report: FlushReport) -> list[str]:
    """Parked and dead usage, a line for each customer, meter and reason."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for one in report.undelivered:
        groups.setdefault((one.state, one.customer, one.meter, one.why), []).append(one.quantity)
    return [
        f"{state}: {units(quantities)} of {meter} of customer {customer}"
        f" in {_intents(len(quantities))}: {why}"
        for (state, customer, meter, why), quantities in groups.items()
    ]


def _intents(count: int) -> str:
    return "1 intent" if count == 1 else f"{count} intents"


def summary(report: FlushReport) -> str:
    """One line about a pass."""
    return (
        f"sealed {report.sealed}, delivered {report.delivered}, retried {report.retried},"
        f" parked {report.parked}, dead {report.dead}, left {report.left}, unlinked {len(report.unlinked)}"
    )
