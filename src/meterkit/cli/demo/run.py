"""Runs the demonstration: starts its parts, sends the requests, and compares what came out."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import time
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

try:
    import httpx
except ImportError as error:
    raise ImportError("the demonstration needs its extras: pip install 'meterkit[cli,stripe]'") from error
from rich.progress import BarColumn, Progress, TextColumn

from meterkit import MeterKit
from meterkit.catalog import load
from meterkit.cli.demo.service import build
from meterkit.cli.demo.store import ended_with_us
from meterkit.cli.demo.traffic import CUSTOMERS, drive, evidence
from meterkit.cli.output import print_table, stdout_console
from meterkit.errors import MeterkitError
from meterkit.insights.audit.draining import drainer_of
from meterkit.insights.overview.overview import Overview
from meterkit.testing import StripeEmulator, check_bill
from meterkit.testing.emulator.server import running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from meterkit.catalog import Catalog
    from meterkit.cli.demo.traffic import Tally
    from meterkit.testing import BillLine

PLANS: Final = Path(__file__).with_name("plans.yaml")
_OF_PAGES: Final = ("jinja2", "sqlalchemy")
_SETTINGS: Final = ("METERKIT_", "REDIS_URL", "STRIPE_")
_FLUSH_S: Final = 60.0
# A machine that is busy with other things is no reason to serve undecided.
_STORE_S: Final = 5.0


async def run(*, lose_one: bool, keep: bool) -> bool:
    """Show the whole way of usage, from requests to the bill; whether the bill is right to the unit.

    Everything it starts and writes is gone when it returns, fails or is cancelled.

    Args:
        lose_one: have Stripe's stand-in forget one event, so that the bill is wrong.
        keep: go on until Ctrl-C, with pages to look at.

    Raises:
        MeterkitError: a part does not start or does not do what it is for.
        ImportError: ``keep`` needs an extra that is not installed.
    """
    if keep:
        _check_extras()
    began = time.monotonic()
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        del os.environ[name]  # The user's settings are for the user's own service.
    logging.getLogger("meterkit").setLevel(logging.ERROR)  # Each refusal is in a table.
    console = stdout_console()
    async with AsyncExitStack() as parts:
        _clean_up_at_sigterm(parts)
        lines, service_url, kit = await _demonstrate(parts, console, lose_one=lose_one, keep=keep)
        _compare(console, lines, time.monotonic() - began)
        if keep:
            await _keep(console, kit, service_url)
    return all(line.is_right for line in lines)


def _compare(console: Console, lines: Sequence[BillLine], took_s: float) -> None:
    _headline(console, "Comparing, unit by unit: what was served, what was counted, and what Stripe has")
    console.print(
        "Every request is reported to Stripe (report: usage), but only the tokens beyond those that a plan"
        " includes (report: overage), and only where the plan bills them."
    )
    _show_comparison(lines)
    wrong = [line for line in lines if not line.is_right]
    for line in wrong:
        console.print(f"\n{line}", style="bold red")
    if not wrong:
        console.print(
            f"\nStripe has exactly the {sum(line.billed for line in lines):,} units that are to be billed."
            f" Done in {took_s:.1f} s.",
            style="bold green",
        )


async def _keep(console: Console, kit: MeterKit, service_url: str) -> None:
    """Show the addresses of the pages, and wait for Ctrl-C."""
    await drainer_of(kit.store, kit.settings).drain()
    await Overview(kit.store, kit.settings).snapshot()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    # Before the addresses: Ctrl-C ends the command with 0 as soon as they can be read.
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        _headline(console, "Pages to look at in a browser, until Ctrl-C")
        for customer in CUSTOMERS:
            console.print(f"usage of {customer.id}: {service_url}/usage/{customer.id}/", soft_wrap=True)
        console.print(f"all customers, for operators: {service_url}/operator/", soft_wrap=True)
        await stop.wait()
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _check_extras() -> None:
    try:
        for name in _OF_PAGES:
            import_module(name)
    except ImportError as error:
        raise ImportError("--keep needs more extras: pip install 'meterkit[pages,audit]'") from error


async def _demonstrate(
    parts: AsyncExitStack, console: Console, *, lose_one: bool, keep: bool
) -> tuple[Sequence[BillLine], str, MeterKit]:
    """Start everything, each part stopped by ``parts``; serve, deliver, and compare.

    Returns:
        The comparison, the address of the service, and its kit.
    """
    _headline(console, "Starting a store, a Stripe emulator and a metered service")
    folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="meterkit-demo-")))
    catalog = load(PLANS)
    stripe = StripeEmulator()
    stripe_url = parts.enter_context(stripe.running())
    kit = MeterKit(
        catalog,
        redis_url=f"embedded://{quote(str(folder))}",
        stripe_api_key="sk_test_demo",
        stripe_api_base=stripe_url,
        store_timeout=_STORE_S,
        flush=False,
        audit_url=f"sqlite:///{folder}/audit.db" if keep else None,
    )
    await parts.enter_async_context(kit)
    parts.enter_context(ended_with_us(folder))
    console.print("store: an embedded Valkey server in a temporary directory")
    console.print(f"Stripe: an emulator at {stripe_url}")
    stripe.add_meters(catalog)
    for customer in CUSTOMERS:
        await kit.customers.set_plan(customer.id, customer.plan)
        await kit.customers.link(customer.id, stripe.add_customer(name=customer.id))
    period = (await kit.usage(CUSTOMERS[0].id))["period"]

    service_url = parts.enter_context(running(build(kit, pages=keep), host="127.0.0.1", port=0))
    client = await parts.enter_async_context(
        httpx.AsyncClient(base_url=service_url, trust_env=False, timeout=30)
    )
    await client.get("/")  # The first request of a service without a lifespan starts its kit.
    console.print(f"service: running under uvicorn at {service_url}")
    tallies = await _serve(console, client)
    _show_traffic(console, tallies, catalog)

    _headline(console, "Sending the counted usage to Stripe")
    if lose_one:
        console.print("--break: the emulator accepts one event, and then loses it")
        stripe.fail_next("lose")
    console.print(
        "One of Stripe's answers gets lost, on purpose. That event is sent again under the same identifier,"
        " and must be counted only once."
    )
    stripe.fail_next("drop", when="after", skip=int(lose_one))
    report = await kit.flush(everything=True, timeout_s=_FLUSH_S)
    console.print(
        f"meter events: {report.sealed}; sent again: {report.retried}; not delivered: {report.left}"
    )
    lines = await check_bill(kit, stripe, {tally.customer.id: tally.served for tally in tallies})
    if (await kit.usage(CUSTOMERS[0].id))["period"] != period:
        raise MeterkitError("the billing month ended while the demonstration was running; run it again")
    return lines, service_url, kit


async def _serve(console: Console, client: httpx.AsyncClient) -> Sequence[Tally]:
    """Send the service all requests of all customers."""
    _headline(console, "Three customers, each on a plan of its own, send requests")
    columns = (BarColumn(), TextColumn("requests answered: {task.completed} of {task.total}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=sum(len(customer.requests()) for customer in CUSTOMERS))
        return await asyncio.gather(
            *(drive(client, customer, lambda: bar.advance(task)) for customer in CUSTOMERS)
        )


def _show_traffic(console: Console, tallies: Sequence[Tally], catalog: Catalog) -> None:
    print_table(
        ("customer", "plan", "sent", "served", "failed, not billed", "refused", "tokens served"),
        [
            (
                *(tally.customer.id, tally.customer.plan, tally.sent, tally.served["requests"], tally.failed),
                *(tally.refusals.total(), tally.served["tokens"]),
            )
            for tally in tallies
        ],
    )
    _headline(console, "Each refusal, and why it is right")
    print_table(
        ("customer", "refused", "answer", "why"),
        [
            (
                *(tally.customer.id, times, " ".join((str(refusal.status), *refusal.policies))),
                evidence(refusal, tally, catalog),
            )
            for tally in tallies
            for refusal, times in tally.refusals.items()
        ],
    )


def _show_comparison(lines: Sequence[BillLine]) -> None:
    print_table(
        ("customer", "plan", "meter", "served", "counted", "to be billed", "Stripe has", "match"),
        [
            (
                *(line.customer, line.plan, line.meter, line.served, line.recorded, line.due, line.billed),
                "yes" if line.is_right else f"NO: {line.billed - line.due:+,}",
            )
            for line in lines
        ],
    )


def _headline(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold")


def _clean_up_at_sigterm(parts: AsyncExitStack) -> None:
    """Have SIGTERM clean up as Ctrl-C does."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        # A second SIGTERM must not cut the clean-up short.
        loop.add_signal_handler(signal.SIGTERM, lambda: task.cancelling() or task.cancel())
    parts.callback(loop.remove_signal_handler, signal.SIGTERM)
