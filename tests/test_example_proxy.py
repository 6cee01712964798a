"""The example of a proxy: both SDKs, the proxy that sells calls, and fake providers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import count
from math import floor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from genai_prices import Usage, calc_price
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close

from drivers.delivery import STRIPE_KEY
from drivers.lazy_modules import LazyModule
from drivers.sampled import whole
from faults.refusals import eventually
from meterkit import MeterKit, identify
from meterkit.testing import StripeEmulator
from servers.model_providers import ANTHROPIC_KEY, OPENAI_KEY, WORDS, FakeProviders
from servers.stores import Server, spawn_server
from test_examples import served as served_example

pytestmark = pytest.mark.anyio

openai: Final = LazyModule("openai")
anthropic: Final = LazyModule("anthropic")

PROXY: Final = Path(__file__).parents[1] / "examples" / "openai_proxy"
READY_S: Final = 120.0
SECRET: Final = "whsec_example"
MARKUP: Final = Decimal("1.3")
CUSTOMERS: Final = [f"customer-{number}" for number in range(120)]
SOUND: Final = ("sound.wav", b"RIFF" + bytes(2_000))
PICTURE: Final = ("picture.png", b"\x89PNG" + bytes(2_000))
_numbers = count()


def key_of(customer: str, user: str = "") -> str:
    return f"sk-of-{customer}-{user}"


@contextmanager
def served(directory: Path, **variables: str) -> Generator[str]:
    """The example under uvicorn, its log in a file of the directory; where it listens."""
    keys: dict[str, Any] = json.loads((PROXY / "keys.json").read_text())
    keys |= {identify.hash_key(key_of(customer)): {"customer": customer} for customer in CUSTOMERS}
    for user in ("ann", "ben"):
        entries = [(customer, {"customer": customer, "subjects": {"user": user}}) for customer in CUSTOMERS]
        keys |= {identify.hash_key(key_of(customer, user)): entry for customer, entry in entries}
    (directory / "keys.json").write_text(json.dumps(keys))
    variables |= {"METERKIT_STORE_TIMEOUT": "60", "PROXY_KEYS": str(directory / "keys.json")}
    with (
        (directory / "log").open("wb") as log,
        served_example(PROXY, "--timeout-graceful-shutdown", "5", log=log, **variables) as client,
    ):
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def providers() -> Generator[FakeProviders]:
    with FakeProviders().running() as fakes:
        yield fakes


@pytest.fixture(scope="module")
def store() -> Generator[Server]:
    """A store that stays for all tests of this module: each test has a customer of its own."""
    with spawn_server() as server:
        yield server


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proxy")


@pytest.fixture(scope="module")
def stripe() -> StripeEmulator:
    return StripeEmulator()


@pytest.fixture(scope="module")
def url(providers: FakeProviders, store: Server, stripe: StripeEmulator, directory: Path) -> Generator[str]:
    with stripe.running() as base:
        settings: Any = {"redis_url": store.url, "stripe_api_key": STRIPE_KEY, "stripe_api_base": base}
        with MeterKit(PROXY / "plans.yaml", **settings, flush=False).sync() as kit:
            kit.stripe.sync()
        variables = {f"METERKIT_{name.upper()}": value for name, value in settings.items()}
        variables |= {"METERKIT_STRIPE_WEBHOOK_SECRET": SECRET}
        variables |= {"OPENAI_BASE_URL": f"{providers.openai}/v1", "OPENAI_API_KEY": OPENAI_KEY}
        variables |= {"ANTHROPIC_BASE_URL": providers.anthropic, "ANTHROPIC_API_KEY": ANTHROPIC_KEY}
        with served(directory, **variables) as found:
            stripe.add_endpoint(f"{found}/billing/webhooks/stripe", secret=SECRET)
            yield found


@dataclass
class Buyer:
    url: str
    name: str
    kit: MeterKit
    openai: Any
    anthropic: Any

    async def figures(self) -> tuple[Any, ...]:
        meters = (await self.kit.usage(self.name))["meters"]
        return tuple([meters[name]["recorded"] for name in ("input_tokens", "output_tokens", "usd_charged")])

    async def has(self, *figures: int) -> None:

        async def found() -> bool:
            meters = (await self.kit.usage(self.name))["meters"]
            found = (await self.figures())[: len(figures)]
            return found == figures and all(one["held"] == 0 for one in meters.values())

        await eventually(found)

    async def owns(self, micros: int) -> None:

        async def found() -> bool:
            return (await self.kit.usage(self.name))["balance_micros"].get("usd", 0) == micros

        await eventually(found)


def openai_of(url: str, key: str) -> Any:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=READY_S)


def anthropic_of(url: str, key: str) -> Any:
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0, timeout=READY_S)


@asynccontextmanager
async def buyer_of(url: str, store: Server, *, dollars: int = 20) -> AsyncGenerator[Buyer]:
    name = CUSTOMERS[next(_numbers)]
    async with (
        MeterKit(PROXY / "plans.yaml", redis_url=store.url, flush=False) as kit,
        openai_of(url, key_of(name)) as openai_client,
        anthropic_of(url, key_of(name)) as anthropic_client,
    ):
        if dollars:
            await kit.grants.add(name, {"usd": dollars}, grant_id=f"{name}-1")
        yield Buyer(url, name, kit, openai_client, anthropic_client)


@pytest.fixture
async def buyer(url: str, store: Server) -> AsyncGenerator[Buyer]:
    async with buyer_of(url, store) as found:
        yield found


def talk(text: str, model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def list_price(model: str, provider: str, **units: float) -> Decimal:
    """The list price of a call in millionths of a dollar, by the price table itself."""
    return calc_price(Usage(**units), model, provider_id=provider).total_price * 1_000_000


CHATTED: Final = {"input_tokens": 1_200, "cache_read_tokens": 1_000, "output_tokens": 340}
RESPONDED: Final = {"input_tokens": 2_000, "cache_read_tokens": 1_500, "output_tokens": 500}
HEARD: Final = {"input_tokens": 600, "input_audio_tokens": 580, "output_tokens": 150}
TALKED: Final = {
    "input_tokens": 900,
    "input_audio_tokens": 600,
    "cache_read_tokens": 500,
    "cache_audio_read_tokens": 400,
    "output_tokens": 260,
    "output_audio_tokens": 200,
}
SAID: Final = {
    "input_tokens": 6_100,
    "cache_read_tokens": 5_000,
    "cache_write_tokens": 1_000,
    "cache_write_1h_tokens": 600,
    "output_tokens": 250,
}


async def chat(buyer: Buyer) -> None:
    answer = await buyer.openai.chat.completions.create(**talk("Tell of the sea"))
    assert answer.choices[0].message.content == "".join(WORDS)


async def chat_stream(buyer: Buyer) -> None:
    stream = await buyer.openai.chat.completions.create(**talk("Tell"), stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == list(WORDS)


async def chat_claude(buyer: Buyer) -> None:
    answer = await buyer.openai.chat.completions.create(**talk("Tell", "claude-sonnet-5"))
    assert answer.model == "claude-sonnet-5"


async def response_in_background(buyer: Buyer) -> None:
    job = await buyer.openai.responses.create(model="gpt-5-mini", input="Tell", background=True)
    assert job.status == "queued"
    for _ in range(3):
        assert (await buyer.openai.responses.retrieve(job.id)).output_text == "".join(WORDS)
    assert (await buyer.openai.responses.cancel(job.id)).id == job.id


async def response_live(buyer: Buyer) -> None:
    async with buyer.openai.responses.connect() as connection:
        for _ in range(2):
            await connection.response.create(model="gpt-5-mini", input="Tell")
            async for event in connection:
                if event.type == "response.completed":
                    break


async def realtime(buyer: Buyer) -> None:
    async with buyer.openai.realtime.connect(model="gpt-realtime") as connection:
        for _ in range(2):
            await connection.response.create()
            async for event in connection:
                if event.type == "response.done":
                    break


async def transcription(buyer: Buyer) -> None:
    answer = await buyer.openai.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND)
    assert answer.text == "".join(WORDS)


async def message_stream(buyer: Buyer) -> None:
    async with buyer.anthropic.messages.stream(**talk("Tell", "claude-sonnet-5", max_tokens=500)) as stream:
        assert [text async for text in stream.text_stream] == list(WORDS)


async def models(buyer: Buyer) -> None:
    assert [model.id async for model in await buyer.openai.models.list()] == ["gpt-4o-mini"]
    assert [model.id async for model in await buyer.anthropic.models.list()] == ["claude-sonnet-5"]


CALLS: Final[dict[Callable[[Buyer], Awaitable[None]], Any]] = {
    chat: ("gpt-4o-mini", "openai", 1, CHATTED),
    chat_stream: ("gpt-4o-mini", "openai", 1, CHATTED),
    chat_claude: ("claude-sonnet-5", "anthropic", 1, CHATTED),
    response_in_background: ("gpt-5-mini", "openai", 1, RESPONDED),
    response_live: ("gpt-5-mini", "openai", 2, RESPONDED),
    realtime: ("gpt-realtime", "openai", 2, TALKED),
    transcription: ("gpt-4o-transcribe", "openai", 1, HEARD),
    message_stream: ("claude-sonnet-5", "anthropic", 1, SAID),
    models: None,
}
SAMPLED: Final = {chat_stream, chat_claude, response_live, realtime, transcription, message_stream}


@pytest.mark.parametrize(
    ("call", "sold"),
    [
        pytest.param(call, sold, id=call.__name__, marks=[] if call in SAMPLED else pytest.mark.whole)
        for call, sold in CALLS.items()
    ],
)
async def test_a_call_costs_the_list_price_and_the_markup(
    call: Callable[[Buyer], Awaitable[None]], sold: tuple[str, str, int, dict[str, int]] | None, buyer: Buyer
) -> None:
    await call(buyer)
    model, provider, times, units = sold or ("", "", 0, {})
    tokens = (times * units.get(f"{kind}_tokens", 0) for kind in ("input", "output"))
    await buyer.has(*tokens, floor(times * MARKUP * list_price(model, provider, **units)) if sold else 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_unlimited_answer_gets_a_limit(stream: bool, buyer: Buyer, providers: FakeProviders) -> None:
    async def asked(call: Awaitable[Any]) -> dict[str, Any]:
        answer = await call
        if stream:
            _ = [event async for event in answer]
        return providers.bodies[-1]

    create = buyer.openai.chat.completions.create
    for more, limit in (
        ({}, 4_096),
        ({"n": 3}, 4_096),  # 12,288 are reserved for three.
        ({"n": 3, "max_completion_tokens": None}, 4_096),
        ({"max_completion_tokens": 50}, 50),
        ({"max_completion_tokens": None}, 4_096),
    ):
        body = await asked(create(**talk("Tell"), stream=stream, **more))
        assert body["max_completion_tokens"] == limit
    body = await asked(create(**talk("Tell"), stream=stream, max_tokens=70))
    assert (body["max_tokens"], body.get("max_completion_tokens")) == (70, None)
    respond = buyer.openai.responses.create
    body = await asked(respond(model="gpt-5-mini", input="Tell", stream=stream))
    assert body["max_output_tokens"] == 4_096
    body = await asked(respond(model="gpt-5-mini", input="Tell", stream=stream, max_output_tokens=80))
    assert body["max_output_tokens"] == 80


@dataclass(frozen=True)
class Call:
    """A call of a model by an SDK; ``text`` steers the fake provider."""

    ask: Callable[[Buyer, str, bool], Awaitable[Any]]
    sdk: Any

    def errors(self, of_openai: str, of_anthropic: str) -> str:
        """The type of an error, in the words of the SDK's provider."""
        return of_anthropic if self.sdk is anthropic else of_openai


