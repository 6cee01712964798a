"""``meterkit worker``: delivers to Stripe until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer

from meterkit.assembly import StripeAccess
from meterkit.background import BackgroundTasks
from meterkit.cancellation import start_task
from meterkit.cli.flush import summary
from meterkit.cli.imported_app import import_function
from meterkit.cli.output import echo, log_as_json, logs_as_json, print_note
from meterkit.cli.session import Session, command, reload_signal, started, stop_signal
from meterkit.customers.states import make_scheduled_transitions
from meterkit.delivery.closing import Closer
from meterkit.errors import MeterkitError
from meterkit.insights.background import insights_tasks, root_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meterkit import MeterKit
    from meterkit.delivery.flusher import Flusher, FlushReport

_PASS_EVERY_S: Final = 5.0

_Contact: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--contact",
        metavar="MODULE:FUNCTION",
        help="Gives where a customer is reached, as `contact` of the kit: send e-mails.",
        show_default=False,
    ),
]

commands = typer.Typer()

_logger = logging.getLogger("meterkit.worker")


@command(commands)
async def worker(
    session: Session,
    *,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            "--log-format",
            metavar="text|json",
            help="How the log on stderr is written: text, or json with an object on each line.",
            case_sensitive=False,
        ),
    ] = "text",
    storage_queue: Annotated[
        str | None,
        typer.Option(
            "--storage-queue",
            metavar="URL",
            help="A queue of SQS with events of object stores: count them.",
            show_default=False,
        ),
    ] = None,
    contact: _Contact = None,
) -> None:
    """Deliver usage and work off webhooks until told to stop.

    SIGTERM or SIGINT (Ctrl-C) tells it. It waits for calls under way, 10 seconds at most. After SIGHUP it
    reads the plans file again, as it does by itself when that has changed. Where the plans file has
    `storage`, it recalculates the stored bytes every hour. Without a Stripe key it does the rest, if no meter
    of the plans file has a Stripe event, or if it reads a queue.
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
        loop, beside = asyncio.get_running_loop(), BackgroundTasks(kit.store.task_failures)
        stripe = StripeAccess(kit.settings)
        told = start_task(stop.wait())
        running: asyncio.Task[Any] = told
        if flusher is None:
            print_note("no Stripe key is set: nothing is delivered; stop with Ctrl-C")
        else:
            print_note(f"delivering from {kit.store.address}; stop with Ctrl-C")
            running = start_task(_flush(kit, flusher, json=session.json))
            closer = Closer(kit.store, stripe.api, root_of(kit.store, kit.settings))
            tasks |= {"closes": closer.run, **kit.webhooks.tasks, **kit.subscriptions.tasks}
        for name, work in tasks.items():
            beside.keep(loop, name, work)
        # What ends by itself has failed: a worker that delivers nothing must not look like one that does.
        await asyncio.wait((running, told), return_when=asyncio.FIRST_COMPLETED)
        if flusher is not None:
            told.cancel()
            flusher.stop()
        await beside.end(loop)  # What they have begun they give back.
        await stripe.close()
        await _report_error(running)
    print_note("stopped")


def _needs_stripe(kit: MeterKit, storage_queue: str | None) -> bool:
    """Whether usage goes to Stripe: a forgotten key must not go unnoticed.

    A worker that reads a queue may be for that alone: it prints that nothing is delivered.
    """
    has_events = any(meter.stripe is not None for meter in kit.catalog.meters.values())
    return (has_events and storage_queue is None) or kit.settings.stripe_api_key is not None


async def _flush(kit: MeterKit, flusher: Flusher, *, json: bool) -> None:
    every_s = min(_PASS_EVERY_S, kit.settings.flush_interval)
    await flusher.run(every_s=every_s, told=partial(_tell, json=json))


async def _report_error(running: asyncio.Task[Any]) -> None:
    """Wait for the end of a task, and print the error that ended it."""
    try:
        await running
    except MeterkitError:
        raise  # It is printed like that of any other command.
    except Exception as error:
        print_note(f"the worker ended by an error: {error!r}", level=logging.ERROR)
        raise


def _tell(report: FlushReport, *, json: bool) -> None:
    if json:
        echo(dumps(report.as_json()))
    elif not any((report.sealed, report.delivered, report.retried, report.parked, report.dead, report.late)):
        return
    elif logs_as_json():
        _logger.info("%s", summary(report), extra=_figures(report))
    else:
        echo(summary(report))


def _figures(report: FlushReport) -> dict[str, int | str]:
    """What a line of the log can hold: of lists how much is in them, which may be all customers."""
    return {
        name: value if isinstance(value, int | str) else len(value)
        for name, value in asdict(report).items()
        if not name.startswith("spool")  # A worker sends those of its own process alone.
    }
