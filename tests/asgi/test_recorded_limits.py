"""F-200, F-20c, F-20d: a request is refused once nothing is left of a meter that its route can add to."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import meterkit
from asgi.test_websockets import closed, opened
from drivers.app import SentMessages, Served, hello, http_scope, served, staying
from drivers.llm_apps import answering
from drivers.plans import completed
from faults.refusals import eventually
from llm_payloads.recordings import JSON_TYPE, chat_usage, compact

pytestmark = [pytest.mark.anyio]

PLANS = """
meters: {requests: {unit: request}, words: {unit: word, stripe: {event_name: words}}, pages: {unit: page},
  input_tokens: {unit: token}, output_tokens: {unit: token},
  large_output: {unit: token, from: output_tokens, where: {model: "*-large*"}}}
routes:
  - {match: "POST /named", consume: {requests: 1}, records: [words]}
  - {match: "POST /other", consume: {requests: 1}}
  - {match: "POST /chat", usage: openai}
  - {match: "POST /small", usage: openai, model: gpt-small}
  - {match: "POST /rerank", usage_fields: {pages: meta.units}}
  - {match: "/billing/{path:path}", always: true}
  - {match: "WS /live", consume: {requests: 1}, per_message: {requests: 1}}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {rate: 10000/hour}, words: {included: 1_000, overage: deny},
      pages: {included: 10, overage: deny}, input_tokens: {included: 1_000_000},
      output_tokens: {included: 1_000, overage: deny}, large_output: {included: 100, overage: deny}}
  capped: {price: {amount_cents: 0, interval: month},
    meters: {words: {included: 1_000, overage: {bill: {cap: 500, per: 100, amount_cents: 10}}}}}
  budgeted: {price: {amount_cents: 0, interval: month}, budget: {amount_cents: 30},
    meters: {words: {included: 1_000, overage: {bill: {per: 100, amount_cents: 10}}}}}
  rated: {price: {amount_cents: 0, interval: month},
    meters: {words: {rate: 100/hour, included: unlimited}}}
"""


async def record_words(request: Request) -> Response:
    quantities = {name: int(value) for name, value in request.query_params.items() if name != "after"}
    if "after" in request.query_params:
        return PlainTextResponse("done", background=BackgroundTask(meterkit.record, **quantities))
    meterkit.record(**quantities)
    return PlainTextResponse("done")


APP: ASGIApp = Starlette(routes=[Route("/{path:path}", record_words, methods=["GET", "POST", "PUT"])])


async def statuses(at: Served, *paths: str) -> list[int]:
    return await at.statuses(*paths, method="POST")


@pytest.mark.parametrize("way", ["words=3000", "words=3000&after=1"])
async def test_the_request_after_the_last_included_unit_is_refused(way: str, store_url: str) -> None:
    async with served(APP, plans=PLANS, redis_url=store_url) as at:
        assert await statuses(at, "/named?words=999", f"/named?{way}") == [200, 200]
        refused = await at.client.post("/named?words=1")
        assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["words-period"])
        assert await at.counted(meter="words") == (3999, 0)
        assert await statuses(at, "/other", "/billing/pay") == [200, 200]


async def test_recording_routes_are_named_once(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served(APP, plans=PLANS, redis_url=store_url) as at:
        assert await statuses(at, "/a?words=500", "/b?words=500", "/c?words=1") == [200, 200, 429]
        assert await statuses(at, "/other", "/other?requests=1") == [200, 200]
    (warning,) = (one for one in caplog.records if one.levelno == logging.WARNING and one.name == "meterkit")
    assert "requests of the route '*' record words" in warning.getMessage()
    assert "write `records: [words]` on the route" in warning.getMessage()


OTHER_RATE = PLANS.replace("rate: 10000/hour", "rate: 20000/hour")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plans.yaml"
    path.write_text(completed(PLANS))
    return path


def change(file: Path) -> None:
    file.write_text(completed(OTHER_RATE))


async def test_a_reloaded_file_keeps_what_the_process_has_learned(file: Path, store_url: str) -> None:
    async with served(APP, plans=file, redis_url=store_url) as at:
        assert await statuses(at, "/x?words=1000", "/x") == [200, 429]
        change(file)
        assert await at.kit.reload()
        assert await statuses(at, "/x", "/other") == [429, 200]


@pytest.mark.parametrize(
    ("plan", "words", "status", "policy"),
    [
        ("capped", 1_500, 429, "words-period"),
        ("budgeted", 1_300, 402, "spend-period"),
        ("rated", 100, 429, "words-1h"),
    ],
)
async def test_caps_budgets_and_rates_refuse_records(plan: str, words: int, status: int, policy: str) -> None:
    async with served(APP, plans=PLANS) as at:
        await at.kit.customers.set_plan("acme", plan)
        assert await statuses(at, f"/x?words={words - 1}", "/x?words=1") == [200, 200]
        refused = await at.client.post("/x?words=1")
        assert refused.status_code == status
        assert refused.headers["ratelimit"].startswith(f'"{policy}";')


async def socket_app(_: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        meterkit.record(words=int(message["text"]))
        await send({"type": "websocket.send", "text": "done"})


async def test_a_websocket_is_refused_and_closed_by_what_it_records() -> None:
    async with served(socket_app, plans=PLANS) as at:
        async with opened(at) as first:
            first.say("1000")
            await eventually(lambda: first.heard() == ["done"])
            first.say("1")
            await eventually(lambda: not first.is_open)
            assert first.heard() == ["done"]
            assert first.sent[-1] == closed("words-period")
        async with opened(at) as second:
            assert second.kinds() == ["websocket.close"]


CHAT: dict[str, Any] = {"id": "c", "object": "chat.completion", "model": "gpt-large-1", "choices": []}
CHAT["usage"] = chat_usage(1, 100)


async def test_a_derived_limit_refuses_the_models_that_it_is_about(store_url: str) -> None:
    async with served(answering([compact(CHAT)], JSON_TYPE), plans=PLANS, redis_url=store_url) as at:

        async def ask(body: bytes, path: str = "/chat") -> int:
            return (await at.client.post(path, content=body)).status_code

        large, small = b'{"model": "gpt-large-1"}', b'{"model": "gpt-small"}'
        assert [await ask(large), await ask(large), await ask(small)] == [200, 429, 200]
        # A body that names no model may be answered by any.
        assert [await ask(b"{}"), await ask(b"\xff"), await ask(large, "/small")] == [429, 429, 200]


async def test_usage_fields_ask_for_their_meters_and_for_no_tokens() -> None:
    async with served(answering([b'{"meta": {"units": 10}}'], JSON_TYPE), plans=PLANS) as at:
        await at.kit.record("acme", "output_tokens", 1_000)
        assert await statuses(at, "/rerank", "/rerank", "/chat") == [200, 429, 429]


JOB: dict[str, Any] = {"id": "resp_1", "object": "response", "background": True, "model": "gpt-small"}
JOB["output"] = []
USED = {"input_tokens": 600, "output_tokens": 400, "total_tokens": 1000}
JOBS = PLANS.replace(
    "routes:\n",
    """routes:
  - match: "POST /v1/responses"
    usage: auto
    reserve: {output_tokens: {from: max_output_tokens, default: 1000, ceiling: 1000}}
  - {match: "/v1/{path:path}", usage: auto, reserve: {output_tokens: {default: 1000}}}
  - {match: "/v2/{path:path}", usage: openai}