def ask_chat(buyer: Buyer, text: str, stream: bool) -> Any:
    return buyer.openai.chat.completions.create(**talk(text), stream=stream)


def ask_responses(buyer: Buyer, text: str, stream: bool) -> Any:
    return buyer.openai.responses.create(model="gpt-5-mini", input=text, stream=stream)


def ask_messages(buyer: Buyer, text: str, stream: bool) -> Any:
    return buyer.anthropic.messages.create(**talk(text, "claude-sonnet-5", max_tokens=500), stream=stream)


each_call = pytest.mark.parametrize(
    "call",
    [Call(ask_chat, openai), Call(ask_responses, openai), Call(ask_messages, anthropic)],
    ids=["chat", "responses", "messages"],
)


@each_call
async def test_a_stream_is_passed_on_word_by_word(call: Call, buyer: Buyer, providers: FakeProviders) -> None:
    stream = await call.ask(buyer, "wait", True)
    async for event in stream:
        if WORDS[0] in str(event):
            break  # The provider says no more before the client has this.
    providers.proceed()
    rest = [event async for event in stream]
    assert all(any(word in str(event) for event in rest) for word in WORDS[1:])


@each_call
@pytest.mark.parametrize(
    ("verb", "stream"),
    [
        pytest.param("think", False, id="whole"),
        whole("think", True, id="stream before its beginning"),
        whole("ponder", True, id="stream before its first word"),
        pytest.param("hang", True, id="stream"),
    ],
)
async def test_a_hang_up_stops_the_provider_and_bills_what_was_used(
    verb: str, stream: bool, call: Call, buyer: Buyer, providers: FakeProviders
) -> None:
    text = f"{verb} for {buyer.name}"
    if verb in {"ponder", "hang"}:
        answer = await call.ask(buyer, text, True)
        if verb == "hang":
            async for event in answer:
                if WORDS[0] in str(event):
                    break
        await answer.close()
    else:
        asking = asyncio.ensure_future(call.ask(buyer, text, stream))
        await eventually(lambda: providers.begun[text] == 1)
        asking.cancel()
    await eventually(lambda: providers.stopped[text] == 1)

    async def paid() -> bool:
        meters = (await buyer.kit.usage(buyer.name))["meters"]
        entered, left, charged = await buyer.figures()
        is_settled = all(one["held"] == 0 for one in meters.values())
        # A request whose client left before the first byte is not billed, only its tokens.
        is_settled &= verb == "ponder" or meters["requests"]["recorded"] == (verb == "hang")
        return is_settled and entered > 0 and 0 < left < 3 and charged > 0

    await eventually(paid)


