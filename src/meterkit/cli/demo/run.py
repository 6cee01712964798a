"""The demonstration: starts a metered service, sends requests as three customers, checks their bills."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from zlib import crc32

from rich.progress import BarColumn, Progress, TextColumn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from meterkit import MeterKit, MeterMiddleware, identify, record
from meterkit.catalog import load
from meterkit.cli.demo.store import ended_with_us
from meterkit.cli.output import print_table, stdout_console
from meterkit.errors import MeterkitError
from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.overview.overview import CustomerOverview
from meterkit.pages import operator_pages, usage_page
from meterkit.testing import StripeEmulator, check_bill
from stripe_emulator.server import running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx
    from rich.console import Console
    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import Scope

    from meterkit.catalog import Catalog, Plan
    from meterkit.testing import BillLine

try:
    import httpx
except ImportError as error:
    raise ImportError("the demonstration needs its extras: pip install 'meterkit[cli,stripe]'") from error


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
        lines, service_url, kit = await _run_demonstration(parts, console, lose_one=lose_one, keep=keep)
        _run_and_check_bill(console, lines, time.monotonic() - began)
        if keep:
            await _serve_until_stopped(console, kit, service_url)
    return all(line.is_right for line in lines)


def _run_and_check_bill(console: Console, lines: Sequence[BillLine], took_s: float) -> None:
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


async def _serve_until_stopped(console: Console, kit: MeterKit, service_url: str) -> None:
    """Show the addresses of the pages, and wait for Ctrl-C."""
    await open_drainer(kit.store, kit.settings).drain()
    await CustomerOverview(kit.store, kit.settings).snapshot()
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


async def _run_demonstration(
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
    """Make SIGTERM clean up like Ctrl-C."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        # A second SIGTERM must not cut the clean-up short.
        loop.add_signal_handler(signal.SIGTERM, lambda: task.cancelling() or task.cancel())
    parts.callback(loop.remove_signal_handler, signal.SIGTERM)


_AT_ONCE: Final = 4
_OK: Final = 200
_PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCustomer:
    """A customer of the demonstration and the number of requests of each kind it sends."""

    id: str
    plan: str
    generate: int
    reports: int
    broken: int

    def requests(self) -> list[tuple[str, int]]:
        """Paths and the tokens that are to be generated, 0 for none; mixed, and the same in every run."""
        # From 20 to 180 tokens, each as likely as the others.
        found = [("/v1/generate", 20 + nth * 37 % 161) for nth in range(self.generate)]
        found += [(f"/v1/reports/{nth}", 0) for nth in range(self.reports)]
        found += [("/v1/broken", 0)] * self.broken
        order = sorted(range(len(found)), key=lambda nth: crc32(f"{self.id} {nth}".encode()))
        return [found[nth] for nth in order]


