"""I10: no API key, signature, prompt or body in Redis, logs, errors or reprs."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from drivers.app import PLANS, served
from drivers.delivery import STRIPE_KEY, desk, kit_for
from meterkit import MeterKit, MeterMiddleware, SettingsError, StoreError, current, identify, record
from meterkit.catalog import loads
from meterkit.pages import operator_pages, usage_page
from servers.stores import Server, spawn_server

pytestmark = pytest.mark.anyio

API_KEY = "app-key-4f1cSECRET"
PROMPT = "PROMPT-of-the-client-SECRET"
ANSWER = "ANSWER-of-the-model-SECRET"
WEBHOOK = "whsec_SIGNINGsecretSIGNING"
PASSWORD = "store-PASSWORD-secret"
SECRETS = (STRIPE_KEY, API_KEY, PROMPT, ANSWER, WEBHOOK, PASSWORD)

LISTS = (
    *(("outbox", "parked"), ("outbox", "dead"), ("outbox", ""), ("webhooks", ""), ("messages", "")),
    *(("unconfirmed", ""), ("degraded", ""), ("ledger", "acme")),
)


class Everything(logging.Handler):
    """All that is logged, by anybody, as a file would show it: tracebacks and all."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.ours = io.StringIO()
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.text = io.StringIO()

    def emit(self, record: logging.LogRecord) -> None:
        self.text.write(self.format(record) + "\n")
        if record.name.startswith("meterkit"):
            self.ours.write(self.format(record) + "\n")


@pytest.fixture
def logged() -> Iterator[Everything]:
    handler, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def assert_none(text: str, where: str) -> None:
    assert not [secret for secret in SECRETS if secret in text], where


def dumped(server: Server) -> str:
    """Every key of a store, and what it holds."""
    client: Any = server.client()
    lines: list[str] = []
    with client:
        for key in client.keys("*"):
            kind = client.type(key).decode()
            read = {
                "hash": client.hgetall,
                "set": client.smembers,
                "stream": client.xrange,
                "string": client.get,
                "list": partial(client.lrange, start=0, end=-1),
                "zset": partial(client.zrange, start=0, end=-1, withscores=True),
            }[kind]
            value = read(key)
            lines.append(f"{key!r} {value!r}")
        lines += [repr(entry) for entry in client.execute_command("CLIENT", "LIST").splitlines()]
    return "\n".join(lines)


async def read_pages(kit: MeterKit) -> str:
    """The usage page of acme, and the operator pages with their exports."""
    usage = usage_page(kit, customer=lambda _: "acme", origins=["http://app"])
    operator = operator_pages(kit, allowed=lambda _: "ada")
    lists = [f"{name}{kind}?of={of}" for name, of in LISTS for kind in ("", ".csv", ".json")]
    paths = ["usage/", "operator/", "operator/figures.csv", *(f"operator/{of}" for of in lists)]
    app = Starlette(routes=[Mount("/usage", app=usage), Mount("/operator", app=operator)])
    read: list[str] = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        for path in paths:
            for accept in ("text/html", "application/json"):
                answer = await client.get(f"/{path}", headers={"accept": accept})
                assert answer.status_code == 200, path
                read.append(f"{answer.headers}{answer.text}")
    return "".join(read)


