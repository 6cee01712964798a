"""Enforcement `shadow` and `off`: by the plans file, by a setting, and by `METERKIT_ENFORCEMENT`."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from drivers.app import PLANS, hello, served
from drivers.sampled import pairs
from llm_payloads.recordings import chat, chat_usage
from meterkit import Decision, current, record, record_usage, tap
from servers.stores import Server, free_port

pytestmark = pytest.mark.anyio

SHADOW = PLANS + "enforcement: shadow\n"


@pytest.mark.parametrize(("given", "by"), pairs(["on", "shadow"], ["keyword", "variable"]))
async def test_the_setting_stands_over_the_file_and_its_routes(
    given: str, by: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"enforcement": given} if by == "keyword" else {}
    if by == "variable":
        monkeypatch.setenv("METERKIT_ENFORCEMENT", given)
    is_on = given == "on"
    async with served(hello, plans=SHADOW if is_on else PLANS, settings=settings) as at:
        await at.kit.consume("acme", "requests", 5)
        found = await at.statuses("/v1/x", "/shadow", "/full")
        assert found == ([429, 429, 403] if is_on else [200, 200, 200])
        assert await at.counted() == ((5, 0) if is_on else (8, 0))
        decision = await at.kit.consume("acme", "requests")
        assert (decision.allowed, decision.shadow) == (not is_on, not is_on)
    said = [line for line in caplog.messages if line.startswith("enforcement is")]
    whole = "enforcement is shadow (the setting enforcement): every request is decided and counted, and none"
    assert said == ([] if is_on else [f"{whole} is refused"])


async def test_off_passes_everything_and_needs_no_store(caplog: pytest.LogCaptureFixture) -> None:
    """F-68: there was no switch. The store is away here, and nothing waits for it or fails."""

    async def work(_: Request) -> JSONResponse:
        record("tokens", 3)
        record_usage(chat(None, usage=chat_usage(1, 1)))
        chunk = chat(None, usage=chat_usage(1, 1), id="c2")
        assert list(tap([chunk])) == [chunk]
        found = current()
        return JSONResponse([found.customer, found.plan, found.decision.allowed, found.decision.reason])

    app = Starlette(routes=[Route("/{path:path}", work)])
    settings = {"store_timeout": 10, "enforcement": "off", "flush": None}
    async with served(app, redis_url=f"redis://127.0.0.1:{free_port()}", settings=settings) as at:
        for path in ("/full", "/strict", "/v1/x", "/both"):
            answer = await at.client.get(path)
            assert (answer.status_code, answer.json()) == (200, ["acme", "free", True, None])
            assert not [name for name in answer.headers if "ratelimit" in name]
        nobody = await at.client.get("/v1/x", headers={"x-customer-id": ""})
        assert nobody.json() == ["unknown", "free", True, None]
        for ask in (at.kit.check, at.kit.consume):
            decision = await ask("acme", "requests", 10**6)
            assert (decision.allowed, decision.customer, decision.plan) == (True, "acme", "free")
        await at.kit.record("acme", "tokens", 7)
        async with at.kit.reserve("acme", {"tokens": 10**6}) as reservation:
            assert reservation.decision.allowed
            await reservation.capture({"tokens": 5})
    assert caplog.messages == [
        "enforcement is off (the setting enforcement): requests pass, and nothing is decided or counted"
    ]


async def test_off_counts_nothing(valkey: Server, store_url: str) -> None:
    async with served(hello, redis_url=store_url, settings={"enforcement": "off"}) as at:
        assert await at.statuses("/v1/x", "/full", "/attempt", "/shadow") == [200] * 4
        await at.kit.consume("acme", "requests")
        await at.kit.record("acme", "tokens", 7)
        async with at.kit.reserve("acme", {"tokens": 2}) as reservation:
            await reservation.capture({"tokens": 2})
        await at.kit.reserve("acme", {"tokens": 2}).__aenter__()
        # What was counted before can still be looked at.
        assert await at.counted() == (0, 0)
    assert not [key for key in valkey.command("KEYS", "*") if ":c:" in key]


def raises(_: Scope) -> str:
    raise LookupError("the directory is away")


@pytest.mark.parametrize("enforcement", ["off", "shadow"])
@pytest.mark.parametrize("found", [None, "a\nb", 7, raises])
async def test_requests_without_a_customer_are_served(found: object, enforcement: str) -> None:
    def who(scope: Scope) -> object:
        return found(scope) if callable(found) else found

    async with served(hello, who=who, settings={"enforcement": enforcement}) as at:
        assert await at.statuses("/v1/x", "/strict") == [200, 200]


async def test_a_shadow_route_is_never_refused(any_store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """F-63: it sent no fields, and its line named neither customer nor limit."""
    decisions: list[Decision] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        decisions.append(current().decision)
        await hello(scope, receive, send)

    async with served(app, redis_url=any_store_url) as at:
        answers = [await at.client.get("/shadow") for _ in range(7)]
        assert (await at.counted(), await at.statuses("/v1/x")) == ((7, 0), [429])
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
    said = "would be refused, but enforcement is shadow: customer='acme' plan='free' reason='included'"
    said += " limit='requests-period' route='/shadow'"
    assert [record.getMessage() for record in lines[:2]] == [said, said]
    assert [vars(record)["shadow"] for record in lines] == [True, True, False]


async def test_a_waived_refusal_names_the_instant_of_its_reset() -> None:
    async with served(hello, plans=SHADOW) as at:
        answers = [await at.client.get("/both") for _ in range(7)]
        ends = (await at.kit.usage("acme"))["period"]["end"].timestamp()
    assert [answer.headers["x-ratelimit-reset"] for answer in answers[5:]] == [f"{ends:.0f}"] * 2


async def test_the_suspended_and_unentitled_count_in_shadow(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=SHADOW) as at:
        await at.kit.customers.set_status("acme", "unpaid")
        for path in ("/v1/x", "/full"):
            answer = await at.client.get(path)
            assert (answer.status_code, "ratelimit-policy" in answer.headers) == (200, True)
        assert await at.counted() == (2, 0)
        await at.kit.customers.set_status("acme", None)
        assert await at.statuses("/full") == [200]
    said = [vars(record) for record in caplog.records if record.name == "meterkit.refusals"]
    assert [line["reason"] for line in said] == ["suspended", "suspended", "feature"]
    assert {line["customer"] for line in said} == {"acme"}


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
        await at.kit.customers.set_status("zoe", "unpaid")
        suspended = await at.kit.check("zoe", "requests")
    decisions = (allowed, refused, suspended)
    assert {(one.customer, one.plan) for one in decisions} == {("zoe", "pro")}
    assert ([one.allowed for one in decisions], suspended.reason) == ([True, False, False], "suspended")