async def test_a_websocket_ends_on_both_sides(buyer: Buyer, providers: FakeProviders) -> None:
    before = providers.stopped["talk"]
    async with buyer.openai.realtime.connect(model="gpt-realtime") as connection:
        assert (await connection.recv()).type == "session.created"
    await eventually(lambda: providers.stopped["talk"] == before + 1)
    async with buyer.openai.realtime.connect(model="gpt-realtime") as connection:
        await connection.recv()
        await connection.response.cancel()
        with pytest.raises(ConnectionClosedError) as closed:
            await connection.recv()
    assert closed.value.rcvd == Close(4000, "cancelled")


@each_call
async def test_an_empty_balance_is_402_before_the_provider_is_asked(
    call: Call, url: str, store: Server, providers: FakeProviders
) -> None:
    async with buyer_of(url, store, dollars=0) as buyer:
        asked = len(providers.asked)
        with pytest.raises(call.sdk.APIStatusError, match="POST /billing/top-up") as refused:
            await call.ask(buyer, "Tell", True)
        assert (refused.value.status_code, len(providers.asked)) == (402, asked)
        assert refused.value.type == call.errors("insufficient_quota", "billing_error")
        assert await buyer.figures() == (0, 0, 0)
        assert call.sdk is openai or isinstance(refused.value, anthropic.PaymentRequiredError)
        for live in (buyer.openai.realtime.connect(model="gpt-realtime"), buyer.openai.responses.connect()):
            with pytest.raises(InvalidStatus) as refused:
                await live.enter()
            told = json.loads(refused.value.response.body or b"")
            assert (refused.value.response.status_code, told["error"]["type"]) == (402, "insufficient_quota")


