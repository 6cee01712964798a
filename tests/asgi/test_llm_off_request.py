"""Token usage that the app knows: off the request (F-39), and figures that it gives itself (F-217)."""

from __future__ import annotations

import logging
from asyncio import to_thread
from collections.abc import AsyncGenerator, Mapping
from fractions import Fraction
from math import floor
from types import SimpleNamespace
from typing import Any, Final

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

import meterkit
from asgi.test_llm_model_prices import answering, ask
from asgi.test_llm_money import PLANS as MONEY_PLANS
from asgi.test_llm_money import SAID, give, price_of, spent
from drivers.app import Served
from drivers.delivery import until
from drivers.llm_apps import METERS, PLANS, metered, tokens
from drivers.llm_apps import answering as llm_answering
from drivers.plans import completed
from llm_payloads.recordings import chat_usage, sse
from meterkit import CallUsage, MeterKit, MeterkitError, QuantityError, UnknownMeterError, usage_of
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

WORKERS = PLANS.replace(
    "routes:",
    '  mini_output: {unit: token, from: output_tokens, where: {model: "*-mini", provider: openai}}\nroutes:',
).replace(
    "  requests: {rate: 10000/hour}",
    "  requests: {rate: 10000/hour}\n      mini_output: {included: 90, overage: deny}",
)
TWO_PARTS: Final[dict[str, Any]] = {
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def whole(model: str = "a-mini", **more: Any) -> dict[str, Any]:
    usage = chat_usage(3, 4, **TWO_PARTS)
    return {"id": "c1", "object": "chat.completion", "model": model, "choices": [], "usage": usage, **more}


@pytest.fixture
async def kit(store_url: str) -> AsyncGenerator[MeterKit]:
    async with MeterKit(
        loads(WORKERS), redis_url=store_url, key_prefix="off", shards=4, flush=False
    ) as found:
        yield found


def test_what_an_answer_used_can_be_read_anywhere() -> None:
    usage = usage_of(SimpleNamespace(**whole()))
    figures = {"input_tokens": 3, "output_tokens": 4, "cached_input_tokens": 2, "reasoning_tokens": 1}
    names = {"model": "a-mini", "provider": "openai", "response_id": "c1"}
    assert usage == CallUsage(**figures, **names, source="reported")  # type: ignore[arg-type]
    assert usage is not None
    assert 7 == usage.total_tokens
    units = {"input_tokens": 3, "output_tokens": 4, "cache_read_tokens": 2, "output_reasoning_tokens": 1}
    assert usage.units == units
    assert usage.quantities().keys() == {*METERS, *units} - {"cache_write_tokens"}
    assert usage == usage_of(usage)
    assert usage_of({"usage": None}) is None


def figures_of(obj: object) -> Mapping[str, int]:
    usage = usage_of(obj)
    return {} if usage is None else usage.quantities()


async def test_a_worker_counts_what_an_answer_used(kit: MeterKit) -> None:
    counted = await kit.record_usage("acme", whole(), event_id="job-1")
    assert counted == usage_of(counted)
    assert counted is not None
    assert counted.quantities() == figures_of(whole())
    assert (await tokens(kit, *METERS), await tokens(kit, "mini_output")) == ((3, 4, 2, 0, 1, 7), (4,))
    await kit.record_usage("acme", whole(), event_id="job-1")
    assert (3, 4) == await tokens(kit)
    await kit.record_usage("acme", whole("large"))
    assert (6, 8, 4) == await tokens(kit, *METERS[:2], "mini_output")
    assert (await kit.check("acme", "output_tokens", 10**9 - 8)).allowed
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


async def test_an_object_without_usage_only_warns(kit: MeterKit, caplog: pytest.LogCaptureFixture) -> None:
    assert await kit.record_usage("acme", object()) is None
    (record,) = caplog.records
    assert (logging.WARNING, True) == (record.levelno, "type object" in record.getMessage())
    async with kit.reserve("acme", {"output_tokens": 50}) as reservation:
        with pytest.raises(MeterkitError, match=r"capture\(\) found no token usage in an object of type obj"):
            await reservation.capture(object())
        with pytest.raises(UnknownMeterError, match="prompts"):
            await reservation.capture({"prompts": 5})
        await reservation.capture({"output_tokens": 5})
    assert (0, 5) == await tokens(kit)


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


async def test_without_a_meter_for_tokens_it_says_so(store_url: str) -> None:
    plans = completed("meters: {pages: {unit: page}}")
    async with MeterKit(loads(plans), redis_url=store_url, key_prefix="bare", flush=False) as kit:
        with pytest.raises(MeterkitError, match="no meter that counts tokens; declare any of input_tokens"):
            await kit.record_usage("acme", whole())


FIGURES: Final = {"input_tokens": 1000, "output_tokens": 500}
MONEY_ALONE: Final = """
meters: {}
credits: {usd: {unit: money, costs: {tokens: provider_prices, markup: 30%}}}
"""


async def capture(at: Served, used: object, *, requested: str | None = None, **names: Any) -> Fraction:
    """Capture figures; what that has taken from the balance, in micro-dollars."""
    before = await spent(at)
    async with at.kit.reserve("acme", {"usd_charged": 50_000}, model=requested) as held:
        assert held.decision.allowed
        await held.capture(used, **names)
    assert (await at.kit.usage("acme"))["meters"]["usd_charged"]["held"] == 0
    return Fraction(await spent(at) - before)


def answer(usage: dict[str, Any], model: str = "gpt-4o") -> dict[str, Any]:
    return {**SAID, "model": model, "usage": usage}


async def test_captured_figures_are_charged_as_a_response_with_them(store_url: str) -> None:
    async with metered(answering(), store_url, plans=MONEY_PLANS) as at:
        await give(at, 10)
        usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
        charged = await capture(at, answer(usage))
        assert charged == floor(price_of("gpt-4o", left=500, entered=1000)) > 0
        assert await capture(at, FIGURES, model="gpt-4o", provider="openai") == charged
        assert await capture(at, FIGURES, model="gpt-4o") == charged
        assert await capture(at, FIGURES, requested="gpt-4o") == charged
        assert await capture(at, FIGURES, requested="gpt-4o-mini", model="gpt-4o") == charged
        assert await tokens(at.kit) == (5000, 2500)
        # One's own price comes first here, too: (1000 * 0.2 + 500 * 0.6) * 1.3.
        assert await capture(at, FIGURES, model="own-7b") == 650
        assert await capture(at, FIGURES, model="of-no-provider") == 0
        assert await capture(at, answer(usage, "of-no-provider")) == 0
        # An amount that the app gives itself is the charge.
        assert await capture(at, {**FIGURES, "usd_charged": 77}, model="gpt-4o") == 77


async def test_captured_parts_have_prices_of_their_own(store_url: str) -> None:
    async with metered(answering(), store_url, plans=MONEY_PLANS) as at:
        await give(at, 10)
        details = {"prompt_tokens_details": {"cached_tokens": 800}}
        usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500, **details}
        charged = await capture(at, answer(usage))
        assert charged < floor(price_of("gpt-4o", left=500, entered=1000))
        # A unit of tokens is charged whether or not a meter counts it.
        assert await capture(at, {**FIGURES, "cached_input_tokens": 800}, model="gpt-4o") == charged
        assert await capture(at, {**FIGURES, "cache_read_tokens": 800}, model="gpt-4o") == charged
        # A part is never more than its whole.
        most = await capture(at, {**FIGURES, "cached_input_tokens": 1000}, model="gpt-4o")
        assert await capture(at, {**FIGURES, "cached_input_tokens": 10**6}, model="gpt-4o") == most
        # Of the whole only the parts are known, or only the total.
        whole = floor(price_of("gpt-4o", left=500, entered=1000))
        parts = {"input_text_tokens": 900, "input_image_tokens": 100, "output_tokens": 500}
        assert await capture(at, parts, model="gpt-4o") == whole
        assert await capture(at, {"input_tokens": 1000, "total_tokens": 1500}, model="gpt-4o") == whole


