"""Token figures that an app gives itself: charged as a response with the same figures, or logged. F-217"""

from __future__ import annotations

from asyncio import to_thread
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Final

import pytest

import meterkit
from asgi.test_llm_model_prices import answering, ask
from asgi.test_llm_money import PLANS, SAID, give, price_of, spent
from drivers.delivery import until
from drivers.llm_apps import metered, read_all, tokens
from meterkit import QuantityError, UnknownMeterError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from drivers.app import Served

pytestmark = pytest.mark.anyio

FIGURES: Final = {"input_tokens": 1000, "output_tokens": 500}
MONEY_ALONE: Final = (
    PLANS.partition("meters:")[0]
    + """meters: {}
credits:
  usd: {unit: money, costs: {tokens: provider_prices, markup: 30%}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""
)


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
    async with metered(answering(), store_url, plans=PLANS) as at:
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
        # An amount that the app gives itself is the charge.
        assert await capture(at, {**FIGURES, "usd_charged": 77}, model="gpt-4o") == 77


async def test_captured_parts_have_prices_of_their_own(store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
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
        total = {"input_tokens": 1000, "total_tokens": 1500}
        assert await capture(at, total, model="gpt-4o") == whole


async def test_a_balance_without_token_meters_is_charged(store_url: str) -> None:
    async with metered(answering(), store_url, plans=MONEY_ALONE) as at:
        await give(at, 10)
        assert await capture(at, FIGURES, model="gpt-4o") == floor(price_of("gpt-4o", left=500, entered=1000))
        assert (await at.kit.record_usage("acme", SAID)) is not None
        row = (await at.kit.usage("acme"))["meters"]
        assert row["usd_charged"]["recorded"] == floor(price_of("gpt-4o", left=500, entered=1000) + 273)
        with pytest.raises(UnknownMeterError, match="tokns"):
            await capture(at, {"tokns": 5}, model="gpt-4o")
        with pytest.raises(QuantityError, match="-5"):
            await capture(at, {"output_tokens": -5}, model="gpt-4o")


async def test_a_price_for_every_model_charges_figures_without_one(store_url: str) -> None:
    plans = PLANS.replace('"own-*"', '"*"')
    async with metered(answering(), store_url, plans=plans) as at:
        await give(at, 10)
        await at.kit.record("acme", FIGURES, event_id="one")
        await at.kit.record("acme", FIGURES, event_id="one")
        assert await spent(at) == 650


async def test_what_cannot_be_priced_is_counted_and_logged(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    plans = PLANS.replace("  output_tokens:", "  total_tokens: {unit: token}\n  output_tokens:", 1)
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


def recording(figures: dict[str, int], *, late: bool) -> ASGIApp:
    """An app that answers with a text, and records what it knows of tokens itself."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await read_all(receive)
        if not late:
            await to_thread(meterkit.record, **figures)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"Four."})
        if late:
            meterkit.record(**figures)

    return app


PLAIN: Final = PLANS.replace(
    "plans:\n",
    '  - {match: "POST /plain"}\n  - {match: "POST /own", model: gpt-4o, usage: auto}\nplans:\n',
    1,
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

    async with metered(app, store_url, plans=PLANS) as at:
        await give(at, 10)
        assert await ask(at, 100, model="gpt-4o", said="gpt-4o") == 200
        assert await tokens(at.kit) == (1, 107)
        assert await spent(at) == floor(price_of("gpt-4o", left=107))
