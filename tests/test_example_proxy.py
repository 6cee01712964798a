"""The proxy of the examples: OpenAI's own client, a proxy that sells tokens, and a provider behind it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    RateLimitError,
)

from delivering import STRIPE_KEY
from faults import eventually
from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = pytest.mark.anyio

PROXY = Path(__file__).parents[1] / "examples" / "openai_proxy"
READY_S = 120.0
SECRET = "whsec_example"
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@contextmanager
def served(module: str, **variables: str) -> Generator[str]:
    """A module of the example under uvicorn; where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        arguments = (
            "-m",
            "uvicorn",
            f"{module}:app",
            "--fd",
            str(listener.fileno()),
            "--log-level",
            "warning",
        )
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PROXY,
            env=os.environ | {"METERKIT_STORE_TIMEOUT": "10", **variables},
            pass_fds=[listener.fileno()],
        ) as process:
            try:
                deadline = time.monotonic() + READY_S
                while not ready(url):
                    assert time.monotonic() < deadline
                    assert process.poll() is None
                yield url
            finally:
                process.terminate()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=READY_S).is_success
    except httpx.TransportError:
        time.sleep(0.05)
        return False


@pytest.fixture
def urls(store_url: str) -> Generator[tuple[str, str]]:
    """Where the proxy and the provider are."""
    with ExitStack() as servers:
        provider = servers.enter_context(served("provider"))
        proxy = served("app", PROVIDER_URL=f"{provider}/v1", METERKIT_REDIS_URL=store_url)
        yield servers.enter_context(proxy), provider


def client_of(urls: tuple[str, str], customer: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{urls[0]}/v1", api_key=f"sk-{customer}", max_retries=0, timeout=READY_S)


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "parrot-1", "messages": [{"role": "user", "content": text}], "max_tokens": 60, **more}


async def tokens(kit: MeterKit, customer: str, *meters: str) -> tuple[int, ...]:
    usage = (await kit.usage(customer))["meters"]
    return tuple(usage[meter]["recorded"] for meter in meters or ("input_tokens", "output_tokens"))


async def reported(urls: tuple[str, str]) -> tuple[int, int]:
    """What the provider will bill."""
    async with httpx.AsyncClient() as client:
        told = (await client.get(f"{urls[1]}/reported")).json()
    return told["prompt_tokens"], told["completion_tokens"]


async def chat(client: AsyncOpenAI) -> None:
    """Whole answers, streams with and without usage, tool calls; as OpenAI's own client takes them."""
    create: Any = client.chat.completions.create
    whole = await create(**asking("Tell 7 words"))
    assert (3, 7) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert 7 == len(whole.choices[0].message.content.split())

    plain = [chunk async for chunk in await create(**asking("Tell me 9 words"), stream=True)]
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in plain)
    assert 9 == sum(bool(chunk.choices[0].delta.content) for chunk in plain)

    options = {"include_usage": True}
    asked = [
        chunk async for chunk in await create(**asking("Tell 5 words"), stream=True, stream_options=options)
    ]
    assert ([], 5) == (asked[-1].choices, asked[-1].usage.completion_tokens)

    for more in ({}, {"stream_options": options}):
        called = await create(**asking("What is the weather", tools=[TOOL]), stream=True, **more)
        calls = [
            call
            async for chunk in called
            for choice in chunk.choices
            for call in choice.delta.tool_calls or ()
        ]
        assert ["weather"] == [call.function.name for call in calls]
    told = await create(**asking("What is the weather", tools=[TOOL]))
    assert "Bergen" in told.choices[0].message.tool_calls[0].function.arguments
    async for _ in await create(**asking("Tell 11 words", model="parrot-1-large"), stream=True):
        pass