CUSTOMERS: Final = (
    DemoCustomer(id="ada", plan="free", generate=50, reports=5, broken=3),
    DemoCustomer(id="bell", plan="pro", generate=150, reports=10, broken=0),
    DemoCustomer(id="curie", plan="scale", generate=280, reports=40, broken=10),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was refused, as the answer told.

    Attributes:
        status: of the answer.
        policies: the names of the limits that were used up.
        feature: the feature that the plan does not have, or an empty text.
    """

    status: int
    policies: tuple[str, ...] = ()
    feature: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Responses that one customer's client received.

    Attributes:
        served: meter to the quantity in answers that succeeded.
        failed: answers of the service that did not succeed: they cost nothing.
        refusals: how often the customer was refused, and why.
    """

    customer: DemoCustomer
    sent: int = 0
    served: Counter[str] = field(default_factory=Counter[str])
    failed: int = 0
    refusals: Counter[Refusal] = field(default_factory=Counter[Refusal])


async def drive(client: httpx.AsyncClient, customer: DemoCustomer, advance: Callable[[], object]) -> Tally:
    """Send a customer's requests, a few at a time, and keep count of the answers."""
    tally, requests = Tally(customer=customer), iter(customer.requests())

    async def one_after_another() -> None:
        for path, tokens in requests:
            response = await client.request(
                "POST" if tokens else "GET",
                path,
                headers={"x-customer-id": customer.id},
                json={"tokens": tokens} if tokens else None,
            )
            _count(tally, response)
            advance()

    await asyncio.gather(*(one_after_another() for _ in range(_AT_ONCE)))
    return tally


def _count(tally: Tally, response: httpx.Response) -> None:
    tally.sent += 1
    told: dict[str, Any] = response.json()
    if response.headers.get("content-type") == _PROBLEM:
        policies = tuple(told.get("violated-policies", ()))
        refusal = Refusal(status=response.status_code, policies=policies, feature=told.get("feature", ""))
        tally.refusals[refusal] += 1
    elif response.status_code == _OK:
        tally.served["requests"] += 1
        tally.served["tokens"] += told.get("tokens", 0)
    else:
        tally.failed += 1


_UNITS: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


def evidence(refusal: Refusal, tally: Tally, catalog: Catalog) -> str:
    """Why a refusal is right, by the plans file and by what this customer had been served."""
    plan = catalog.plan_or_default(tally.customer.plan)
    if refusal.feature:
        having = " and ".join(
            key for key, other in catalog.plans.items() if refusal.feature in other.features
        )
        return f"the {plan.key} plan does not include the feature {refusal.feature!r}; {having} do"
    if refusal.policies:
        return "; ".join(_describe_limit(policy, plan, tally) for policy in refusal.policies)
    return "the request named no customer, and the plans file says `anonymous: deny`"


def _describe_limit(policy: str, plan: Plan, tally: Tally) -> str:
    meter, _, window = policy.rpartition("-")
    entitlement, served = plan.entitlements[meter], tally.served[meter]
    for rate in entitlement.rates:
        if rate.window == window:
            admitted = served + tally.failed
            allowed = f"{rate.limit:,} {meter} {_per(window)}"
            return f"the {plan.key} plan allows {allowed}, and {admitted:,} were let in"
    ceiling = (entitlement.included or 0) + (entitlement.overage.cap or 0)
    beyond = "; usage that is recorded after the work was done is never refused" if served > ceiling else ""
    return f"the {plan.key} plan allows {ceiling:,} {meter} per month, and {served:,} were served{beyond}"


def _per(window: str) -> str:
    """A window, such as ``1d``, in words."""
    number, unit = int(window[:-1]), _UNITS[window[-1]]
    return f"per {unit}" if number == 1 else f"in {number} {unit}s"


PROMPT_TOKENS: Final = 10
"""Units that ``POST /v1/generate`` consumes at admission, by the plans file."""


async def _generate(request: Request) -> JSONResponse:
    tokens = int((await request.json())["tokens"])
    record(tokens=tokens)
    return JSONResponse({"tokens": PROMPT_TOKENS + tokens})


async def _report(request: Request) -> JSONResponse:
    return JSONResponse({"report": request.path_params["name"]})


async def _broken(_: Request) -> JSONResponse:
    return JSONResponse({"error": "this one always fails"}, status_code=500)


def _in_path(scope: Scope) -> str:
    """The customer's id in the address; a real app takes it from its session."""
    return str(scope["path_params"]["customer"])


def _demo_operator(_: Scope) -> str:
    """The operator's name; a real app takes it from its session, too."""
    return "demo"


def build(kit: MeterKit, *, pages: bool) -> Starlette:
    """The service, metered.

    Args:
        kit: counts it.
        pages: whether it has the usage page of each customer and the operator pages, open to every client.
    """
    routes: list[BaseRoute] = [
        Route("/v1/generate", _generate, methods=["POST"]),
        Route("/v1/reports/{name}", _report),
        Route("/v1/broken", _broken),
    ]
    if pages:
        usage = usage_page(kit, customer=_in_path, origins=["http://127.0.0.1"])
        operator = operator_pages(kit, allowed=_demo_operator)
        routes += [Mount("/usage/{customer}", app=usage), Mount("/operator", app=operator)]
    service = Starlette(routes=routes)
    service.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    return service
