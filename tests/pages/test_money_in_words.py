"""Where a person reads money, it is written as money: no page, message, refusal or field has millionths."""
# Internals: e-mails of each event, without a month of waiting.

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from drivers.app import hello
from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.command_line import InProcessShell
from drivers.operator_pages import make_snapshot, pages_of
from drivers.plans import completed
from drivers.usage_figures import page_of
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.catalog.notify_values import MESSAGE_EVENTS
from meterkit.notify.courier import make_message
from meterkit.notify.messages import make_sample
from meterkit.notify.rendering import Renderer

pytestmark = pytest.mark.anyio

PLANS: Final = """
headers: both
meters: {words: {unit: word}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models: {"own-*": {input_tokens: 0, output_tokens: 1_000 per 1_000_000}}
    top_up: {packs: [1000], url: "https://app.example/top-up"}
routes:
  - {match: "POST /chat", usage: openai, model: own-7b}
  - {match: "*", consume: {words: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    budget: {amount_cents: 5000, warn_at: [80]}
    meters: {usd_charged: {rate: 500_000/hour, included: 250_000, warn_at: [80]}}
    subjects: {user: {budget: {amount_cents: 300}, usd_charged: {included: 100_000}}}
"""
COMMANDS: Final = (
    "statement acme",
    "usage acme",
    "usage acme --by user",
    "grants list acme",
    "grants ledger acme",
)
LISTS: Final = ("all", "refused", "near", "plan?of=free", "spiking", "ledger?of=acme")


async def _refusals(kit: MeterKit) -> list[str]:
    """What the requests of two customers get, with all header fields."""
    app = MeterMiddleware(
        hello, kit=kit, identify=identify.header("x-customer-id", subjects={"user": "x-user-id"})
    )
    found: list[str] = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        for customer in ("new", "acme"):
            for user in ("", "u1"):
                asked = {"x-customer-id": customer} | ({"x-user-id": user} if user else {})
                answer = await client.post("/chat", json={"messages": []}, headers=asked)
                found.append(f"{answer.status_code} {answer.headers} {answer.text}")
    return found


async def test_f_331_no_millionths_where_people_read(tmp_path: Path, store_url: str) -> None:
    """F-331: "allows 0 micro-USDs in this billing period", and `qu="micro-USD"`."""
    catalog, url = loads(completed(PLANS)), sqlite_in(tmp_path)
    settings: Any = {"redis_url": store_url, "audit_url": url, "flush": False}
    async with MeterKit(catalog, **settings) as kit:
        await kit.grants.add("acme", {"usd": 1}, grant_id="paid")
        refused = [await _refusals(kit)]
        await kit.record("acme", "usd_charged", 600_001, subjects={"user": "u1"})
        refused.append(await _refusals(kit))
        await kit.grants.add("acme", {"usd": 1}, grant_id="more")
        refused.append(await _refusals(kit))
        await drain_all(kit, url)
        await make_snapshot(kit)
        shown = {f"refusals {nth}": "\n".join(texts) for nth, texts in enumerate(refused)}
        async with page_of(kit) as client:
            shown |= {path: (await client.get(path)).text for path in ("/", "/statement")}
        async with pages_of(kit) as client:
            shown |= {f"operator {path}": (await client.get(path)).text for path in ("/", *LISTS)}
    (tmp_path / "plans.yaml").write_text(completed(PLANS))
    shell = InProcessShell(tmp_path, METERKIT_REDIS_URL=store_url, METERKIT_AUDIT_URL=url)
    for command in COMMANDS:
        done = shell.run(*command.split())
        assert (command, done.code) == (command, 0)
        shown[command] = done.out + done.err
    renderer = Renderer(lambda: catalog, None)
    for event in MESSAGE_EVENTS:
        said = renderer.render(
            make_message("email", event, make_sample(event, catalog)), locale=None, name=None
        )
        shown[event] = f"{said.subject} {said.text} {said.html}"
    assert {where for where, text in shown.items() if "micro" in text.lower()} == set()
    assert all('qu=\\"cents\\"' in f"{texts}" or 'qu="cents"' in f"{texts}" for texts in refused)