async def test_a_balance_without_token_meters_is_charged(store_url: str) -> None:
    async with metered(answering(), store_url, plans=MONEY_ALONE) as at:
        await give(at, 10)
        assert await capture(at, FIGURES, model="gpt-4o") == floor(price_of("gpt-4o", left=500, entered=1000))
        found = await at.kit.record_usage("acme", SAID)
        assert found is not None
        assert found.charged_micros == price_of("gpt-4o-mini", left=100, entered=1000)
        row = (await at.kit.usage("acme"))["meters"]
        assert row["usd_charged"]["recorded"] == floor(price_of("gpt-4o", left=500, entered=1000) + 273)
        with pytest.raises(UnknownMeterError, match="tokns"):
            await capture(at, {"tokns": 5}, model="gpt-4o")
        with pytest.raises(QuantityError, match="-5"):
            await capture(at, {"output_tokens": -5}, model="gpt-4o")


async def test_a_charged_answer_is_repeated_with_its_own_figures_only(store_url: str) -> None:
    async with metered(answering(), store_url, plans=MONEY_ALONE) as at:
        await give(at, 10)
        for _ in range(2):
            await at.kit.record_usage("acme", SAID, event_id="job-7")
        charged = await spent(at)
        assert charged == price_of("gpt-4o-mini", left=100, entered=1000)
        with pytest.raises(MeterkitError, match=r"1000 of input_tokens were .* now 3000 are given"):
            await at.kit.record_usage("acme", answer(chat_usage(3000, 100)), event_id="job-7")
        await at.kit.record_usage("acme", answer(chat_usage(3000, 100)), event_id="job-8")
        assert await spent(at) > charged


