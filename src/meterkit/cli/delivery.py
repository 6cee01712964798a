"""``meterkit flush`` and ``meterkit worker``: deliver usage to Stripe, once or until a signal.

Without a Stripe key ``flush --all`` still replays spools. ``worker`` refuses to start if a meter goes to
Stripe, unless it reads a storage queue: a worker that lost its key would look alive and bill no customer.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from json import dumps
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer

from meterkit.cancellation import start_task
from meterkit.catalog.value_parsers import units
from meterkit.cli.options import choice_option, import_function, seconds
from meterkit.cli.output import echo, is_log_json, log_as_json, print_note, shown_steps
from meterkit.cli.session import Session, command, reload_signal, started, stop_signal
from meterkit.customers.states import make_scheduled_transitions
from meterkit.delivery.delivery_pass import FLUSH, deliver_once
from meterkit.delivery.late_usage_withdrawal import format_late_usage
from meterkit.errors import MeterkitError
from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.audit_tasks import insights_tasks
from meterkit.serving import BackgroundTasks
from meterkit.store.spool_file import list_spools

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meterkit import MeterKit
    from meterkit.cli.output import Steps
    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.flusher import Flusher
    from meterkit.outbox.sealer import LateUsage

commands = typer.Typer()

_PASS_EVERY_S: Final = 5.0

_ContactOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--contact",
        metavar="MODULE:FUNCTION",
        help="Send e-mails to the address that this function returns, like `contact` of MeterKit.",
        show_default=False,
    ),
]

_logger = logging.getLogger("meterkit.worker")


@command(commands)
async def worker(
    session: Session,
    *,
    log_format: Annotated[
        Literal["text", "json"],
        choice_option(
            "--log-format",
            "text",
            "json",
            text="Format of the log on stderr: text, or json with one object per line.",
        ),
    ] = "text",
    storage_queue: Annotated[
        str | None,
        typer.Option(
            "--storage-queue",
            metavar="URL",
            help="Count the events of object stores in this SQS queue.",
            show_default=False,
        ),
    ] = None,
    contact: _ContactOption = None,
) -> None:
    """Deliver usage and process webhooks until stopped.

    SIGTERM or SIGINT (Ctrl-C) stops it; it waits up to 10 seconds for running calls. It reloads the plans
    file when the file changes, or at SIGHUP. If the plans file has `storage`, it recalculates the stored
    bytes every hour. It needs a Stripe key, unless no meter has a Stripe event or --storage-queue is given:
    then it does everything but deliver.
    """
    if log_format == "json":
        log_as_json()
    kit = session.make_kit(None if contact is None else import_function(contact))
    tasks: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "scheduled transitions": partial(make_scheduled_transitions, kit.store),
        **kit.notify.tasks(is_worker=True),
        **insights_tasks(kit.store, kit.settings, is_worker=True),
        **kit.storage.worker_tasks(storage_queue),
    }
    # Report a missing key before waiting for the store.
    async with (
        stop_signal() as stop,
        kit.flusher() if _needs_stripe(kit, storage_queue) else nullcontext() as flusher,
        started(kit, waits=True),
        reload_signal(kit),
    ):
        loop, background = asyncio.get_running_loop(), BackgroundTasks(kit.store.task_failures)
        stopped = start_task(stop.wait())
        running: asyncio.Task[Any] = stopped
        if flusher is None:
            print_note("no Stripe key is set, so nothing is delivered; stop with Ctrl-C")
        else:
            print_note(f"delivering from {kit.store.address}; stop with Ctrl-C")
            running = start_task(_run_flusher(kit, flusher, json=session.json))
            repeated = {name: task.run for name, task in kit.delivery_tasks().items() if name != FLUSH}
            tasks |= repeated
        for name, work in tasks.items():
            background.ensure_running(loop, name, work)
        # A task that ends by itself has failed: the worker must not run on without it.
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        if flusher is not None:
            stopped.cancel()
            flusher.stop()
        await background.end(loop)  # They release their leases.
        await _report_error(running)
    print_note("stopped")


def _needs_stripe(kit: MeterKit, storage_queue: str | None) -> bool:
    """Whether the worker must deliver to Stripe: it refuses to start if only the key is missing.

    A worker that reads a queue may run for that alone; it prints that nothing is delivered.
    """
    has_events = any(meter.stripe is not None for meter in kit.catalog.meters.values())
    return (has_events and storage_queue is None) or kit.settings.stripe_api_key is not None


async def _run_flusher(kit: MeterKit, flusher: Flusher, *, json: bool) -> None:
    every_s = min(_PASS_EVERY_S, kit.settings.flush_interval)
    await flusher.run(every_s=every_s, told=partial(_log_report, json=json))


async def _report_error(running: asyncio.Task[Any]) -> None:
    """Wait for the end of a task and print its error."""
    try:
        await running
    except MeterkitError:
        raise  # Printed like the error of any command.
    except Exception as error:
        print_note(f"the worker ended with an error: {error!r}", level=logging.ERROR)
        raise


def _log_report(report: FlushReport, *, json: bool) -> None:
    if json:
        echo(dumps(report.as_json()))
    elif not any(
        (
            *(report.sealed, report.delivered, report.lines, report.retried),
            *(report.parked, report.dead, report.late),
        )
    ):
        return
    elif is_log_json():
        _logger.info("%s", summarize(report), extra=_figures(report))
    else:
        echo(summarize(report))


def _figures(report: FlushReport) -> dict[str, int | str]:
    """Make log fields of a report: the length of lists, which may name all customers."""
    return {
        name: value if isinstance(value, int | str) else len(value)
        for name, value in asdict(report).items()
        if not name.startswith("spool")  # A worker sends only its own spools.
    }


_PROGRESS_EVERY_S: Final = 0.2
_CURE_OF_BLOCKED: Final = (
    "Stripe refuses this usage until you act, so waiting does not help: `meterkit doctor` names the cause,"
    " and `meterkit outbox list --state queued` the usage; after the cure run `meterkit flush --all` again"
)


@command(commands)
async def flush(
    session: Session,
    *,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also send spools of ended processes, seal open usage, retry failed deliveries at once, and"
            " wait until all is sent.",
        ),
    ] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            parser=seconds,
            metavar="SECONDS",
            help="With --all: stop after this long without progress. Default: 300.",
            show_default=False,
        ),
    ] = 300.0,
) -> None:
    """Deliver due usage to Stripe, once.

    Also writes waiting entries to the audit log. Exits 1 if usage of a linked customer is undelivered, or a
    spool could not be sent. --all stops waiting if Stripe refuses all that is left until you act, for example
    because of a wrong key or a missing meter. Without a Stripe key, --all sends only the spools.
    """
    kit = session.make_kit()
    for room in ("delivery", "store"):
        logging.getLogger(f"meterkit.{room}").addFilter(lambda record: not hasattr(record, "is_reported"))
    if everything and kit.settings.stripe_api_key is None:
        async with started(kit):
            report = await kit.flush(everything=True)
            await _drain_audit_log(kit)
        print_note(
            "nothing is delivered, because no Stripe key is set; to deliver, set METERKIT_STRIPE_API_KEY"
        )
    else:
        report = await _flush_with_progress(kit, everything=everything, timeout_s=timeout_s)

    if everything:
        await asyncio.to_thread(_print_foreign_spools, kit)

    def print_result() -> None:
        if report.spooled:
            echo(f"settlements sent from spools of ended processes: {report.spooled}")
        for refused in report.spools_left:
            echo(f"spool left as it is: {refused}")
        _print_report(report)
        if kit.catalog.billing.is_by_lines and not report.lines:
            echo("Usage of an open billing period goes onto the invoice at its end.")

    session.show(report.as_json(), print_result)
    if report.blocked:
        print_note(_CURE_OF_BLOCKED)
    raise typer.Exit(int(not report.is_complete))


async def _flush_with_progress(kit: MeterKit, *, everything: bool, timeout_s: float) -> FlushReport:
    # Report a missing key before waiting for the store.
    async with kit.flusher() as flusher, started(kit):
        with shown_steps() as steps:
            watching = start_task(_watch(flusher, steps))
            try:
                flush = partial(flusher.flush, everything=everything, timeout_s=timeout_s)
                return await deliver_once(kit.delivery_tasks(), flush)
            finally:
                watching.cancel()


async def _drain_audit_log(kit: MeterKit) -> None:
    if kit.settings.audit_url is not None:
        await open_drainer(kit.store, kit.settings).drain_under_lease()


def _print_foreign_spools(kit: MeterKit) -> None:
    """Print spools of other stores: these settings may differ from the app's."""
    store = kit.store
    if store.spool_dir is None:
        return
    try:
        found = list_spools(store.spool_dir, store.keys, store=str(store.address), now_ms=store.now_ms())
    except OSError:
        return  # The report says why none can be read.
    for seen in found:
        if seen.state == "foreign":
            print_note(f"spool not sent: {seen.path}: {seen.why}")