@each_call
async def test_a_strange_key_is_401_and_many_requests_are_429(call: Call, buyer: Buyer) -> None:
    async with openai_of(buyer.url, "sk-1") as one, anthropic_of(buyer.url, "sk-1") as other:
        with pytest.raises(call.sdk.AuthenticationError) as refused:
            await call.ask(replace(buyer, openai=one, anthropic=other), "Tell", False)
    assert refused.value.type == call.errors("invalid_request_error", "authentication_error")
    await buyer.kit.customers.override(buyer.name, {"requests": {"rate": "1/day"}})
    await call.ask(buyer, "Tell", False)
    with pytest.raises(call.sdk.RateLimitError) as limited:
        await call.ask(buyer, "Tell", False)
    assert limited.value.type == call.errors("rate_limit_exceeded", "rate_limit_error")
    assert int(limited.value.response.headers["retry-after"]) >= 1


async def test_a_request_above_the_ceiling_is_400(buyer: Buyer, providers: FakeProviders) -> None:
    asked = len(providers.asked)
    create = buyer.openai.chat.completions.create
    for more in ({"max_tokens": 99_999}, {"max_completion_tokens": 99_999}, {"max_tokens": 20_000, "n": 2}):
        with pytest.raises(openai.BadRequestError, match="32768 at most") as refused:
            await create(**talk("Tell"), **more)
        assert (refused.value.code, refused.value.param) == ("request-above-ceiling", next(iter(more)))
    with pytest.raises(openai.BadRequestError, match="32768 at most"):
        await buyer.openai.responses.create(model="gpt-5-mini", input="Tell", max_output_tokens=99_999)
    with pytest.raises(anthropic.BadRequestError, match="32768 at most"):
        async with buyer.anthropic.messages.stream(**talk("Tell", "claude-sonnet-5", max_tokens=99_999)):
            pass
    assert asked == len(providers.asked)