async def test_the_bill_is_what_the_provider_has_reported(urls: tuple[str, str], store_url: str) -> None:
    emulator = StripeEmulator()
    names = ("proxy_input_tokens", "proxy_output_tokens", "proxy_output_tokens:*-large*")
    for name in names:
        emulator.add_meter(name)
    billed = emulator.add_customer(name="Ada")
    with emulator.running() as stripe:
        settings: dict[str, Any] = {"stripe_api_key": STRIPE_KEY, "stripe_api_base": stripe, "flush": False}
        async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, **settings) as kit:
            await kit.customers.set_plan("ada", "metered")
            await kit.customers.link("ada", billed)
            async with client_of(urls, "ada") as client:
                await chat(client)
                create: Any = client.chat.completions.create
                with pytest.raises(RateLimitError, match="too quickly") as refused:
                    await create(**asking("fail 429"))
                assert "7" == refused.value.response.headers["retry-after"]
                with pytest.raises(InternalServerError, match="error while processing"):
                    await create(**asking("fail 500"), stream=True)
            used = await reported(urls)
            assert used[1] == 7 + 9 + 5 + 3 + 11

            async def counted() -> bool:
                return used == await tokens(kit, "ada")

            await eventually(counted)
            assert (11,) == await tokens(kit, "ada", "output_tokens:*-large*")
            spent = used[0] * 500 + (used[1] - 11) * 2_000 + 11 * 10_000
            assert (spent,) == await tokens(kit, "ada", "spend")
            # What failed at the provider is served, but not billed.
            report = await kit.flush(everything=True, timeout_s=60)
            assert 0 == report.left
    accepted = [int(emulator.accepted(billed, name)) for name in names]
    assert [used[0], used[1] - 11, 11] == accepted


async def test_a_client_that_hangs_up_pays_what_it_has_got(urls: tuple[str, str], store_url: str) -> None:
    async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, flush=False) as kit:
        async with client_of(urls, "eve") as client:
            create: Any = client.chat.completions.create
            stream = await create(**asking("Tell 900 words", max_tokens=900), stream=True)
            got = 0
            async for _ in stream:
                got += 1
                if got == 20:
                    break
            await stream.close()

        async def counted() -> bool:
            return (1,) == await tokens(kit, "eve", "requests")

        await eventually(counted)
        entered, said = await tokens(kit, "eve")
    assert (0, 0) == await reported(urls)  # The provider never came to its end.
    assert entered > 0
    assert 0 < said < 900


@pytest.mark.parametrize(
    ("text", "stream"),
    [("think", False), ("think", True), ("ponder", True)],
    ids=["whole answer", "stream", "stream that has begun"],
)
async def test_f20e_a_client_that_leaves_before_the_first_byte_stops_the_provider_and_pays_the_prompt(
    text: str, stream: bool, urls: tuple[str, str], store_url: str
) -> None:
    async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, flush=False) as kit:
        async with client_of(urls, "eve") as client, httpx.AsyncClient(base_url=urls[1]) as provider:

            async def has(**counts: int) -> bool:
                found = (await provider.get("/reported")).json()
                return {name: found[name] for name in counts} == counts

            create: Any = client.chat.completions.create
            call = asyncio.create_task(create(**asking(f"{text} of the sea"), stream=stream))
            await eventually(lambda: has(begun=1))
            if text == "ponder":
                await (await call).close()  # The provider has begun to answer, and said nothing yet.
            else:
                call.cancel()
            await eventually(lambda: has(stopped=1, completion_tokens=0))

        async def settled() -> bool:
            return (await tokens(kit, "eve"))[0] > 0

        await eventually(settled)
        assert (0,) == await tokens(kit, "eve", "requests")
        meters = (await kit.usage("eve"))["meters"]
        assert [
            (meters[name]["recorded"], meters[name]["held"]) for name in ("input_tokens", "output_tokens")
        ] == [
            (len(text + " of the sea") // 4, 0),
            (1, 0),
        ]


async def test_a_request_above_the_ceiling_is_refused_before_the_provider_is_asked(
    urls: tuple[str, str], store_url: str
) -> None:
    """F-204: in OpenAI's words, by all of its names for the limit."""
    async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, flush=False) as kit:
        await kit.customers.set_plan("ada", "metered")
        async with client_of(urls, "ada") as client:
            create: Any = client.chat.completions.create
            for limit in (
                {"max_tokens": 99_999},
                {"max_completion_tokens": 99_999},
                {"max_tokens": 1_366, "n": 3},
            ):
                with pytest.raises(BadRequestError, match="4096 at most") as refused:
                    await create(**{**asking("Tell 9 words"), "max_tokens": None, **limit}, stream=True)
                told = (refused.value.type, refused.value.code, refused.value.param)
                assert told == ("invalid_request_error", "request-above-ceiling", next(iter(limit)))
            answer = await create(**asking("Tell 9 words", max_tokens=4_096))
            assert 9 == answer.usage.completion_tokens
            # Without a limit the model gets the one that is held, and writes no more.
            answer = await create(**{**asking("Tell 900 words"), "max_tokens": None})
            assert 256 == answer.usage.completion_tokens

        async def counted() -> bool:
            return (2, 265) == await tokens(kit, "ada", "requests", "output_tokens")

        await eventually(counted)


