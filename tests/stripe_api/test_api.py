"""How Stripe is asked: in its form, again where no answer came, within its limits, and what is raised."""
# Internals: one call at a time of the client, on the wire.

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from importlib import util
from importlib.machinery import ModuleSpec
from time import monotonic
from typing import Any, Final
from urllib.parse import parse_qsl

import pytest
import stripe

from drivers.emulated_account import StripeSession, unpaced
from meterkit import MeterkitError, Settings, SettingsError, StripeError, StripeUnavailableError
from meterkit.catalog import loads
from meterkit.stripe.api import StripeApi
from meterkit.stripe.idempotency_keys import IdempotencyKey, key_of
from meterkit.stripe.meter_differences import meter_differences
from meterkit.stripe.request import API_VERSION
from meterkit.stripe.sdk import endpoint_of
from meterkit.testing import Clock, StripeEmulator
from servers.fixed_answers import Asked, answer, answering

pytestmark = pytest.mark.anyio

KEY = "sk_test_51SECRETsecret"
PER_ENDPOINT_S = 20.0
CLOSED_PORT = "http://127.0.0.1:1"


def settings(base: str | None = None, key: str = KEY) -> Settings:
    return Settings.load(stripe_api_key=key, stripe_api_base=base)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    unpaced(monkeypatch)


@asynccontextmanager
async def asking(base: str, **options: Any) -> AsyncGenerator[StripeApi]:
    api = StripeApi(settings(base), **{"timeout_s": 5.0} | options)
    try:
        yield api
    finally:
        await api.close()


def in_turn(*answers: bytes) -> Any:
    """Answer each of these once, then the last one for ever."""
    left = list(answers)

    def reply(_: Asked) -> bytes:
        return left.pop(0) if len(left) > 1 else left[0]

    return reply


def error(status: int, **told: str) -> bytes:
    return answer(status, {"error": {"type": "invalid_request_error", **told}}, request_id="req_1")


async def test_all_pages_of_a_list_are_read_and_a_limit_is_left_alone() -> None:
    emulator = StripeEmulator(clock=Clock())
    async with emulator.serve() as url, asking(url) as api:
        made = [emulator.add_customer() for _ in range(230)]
        found = await api.list("/v1/customers")
        assert [customer["id"] for customer in found] == made[::-1]
        assert len(emulator.requests) == 3
        pages = [len(page) async for page in api.pages("/v1/customers", {"limit": 90})]
        assert pages == [90, 90, 50]
        assert [page async for page in api.pages("/v1/customers", {"email": "nobody"})] == [[]]


