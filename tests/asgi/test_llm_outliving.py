"""F-132, work that outlives its request: who pays for it, and that it is held and counted once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from drivers.app import Served, served
from drivers.llm_apps import PLANS, answering, ask, metered, tokens
from faults.proxy import TcpProxy
from faults.refusals import eventually
from llm_payloads.recordings import JSON_TYPE, SSE_TYPE, chat_usage, compact, sse
from meterkit import MeterKit, MeterkitError, StoreError, record_usage
from servers.stores import Server

pytestmark = pytest.mark.anyio

USAGE = {"input_tokens": 600, "output_tokens": 400, "total_tokens": 1000}
HELD = PLANS.replace(
    "routes:\n",
    'routes:\n  - {match: "/held", consume: {requests: 1}, usage: auto, '
    "reserve: {output_tokens: {from: max_tokens, default: 500, ceiling: 500}}, model: request}\n",
).replace("output_tokens: {rate: 1_000_000_000/hour}", "output_tokens: {included: 900, overage: deny}")


def response(status: str, name: str = "resp_1") -> dict[str, Any]:
    """A background response, as `POST /v1/responses` and `GET /v1/responses/{id}` answer."""
    usage = USAGE if status == "completed" else None
    named = {"id": name, "object": "response", "background": True, "model": "gpt-5.6"}
    return {**named, "output": [], "status": status, "usage": usage}


async def asked(at: Served, path: str, **options: Any) -> None:
    """Ask, and wait until it is known who pays for the jobs that the answer tells of."""
    try:
        await ask(at, path, **options)
    finally:
        for lane in at.kit.store.lanes.values():
            while lane.finishing:
                await asyncio.wait(lane.finishing)


async def polled(at: Served, path: str = "/auto") -> None:
    await asked(at, path, method="GET", body=b"")


def saying(*answers: dict[str, Any]) -> ASGIApp:
    """An app that gives one answer after the other, the last one over and over."""
    left = list(answers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answering([compact(left.pop(0) if len(left) > 1 else left[0])], JSON_TYPE)(scope, receive, send)

    return app


# LiteLLM's proxy makes such ids.
LONG = "resp_" + "bGl0ZWxsbTpjdXN0b21fbGxt" * 40


@pytest.mark.parametrize(("path", "name"), [("/auto", "resp_1"), ("/openai", "resp_1"), ("/auto", LONG)])
async def test_a_fetched_job_counts_once(
    path: str, name: str, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [response(state, name) for state in ("queued", "in_progress", "completed")]
    answers[-1]["instructions"] = "x" * 20_000  # Of a document that is so large only parts are kept.
    async with metered(saying(*answers), store_url) as at:
        await asked(at, path)
        assert (0, 0) == await tokens(at.kit)
        for times in (1, 1, 2, 20):
            await asyncio.gather(*(polled(at, path) for _ in range(times)))
        assert (600, 400) == await tokens(at.kit)
    assert [] == caplog.records


async def test_a_job_reported_without_its_state_counts_once(store_url: str) -> None:
    """The app reports the figures of a background response, and only its answer says that it is one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            record_usage({**response("completed"), "background": None})
        await saying(response("completed"))(scope, receive, send)

    async with metered(app, store_url) as at:
        await asked(at, "/auto")
        await polled(at)
        await at.kit.record_usage(None, response("completed"))
        assert (600, 400) == await tokens(at.kit)


def completion(status: str) -> dict[str, Any]:
    """An asynchronous completion of Perplexity, as `/v1/async/sonar` answers."""
    chat = {
        "id": "c1",
        "object": "chat.completion",
        "model": "sonar-deep-research",
        "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": chat_usage(600, 400),
    }
    told = {"id": "job_1", "model": "sonar-deep-research", "created_at": 1, "error_message": None}
    return {**told, "status": status, "response": chat if status == "COMPLETED" else None}