async def test_out_of_credits_the_client_is_told_before_the_provider_is_asked(
    urls: tuple[str, str], store_url: str
) -> None:
    async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, flush=False) as kit:
        await kit.customers.set_plan("bob", "prepaid")
        await kit.grants.add("bob", {"ai": 1}, grant_id="inv_1")
        async with client_of(urls, "bob") as client:
            create: Any = client.chat.completions.create
            assert (await create(**asking("Tell 20 words", max_tokens=20))).usage.completion_tokens == 20

            async def counted() -> bool:
                return (20,) == await tokens(kit, "bob", "output_tokens")

            await eventually(counted)
            with pytest.raises(APIStatusError, match="credits") as refused:
                await create(**asking("Tell 20 words", max_tokens=20))
        assert (402, "insufficient_quota") == (refused.value.status_code, refused.value.type)
    assert 20 == (await reported(urls))[1]


async def test_a_customer_spends_no_more_than_she_wants(urls: tuple[str, str], store_url: str) -> None:
    async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, flush=False) as kit:
        await kit.customers.set_plan("eve", "metered")
        await kit.customers.spend_limit("eve", 15)
        async with client_of(urls, "eve") as client:
            create: Any = client.chat.completions.create
            # 50 words are 10 cents, and what is asked some more.
            assert (await create(**asking("Tell 50 words", max_tokens=50))).usage.completion_tokens == 50

            async def counted() -> bool:
                return (50,) == await tokens(kit, "eve", "output_tokens")

            await eventually(counted)
            with pytest.raises(APIStatusError, match="spend") as refused:
                await create(**asking("Tell 50 words", max_tokens=50))
        assert refused.value.status_code == 402
        (spent,) = await tokens(kit, "eve", "spend")
        assert 100_000 < spent <= 150_000
    assert 50 == (await reported(urls))[1]


async def test_a_large_model_uses_up_credits_at_its_own_price(urls: tuple[str, str], store_url: str) -> None:
    async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, flush=False) as kit:
        await kit.customers.set_plan("bob", "prepaid")
        await kit.grants.add("bob", {"ai": 5}, grant_id="inv_1")
        async with client_of(urls, "bob") as client:
            create: Any = client.chat.completions.create
            with pytest.raises(APIStatusError, match="credits"):
                await create(**asking("Tell 30 words", max_tokens=30, model="parrot-large-1"))
            await create(**asking("Tell 30 words", max_tokens=30))
            await create(**asking("Tell 10 words", max_tokens=15, model="parrot-large-1"))

        async def paid() -> dict[str | None, int]:
            ledger = [line for line in await kit.grants.ledger("bob") if line.entry == "burn"]
            return {line.meter: -line.quantity for line in ledger}

        async def counted() -> bool:
            return (40,) == await tokens(kit, "bob", "output_tokens")

        await eventually(counted)
        assert (await paid())["output_tokens"] == 30 * 40_000 + 10 * 200_000


async def test_a_key_that_nobody_was_given_is_refused_in_openais_words(urls: tuple[str, str]) -> None:
    async with client_of(urls, "nobody") as client:
        with pytest.raises(AuthenticationError, match="anonymous"):
            await client.chat.completions.create(**asking("Tell 1 words"))


async def test_dollars_are_bought_used_and_topped_up(store_url: str) -> None:
    emulator = StripeEmulator()
    with emulator.running() as stripe, served("provider") as provider:
        settings: dict[str, Any] = {"stripe_api_key": STRIPE_KEY, "stripe_api_base": stripe, "flush": False}
        variables = {
            "PROVIDER_URL": f"{provider}/v1",
            "METERKIT_REDIS_URL": store_url,
            "METERKIT_STRIPE_API_KEY": STRIPE_KEY,
            "METERKIT_STRIPE_API_BASE": stripe,
            "METERKIT_STRIPE_WEBHOOK_SECRET": SECRET,
        }
        async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, **settings) as kit:
            await kit.stripe.sync()
            await kit.customers.set_plan("dora", "balance")
            with served("app", **variables) as proxy:
                emulator.add_endpoint(f"{proxy}/billing/webhooks/stripe", secret=SECRET)
                await dollars(kit, emulator, (proxy, provider))