async def _watch(flusher: Flusher, steps: Steps) -> None:
    """Show the progress until cancelled."""
    while True:
        steps.update("delivering", flusher.report.delivered)
        await asyncio.sleep(_PROGRESS_EVERY_S)


def _print_report(report: FlushReport) -> None:
    echo(summarize(report))
    for customer in report.unlinked:
        cure = f"meterkit customers link {quote(customer)} cus_…"
        echo(f"unlinked: {customer} has usage and no Stripe customer; run {cure}")
    if report.why and report.why not in report.blocked:
        echo(f"will be tried again: {report.why}")
    for why, count in report.blocked.items():
        echo(f"refused: {_intents(count)}, queued until you act: {why}")
    for unsealed in report.unsealed:
        what = "usage" if unsealed.quantity is None else f"{unsealed.quantity} of {unsealed.meter}"
        echo(f"not sealed: {what} of customer {unsealed.customer}: {unsealed.why}")
    for line in late_lines(report):
        echo(line)
    for line in undelivered_lines(report):
        echo(line)


def late_lines(report: FlushReport) -> list[str]:
    """List usage that missed its invoice, one line per customer and period."""
    groups: dict[tuple[str, str], list[LateUsage]] = {}
    for one in report.late:
        groups.setdefault((one.customer, one.period), []).append(one)
    return [
        f"late: usage of customer {customer} in the period from {period}: {format_late_usage(found)}"
        for (customer, period), found in groups.items()
    ]


def undelivered_lines(report: FlushReport) -> list[str]:
    """List parked and dead usage, one line per customer, meter and reason."""
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


def summarize(report: FlushReport) -> str:
    """Summarize a pass in one line, without what is 0."""
    counts = {
        "sealed": report.sealed,
        "delivered": report.delivered,
        "invoice lines": report.lines,
        "retried": report.retried,
        "parked": report.parked,
        "dead": report.dead,
        "left": report.left,
        "unlinked": len(report.unlinked),
    }
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "Nothing to deliver."