@pytest.mark.parametrize(("end", "counted"), [("COMPLETED", (600, 400)), ("FAILED", (0, 0))])
async def test_an_asynchronous_completion_counts_once(
    end: str, counted: tuple[int, int], store_url: str
) -> None:
    answers = [completion(state) for state in ("CREATED", "IN_PROGRESS", end)]
    async with metered(saying(*answers), store_url) as at:
        await asked(at, "/auto")
        for _ in range(3):
            await polled(at)
        await at.kit.record_usage(None, answers[-1])
        assert await tokens(at.kit) == counted


@pytest.mark.parametrize("word", ["auto", "openai"])
async def test_a_stored_response_that_a_path_names_counts_once(word: str, store_url: str) -> None:
    """A change of its metadata is a `POST`, and a line may name no method."""
    plans = PLANS.replace("routes:\n", f'routes:\n  - {{match: "/v1/{{path:path}}", usage: {word}}}\n')
    said = [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]
    chat = {"id": "chatcmpl-1", "object": "chat.completion", "choices": said, "usage": chat_usage(600, 400)}
    done = {**response("completed", LONG), "background": False}
    for path, answer in (("/v1/chat/completions", chat), ("/v1/responses", done)):
        async with metered(saying(answer), store_url, plans=plans) as at:
            await asked(at, path)
            for method in ("POST", "GET"):
                await asked(at, f"{path}/{answer['id']}", method=method, body=b"{}")
            assert (600, 400) == await tokens(at.kit)


async def test_a_client_that_chooses_the_id_of_its_response_pays(store_url: str) -> None:
    """vLLM takes the id from the request: https://github.com/vllm-project/vllm (`request_id`)."""
    plans = PLANS.replace("routes:\n", 'routes:\n  - {match: "/chats/{name}", usage: openai}\n')
    said = [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]
    chat = {"id": "chatcmpl-1", "object": "chat.completion", "choices": said, "usage": chat_usage(600, 400)}
    async with metered(saying(chat), store_url, plans=plans) as at:
        for _ in range(2):
            await asked(at, "/chats/chatcmpl-1")
        assert (1200, 800) == await tokens(at.kit)


async def test_a_job_counts_once_whatever_provider_a_route_names(store_url: str) -> None:
    """A route knows the provider, a worker or another route only the shape of the answer."""
    plans = PLANS.replace("routes:\n", 'routes:\n  - {match: "/azure", usage: auto, provider: azure}\n')
    done = response("completed")
    async with metered(saying(response("queued"), done), store_url, plans=plans) as at:
        for path in ("/azure", "/azure", "/auto"):
            await polled(at, path)
        await at.kit.record_usage(None, done)
        assert (600, 400) == await tokens(at.kit)


async def test_a_stream_that_is_left_counts_when_its_end_is_read(store_url: str) -> None:
    """The provider goes on: nothing is estimated that will be reported."""
    begun = sse({"type": "response.created", "response": response("queued")})
    text = sse({"type": "response.output_text.delta", "delta": "x" * 400})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await saying(response("completed"))(scope, receive, send)
            return
        await answering([begun, text], SSE_TYPE, ends=False)(scope, receive, send)
        raise OSError("the client is gone")

    async with metered(app, store_url) as at:
        with pytest.raises(OSError, match="gone"):
            await asked(at, "/auto")
        assert (0, 0) == await tokens(at.kit)
        await polled(at)
        assert (600, 400) == await tokens(at.kit)