@each_call
async def test_an_error_of_the_provider_is_passed_on_and_costs_nothing(call: Call, buyer: Buyer) -> None:
    errors = {400: "BadRequestError", 429: "RateLimitError", 500: "InternalServerError"}
    for status, error in errors.items():
        with pytest.raises(getattr(call.sdk, error), match=f"failed with {status}") as failed:
            await call.ask(buyer, f"fail {status}", True)
        headers = failed.value.response.headers
        assert ("7", "req_7") == (headers["retry-after"], headers["x-request-id"])
    # A refusal of the proxy's own key, and an answer that breaks off, are the proxy's errors.
    for text, said in (("fail 401", "The provider refused the proxy"), ("cut", "The provider is not there")):
        with pytest.raises(call.sdk.InternalServerError, match=said) as failed:
            await call.ask(buyer, text, False)
        assert failed.value.status_code == 502
    await buyer.has(0, 0, 0)
    await buyer.owns(20_000_000)


async def test_a_live_connection_ends_when_the_balance_is_used_up(buyer: Buyer) -> None:
    price = floor(MARKUP * list_price("gpt-5-mini", "openai", **RESPONDED))
    await buyer.kit.record(buyer.name, "usd_charged", 20_000_000 - price)
    async with buyer.openai.responses.connect() as connection:
        await connection.response.create(model="gpt-5-mini", input="Tell")
        async for event in connection:
            if event.type == "response.completed":
                break
        await buyer.has(2_000, 500, 20_000_000)
        await connection.response.create(model="gpt-5-mini", input="Tell")
        with pytest.raises(ConnectionClosedError) as closed:
            await connection.recv()
    assert closed.value.rcvd
    assert closed.value.rcvd.code == 1008


