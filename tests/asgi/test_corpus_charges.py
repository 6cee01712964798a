"""F-210 to F-218: each payload of the corpus costs a balance in money its price, and nothing is left held."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from math import floor
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

import meterkit
from drivers.app import ignore
from drivers.llm_apps import read_all
from drivers.plans import completed
from drivers.sampled import some
from faults.refusals import eventually, settled
from llm_payloads.corpus_rows import AT, ROWS, Row
from llm_payloads.recordings import KINDS
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

UNITS: Final = sorted({unit for row in ROWS.values() for call in row.calls for unit in call.units})
LINES: Final = sorted({(row.usage, row.provider or "") for row in ROWS.values() if row.usage != "object"})
PATHS: Final = {"bedrock": "model/{}/converse", "gemini": "v1beta/models/{}:generateContent"}
"""APIs whose requests name the model in the path."""
RESERVE: Final = "reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}"


def line(path: str, usage: str, provider: str, more: str = "") -> str:
    return f'  - {{match: "{path}", usage: {usage}{more}{f", provider: {provider}" if provider else ""}}}\n'


def routes() -> str:
    """A route for each API and provider, over HTTP and over websockets; and one for what the app reports."""
    named = [(usage, provider, f"/{usage}/{provider or 'any'}") for usage, provider in LINES]
    posts = "".join(
        line(f"POST {at}/{{path:path}}", usage, name, f", {RESERVE}, model: request")
        for usage, name, at in named
    )
    sockets = "".join(line(f"WS {at}/live", usage, name) for usage, name, at in named)
    return line("POST /given", "none", "", f", {RESERVE}, model: request") + posts + sockets


PLANS: Final = completed(
    "credits:\n  usd: {unit: money, costs: {tokens: provider_prices}}\nmeters:\n"
    + "".join(f"  {unit}: {{unit: unit}}\n" for unit in UNITS)
    + f"routes:\n{routes()}"
)


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the row that the request names; what travels by no wire is reported by the app."""
    row = ROWS[dict(scope["headers"])[b"x-row"].decode()]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass
        for event in row.said:
            await send({"type": "websocket.send", "text": json.dumps(event)})
        return
    await read_all(receive)
    if row.kind in KINDS:
        await send({"type": "http.response.start", "status": 200, "headers": row.response_headers})
        for event in row.events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
    else:
        if row.kind == "stream":
            assert list(meterkit.tap(row.said)) == row.said
        else:
            meterkit.record_usage(row.said)
        await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[MeterKit, Any]]:
    kit = MeterKit(loads(PLANS), clock=Clock(AT), redis_url="memory://", shards=4, flush=False)
    async with kit:
        yield kit, MeterMiddleware(provider, kit=kit, identify=identify.header("x-customer-id"))


async def ask(app: Any, name: str, row: Row, headers: dict[str, str]) -> None:
    asked: dict[str, Any] = {"max_tokens": 50, "messages": []}
    rest = "chat"
    if row.asked is not None and row.usage in PATHS:
        rest = PATHS[row.usage].format(quote(row.asked, safe=""))
    elif row.asked is not None:
        asked["model"] = row.asked
    path = f"/{row.usage}/{row.provider or 'any'}/{rest}" if row.kind in KINDS else "/given"
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
        answer = await client.post(path, json=asked)
    assert answer.status_code == 200, name
    if row.kind in KINDS:
        assert answer.content == row.body


async def talk(app: Any, row: Row, headers: dict[str, str]) -> None:
    setup = {"type": "websocket.receive", "text": json.dumps({"setup": {"model": row.asked}})}
    coming: list[Message] = [{"type": "websocket.disconnect", "code": 1000}]
    coming += ([] if row.asked is None else [setup]) + [{"type": "websocket.connect"}]

    async def receive() -> Message:
        return coming.pop()

    fields = [(key.encode(), value.encode()) for key, value in headers.items()]
    path = f"/{row.usage}/{row.provider or 'any'}/live"
    await app({"type": "websocket", "path": path, "query_string": b"", "headers": fields}, receive, ignore)


def expected(row: Row) -> dict[str, int]:
    units = Counter[str]()
    for call in row.calls:
        units.update(call.units)
    return {**units, "charged": floor(row.price)}


async def found_of(kit: MeterKit, customer: str) -> dict[str, int]:
    """The units that were counted, the amount that was charged, and the sum that is still held."""
    meters = (await kit.usage(customer))["meters"]
    found = {unit: meters[unit]["recorded"] for unit in UNITS}
    found["charged"] = meters["usd_charged"]["recorded"]
    found["held"] = sum(meter["held"] for meter in meters.values())
    return {name: count for name, count in found.items() if count or name == "charged"}


async def serve(kit: MeterKit, app: Any, name: str, customer: str) -> None:
    """Have a customer of its own, with a balance in money, take a row."""
    row = ROWS[name]
    await kit.grants.add(customer, {"usd": 1_000}, grant_id="1")
    headers = {"x-customer-id": customer, "x-row": name}
    if row.kind == "line":
        await kit.record_usage(customer, row.said, call_id=customer)
    elif row.kind == "websocket":
        await talk(app, row, headers)
    else:
        await ask(app, name, row, headers)
    await settled(kit)


@pytest.mark.parametrize("part", some(range(3), [0]))
async def test_each_payload_costs_a_reserved_balance_its_price(part: int) -> None:
    wrong: dict[str, Any] = {}
    async with serving() as (kit, app):
        for nth, (name, row) in [*enumerate(ROWS.items())][part::3]:
            customer = f"row-{nth}"
            await serve(kit, app, name, customer)
            if row.kind == "json" and row.said.get("status") is not None:

                async def is_counted(customer: str = customer, row: Row = row) -> bool:
                    return await found_of(kit, customer) == expected(row)

                await eventually(is_counted)  # Work that outlives its request is counted after it.
            found = await found_of(kit, customer)
            if found != expected(row):
                wrong[name] = (found, expected(row))
    assert wrong == {}, "\n".join(f"{name}: {pair}" for name, pair in wrong.items())