@pytest.mark.parametrize(
    ("more", "agent", "counted"),
    [({}, False, (24, 100)), ({"background": True}, False, (100, 50)), ({}, True, (100, 50))],
)
async def test_a_cut_stream_of_an_interaction_counts_once(
    more: dict[str, Any], agent: bool, counted: tuple[int, int], store_url: str
) -> None:
    """The text that was streamed counts; a background one goes on, and its end reports it."""
    work = {"id": "int_1", "object": "interaction", ("agent" if agent else "model"): "gemini-3-flash-preview"}
    begun = {"event_type": "interaction.created", "interaction": {**work, "status": "in_progress"}}
    text = {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "x" * 400}}
    usage = {"total_input_tokens": 100, "total_output_tokens": 50, "total_tokens": 150}
    ended = {**work, "status": "completed", "usage": usage}
    body = compact({"model": "gemini-3-flash-preview", "input": "x" * 98, **more})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        cut = answering([sse(begun), sse(text)], SSE_TYPE, ends=False)
        await (saying(ended) if scope["method"] == "GET" else cut)(scope, receive, send)

    async with metered(app, store_url) as at:
        await asked(at, "/auto", body=body)
        for _ in range(2):
            await polled(at)
        assert counted == await tokens(at.kit)


async def becomes(at: Served, quantity: int) -> None:

    async def is_held() -> bool:
        return (await at.counted(meter="output_tokens"))[1] == quantity

    await eventually(is_held)


