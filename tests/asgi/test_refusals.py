"""Every refusal that a client can meet, by status, type, members and fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import PLANS, Served, hello, served

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Scope

pytestmark = pytest.mark.anyio

IANA = "https://iana.org/assignments/http-problem-types#"
URN = "urn:meterkit:problem:"
ALWAYS = {"type", "title", "status", "detail", "instance"}
ORIGIN = "https://app.example"
WITH_CREDITS = PLANS.replace(
    "routes:\n", "credits:\n  ai: {costs: {pages: 1 per 1}}\nroutes:\n"
).replace("pages:    {concurrency: 1}", "pages:    {concurrency: 1, included: 0, overage: deny}") + (
    "billing: {portal_url: https://pay.example}\n"
)  # fmt: skip
CAPPED = PLANS.replace(
    "requests: {unit: request}", "requests: {unit: request, stripe: {event_name: r}}"
).replace("included: 5, overage: deny", "included: 2, overage: {bill: {cap: 3}}")


async def nothing(_: Served) -> None:
    """No steps."""


async def spent(at: Served) -> None:
    await at.kit.consume("acme", "requests", 5)


async def suspended(at: Served) -> None:
    await at.kit.customers.set_status("acme", "unpaid")


async def paid_out(at: Served) -> None:
    await at.kit.grants.add("acme", {"ai": 1}, grant_id="g1")
    await at.kit.record("acme", "pages", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A refusal, how it comes about, and what the client is told of it."""

    status: int
    type: str
    members: dict[str, Any] = field(default_factory=dict[str, Any])
    path: str = "/v1/x"
    plans: str = PLANS
    customer: str = "acme"
    steps: Callable[[Served], Awaitable[None]] = nothing
    who: Callable[[Scope], Any] | None = None
    fields: str = "x-should-retry"


LIMITS = "ratelimit-policy ratelimit"
OURS = {*LIMITS.split(), "retry-after", "x-should-retry", "www-authenticate"}


def raises(_: Scope) -> str:
    raise LookupError("the directory is away")


CASES = {
    "rate": Case(
        status=429, type=f"{IANA}quota-exceeded", members={"violated-policies": ["requests-1h"]},
        plans=PLANS.replace("20/hour", "5/hour").replace(", included: 5, overage: deny", ""),
        steps=spent, fields=f"{LIMITS} retry-after x-should-retry",
    ),
    "rate, soon": Case(
        status=429, type=f"{IANA}quota-exceeded", members={"violated-policies": ["requests-2s"]},
        plans=PLANS.replace("20/hour", "5/2 seconds").replace(", included: 5, overage: deny", ""),
        steps=spent, fields=f"{LIMITS} retry-after",
    ),
    "cap": Case(
        status=429, type=f"{IANA}quota-exceeded", members={"violated-policies": ["requests-period"]},
        plans=CAPPED, steps=spent, fields=f"{LIMITS} retry-after x-should-retry",
    ),
    "suspended": Case(
        status=402, type=f"{URN}payment-required",
        members={"reason": "suspended", "portal_url": "https://pay.example"},
        plans=WITH_CREDITS, steps=suspended, fields="ratelimit-policy x-should-retry",
    ),
    "credits": Case(
        status=402, type=f"{URN}payment-required",
        members={"reason": "credits", "portal_url": "https://pay.example"},
        path="/pages", plans=WITH_CREDITS, steps=paid_out, fields=f"{LIMITS} x-should-retry",
    ),
    "feature": Case(
        status=403, type=f"{URN}feature-not-in-plan",
        members={"feature": "full", "plan": "free", "available_in": ["pro"]}, path="/full",
        fields="ratelimit-policy x-should-retry",
    ),
    "no customer": Case(
        status=401, type=f"{URN}customer-unknown", customer="", fields="www-authenticate x-should-retry"
    ),
    "customer not allowed": Case(status=400, type=f"{URN}customer-invalid", customer="a" * 257),
    "resolver raised": Case(
        status=503, type=f"{IANA}temporary-reduced-capacity", who=raises, fields="retry-after"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_a_refusal_is_told_as_promised(name: str) -> None:
    case = CASES[name]
    async with served(hello, plans=case.plans, who=case.who, cors=[ORIGIN]) as at:
        await case.steps(at)
        headers = {"x-customer-id": case.customer, "origin": ORIGIN}
        answer = await at.client.get(case.path, headers=headers)
        head = await at.client.head(case.path, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (case.status, "application/problem+json")
    told = answer.json()
    assert (told["type"], told["status"]) == (case.type, case.status)
    assert {name: told[name] for name in told.keys() - ALWAYS} == case.members
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    names = {name for name in answer.headers if name in OURS}
    assert names == {*case.fields.split()} == {*answer.headers["access-control-expose-headers"].split(", ")}
    assert len(answer.headers.raw) == len(answer.headers)  # Nothing is doubled.
    wait_s = int(answer.headers.get("retry-after", "60"))
    assert (wait_s < 60) is ("x-should-retry" not in names)
    # A HEAD is answered with the same fields, and nothing behind them.
    assert (head.status_code, head.content) == (case.status, b"")
    assert set(head.headers) == set(answer.headers)


async def test_a_feature_comes_before_what_is_used_up() -> None:
    async with served(hello) as at:
        await spent(at)
        assert (await at.client.get("/v1/x")).status_code == 429
        assert (await at.client.get("/full")).status_code == 403


async def test_a_rate_comes_before_credits() -> None:
    plans = WITH_CREDITS.replace("pages:    {concurrency: 1", "pages:    {rate: 2/hour")
    async with served(hello, plans=plans) as at:
        await paid_out(at)
        assert (await at.client.get("/pages")).status_code == 402
        await at.kit.record("acme", "pages", 1)
        assert (await at.client.get("/pages")).status_code == 429