UNPRICED: Final = "gpt-unpriced-9"
ASKING_FOR_AN_UNPRICED_MODEL: Final[tuple[Callable[[Buyer], Awaitable[Any]], ...]] = (
    lambda buyer: buyer.openai.chat.completions.create(**talk("Tell", UNPRICED)),
    lambda buyer: buyer.openai.responses.create(model=UNPRICED, input="Tell"),
    lambda buyer: buyer.openai.embeddings.create(model=UNPRICED, input="Tell"),
    lambda buyer: buyer.openai.images.generate(model=UNPRICED, prompt="sea"),
    lambda buyer: buyer.openai.images.edit(model=UNPRICED, prompt="sea", image=PICTURE),
    lambda buyer: buyer.openai.audio.transcriptions.create(model=UNPRICED, file=SOUND),
    lambda buyer: buyer.anthropic.messages.create(**talk("Tell", UNPRICED, max_tokens=9)),
)


async def test_a_model_without_a_price_is_400(buyer: Buyer, providers: FakeProviders) -> None:
    asked = len(providers.asked)
    kinds: Any = (openai.BadRequestError, anthropic.BadRequestError)
    for ask in ASKING_FOR_AN_UNPRICED_MODEL:
        with pytest.raises(kinds, match=UNPRICED) as refused:
            await ask(buyer)
        assert refused.value.type == "invalid_request_error"
        if isinstance(refused.value, openai.BadRequestError):
            assert (refused.value.code, refused.value.param) == ("model-not-priced", "model")
    with pytest.raises(InvalidStatus) as handshake:
        await buyer.openai.realtime.connect(model=UNPRICED).enter()
    assert handshake.value.response.status_code == 400
    key = {"authorization": f"Bearer {key_of(buyer.name)}"}
    async with httpx.AsyncClient(base_url=buyer.url, headers=key, timeout=READY_S) as client:
        for path in ("chat/completions", "responses", "embeddings", "images/generations", "messages"):
            for body in ({}, {"model": None}, {"model": ["gpt-4o-mini"]}):
                assert (await client.post(f"/v1/{path}", json=body)).status_code == 400
        for path in ("images/edits", "audio/transcriptions"):
            sound = {"file": ("a", b'form-data; name="model"')}
            for form in ({}, {"model": ("model", b"gpt-4o-mini")}):
                assert (await client.post(f"/v1/{path}", files=sound | form)).status_code == 400
    assert asked == len(providers.asked)


async def test_what_a_client_could_get_without_figures_is_400(buyer: Buyer, providers: FakeProviders) -> None:
    asked = len(providers.asked)
    ai, drawn = buyer.openai, {"partial_images": 2}
    heard = {"model": "whisper-1", "file": SOUND}
    told = {"model": "gpt-5-mini", "input": "Tell", "stream": True}
    tools = [{"type": "image_generation", **drawn}]
    painted = {"model": "gpt-image-1", "prompt": "sea", "stream": True, **drawn}
    calls: list[tuple[str, Any]] = [
        ("response_format", ai.audio.transcriptions.create(**heard, response_format="text")),
        ("response_format", ai.audio.transcriptions.create(**heard, response_format="srt")),
        ("stream", ai.responses.create(**told, background=True)),
        ("stream", ai.responses.retrieve("resp_1", stream=True)),
        ("partial_images", ai.responses.create(**told, tools=tools)),
        ("partial_images", ai.images.generate(**painted)),
        ("partial_images", ai.images.edit(**painted, image=PICTURE)),
    ]
    for field, call in calls:
        with pytest.raises(openai.BadRequestError) as refused:
            await call
        assert refused.value.param == field
    assert asked == len(providers.asked)