async def test_a_job_that_fails_gives_back_what_it_holds(store_url: str) -> None:
    async with metered(saying(response("queued"), response("failed")), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await becomes(at, 500)
        await polled(at)
        await becomes(at, 0)
        assert (0, 0) == await tokens(at.kit)


async def test_rates_count_what_a_job_holds_until_it_ends(store_url: str) -> None:
    """A client could else begin any number of jobs, and each runs on."""
    plans = HELD.replace("{included: 900", "{rate: 900/hour, included: 5000")
    answers = [response(state) for state in ("queued", "in_progress", "completed")]
    async with metered(saying(*answers), store_url, plans=plans) as at:

        async def leaves(quantity: int) -> bool:
            return (await at.kit.check("acme", "output_tokens")).remaining == quantity

        await asked(at, "/held")
        await becomes(at, 500)
        await polled(at)
        assert await leaves(900 - 500)
        await polled(at)
        await eventually(lambda: leaves(900 - 400))
        assert (600, 400) == await tokens(at.kit)


async def test_a_job_holds_at_the_price_of_its_model(store_url: str) -> None:
    plans = HELD.replace(
        "routes:\n",
        'prices: {output: {default: 20 per 1000, models: {"gpt-5*": 1 per 1000}}}\n'
        "credits: {ai: {costs: {output_tokens: prices.output}}}\nroutes:\n",
        1,
    ).replace("included: 900", "included: 0")
    async with metered(saying(response("queued")), store_url, plans=plans) as at:
        await at.kit.grants.add("acme", {"ai": 10}, grant_id="g")
        await asked(at, "/held", body=compact({"model": "gpt-5.6", "input": "Hi"}))
        await becomes(at, 500)
        held_micros, default_micros = 500 * 1_000, 20_000
        left = (await at.kit.check("acme", "output_tokens")).remaining
        assert left == (10_000_000 - held_micros) // default_micros


async def test_a_run_that_waits_for_its_tools_goes_on(store_url: str) -> None:
    states = {"queued": None, "requires_action": None, "completed": chat_usage(600, 400)}
    run = {"id": "run_1", "object": "thread.run", "model": "gpt-5.6"}
    answers = [{**run, "status": state, "usage": usage} for state, usage in states.items()]
    async with metered(saying(*answers), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await polled(at)
        assert (0, 0) == await tokens(at.kit)
        await becomes(at, 500)
        await polled(at)
        await becomes(at, 0)
        assert (600, 400) == await tokens(at.kit)


async def renew(at: Served) -> None:
    (work,) = at.kit.store.job_holds.holds.values()
    await work.renew()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def test_an_endless_job_is_dropped_in_an_hour(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    answers = [response("queued"), response("queued", "resp_2"), response("completed")]
    async with metered(saying(*answers), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await becomes(at, 500)
        at.clock.advance(timedelta(hours=1))
        with caplog.at_level(logging.WARNING, "meterkit.store"):
            await renew(at)
        assert "has not ended within an hour" in caplog.text
        await becomes(at, 0)
        # It is told once.
        caplog.clear()
        await asked(at, "/held")
        await becomes(at, 500)
        at.clock.advance(timedelta(hours=1, milliseconds=-1))
        await renew(at)
        assert (await at.counted(meter="output_tokens"))[1] == 500
        # What ends after that is counted.
        await polled(at)
        assert (600, 400) == await tokens(at.kit)


async def test_i7_the_hold_does_not_outlive_the_kit(store_url: str) -> None:
    async with metered(saying(response("queued")), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await becomes(at, 500)
        works = at.kit.store.job_holds.holds
        assert len(works) == 1
    assert works == {}


ANSWER: dict[str, Any] = {"id": "chatcmpl-a", "object": "chat.completion", "model": "gpt-5.6", "choices": []}
OPENAI_LINE: dict[str, Any] = {
    "id": "batch_req_a",
    "custom_id": "a",
    "response": {"status_code": 200, "body": {**ANSWER, "usage": chat_usage(3, 4)}},
    "error": None,
}


async def of_each(kit: MeterKit) -> list[tuple[int, ...]]:
    return [await tokens(kit, customer=name) for name in ("acme", "other")]


def another(at: Served, url: str) -> MeterKit:
    """The kit of another process: it shares nothing with the first one but the store."""
    settings: Any = {"key_prefix": at.kit.store.keys.prefix, "shards": 4, "flush": False}
    return MeterKit(at.kit.catalog, redis_url=url, clock=at.clock, **settings)


async def test_the_customer_who_began_a_job_pays_whoever_polls(store_url: str) -> None:
    async with metered(saying(response("queued"), response("completed")), store_url) as at:
        await asked(at, "/auto")
        for _ in range(2):
            assert await at.statuses("/auto", headers={"x-customer-id": "other"}) == [200]
            await polled(at)
        assert [(600, 400), (0, 0)] == await of_each(at.kit)


async def test_a_worker_settles_a_job_in_another_process(store_url: str) -> None:
    """A webhook has the provider's id alone: the store knows the customer."""
    async with metered(saying(response("queued")), store_url) as at:
        await asked(at, "/auto")
        async with another(at, store_url) as worker:
            for said in (None, "other"):
                counted = await worker.record_usage(said, response("completed"))
                assert counted is not None
                assert (600, 400) == (counted.input_tokens, counted.output_tokens)
            assert [(600, 400), (0, 0)] == await of_each(worker)


async def test_a_damaged_owner_of_a_job_is_no_error_and_can_be_deleted(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with metered(saying(response("queued")), store_url) as at:
        await asked(at, "/auto")
        job, admin = at.kit.store.keys.job(response("completed")["id"]), await at.kit.store.admin()
        await admin.ask(admin.client.hset(job, "owner", "x"))
        assert await at.kit.record_usage("acme", response("completed")) is None
        assert "what is stored of its customer cannot be read" in caplog.text
        assert (await at.kit.customers.delete("acme")).jobs == 0


async def test_without_a_customer_known_jobs_count(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with metered(saying(response("queued")), store_url) as at:
        assert await at.kit.record_usage(None, response("completed")) is None
        (record,) = caplog.records
        assert (logging.WARNING, True) == (record.levelno, "give the customer" in record.getMessage())
        # A caller who knows the customer can still count it.
        await at.kit.record_usage("acme", response("completed"))
        assert [(600, 400), (0, 0)] == await of_each(at.kit)
        with pytest.raises(MeterkitError, match="no customer"):
            await at.kit.record_usage(None, {"id": "c1", "choices": [], "usage": chat_usage(3, 4)})
        with pytest.raises(MeterkitError, match="call_id: found an empty text"):
            await at.kit.record_usage("acme", response("completed"), call_id="")


async def test_an_unbilled_poll_leaves_the_job_to_the_next_one(store_url: str) -> None:
    """F-132: who hangs up on the first poll does not get the job for nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record_usage(response("completed"))
        status = 500 if scope["method"] == "GET" else 200
        await answering([b"{}"], "text/plain", status=status)(scope, receive, send)

    async with metered(app, store_url) as at:
        await asked(at, "/none", method="GET", body=b"")
        assert (0, 0) == await tokens(at.kit)
        await asked(at, "/none")
        assert (600, 400) == await tokens(at.kit)


@pytest.mark.parametrize("line", [OPENAI_LINE, compact(OPENAI_LINE)], ids=["object", "bytes"])
async def test_a_line_of_a_batch_counts_once(line: object, store_url: str) -> None:
    async with metered(saying(response("queued")), store_url) as at:
        for _ in range(2):
            await at.kit.record_usage("acme", line, call_id="batch_1")
        assert (3, 4) == await tokens(at.kit)
        await at.kit.record_usage("acme", line, call_id="batch_2")
        assert (6, 8) == await tokens(at.kit)
        with pytest.raises(MeterkitError, match="line 'a' of a batch was given without call_id"):
            await at.kit.record_usage("acme", line)


async def test_a_job_settled_elsewhere_releases_its_hold(store_url: str) -> None:
    async with metered(saying(response("queued")), store_url, plans=HELD) as at:
        await asked(at, "/held")
        await becomes(at, 500)
        async with another(at, store_url) as worker:
            await worker.record_usage(None, response("completed"))
        await renew(at)
        await becomes(at, 0)
        assert (600, 400) == await tokens(at.kit)


async def test_an_end_seen_during_an_outage_counts_afterwards(valkey: Server) -> None:
    """In a process that cannot know who pays."""
    app, settings = saying(response("queued"), response("completed")), {"store_timeout": 5}
    async with TcpProxy(valkey.port) as proxy, metered(app, proxy.url, settings=settings) as at:
        await asked(at, "/auto")
        at.kit.store.job_holds.owners.clear()
        await proxy.set("refuse")
        with pytest.raises(StoreError):
            await at.kit.record_usage(None, response("completed"))
        await ask(at, "/auto", method="GET", body=b"")
        await proxy.set("pass")

        async def is_counted() -> bool:
            with suppress(StoreError):
                return await of_each(at.kit) == [(600, 400), (0, 0)]
            return False

        await eventually(is_counted)
        await polled(at)
        assert [(600, 400), (0, 0)] == await of_each(at.kit)


async def test_an_edit_while_the_store_is_down_loses_no_job(valkey: Server, tmp_path: Path) -> None:
    """The job began under the former plans file, and its end is counted on the meters of the edited one."""
    path = tmp_path / "plans.yaml"
    path.write_text(PLANS.replace("  total_tokens: {unit: token}\n", ""))
    app, settings = saying(response("queued"), response("completed")), {"store_timeout": 5}
    async with (
        TcpProxy(valkey.port) as proxy,
        served(app, plans=path, redis_url=proxy.url, settings=settings) as at,
    ):
        await asked(at, "/auto")
        path.write_text(PLANS)
        await at.kit.reload()
        await proxy.set("refuse")
        await ask(at, "/auto", method="GET", body=b"")
        await proxy.set("pass")

        async def is_counted() -> bool:
            with suppress(StoreError):
                return (600, 400, 1000) == await tokens(
                    at.kit, "input_tokens", "output_tokens", "total_tokens"
                )
            return False

        await eventually(is_counted)


async def test_an_edit_after_the_reservation_loses_no_job(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(PLANS)
    async with served(saying(response("queued")), plans=path) as at:
        async with at.kit.reserve("acme", {"output_tokens": 500}) as reservation:
            path.write_text(PLANS.replace("  total_tokens: {unit: token}\n", ""))
            await at.kit.reload()
            await reservation.capture(response("completed"))
        assert (600, 400) == await tokens(at.kit)
