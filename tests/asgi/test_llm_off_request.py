"""Token usage off the request: in workers, scripts and queues. F-39"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from drivers.llm_apps import METERS, PLANS, tokens
from meterkit import CallUsage, MeterKit, MeterkitError, UnknownMeterError, usage_of
from meterkit.catalog import loads
from tokens.recordings import chat_usage, sse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WORKERS = PLANS.replace(
    "routes:",
    '  mini_output: {unit: token, from: output_tokens, where: {model: "*-mini", provider: openai}}\nroutes:',
).replace(
    "  requests: {rate: 10000/hour}",
    "  requests: {rate: 10000/hour}\n      mini_output: {included: 90, overage: deny}",
)
DETAILS: dict[str, Any] = {
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def whole(model: str = "a-mini", **more: Any) -> dict[str, Any]:
    usage = chat_usage(3, 4, **DETAILS)
    return {"id": "c1", "object": "chat.completion", "model": model, "choices": [], "usage": usage, **more}


@pytest.fixture
async def kit(store_url: str) -> AsyncGenerator[MeterKit]:
    async with MeterKit(
        loads(WORKERS), redis_url=store_url, key_prefix="off", shards=4, flush=False
    ) as found:
        yield found


def test_what_an_answer_used_can_be_read_anywhere() -> None:
    usage = usage_of(SimpleNamespace(**whole()))
    assert usage == CallUsage(
        input_tokens=3,
        output_tokens=4,
        cached_input_tokens=2,
        reasoning_tokens=1,
        model="a-mini",
        provider="openai",
        response_id="c1",
        source="reported",
    )
    assert usage is not None
    assert 7 == usage.total_tokens
    units = {"cache_read_tokens", "output_reasoning_tokens"}
    assert usage.quantities().keys() == {*METERS, *units} - {"cache_write_tokens"}
    assert usage.units == {
        "input_tokens": 3,
        "output_tokens": 4,
        "cache_read_tokens": 2,
        "output_reasoning_tokens": 1,
    }
    assert usage == usage_of(usage)
    assert usage_of({"usage": None}) is None


async def test_a_worker_counts_what_an_answer_used(kit: MeterKit) -> None:
    assert usage_of(whole()) == await kit.record_usage("acme", whole(), event_id="job-1")
    assert (3, 4, 2, 0, 1, 7) == await tokens(kit, *METERS)
    assert (4,) == await tokens(kit, "mini_output")
    await kit.record_usage("acme", whole(), event_id="job-1")
    assert (3, 4) == await tokens(kit)
    await kit.record_usage("acme", whole("large"))
    assert (6, 8, 4) == await tokens(kit, *METERS[:2], "mini_output")
    decision = await kit.check("acme", "output_tokens", 10**9 - 8)
    assert decision.allowed
    assert not (await kit.check("acme", "output_tokens", 10**9 - 7)).allowed  # Rates have counted it, too.


async def test_each_model_of_an_answer_is_counted_for_itself_and_once(kit: MeterKit) -> None:
    body = b"".join(sse(whole(model, id=model)) for model in ("a-mini", "large", "b-mini"))
    for _ in range(2):
        usage = await kit.record_usage("acme", body, event_id="run-1")
        assert usage is not None
        assert (9, 12, None) == (usage.input_tokens, usage.output_tokens, usage.model)
        assert (9, 12, 8) == await tokens(kit, *METERS[:2], "mini_output")
    async with kit.reserve("acme", {"output_tokens": 50}) as reservation:
        await reservation.capture(body)
    assert (18, 24, 16) == await tokens(kit, *METERS[:2], "mini_output")
    assert 0 == (await kit.usage("acme"))["meters"]["output_tokens"]["held"]
    assert not (await kit.check("acme", "output_tokens", 10**9 - 23)).allowed
    assert (await kit.check("acme", "output_tokens", 10**9 - 24)).allowed


async def test_an_object_without_usage_counts_nothing_and_is_warned_of(
    kit: MeterKit, caplog: pytest.LogCaptureFixture
) -> None:
    assert await kit.record_usage("acme", object()) is None
    assert (0, 0) == await tokens(kit)
    (record,) = caplog.records
    assert (logging.WARNING, True) == (record.levelno, "type object" in record.getMessage())


async def test_a_reservation_is_captured_with_an_answer(kit: MeterKit) -> None:
    for used in (whole(), SimpleNamespace(**whole()), usage_of(whole())):
        async with kit.reserve("acme", {"output_tokens": 50, "requests": 1}) as reservation:
            await reservation.capture(used)
    # What counts no tokens is recorded as it was reserved.
    assert (9, 12, 12, 3) == await tokens(kit, *METERS[:2], "mini_output", "requests")
    assert 0 == (await kit.usage("acme"))["meters"]["output_tokens"]["held"]
    async with kit.reserve("acme", {"output_tokens": 50}) as reservation:
        await reservation.capture(whole(), model="large")
    assert (16, 12) == await tokens(kit, "output_tokens", "mini_output")


async def test_prices_per_model_apply_to_captured_quantities(kit: MeterKit) -> None:
    for model, provider in (("b-mini", "openai"), ("b-mini", "x_ai"), ("b-mini", None), (None, None)):
        async with kit.reserve("acme", {"output_tokens": 50}) as reservation:
            await reservation.capture({"output_tokens": 10}, model=model, provider=provider)
    assert (40, 10) == await tokens(kit, "output_tokens", "mini_output")


async def test_an_object_without_usage_cannot_be_captured_with(kit: MeterKit) -> None:
    async with kit.reserve("acme", {"output_tokens": 50}) as reservation:
        with pytest.raises(
            MeterkitError, match=r"capture\(\) found no token usage in an object of type object"
        ):
            await reservation.capture(object())
        with pytest.raises(UnknownMeterError, match="prompts"):
            await reservation.capture({"prompts": 5})
        await reservation.capture({"output_tokens": 5})
    assert (0, 5) == await tokens(kit)


async def test_without_a_meter_for_tokens_it_says_so(store_url: str) -> None:
    free = "{f: {price: {amount_cents: 0, interval: month}}}"
    plans = f"schema: 1\ncurrency: usd\ndefault_plan: f\nmeters: {{pages: {{unit: page}}}}\nplans: {free}"
    async with MeterKit(loads(plans), redis_url=store_url, key_prefix="bare", flush=False) as kit:
        with pytest.raises(MeterkitError, match="no meter that counts tokens; declare any of input_tokens"):
            await kit.record_usage("acme", whole())
