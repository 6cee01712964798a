"""The app's own answer to a refused request: its body and words, and all the fields of ours that it lacks."""

# Internals: how often a fault is logged is a constant.

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from drivers.app import PLANS, hello, http_scope, no_more, served
from meterkit.asgi import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from meterkit import Decision

pytestmark = pytest.mark.anyio

ORIGIN = {"origin": "https://app.example"}
BY_RATE = PLANS.replace("20/hour", "2/hour")


def teapot(scope: Scope, decision: Decision) -> Response:
    del scope
    return JSONResponse({"error": {"code": decision.reason}}, status_code=418)


async def later(scope: Scope, decision: Decision) -> Response:
    await asyncio.sleep(0)
    return teapot(scope, decision)


async def test_it_is_asked_with_the_decision_and_may_leave_it(caplog: pytest.LogCaptureFixture) -> None:
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
    logged = [record for record in caplog.records if record.name == "meterkit.refusals"]
    assert [vars(record)["status"] for record in logged] == [418, 401]


@pytest.mark.parametrize("on_denied", [teapot, later])
async def test_it_gets_every_field_of_ours_that_it_lacks(on_denied: Callable[..., Any]) -> None:
    """F-62: it had lost Retry-After, RateLimit, no-store and CORS; an async one raised."""
    async with (
        served(hello, plans=BY_RATE, cors=["https://app.example"]) as at,
        served(hello, plans=BY_RATE, cors=["https://app.example"], on_denied=on_denied) as its_own,
    ):
        for _ in range(2):
            await at.client.get("/v1/x", headers=ORIGIN)
            await its_own.client.get("/v1/x", headers=ORIGIN)
        ours = await at.client.get("/v1/x", headers=ORIGIN)
        theirs = await its_own.client.get("/v1/x", headers=ORIGIN)
    assert (ours.status_code, theirs.status_code) == (429, 418)
    assert theirs.json() == {"error": {"code": "rate"}}
    assert theirs.headers["content-type"] == "application/json"
    assert theirs.headers["content-length"] == str(len(theirs.content))
    of_the_body = {"content-type", "content-length"}
    added = {name: value for name, value in ours.headers.items() if name not in of_the_body}
    assert {"ratelimit", "retry-after", "cache-control", "x-should-retry", "vary"} <= added.keys()
    assert {name: theirs.headers[name] for name in added} == added


async def test_it_keeps_what_it_says_itself_and_nothing_is_doubled() -> None:
    def on_denied(*_: object) -> Response:
        headers = {
            "Retry-After": "7",
            "RateLimit": '"mine";r=0',
            "Vary": "Accept",
            "Access-Control-Expose-Headers": "X-Mine, retry-after",
        }
        return PlainTextResponse("no", status_code=429, headers=headers)

    async with served(hello, plans=BY_RATE, cors=["https://app.example"], on_denied=on_denied) as at:
        for _ in range(2):
            await at.client.get("/v1/x")
        response = await at.client.get("/v1/x", headers=ORIGIN)
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


async def _broken(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive, send
    raise LookupError("the template is gone")


def breaks(*_: object) -> ASGIApp:
    return _broken


@pytest.mark.parametrize("on_denied", [raises_later, no_response, breaks])
async def test_where_it_fails_the_answer_is_ours_and_logged_once(
    on_denied: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    async with served(hello, on_denied=on_denied) as at:
        for _ in range(3):
            response = await at.client.get("/full")
            assert (response.status_code, response.json()["title"]) == (403, "Feature Not In Plan")
        now[0] += 10
        await at.client.get("/full")
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 3
    assert failures[1].getMessage() == "on_denied failed 2 more times within 10 s"
    assert failures[0].name == "meterkit.asgi"
    assert "on_denied failed; the client gets meterkit's own answer" in failures[0].getMessage()
    assert failures[0].exc_info is not None


async def test_what_fails_in_the_midst_of_its_answer_is_raised() -> None:
    async def halves() -> AsyncIterator[bytes]:
        yield b"half"
        raise LookupError("the rest is gone")

    def denied(_decision: object, _scope: object) -> StreamingResponse:
        return StreamingResponse(halves(), status_code=429)

    async with served(hello, on_denied=denied) as at:
        with pytest.raises(LookupError, match="the rest is gone"):
            await at.client.get("/full")


@pytest.mark.parametrize("on_denied", [None, later])
async def test_a_refused_head_has_the_fields_of_the_answer_and_no_body(on_denied: Any) -> None:
    """A body would be taken for the next response on the connection."""
    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    async with served(hello, on_denied=on_denied) as at:
        shown = await at.client.get("/full")
        await at.app(http_scope("/full", method="HEAD"), no_more, keep)
    start, *bodies = sent
    assert start["status"] == shown.status_code == (403 if on_denied is None else 418)
    assert dict(start["headers"])[b"content-length"] == shown.headers["content-length"].encode()
    assert int(shown.headers["content-length"]) > 0
    assert b"".join(one["body"] for one in bodies) == b""