async def test_a_price_for_every_model_charges_figures_without_one(store_url: str) -> None:
    async with metered(answering(), store_url, plans=MONEY_PLANS.replace('"own-*"', '"*"')) as at:
        await give(at, 10)
        await at.kit.record("acme", FIGURES, event_id="one")
        await at.kit.record("acme", FIGURES, event_id="one")
        assert await spent(at) == 650
        # A job may record its meters in several calls, and all of them once more.
        for event_id, first in (("two", {"input_tokens": 1000}), ("three", {"output_tokens": 500})):
            before = await spent(at)
            for given in (first, FIGURES, first, FIGURES):
                await at.kit.record("acme", given, event_id=event_id)
            assert await spent(at) - before == 650


async def test_unpriced_usage_is_counted_and_logged(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    plans = MONEY_PLANS.replace(" output_tokens:", " total_tokens: {unit: token}, output_tokens:", 1)
    async with metered(answering(), store_url, plans=plans) as at:
        await give(at, 10)
        assert await capture(at, {"total_tokens": 1500}, model="gpt-4o") == 0
        assert (await at.kit.consume("acme", "output_tokens", 5)).allowed
        assert await tokens(at.kit, "total_tokens", "output_tokens") == (1500, 5)
        for nth in range(2):  # It is logged once.
            await at.kit.record("acme", FIGURES, event_id=f"{nth}")
        assert await spent(at) == 0
        logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        expected = ("total_tokens alone", "consume() of output_tokens", "tokens without a model")
        assert all(words in line for words, line in zip(expected, logged, strict=True))


text_answer: Final = llm_answering([b"Four."], "text/plain")


def recording(figures: dict[str, int], *, late: bool) -> ASGIApp:
    """An app that answers with a text, and records what it knows of tokens itself."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not late:
            await to_thread(meterkit.record, **figures)
        await text_answer(scope, receive, send)
        if late:
            meterkit.record(**figures)

    return app


PLAIN: Final = MONEY_PLANS + (
    '  - {match: "POST /plain"}\n  - {match: "POST /own", model: gpt-4o, usage: auto}\n'
)


async def post(at: Served, path: str, model: str = "gpt-4o") -> int:
    answer = await at.client.post(path, json={"model": model, "messages": [], "max_tokens": 9})
    lanes = at.kit.store.lanes.values()
    await until(lambda: not any(lane.unsettled for lane in lanes))
    return answer.status_code


@pytest.mark.parametrize(("path", "late"), [("/chat", True), ("/own", False), ("/plain", True)])
async def test_recorded_figures_cost_the_price_of_the_request(path: str, late: bool, store_url: str) -> None:
    async with metered(recording(FIGURES, late=late), store_url, plans=PLAIN) as at:
        await give(at, 10)
        # The route `/own` has a model of its own, whatever its clients ask.
        assert await post(at, path, "gpt-4o-mini" if path == "/own" else "gpt-4o") == 200
        assert await tokens(at.kit) == (1000, 500)
        assert await spent(at) == floor(price_of("gpt-4o", left=500, entered=1000))


async def test_recorded_figures_are_charged_beside_the_response(store_url: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record(output_tokens=7)
        await answering()(scope, receive, send)

    async with metered(app, store_url, plans=MONEY_PLANS) as at:
        await give(at, 10)
        assert (await ask(at, 100, model="gpt-4o", said="gpt-4o"), await tokens(at.kit)) == (200, (1, 107))
        assert await spent(at) == floor(price_of("gpt-4o", left=107))