async def test_a_list_of_any_length_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a hundred thousand objects the rest was left out in silence, as subscribers of an import."""

    async def get(_: StripeApi, _path: str, asked: dict[str, Any]) -> dict[str, Any]:
        page = int(asked.get("starting_after", "0")) + 1
        return {"data": [{"id": f"{min(page, 1_203)}"}], "has_more": page != last}

    monkeypatch.setattr(StripeApi, "get", get)
    api = StripeApi(settings())
    last = 1_200
    assert len(await api.list("/v1/customers")) == last
    last = 0
    with pytest.raises(StripeError, match="the same page again and again, after 1203"):
        await api.list("/v1/customers")


async def test_a_page_of_a_hundred_large_objects_is_read() -> None:
    """Of a hundred subscriptions with items and invoices an import read none: a page had over a megabyte."""
    large = [{"id": f"sub_{nth}", "items": "x" * 30_000} for nth in range(100)]
    page = {"object": "list", "data": large, "has_more": False}
    async with answering(answer(200, page)) as stand_in, asking(stand_in.url) as api:
        assert [found["id"] for found in await api.list("/v1/subscriptions")] == [one["id"] for one in large]


async def test_the_wire_form_is_that_of_the_official_sdk() -> None:
    assert stripe.api_version == API_VERSION
    params: dict[str, Any] = {
        "customer": "cus_1",
        "items": [{"price": "price_1", "quantity": 3}, {"price": "price_2"}],
        "cancel_at_period_end": False,
        "automatic_tax": {"enabled": True},
        "metadata": {"meterkit_customer": "größe [1]"},
        "expand": ["latest_invoice", "schedule"],
    }
    async with answering(answer(200, {"object": "subscription", "id": "sub_1"})) as stand_in:
        async with asking(stand_in.url) as api:
            await api.post("/v1/subscriptions", params, idempotency_key=IdempotencyKey("once"))
        session = StripeSession(KEY, api_base=stand_in.url, timeout_s=5)
        await session.client.v1.subscriptions.create_async(params, {"idempotency_key": "once"})  # type: ignore[arg-type]
        await session.close()
    ours, theirs = stand_in.asked
    assert sorted(parse_qsl(ours.body)) == sorted(parse_qsl(theirs.body))
    assert (ours.line, theirs.line) == ("POST /v1/subscriptions HTTP/1.1",) * 2
    for name in ("authorization", "idempotency-key", "stripe-version", "content-type", "host"):
        assert ours.headers[name] == theirs.headers[name]


async def test_what_is_asked_for_without_a_body_stands_behind_the_path() -> None:
    async with answering(answer(200, {"id": "x"})) as stand_in, asking(stand_in.url) as api:
        await api.get("/v1/subscriptions", {"customer": "cus_1", "expand": ["data.schedule"], "limit": None})
        await api.delete("/v1/subscriptions/sub_1", {"invoice_now": True})
        await api.get("/v1/balance")
    lines = [asked.line for asked in stand_in.asked]
    assert lines == [
        "GET /v1/subscriptions?customer=cus_1&expand%5B0%5D=data.schedule HTTP/1.1",
        "DELETE /v1/subscriptions/sub_1?invoice_now=true HTTP/1.1",
        "GET /v1/balance HTTP/1.1",
    ]
    assert not any("idempotency-key" in asked.headers for asked in stand_in.asked)


@pytest.mark.parametrize(
    ("status", "told"),
    [(400, {"code": "parameter_missing", "param": "items"}), (404, {"code": "resource_missing"})],
)
async def test_a_refusal_is_raised_once_with_stripes_words(status: int, told: dict[str, str]) -> None:
    async with answering(error(status, **told)) as stand_in, asking(stand_in.url) as api:
        with pytest.raises(StripeError) as refused:
            await api.post("/v1/subscriptions")
    found = refused.value
    assert isinstance(found, MeterkitError)
    assert not isinstance(found, StripeUnavailableError)
    assert (found.status, found.request_id) == (status, "req_1")
    assert (found.code, found.param) == (told["code"], told.get("param"))
    assert "SECRET" not in f"{found!r} {found}"
    assert len(stand_in.asked) == 1


@pytest.mark.parametrize(
    "first",
    [
        error(429, code="rate_limit"),
        error(409, code="idempotency_key_in_use"),
        answer(500, {"error": {"type": "api_error"}}),
        answer(200, "<html>log in</html>"),
        answer(200, "[" * 100_000),
        answer(503, "", date="Mon, 01 Jan 99999999999 00:00:00 GMT"),
        answer(400, {"error": {"type": "invalid_request_error"}}, stripe_should_retry="true"),
    ],
)
async def test_an_uncertain_answer_is_retried_under_the_same_key(first: bytes) -> None:
    replies = in_turn(first, first, answer(200, {"id": "sub_1"}))
    async with answering(replies) as stand_in, asking(stand_in.url) as api:
        assert await api.post("/v1/subscriptions") == {"id": "sub_1"}
        await api.post("/v1/subscriptions")
    keys = [asked.headers["idempotency-key"] for asked in stand_in.asked]
    assert keys[0] == keys[1] == keys[2] != keys[3]


REPLAYED: Final = answer(402, {"error": {"type": "card_error"}}, idempotent_replayed="true")
LOST: Final = answer(500, {"error": {"type": "api_error"}})
MADE: Final = answer(200, {"id": "sub_1"})
# Replies in turn, and the number of the key that each request has.
ATTEMPTS: Final = {
    "refused": ((error(402), MADE), (0, 0)),
    "refused a while ago": ((REPLAYED, REPLAYED, MADE, MADE), (0, 1, 2, 2)),
    "refused meanwhile": ((LOST, REPLAYED, REPLAYED, MADE), (0, 0, 0, 1)),
    "lost": ((LOST, LOST, LOST, MADE), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", ATTEMPTS)
async def test_only_a_repeated_error_leads_to_another_key(case: str) -> None:
    replies, numbers = ATTEMPTS[case]
    key = key_of("test")
    async with answering(in_turn(*replies)) as stand_in, asking(stand_in.url) as api:
        with suppress(StripeError):
            await api.post("/v1/subscriptions", idempotency_key=key)
        await api.post("/v1/subscriptions", idempotency_key=key)
    sent = [asked.headers["idempotency-key"] for asked in stand_in.asked]
    assert sent == [f"{key}-{number}" if number else key for number in numbers]


async def test_what_a_failed_attempt_has_made_is_not_made_again() -> None:
    async def find() -> dict[str, Any] | None:
        found.append(len(stand_in.asked))
        return {"id": "sub_0"} if len(found) > 1 else None

    found: list[int] = []
    async with answering(in_turn(REPLAYED, REPLAYED)) as stand_in, asking(stand_in.url) as api:
        made = await api.post("/v1/subscriptions", idempotency_key=key_of("test"), find=find)
    assert (made, found) == ({"id": "sub_0"}, [1, 2])


async def test_attempts_end_where_stripe_repeats_errors_without_end() -> None:
    async with answering(REPLAYED) as stand_in, asking(stand_in.url) as api:
        with pytest.raises(StripeError, match="HTTP 402"):
            await api.post("/v1/subscriptions")
    assert len(stand_in.asked) == 32


@pytest.mark.parametrize(
    ("reply", "tries", "said"),
    [
        (answer(500, {"error": {"type": "api_error"}}), 3, "HTTP 500"),
        (answer(500, {"error": {"type": "api_error"}}, stripe_should_retry="false"), 1, "HTTP 500"),
        (error(429, code="rate_limit"), 3, "rate_limit"),
        (answer(302, "", location="http://elsewhere.example"), 3, "HTTP 302"),
    ],
)
async def test_an_unavailable_stripe_is_reported_after_three_tries(
    reply: bytes, tries: int, said: str
) -> None:
    async with answering(reply) as stand_in, asking(stand_in.url) as api:
        with pytest.raises(StripeUnavailableError, match=said):
            await api.post("/v1/subscriptions")
    assert len(stand_in.asked) == tries


async def test_nobody_at_the_address() -> None:
    async with asking(CLOSED_PORT) as api:
        with pytest.raises(StripeUnavailableError, match="no connection") as refused:
            await api.get("/v1/customers")
    assert refused.value.status is None


async def test_a_missing_answer_is_waited_for_until_the_timeout() -> None:
    emulator = StripeEmulator(clock=Clock())
    async with emulator.serve() as url, asking(url, timeout_s=0.05) as api:
        emulator.fail_next("hang", path="/v1/customers", times=None)
        with pytest.raises(StripeUnavailableError, match="no answer"):
            await api.get("/v1/customers")


async def test_calls_stay_below_the_limits_of_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(answer(200, {"id": "x"})) as stand_in:
        monkeypatch.setattr("meterkit.stripe.api.API_BASE", stand_in.url)
        monkeypatch.setattr("meterkit.stripe.sdk._PER_ENDPOINT_S", PER_ENDPOINT_S)
        api = StripeApi(settings())
        begun = monotonic()
        await asyncio.gather(*(api.get(f"/v1/customers/{n}") for n in range(15)))
        await api.close()
    # Five at once, then twenty a second.
    assert 0.45 < monotonic() - begun


@pytest.mark.parametrize(
    ("method", "target", "endpoint"),
    [
        ("get", "/v1/invoiceitems?customer=cus_1", "GET /v1/invoiceitems"),
        ("post", "/v1/invoiceitems", "POST /v1/invoiceitems"),
        ("get", "/v1/subscriptions/sub_1?expand[]=latest_invoice", "GET /v1/subscriptions/{id}"),
        ("post", "/v1/invoices/in_1/finalize", "POST /v1/invoices/{id}/finalize"),
        (
            "get",
            "/v1/billing/meters/mtr_1/event_summaries?limit=1",
            "GET /v1/billing/meters/{id}/event_summaries",
        ),
    ],
)
def test_an_endpoint_is_a_method_and_a_path_without_ids(method: str, target: str, endpoint: str) -> None:
    """As Stripe's page of limits says: so lines are written beside the reads that precede them."""
    assert endpoint_of(method, target) == endpoint