async def model(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers a prompt, or fails over it."""
    prompt = (await receive())["body"]
    record("tokens", len(prompt))
    assert current().customer == "acme"
    if scope["path"].endswith("raises"):
        raise ValueError("the app's own error says nothing of the prompt")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER.encode()})


async def test_i10_requests_leave_no_key_prompt_or_answer_anywhere(
    valkey: Server, store_url: str, logged: Everything
) -> None:
    keys = {API_KEY: "acme"}
    async with served(
        model, who=identify.api_key(keys.get), redis_url=store_url, raise_app_exceptions=False
    ) as at:
        bearer = {"authorization": f"Bearer {API_KEY}"}
        for path in ("/v1/x", "/v1/raises", "/full", "/shadow", *["/v1/x"] * 6):
            response = await at.client.post(path, content=PROMPT, headers=bearer)
            if response.status_code >= 400:
                assert_none(response.text + str(response.headers), path)
        stored = dumped(valkey)
        assert ":c:acme" in stored
        assert_none(stored, "the store")
        assert_none(repr(at.kit) + repr(at.kit.settings) + repr(at.app) + repr(at.kit.store), "reprs")
        assert_none(await read_pages(at.kit), "the pages")
    assert_none(logged.text.getvalue(), "logs")


@pytest.mark.parametrize("key", [STRIPE_KEY, "sk_test_*********cret"], ids=["named", "masked"])
async def test_i10_delivery_leaves_no_key_anywhere(
    valkey: Server, store_url: str, logged: Everything, key: str
) -> None:
    messages: list[dict[str, Any]] = [
        {"action": "error", "status": 401, "message": f"Invalid API Key provided: {key}"},
        {"action": "error", "status": 400, "message": f"{key} is not allowed to do this."},
        {"action": "error", "status": 500},
        {"action": "drop", "when": "after"},
    ]
    async with desk(store_url, stripe_webhook_secret=WEBHOOK) as at:
        await at.link("acme")
        for fault in messages:
            await at.kit.record("acme", "requests", 1)
            at.emulator.fail_next(**fault)
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(timedelta(minutes=11))
        await at.flush(everything=True, timeout_s=0)
        await at.kit.flush(everything=True, timeout_s=0)
        stored = dumped(valkey)
        assert "is not allowed to do this" in stored
        assert_none(stored, "the store")
        assert_none(repr(at.kit.settings) + str(at.kit.settings) + repr(at.transport), "reprs")
        assert_none(repr(vars(at.kit)), "the kit's attributes")
        shown = await read_pages(at.kit)
        assert "is not allowed to do this" in shown
        assert_none(shown, "the pages")
    ours = logged.ours.getvalue()
    assert "Invalid API Key provided" in ours
    # What Stripe says, the SDK logs word for word; Stripe masks keys.
    assert_none(ours if key == STRIPE_KEY else logged.text.getvalue(), "logs")


async def test_i10_errors_of_settings_and_of_the_store_name_no_secret(
    logged: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.event_loops._DRAIN_S", 0.01)
    refused: tuple[dict[str, Any], ...] = (
        {"stripe_api_key": f"{STRIPE_KEY} {API_KEY}"},
        {"stripe_webhook_secret": f"{WEBHOOK} x"},
        {"redis_url": f"redis://user:{PASSWORD}@"},
        {"redis_url": f"http://user:{PASSWORD}@host"},
    )
    for settings in refused:
        with pytest.raises(SettingsError) as caught:
            MeterKit(loads(PLANS), **settings)
        assert_none(str(caught.value) + repr(caught.value), str(settings.keys()))

    with spawn_server() as server:
        server.command("CONFIG", "SET", "requirepass", "another")
        url = f"redis://user:{PASSWORD}@127.0.0.1:{server.port}/0"
        kit = kit_for(
            url, "http://127.0.0.1:1", clock=lambda: 1_937_000_000.0, store_timeout=1.0, start_timeout=1.0
        )
        wrapped = MeterMiddleware(model, kit=kit, identify=lambda _: "acme")
        transport = httpx.ASGITransport(app=wrapped)
        async with kit, httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            assert (await client.post("/", content=PROMPT)).status_code == 200
            for call in (kit.usage("acme"), kit.flush(), kit.customers.get("acme")):
                with pytest.raises(StoreError) as failed:
                    await call
                assert_none(str(failed.value) + repr(failed.value), "a store error")
    words = ("cannot be reached", "closed the connection", "refuses")
    assert any(word in logged.text.getvalue() for word in words)
    assert_none(logged.text.getvalue(), "logs")