async def dollars(kit: MeterKit, emulator: StripeEmulator, urls: tuple[str, str]) -> None:
    """Buy a balance on a page, use it up until it is topped up, then without that."""

    async def has(micros: int) -> None:
        async def found() -> bool:
            return (await kit.usage("dora"))["balance_micros"].get("usd") == micros

        await eventually(found)

    create: Any
    async with client_of(urls, "dora") as client, httpx.AsyncClient(timeout=READY_S) as browser:
        create = client.chat.completions.create
        with pytest.raises(APIStatusError, match="POST /billing/top-up opens a page"):
            await create(**asking("Tell 100 words", max_tokens=100))
        back = "http://localhost:8000/healthz"
        page = await browser.post(
            f"{urls[0]}/billing/top-up",
            json={"amount_cents": 1000, "success_url": back, "cancel_url": back},
            headers={"authorization": "Bearer sk-dora"},
        )
        emulator.complete_checkout(page.json()["url"].rpartition("/")[2])
        await has(10_000_000)
        # (3 * 1 cent + 100 * 4 cents) * 1.25 = USD 5.0375; what is left is below USD 5.00: 10 dollars more.
        await create(**asking("Tell 100 words", max_tokens=100))
        await has(10_000_000 - 5_037_500 + 10_000_000)
        await kit.credits.set_auto("dora", enabled=False)
        # (3 + 40 * 20) cents * 1.25 = USD 10.0375, of a large model
        async for _ in await create(
            **asking("Tell 40 words", max_tokens=40, model="parrot-1-large"), stream=True
        ):
            pass
        await has(4_925_000)
        with pytest.raises(APIStatusError, match="credits") as refused:
            await create(**asking("Tell 100 words", max_tokens=100))
        assert (402, "insufficient_quota") == (refused.value.status_code, refused.value.type)
        await has(4_925_000)


async def test_a_user_reaches_a_budget_and_another_user_of_the_customer_goes_on(
    urls: tuple[str, str], store_url: str
) -> None:
    async with MeterKit(PROXY / "plans.yaml", redis_url=store_url, flush=False) as kit:
        await kit.customers.set_plan("dora", "balance")
        await kit.grants.add("dora", {"usd": 50}, grant_id="inv_1")
        async with client_of(urls, "dora-ann") as ann, client_of(urls, "dora-ben") as ben:
            # A call is USD 5.0375, the budget USD 6.00 a day.
            calls, refused = await until_refused(ann)
            assert (402, "spend") == (refused.status_code, refused.code)
            assert "Refused: spend (user:spend-1d)" in refused.message
            policies = refused.response.headers["ratelimit-policy"]
            assert '"user:spend-1d";q=600;qu="cents"' in policies
            assert '"user:requests-1m";q=60;w=60' in policies
            assert 100 * calls == (await reported(urls))[1]
            await hundred_words(ben)
            user = kit.customers.subject("dora", user="ann")
            await user.override({"budget": {"amount_cents": 2000, "per": "day"}})
            await hundred_words(ann)

        async def counted() -> bool:
            found = await kit.usage("dora", by="user")
            used = {one.subject: one.meters["usd_charged"].recorded for one in found}
            return used == {"ann": (calls + 1) * 5_037_500, "ben": 5_037_500}

        await eventually(counted)
        assert ((calls + 2) * 5_037_500,) == await tokens(kit, "dora", "usd_charged")


async def until_refused(client: AsyncOpenAI) -> tuple[int, APIStatusError]:
    """How many calls were served, and the refusal. At the end of a day one more is served."""
    for calls in range(3):
        try:
            await hundred_words(client)
        except APIStatusError as error:
            return calls, error
    pytest.fail("not refused")


async def hundred_words(client: AsyncOpenAI) -> None:
    """As OpenAI's client asks; what it says of the user counts for nothing."""
    create: Any = client.chat.completions.create
    answer = await create(**asking("Tell 100 words", max_tokens=100, user="someone"))
    assert 100 == answer.usage.completion_tokens


async def test_a_users_key_opens_no_billing_page(urls: tuple[str, str]) -> None:
    async with httpx.AsyncClient(timeout=READY_S, base_url=urls[0]) as browser:
        for way, path in (("POST", "/billing/top-up"), ("GET", "/billing/usage")):
            key = {"authorization": "Bearer sk-dora-ann"}
            assert 403 == (await browser.request(way, path, headers=key, json={})).status_code