""",
)


async def job_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Begin a job, or show that it has ended; a chat answers at once."""
    is_ended = "resp_1" in scope["path"]
    job = {**JOB, "status": "completed" if is_ended else "queued", "usage": USED if is_ended else None}
    await answering([compact(CHAT if "chat" in scope["path"] else job)], JSON_TYPE)(scope, receive, send)


async def job_begun(at: Served) -> None:
    assert await statuses(at, "/v1/responses") == [200]
    await counts(at, recorded=0, held=1000)


async def counts(at: Served, *, recorded: int, held: int) -> None:
    found = None
    while found != (recorded, held):
        found = await at.counted(meter="output_tokens")


@pytest.mark.parametrize("poll", ["GET /v1", "HEAD /v2", "POST /v2"])
async def test_a_poll_is_not_refused_by_the_hold_of_its_job(poll: str, store_url: str) -> None:
    method, _, prefix = poll.partition(" ")
    path = f"{prefix}/responses/resp_1" + ("/cancel" if method == "POST" else "")
    async with served(job_app, plans=JOBS, redis_url=store_url) as at:
        await job_begun(at)
        assert await statuses(at, "/v1/responses", "/v2/chat") == [429, 429]
        assert await at.statuses(path, method=method) == [200]
        await counts(at, recorded=400, held=0)


@pytest.mark.parametrize("method", ["PATCH", "GET", "BREW"])
async def test_a_request_with_a_body_asks_by_any_method(method: str, store_url: str) -> None:
    """A client chooses the method, and a handler may take any."""
    async with served(job_app, plans=JOBS, redis_url=store_url) as at:
        await job_begun(at)
        asked = await at.client.request(method, "/v1/chat", json={"messages": []})
        assert asked.status_code == 429
        assert await at.statuses("/v1/chat", method=method, headers={"content-length": "0"}) == [200]


@pytest.mark.parametrize("version", ["2", "1.1"])
async def test_a_body_that_http_2_does_not_announce_asks(version: str) -> None:
    """Hypercorn passes it on without `content-length`, as gateways of clouds do: it was taken for a poll."""
    async with served(job_app, plans=JOBS) as at:
        await job_begun(at)
        scope = http_scope("/v1/chat", method="PUT", http_version=version)
        for body, status in ((b'{"messages": []}', 429), (b"", 200)):
            sent = SentMessages()
            await at.app(scope, staying(body), sent)
            assert sent[0]["status"] == status


@pytest.mark.parametrize(
    "line", ["usage: openai, consume: {output_tokens: 10}", "usage_fields: {output_tokens: usage.out}"]
)
async def test_a_poll_that_uses_tokens_is_refused_like_any_request(line: str) -> None:
    plans = JOBS.replace("routes:\n", f'routes:\n  - {{match: "GET /v3/{{path:path}}", {line}}}\n', 1)
    async with served(job_app, plans=plans) as at:
        await job_begun(at)
        refused = await at.client.get("/v3/responses/resp_1")
        assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["output_tokens-period"])
        assert await at.statuses("/v2/responses/resp_1") == [200]