async def test_each_event_loop_has_connections_of_its_own() -> None:
    async with answering(answer(200, {"id": "x"})) as stand_in:
        api = StripeApi(settings(stand_in.url))
        await api.get("/v1/balance")

        async def work() -> None:
            for _ in range(2):
                await api.get("/v1/balance")
                await api.close()

        await asyncio.to_thread(lambda: asyncio.run(work()))
        await api.get("/v1/balance")
        await api.close()
        await api.close()
        assert stand_in.connections == 3


def test_without_a_key_or_the_extra_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="set METERKIT_STRIPE_API_KEY"):
        StripeApi(Settings.load())

    for missing in ("aiohttp", "stripe"):

        def find_spec(name: str, missing: str = missing) -> ModuleSpec | None:
            return None if name == missing else util.find_spec(name)

        monkeypatch.setattr("meterkit.stripe.api.find_spec", find_spec)
        with pytest.raises(ImportError, match=rf"needs {missing}: pip install 'meterkit\[stripe\]'"):
            StripeApi(settings())


def test_the_key_is_in_no_text_of_it() -> None:
    assert repr(StripeApi(settings("http://h/secret-path"))) == "StripeApi(api_base='http://h')"


def test_import_and_construction_leave_http_and_the_sdk_alone() -> None:
    code = (
        "import sys; from meterkit.stripe.api import StripeApi; from meterkit.settings import Settings;"
        "StripeApi(Settings.load(stripe_api_key='sk_test_1'));"
        "sys.exit(' '.join({'stripe', 'httpx', 'aiohttp'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_meter_that_reports_nothing_is_not_missed_at_stripe() -> None:
    plans = """
schema: 1
currency: usd
default_plan: free
meters:
  pages: {unit: page, stripe: {event_name: pages}}
  views: {unit: view, stripe: {event_name: views, report: none}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {pages: {included: 1}, views: {included: 1}}}
"""
    (missed,) = meter_differences(loads(plans), [])
    assert missed.startswith("meter pages: Stripe has no active meter")
