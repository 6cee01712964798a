"""Refusals: what a client is told, the app's own answer in place of ours, and what the log says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.app import PLANS, SentMessages, Served, hello, http_scope, no_more, served
from meterkit import Decision

pytestmark = pytest.mark.anyio

IANA = "https://iana.org/assignments/http-problem-types#"
URN = "urn:meterkit:problem:"
ALWAYS = {"type", "title", "status", "detail", "instance"}
ORIGIN = "https://app.example"
FROM_ORIGIN = {"origin": ORIGIN}
RATED = PLANS.replace("20/hour", "5/hour").replace(", included: 5, overage: deny", "")
RATED_SOON = RATED.replace("5/hour", "5/2 seconds")
SENT = PLANS.replace("requests: {unit: request}", "requests: {unit: request, stripe: {event_name: r}}")
CAPPED = SENT.replace("included: 5, overage: deny", "included: 2, overage: {bill: {cap: 3}}")
PORTAL = f"{PLANS}billing: {{portal_url: https://pay.example}}\n"
PRICED = PORTAL.replace("routes:\n", "credits:\n  ai: {costs: {pages: 1 per 1}}\nroutes:\n")
SOLD = PRICED.replace("{concurrency: 1}", "{concurrency: 1, included: 0, overage: deny}")


async def nothing(_: Served) -> None:
    """No steps."""


async def spent(at: Served) -> None:
    await at.kit.consume("acme", "requests", 5)


async def suspended(at: Served) -> None:
    await at.kit.customers.set_status("acme", "unpaid")


async def paid_out(at: Served) -> None:
    await at.kit.grants.add("acme", {"ai": 1}, grant_id="g1")
    await at.kit.record("acme", "pages", 1)


def raises(_: Scope) -> str:
    raise LookupError("the directory is away")


def violated(policy: str) -> dict[str, Any]:
    return {"violated-policies": [policy]}


SUSPENDED = {"reason": "suspended", "portal_url": "https://pay.example"}
OUT = {**SUSPENDED, "reason": "credits"}
PRO = {"feature": "full", "plan": "free", "available_in": ["pro"]}
QUOTA, REDUCED = f"{IANA}quota-exceeded", f"{IANA}temporary-reduced-capacity"
PAYMENT = f"{URN}payment-required"
POLICY, LIMITS, NEVER = "ratelimit-policy", "ratelimit-policy ratelimit", "x-should-retry"
WAIT, LONG_WAIT = f"{LIMITS} retry-after", f"{LIMITS} retry-after {NEVER}"
OURS = {*LONG_WAIT.split(), "www-authenticate"}
# A status, a type, members, fields; and the app's options, path and customer, and steps that come before.
CASES: dict[str, tuple[int, str, dict[str, Any], str, dict[str, Any]]] = {
    "rate": (429, QUOTA, violated("requests-1h"), LONG_WAIT, {"plans": RATED, "steps": spent}),
    "rate, soon": (429, QUOTA, violated("requests-2s"), WAIT, {"plans": RATED_SOON, "steps": spent}),
    "cap": (429, QUOTA, violated("requests-period"), LONG_WAIT, {"plans": CAPPED, "steps": spent}),
    "suspended": (402, PAYMENT, SUSPENDED, f"{POLICY} {NEVER}", {"plans": SOLD, "steps": suspended}),
    "credits": (402, PAYMENT, OUT, f"{LIMITS} {NEVER}", {"plans": SOLD, "steps": paid_out, "path": "/pages"}),
    "feature": (403, f"{URN}feature-not-in-plan", PRO, f"{POLICY} {NEVER}", {"path": "/full"}),
    "no customer": (401, f"{URN}customer-unknown", {}, f"www-authenticate {NEVER}", {"customer": ""}),
    "customer not allowed": (400, f"{URN}customer-invalid", {}, NEVER, {"customer": "a" * 257}),
    "resolver raised": (503, REDUCED, {}, "retry-after", {"who": raises}),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_refusal_is_told_as_promised(name: str) -> None:
    status, kind, members, fields, given = CASES[name]
    options: Any = {"plans": given.get("plans", PLANS), "who": given.get("who")}
    async with served(hello, cors=[ORIGIN], **options) as at:
        await given.get("steps", nothing)(at)
        headers = {"x-customer-id": given.get("customer", "acme"), "origin": ORIGIN}
        answer = await at.client.get(given.get("path", "/v1/x"), headers=headers)
        head = await at.client.head(given.get("path", "/v1/x"), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    told = answer.json()
    assert (told["type"], told["status"]) == (kind, status)
    assert {name: told[name] for name in told.keys() - ALWAYS} == members
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    names = {name for name in answer.headers if name in OURS}
    assert names == {*fields.split()} == {*answer.headers["access-control-expose-headers"].split(", ")}
    assert len(answer.headers.raw) == len(answer.headers)  # Nothing is doubled.
    assert (int(answer.headers.get("retry-after", "60")) < 60) is (NEVER not in names)
    # A HEAD is answered with the same fields, and nothing behind them.
    assert (head.status_code, head.content) == (status, b"")
    assert set(head.headers) == set(answer.headers)


async def test_features_and_rates_come_before_what_is_used_up() -> None:
    async with served(hello) as at:
        await spent(at)
        assert await at.statuses("/v1/x", "/full") == [429, 403]
    async with served(hello, plans=SOLD.replace("{concurrency: 1,", "{rate: 2/hour,")) as at:
        await paid_out(at)
        assert await at.statuses("/pages") == [402]
        await at.kit.record("acme", "pages", 1)
        assert await at.statuses("/pages") == [429]


# The app's own answer to a refused request: its body and words, and all the fields of ours that it lacks.


def teapot(_: Scope, decision: Decision) -> Response:
    return JSONResponse({"error": {"code": decision.reason}}, status_code=418)


async def later(scope: Scope, decision: Decision) -> Response:
    await asyncio.sleep(0)
    return teapot(scope, decision)


async def test_on_denied_gets_the_decision_and_may_leave_it(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, Decision]] = []

    def on_denied(scope: Scope, decision: Decision) -> Response | None:
        seen.append((scope["path"], decision))
        return teapot(scope, decision) if scope["path"] == "/full" else None

    async with served(hello, on_denied=on_denied) as at:
        response = await at.client.get("/full")
        assert (response.status_code, response.json()) == (418, {"error": {"code": "feature"}})
        response = await at.client.get("/v1/x", headers={"x-customer-id": ""})
        assert (response.status_code, response.json()["title"]) == (401, "Customer Unknown")
    told = [(path, said.reason, said.customer, said.plan) for path, said in seen]
    assert told == [("/full", "feature", "acme", "free"), ("/v1/x", "anonymous", None, None)]
    assert [line["status"] for line in lines(caplog)] == [418, 401]


@pytest.mark.parametrize("on_denied", [teapot, later])
async def test_an_own_answer_gets_every_field_of_ours_that_it_lacks(on_denied: Callable[..., Any]) -> None:
    """F-62: it had lost Retry-After, RateLimit, no-store and CORS; an async one raised."""
    async with (
        served(hello, plans=RATED, cors=[ORIGIN]) as at,
        served(hello, plans=RATED, cors=[ORIGIN], on_denied=on_denied) as its_own,
    ):
        await spent(at)
        await spent(its_own)
        ours = await at.client.get("/v1/x", headers=FROM_ORIGIN)
        theirs = await its_own.client.get("/v1/x", headers=FROM_ORIGIN)
    assert (ours.status_code, theirs.status_code) == (429, 418)
    assert theirs.json() == {"error": {"code": "rate"}}
    assert theirs.headers["content-type"] == "application/json"
    assert theirs.headers["content-length"] == str(len(theirs.content))
    of_the_body = {"content-type", "content-length"}
    added = {name: value for name, value in ours.headers.items() if name not in of_the_body}
    assert {"ratelimit", "retry-after", "cache-control", "x-should-retry", "vary"} <= added.keys()
    assert {name: theirs.headers[name] for name in added} == added


async def test_an_own_answer_keeps_its_fields_and_none_is_doubled() -> None:
    own = {"Retry-After": "7", "RateLimit": '"mine";r=0', "Vary": "Accept"}
    own["Access-Control-Expose-Headers"] = "X-Mine, retry-after"

    def on_denied(*_: object) -> Response:
        return PlainTextResponse("no", status_code=429, headers=own)

    async with served(hello, plans=RATED, cors=[ORIGIN], on_denied=on_denied) as at:
        await spent(at)
        response = await at.client.get("/v1/x", headers=FROM_ORIGIN)
    names = [name.lower() for name, _ in response.headers.raw]
    assert sorted(set(names)) == sorted(names)
    assert (response.headers["retry-after"], response.headers["ratelimit"]) == ("7", '"mine";r=0')
    assert response.headers["ratelimit-policy"].startswith('"requests-1h"')
    assert response.headers["vary"] == "Accept, Origin"
    exposed = response.headers["access-control-expose-headers"]
    assert exposed == "X-Mine, retry-after, ratelimit-policy, ratelimit, x-should-retry"


async def raises_later(*_: object) -> Response:
    raise LookupError("the template is gone")


def no_response(*_: object) -> dict[str, str]:
    return {"error": "the template is gone"}


def breaks(*_: object) -> ASGIApp:
    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise LookupError("the template is gone")

    return broken


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of what is logged: one number, that a test moves."""
    clock = [100.0]
    monkeypatch.setattr("meterkit.asgi.logs.monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("on_denied", [raises_later, no_response, breaks])
async def test_where_on_denied_fails_our_answer_is_sent_and_logged(
    on_denied: Callable[..., Any], caplog: pytest.LogCaptureFixture, now: list[float]
) -> None:
    async with served(hello, on_denied=on_denied) as at:
        for _ in range(3):
            response = await at.client.get("/full")
            assert (response.status_code, response.json()["title"]) == (403, "Feature Not In Plan")
        now[0] += 10
        await at.client.get("/full")
    first, again, last = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (first.name, first.exc_info is None) == ("meterkit.asgi", False)
    assert "on_denied failed; the client gets meterkit's own answer" in first.getMessage()
    assert again.getMessage() == "on_denied failed 2 more times within 10 s"
    assert last.getMessage() == first.getMessage()


async def test_what_fails_in_the_midst_of_an_own_answer_is_raised() -> None:
    async def halves() -> AsyncIterator[bytes]:
        yield b"half"
        raise LookupError("the rest is gone")

    def denied(*_: object) -> StreamingResponse:
        return StreamingResponse(halves(), status_code=429)

    async with served(hello, on_denied=denied) as at:
        # Starlette 0.41 raises it in groups.
        with pytest.RaisesGroup(
            pytest.RaisesExc(LookupError, match="the rest is gone"),
            allow_unwrapped=True,
            flatten_subgroups=True,
        ):
            await at.client.get("/full")


@pytest.mark.parametrize("on_denied", [None, later])
async def test_a_refused_head_has_the_fields_of_the_answer_and_no_body(on_denied: Any) -> None:
    """A body would be taken for the next response on the connection."""
    sent = SentMessages()
    async with served(hello, on_denied=on_denied) as at:
        shown = await at.client.get("/full")
        await at.app(http_scope("/full", method="HEAD"), no_more, sent)
    start, *bodies = sent
    assert start["status"] == shown.status_code == (403 if on_denied is None else 418)
    assert dict(start["headers"])[b"content-length"] == shown.headers["content-length"].encode()
    assert int(shown.headers["content-length"]) > 0
    assert b"".join(one["body"] for one in bodies) == b""


# What the log says of refusals: one line each, with all that finds the request again, and never too many.
HOSTILE = "a\"\u2028refused: customer='zoe' \u202ereason=none"


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged, but for what is said of the plans file at the start."""
    return [record.getMessage() for record in caplog.records if record.name != "meterkit.plans"]


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "meterkit.refusals"]


async def test_a_refusal_is_one_line_that_names_the_instance(caplog: pytest.LogCaptureFixture) -> None:
    """F-63: refusals left no trace, and the instance of the body was written nowhere."""
    async with served(hello) as at:
        assert await at.statuses("/v1/x") == [200]
        instance = (await at.client.get("/full")).json()["instance"]
    (line,) = lines(caplog)
    told = {"customer": "acme", "plan": "free", "reason": "feature", "limit": None, "instance": instance}
    told |= {"route": "GET /full", "status": 403, "shadow": False, "levelname": "WARNING"}
    assert told.items() <= line.items()
    said = "refused: customer='acme' plan='free' reason='feature' route='GET /full' status=403"
    assert messages(caplog) == [f"{said} instance='{instance}'"]


async def test_no_customer_can_write_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, who=lambda _: HOSTILE) as at:
        assert await at.statuses("/full") == [403]
    (message,) = messages(caplog)
    assert message.isascii()
    assert message.isprintable()
    assert message.startswith(f"refused: customer={HOSTILE!a} plan='free'")
    assert lines(caplog)[0]["customer"] == HOSTILE


async def test_a_401_of_a_browsers_own_request_names_its_cure(caplog: pytest.LogCaptureFixture) -> None:
    """F-69: under `*`, /docs and /favicon.ico answer 401, and nothing said why."""
    async with served(hello, plans=PLANS.replace('"/v1/{path:path}"', '"*"'), who=lambda _: None) as at:
        assert await at.statuses("/docs", "/v1/x") == [401, 401]
    first, second = messages(caplog)
    hint = '; if everyone may request it, put {match: "GET /docs", exempt: true} above this route'
    assert first.endswith(hint)
    assert "exempt" not in second


async def test_what_no_route_is_about_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """F-63: an unmetered path passed, and nothing said so."""
    async with served(hello) as at:
        assert await at.statuses("/else\u2028where", "/elsewhere", "/healthz") == [200] * 3
    (message,) = messages(caplog)
    said = r"'GET /else\u2028where' matches no route of plans.yaml: it passes"
    assert message.startswith(said)


async def test_shadow_logs_at_most_ten_a_second(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    async with served(hello, plans=PLANS + "enforcement: shadow\n") as at:
        assert (await at.statuses(*["/full"] * 13), len(lines(caplog))) == ([200] * 13, 10)
        now[0] += 1
        await at.client.get("/full")
    assert [line.get("suppressed") for line in lines(caplog)[10:]] == [3, None]


async def test_an_error_tells_how_often_it_came(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    async with served(hello, who=raises) as at:
        await at.statuses(*["/v1/x"] * 4)
        now[0] += 10
        await at.client.get("/v1/x")
    first, again, _ = [record for record in caplog.records if record.levelno == logging.ERROR]
    said = "identify raised: the customer of a request of the route '/v1/{path:path}' could not be"
    assert (first.getMessage(), first.exc_info is None) == (f"{said} determined", False)
    assert again.getMessage() == "3 more requests failed in identify within 10 s"
    assert [(line["reason"], line["status"]) for line in lines(caplog)] == [("identify", 503)] * 5