async def test_a_user_reaches_a_budget_and_another_one_goes_on(buyer: Buyer) -> None:
    keys = [key_of(buyer.name, user) for user in ("ann", "ben")]
    async with openai_of(buyer.url, keys[0]) as ann, openai_of(buyer.url, keys[1]) as ben:
        user = buyer.kit.customers.subject(buyer.name, user="ann")
        await user.override({"budget": {"amount_cents": 1, "per": "day"}})
        with pytest.raises(openai.APIStatusError, match="user:spend-1d") as refused:
            await ann.chat.completions.create(**talk("Tell", "gpt-5", max_completion_tokens=1_000))
        assert (402, "spend") == (refused.value.status_code, refused.value.code)
        await ben.chat.completions.create(**talk("Tell", "gpt-5", max_completion_tokens=1_000))

        async def counted() -> bool:
            charged = [
                one.subject
                for one in await buyer.kit.usage(buyer.name, by="user")
                if "usd_charged" in one.meters and one.meters["usd_charged"].recorded
            ]
            return charged == ["ben"]

        await eventually(counted)
    async with httpx.AsyncClient(base_url=buyer.url, timeout=READY_S) as browser:
        for way, path in (("POST", "/billing/top-up"), ("GET", "/billing/usage")):
            key = {"authorization": f"Bearer {key_of(buyer.name, 'ann')}"}
            assert 403 == (await browser.request(way, path, headers=key, json={})).status_code


async def test_a_balance_is_bought_and_topped_up(url: str, store: Server, stripe: StripeEmulator) -> None:
    async with buyer_of(url, store, dollars=0) as buyer, httpx.AsyncClient(timeout=READY_S) as browser:
        back = "http://localhost:8000/healthz"
        asked = {"amount_cents": 1000, "success_url": back, "cancel_url": back}
        key = {"authorization": f"Bearer {key_of(buyer.name)}"}
        page = await browser.post(f"{url}/billing/top-up", json=asked, headers=key)
        stripe.complete_checkout(page.json()["url"])

        await buyer.owns(10_000_000)
        await buyer.kit.record(buyer.name, "usd_charged", 5_000_000)
        await chat(buyer)
        price = floor(MARKUP * list_price("gpt-4o-mini", "openai", **CHATTED))
        # The balance falls below $5.00, so the saved card is charged for another $10.00.
        await buyer.owns(15_000_000 - price)


async def test_the_snippet_of_the_readme_runs(url: str, store: Server) -> None:
    (snippet,) = re.findall(r"```py\n(.*?)```", (PROXY / "README.md").read_text(), re.DOTALL)
    code = compile(snippet.replace("http://localhost:8000", url), "README.md", "exec")
    async with MeterKit(PROXY / "plans.yaml", redis_url=store.url, flush=False) as kit:
        await kit.grants.add("ada", {"usd": 5}, grant_id="inv_1")
        await asyncio.to_thread(exec, code, {})

        async def counted() -> bool:
            return (await kit.usage("ada"))["meters"]["requests"]["recorded"] == 4

        await eventually(counted)


async def test_what_is_not_sold_is_not_passed_on(buyer: Buyer, providers: FakeProviders) -> None:
    asked = len(providers.asked)
    # A body that cannot be read is refused, or held to the ceiling at the dearest price.
    await buyer.kit.grants.add(buyer.name, {"usd": 1_000}, grant_id=f"{buyer.name}-2")
    for unsold in (buyer.openai.files, buyer.openai.batches):
        with pytest.raises(openai.NotFoundError):
            await unsold.list()
    async with httpx.AsyncClient(base_url=buyer.url, timeout=READY_S) as client:
        key = {"authorization": f"Bearer {key_of(buyer.name)}"}
        # The first one may be read as a path of another route.
        for path, status in (
            ("/v1/models/a%2F..%2F..%2Ffiles", 400),
            ("/v1/messages/batches", 404),
            ("/v1/responses/a/b", 404),
        ):
            assert (await client.get(path, headers=key)).status_code == status
        for body in (b"[]", b"{", b'"text"', b"\xff"):
            refused = await client.post("/v1/chat/completions", content=body, headers=key)
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert asked == len(providers.asked)


async def test_keys_stay_where_they_belong(buyer: Buyer, providers: FakeProviders, directory: Path) -> None:
    """The last test of the module: the log has what all of them made the proxy say."""
    await chat(buyer)
    await message_stream(buyer)
    sent_on = {value for _, _, headers in providers.asked for value in headers.values()}
    assert not any("sk-of-" in value for value in sent_on)
    written = (directory / "log").read_text() + (directory / "keys.json").read_text()
    assert not any(key in written for key in ("sk-of-", OPENAI_KEY, ANTHROPIC_KEY))