async def test_only_the_customers_own_job_makes_a_request_a_poll(store_url: str) -> None:
    async with served(job_app, plans=JOBS, redis_url=store_url) as at:
        await job_begun(at)
        await at.kit.record("bob", "output_tokens", 1_000)
        bobs = await at.statuses("/v2/responses/resp_1", headers={"x-customer-id": "bob"})
        assert bobs + await at.statuses("/v2/chat/resp_2", "/v2/chat") == [429] * 3
        assert await statuses(at, "/v2/chat/resp_1") == [429]


async def test_another_process_knows_whose_job_it_is(store_url: str) -> None:
    async with served(job_app, plans=JOBS, redis_url=store_url) as at:

        async def is_known() -> bool:
            return await at.statuses("/v2/responses/resp_1") == [200]

        await job_begun(at)
        at.kit.store.job_holds.owners.clear()  # As in a process that has not seen its begin.
        await eventually(is_known)


POLLS = JOBS.replace(
    "routes:\n", 'routes:\n  - {match: "GET /jobs/{id}", consume: {requests: 1}, records: [output_tokens]}\n'
)


async def test_a_recording_poll_is_not_refused_by_its_hold(store_url: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            meterkit.record_usage({**JOB, "status": "completed", "usage": USED})
            await hello(scope, receive, send)
        else:
            await job_app(scope, receive, send)

    async with served(app, plans=POLLS, redis_url=store_url) as at:
        await job_begun(at)
        assert await at.statuses("/jobs/resp_2", "/jobs/resp_1") == [429, 200]
        await counts(at, recorded=400, held=0)
        # The route may record more each time: an ended job, which holds nothing, lets nothing through.
        await at.kit.record("acme", "output_tokens", 600)
        assert await at.statuses("/jobs/resp_1") == [429]


async def test_a_poll_is_not_refused_by_a_budget_that_its_job_holds() -> None:
    plans = f"""{JOBS}  spending:
    price: {{amount_cents: 0, interval: month}}
    budget: {{amount_cents: 10}}
    meters: {{output_tokens: {{included: 0, overage: {{bill: {{per: 100, amount_cents: 1}}}}}}}}
""".replace("output_tokens: {unit: token}", "output_tokens: {unit: token, stripe: {event_name: output}}")
    async with served(job_app, plans=plans) as at:
        await at.kit.customers.set_plan("acme", "spending")
        await job_begun(at)
        assert await statuses(at, "/v1/responses", "/v2/chat") == [402, 402]
        assert await at.statuses("/v2/responses/resp_1") == [200]
        await counts(at, recorded=400, held=0)


async def test_a_get_that_reports_a_call_asks_for_tokens(store_url: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record_usage({**CHAT, "usage": chat_usage(1, 1_000)})
        await hello(scope, receive, send)

    async with served(app, plans=JOBS, redis_url=store_url) as at:
        # `usage: auto` reads no tokens off the response to a GET, so it asks for none of itself.
        assert await at.statuses(*["/v1/summary"] * 3) == [200, 429, 429]


async def test_an_alias_asks_for_the_limit_of_its_real_model(file: Path) -> None:
    async with served(answering([compact(CHAT)], JSON_TYPE), plans=file) as at:

        async def ask(model: str) -> int:
            return (await at.client.post("/chat", content=compact({"model": model}))).status_code

        # The provider answers an alias, such as the name of a deployment, with the name of its model.
        assert [await ask("fast"), await ask("fast"), await ask("other")] == [200, 429, 200]
        change(file)
        assert await at.kit.reload()
        assert [await ask("fast"), await ask("other"), await ask("third")] == [429, 429, 200]
        assert await at.counted(meter="large_output") == (300, 0)


async def test_a_reserved_meter_is_named_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    line = '  - {match: "PUT /hold", reserve: {pages: {from: pages, default: 2, ceiling: 5}}}\n'
    async with served(APP, plans=PLANS.replace("routes:\n", f"routes:\n{line}")) as at:
        # What the app records takes the place of what the route has set aside.
        asked = await at.statuses(*["/hold?pages=3"] * 4, method="PUT", content=b'{"pages": 2}')
        assert (asked, await at.counted(meter="pages")) == ([200, 200, 200, 429], (9, 0))
    assert [one for one in caplog.records if one.name == "meterkit"] == []


async def test_requests_that_teach_nothing_leave_nothing() -> None:
    """No usage refuses an `always` route: what its requests record, it never learns to ask for."""

    def kept() -> int:
        gc.collect()
        found: list[object] = gc.get_objects()
        return sum(repr(type(one)).startswith("<class 'meterkit.") for one in found)

    async with served(APP, plans=PLANS) as at:
        await statuses(at, "/billing/invoices?words=1")
        before = kept()
        assert await statuses(at, *20 * ["/billing/invoices?words=1"]) == 20 * [200]
        assert kept() - before < 20
