"""F-132, who pays for a provider's job, and what becomes of ends that come oddly."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from asgi.test_llm_estimates import ask
from asgi.test_llm_outliving import HELD, asked, becomes, renew, response, saying
from drivers.llm_apps import PLANS, answering, metered, tokens
from faults.proxy import TcpProxy
from faults.refusals import eventually, settled
from meterkit import Caller, MeterKit, MeterkitError, StoreError, record_usage
from tokens.recordings import chat_usage, compact

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from drivers.app import Served
    from servers.stores import Server

pytestmark = pytest.mark.anyio

BY_MODEL = PLANS.replace(
    "routes:",
    '  large_output: {unit: token, from: output_tokens, where: {model: "large*"}}\nroutes:',
)


OPENAI_LINE: dict[str, Any] = {
    "id": "batch_req_a",
    "custom_id": "a",
    "response": {
        "status_code": 200,
        "body": {
            "id": "chatcmpl-a",
            "object": "chat.completion",
            "model": "gpt-5.6",
            "choices": [],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        },
    },
    "error": None,
}
ANTHROPIC_LINE: dict[str, Any] = {
    "custom_id": "a",
    "result": {
        "type": "succeeded",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-5",
            "content": [],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 4},
        },
    },
}
GEMINI_LINE: dict[str, Any] = {
    "key": "a",
    "response": {
        "candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7},
        "modelVersion": "gemini-3",
    },
}


async def of_each(kit: MeterKit) -> list[tuple[int, ...]]:
    return [await tokens(kit, customer=name) for name in ("acme", "other")]


def another(at: Served, url: str) -> MeterKit:
    """The kit of another process: it shares nothing with the first one but the store."""
    return MeterKit(
        at.kit.catalog,
        redis_url=url,
        clock=at.clock,
        key_prefix=at.kit.store.keys.prefix,
        shards=4,
        flush=False,
    )


async def test_the_customer_who_began_a_job_pays_whoever_polls(store_url: str) -> None:
    async with metered(saying(response("queued"), response("completed")), store_url) as at:
        await asked(at, "/auto")
        for _ in range(2):
            answer = await at.client.get("/auto", headers={"x-customer-id": "other"})
            assert answer.status_code == 200
            await asked(at, "/auto", method="GET", body=b"")
        assert [(600, 400), (0, 0)] == await of_each(at.kit)


async def test_a_job_counts_for_the_user_who_began_it(store_url: str) -> None:
    plans = PLANS.replace(
        "    meters:\n", "    subjects: {user: {output_tokens: {included: 9000}}}\n    meters:\n"
    )
    users = iter(("u_7", "u_8"))

    def who(_: Scope) -> Caller:
        return Caller("acme", {"user": next(users)})

    async def of_users(kit: MeterKit) -> dict[str, int]:
        await settled(kit)
        found = await kit.usage("acme", by="user")
        return {one.subject: one.meters["output_tokens"].recorded for one in found}

    answers = [response("queued"), response("completed")]
    async with metered(saying(*answers), store_url, plans=plans, who=who) as at:
        await asked(at, "/auto")
        await asked(at, "/auto", method="GET", body=b"")
        assert await of_users(at.kit) == {"u_7": 400, "u_8": 0}
        # A worker in another process has the provider's id alone.
        await at.kit.record_usage("acme", response("queued", "resp_2"), subjects={"user": "u_9"})
        async with another(at, store_url) as worker:
            for said in (None, "acme"):
                await worker.record_usage(said, response("completed", "resp_2"))
            assert await of_users(worker) == {"u_7": 400, "u_8": 0, "u_9": 400}
            assert (1200, 800) == await tokens(worker)


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


async def test_without_a_customer_only_a_job_that_is_known_counts(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
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


async def test_the_model_that_the_end_reports_counts(store_url: str) -> None:
    answers = [response("queued", model="small"), response("completed", model="large-2")]
    async with metered(saying(*answers), store_url, plans=BY_MODEL) as at:
        await asked(at, "/auto")
        await asked(at, "/auto", method="GET", body=b"")
        assert (600, 400, 400) == await tokens(at.kit, "input_tokens", "output_tokens", "large_output")


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


@pytest.mark.parametrize(
    "line",
    [compact(OPENAI_LINE), json.dumps(ANTHROPIC_LINE), GEMINI_LINE],
    ids=["openai", "anthropic", "gemini"],
)
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
    app = saying(response("queued"), response("completed"))
    async with TcpProxy(valkey.port) as proxy, metered(app, proxy.url) as at:
        await asked(at, "/auto")
        at.kit.store.outliving.owners.clear()
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
        await asked(at, "/auto", method="GET", body=b"")
        assert [(600, 400), (0, 0)] == await of_each(at.kit)
