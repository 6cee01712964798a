"""Enforcement `shadow`: everything is decided, counted, held and told, and nobody is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.app import PLANS, hello, served
from meterkit import current

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from meterkit import Decision

pytestmark = pytest.mark.anyio

SHADOW = PLANS + "enforcement: shadow\n"


async def test_a_route_in_shadow_is_counted_and_told_and_never_refused(
    any_store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-63: it sent no fields, and its line named neither customer nor limit."""
    decisions: list[Decision] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        decisions.append(current().decision)
        await hello(scope, receive, send)

    async with served(app, redis_url=any_store_url) as at:
        answers = [await at.client.get("/shadow") for _ in range(7)]
        assert await at.counted() == (7, 0)
        assert (await at.client.get("/v1/x")).status_code == 429
    assert [answer.status_code for answer in answers] == [200] * 7
    told = '"requests-1h";q=20;w=3600, "requests-period";q=5'
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {told}
    assert [answer.headers["ratelimit"] for answer in answers[4:]] == ['"requests-period";r=0;t=1771170'] * 3
    assert not any("retry-after" in answer.headers for answer in answers)
    assert [(d.allowed, d.shadow, d.reason) for d in decisions] == (
        [(True, True, None)] * 5 + [(True, True, "included")] * 2
    )
    assert {(d.customer, d.plan, d.limit) for d in decisions} == {("acme", "free", "requests-period")}
    lines = [record for record in caplog.records if record.name == "meterkit.refusals"]
    said = (
        "would be refused, but enforcement is shadow: customer='acme' plan='free' reason='included'"
        " limit='requests-period' route='/shadow'"
    )
    assert [record.getMessage() for record in lines[:2]] == [said, said]
    assert [vars(record)["shadow"] for record in lines] == [True, True, False]


async def test_the_suspended_and_unentitled_count_in_shadow(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=SHADOW) as at:
        await at.kit.customers.set_status("acme", "unpaid")
        for path in ("/v1/x", "/full"):
            answer = await at.client.get(path)
            assert (answer.status_code, "ratelimit-policy" in answer.headers) == (200, True)
        assert await at.counted() == (2, 0)
        await at.kit.customers.set_status("acme", None)
        assert (await at.client.get("/full")).status_code == 200
    said = [vars(record) for record in caplog.records if record.name == "meterkit.refusals"]
    assert [(line["reason"], line["customer"]) for line in said] == [
        ("suspended", "acme"),
        ("suspended", "acme"),
        ("feature", "acme"),
    ]


@pytest.mark.parametrize("reason", ["nobody", "invalid", "raises"])
async def test_shadow_serves_requests_without_a_customer(reason: str) -> None:
    def who(_: Scope) -> str | None:
        if reason == "raises":
            raise LookupError
        return None if reason == "nobody" else "a" * 257

    async with served(hello, plans=SHADOW, who=who) as at:
        response = await at.client.get("/v1/x")
    assert response.status_code == 200


async def test_calls_of_the_kit_keep_to_shadow() -> None:
    async with served(hello, plans=SHADOW) as at:
        first = await at.kit.consume("acme", "requests", 4)
        assert (first.allowed, first.shadow, first.reason) == (True, True, None)
        decision = await at.kit.consume("acme", "requests", 4)
        assert (decision.allowed, decision.shadow) == (True, True)
        assert (decision.reason, decision.limit, decision.customer) == ("included", "requests-period", "acme")
        assert await at.counted() == (8, 0)
        looked = await at.kit.check("acme", "requests")
        assert (looked.allowed, looked.reason, looked.shadow) == (True, "included", True)
        async with at.kit.reserve("acme", {"requests": 3}) as reservation:
            assert (reservation.decision.allowed, reservation.decision.reason) == (True, "included")
            assert await at.counted() == (8, 3)
            await reservation.capture({"requests": 2})
        assert await at.counted() == (10, 0)


async def test_a_refusal_of_the_kit_names_customer_and_plan() -> None:
    """F-62: decisions said neither."""
    async with served(hello) as at:
        await at.kit.customers.set_plan("zoe", "pro")
        allowed, refused = await at.kit.consume("zoe", "requests", 3), await at.kit.check("zoe", "requests")
        assert (allowed.customer, allowed.plan, allowed.allowed) == ("zoe", "pro", True)
        assert (refused.customer, refused.plan, refused.allowed) == ("zoe", "pro", False)
        await at.kit.customers.set_status("zoe", "unpaid")
        suspended = await at.kit.check("zoe", "requests")
        assert (suspended.customer, suspended.plan, suspended.reason) == ("zoe", "pro", "suspended")
