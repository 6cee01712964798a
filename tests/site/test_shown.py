"""What the pages show of answers, bills, figures and keys is what comes of running it."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from drivers.command_line import Shell
from drivers.sampled import whole
from drivers.shown_blocks import keys_page
from meterkit import MeterKit, MeterMiddleware, errors, identify
from meterkit.catalog import Catalog, loads
from meterkit.testing import Clock, StripeEmulator
from servers.stores import Server

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOURLY: Final = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
routes: [{match: "*", consume: {requests: 1}}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {rate: 100/hour, included: 1_000}}
"""
WHEN: Final = datetime(2031, 6, 10, 12, 37, 36, tzinfo=UTC)
ADA: Final = {"x-customer-id": "ada"}


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text("utf-8")) if kind == language]


def plans_of(page: str) -> Catalog:
    whole = [text for text in blocks(page, "yaml") if text.startswith("schema: 1")]
    return loads(whole[0] if whole else HOURLY, source=page)


async def answered(catalog: Catalog, store_url: str, tokens: int) -> httpx.Response:
    """The first refusal of a customer who goes on asking, after using some tokens."""

    async def hello(_: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/ask", hello, methods=["POST"])])
    kit = MeterKit(catalog, redis_url=store_url, clock=Clock(WHEN))
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    transport = httpx.ASGITransport(app)
    async with kit, httpx.AsyncClient(transport=transport, base_url="http://app", headers=ADA) as client:
        if tokens:
            await kit.record("ada", "total_tokens", tokens)
        for _ in range(200):
            answer = await client.post("/ask")
            if answer.status_code != 200:
                return answer
    raise AssertionError


def masked(text: str) -> str:
    """Without what differs from one request to the next: the name of the refusal."""
    return re.sub(r"urn:uuid:[0-9a-f-]{36}", "urn:uuid:…", text)


@pytest.mark.anyio
@pytest.mark.parametrize(("page", "tokens"), [("README.md", 10_000), ("docs/what-a-client-sees.md", 0)])
async def test_a_refusal_that_is_shown_is_the_one_that_comes(page: str, tokens: int, store_url: str) -> None:
    (shown,) = blocks(page, "http")
    answer = await answered(plans_of(page), store_url, tokens)
    head, _, body = shown.partition("\n\n")
    status, *fields = head.splitlines()
    assert status == f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"
    given = [f"{name}: {value}" for name, value in answer.headers.items() if name != "content-length"]
    assert (sorted(fields), json.loads(masked(body))) == (sorted(given), json.loads(masked(answer.text)))


@pytest.mark.anyio
@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
async def test_the_line_of_the_invoice_is_right(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    row = re.search(r"\| ([\d,]+) \| \$(\d+)\.(\d\d) per ([\d,]+) \| \*\*\$(\d+)\.(\d\d)\*\* \|", text)
    assert row
    quantity, whole, cents, per, dollars, rest = (int(found.replace(",", "")) for found in row.groups())
    assert quantity * (whole * 100 + cents) == per * (dollars * 100 + rest)
    catalog, clock = plans_of(page), Clock()
    stripe = StripeEmulator(clock=clock)
    stripe.add_meters(catalog)
    stripe.add_customer("cus_ada")
    with stripe.running() as url:
        settings: Any = {
            "redis_url": "memory://",
            "stripe_api_key": "sk_test_emulator",
            "stripe_api_base": url,
        }
        async with MeterKit(catalog, clock=clock, flush=False, **settings) as kit:
            await kit.customers.set_plan("ada", "pro")
            await kit.customers.link("ada", "cus_ada")
            await kit.record("ada", "total_tokens", 1_250_000)
            found = (await kit.usage("ada"))["meters"]["total_tokens"]
            assert (await kit.flush(everything=True)).is_complete
    assert stripe.accepted("cus_ada", "chat_tokens") == quantity
    assert found["overage_cents"] == dollars * 100 + rest
    assert "used 1,250,000 tokens" in " ".join(text.split())


def test_drawings_match_their_script_and_have_descriptions(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DOCS / "tools/drawings.py", tmp_path], check=True)
    kept = {path.name: path.read_text("utf-8") for path in (DOCS / "assets/drawings").glob("*.svg")}
    written = {path.name: path.read_text("utf-8") for path in tmp_path.glob("*.svg")}
    assert kept == written, "run python docs/tools/drawings.py"
    for text in kept.values():
        svg = ET.fromstring(text)  # noqa: S314 - It is our own.
        texts = [child for child in svg if child.tag.endswith(("title", "desc")) and child.text]
        named = {f"{child.get('id')}" for child in texts}
        assert named == set((svg.get("aria-labelledby") or "").split())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flush", "sealed 1, delivered 1"),
        whole("check", "did you mean 'deny'?"),
        whole("usage", "meterkit customers link CUSTOMER STRIPE_CUSTOMER"),
    ],
)
@pytest.mark.dear("processes whose output is a screen")
def test_screens_are_what_commands_say(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screens: Any = runpy.run_path(str(DOCS / "tools/screens.py"))
    shell, start_python = screens["Shell"], screens["Shell"]._run

    def run(at: Any, *arguments: str) -> str:
        if arguments[0] == "-c":
            return str(start_python(at, *arguments))
        done = Shell(at.directory)
        done.environment = at.environment
        said = done.run(*arguments[2:])
        return said.out + said.err

    monkeypatch.setattr(shell, "_run", run)
    shown: str = screens["screen"](name)
    assert words in unescape(re.sub("<[^>]+>", "", shown)).replace("\xa0", " ")


def test_the_chart_has_the_figures_of_the_page() -> None:
    svg = ET.fromstring((DOCS / "assets/drawings/cost.svg").read_text("utf-8"))  # noqa: S314
    drawn = [text for node in svg.iter() if node.tag.endswith("}text") and (text := node.text)]
    figures = [float(text) for text in drawn if re.fullmatch(r"[\d.]+", text)]
    _, _, rest = (DOCS / "benchmarks.md").read_text("utf-8").partition("## In process, per request\n")
    rows = re.findall(r"^\| ([^|]+?) \| ([\d.]+) \(", rest.partition("\n## ")[0], re.MULTILINE)
    page = {name: float(value) for name, value in rows}
    assert len(figures) == 7
    assert set(figures) <= set(page.values())
    by_hand, ours = (
        next(value for name, value in page.items() if name.startswith(start))
        for start in ("composite", "meterkit (b)")
    )
    assert figures[:2] == [by_hand, ours]


@pytest.mark.anyio
async def test_every_key_that_is_written_stands_on_the_page(store_url: str, valkey: Server) -> None:
    meters = "requests: {unit: request, stripe: {event_name: e}}, seats: {unit: seat, kind: gauge}"
    plans = HOURLY.replace("requests: {unit: request}", meters)
    catalog = loads(plans.replace("included: 1_000", "included: 0, overage: bill"))
    stripe = StripeEmulator()
    stripe.add_meters(catalog)
    stripe.add_customer("cus_ada")
    with stripe.running() as url:
        settings: Any = {"redis_url": store_url, "stripe_api_key": "sk_test_x", "stripe_api_base": url}
        async with MeterKit(catalog, flush=False, **settings) as kit:
            await kit.customers.link("ada", "cus_ada")
            await kit.grants.add("ada", {"requests": 1}, grant_id="one")
            for customer in ("ada", "eve"):
                await kit.record(customer, "requests", 5, event_id="one")
                await kit.consume(customer, "requests")
            await kit.gauges.set("ada", "seats", 2)
            await kit.flush(everything=True)
            await kit.customers.unlink("ada")
            await kit.customers.link("ada", "cus_ada")
            await kit.record("ada", "requests", 5)
    keys = valkey.command("KEYS", "*")
    assert len(keys) >= 12
    for key in keys:
        fitting = [kind for pattern, kind, _ in keys_page() if pattern.match(key)]
        assert valkey.command("TYPE", key) in fitting, key


def test_plans_lines_within_sentences_can_be_read() -> None:
    text = (DOCS / "coming-from.md").read_text("utf-8")
    for shown, pattern in (
        ('{match: "*", consume: {requests: 1}}', r"`(\{match: [^`]+\})`"),
        ("100/hour", r"`rate: ([^`]+)`"),
    ):
        found = re.findall(pattern, text)
        assert len(found) >= 3
        for each in found:
            loads(HOURLY.replace(shown, each))


def test_every_error_has_its_row_and_its_signature() -> None:
    page, api = ((DOCS / name).read_text("utf-8") for name in ("troubleshooting.md", "api/errors.md"))
    assert [name for name in errors.__all__ if f"::: meterkit.{name}\n" not in f"{api}\n"] == []
    assert [name for name in errors.__all__ if name != "Problem" and f"| `{name}`" not in page] == []


def messages() -> Iterator[str]:
    """All texts of the code, without what is filled in."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                values: list[Any] = [getattr(value, "value", None) for value in node.values]
                yield "".join(value if isinstance(value, str) else "…" for value in values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sradg.0-9f]+", "…", node.value)


@pytest.mark.dear("all of the code is read")
def test_messages_that_are_quoted_are_in_the_code() -> None:
    known = " ".join(messages())
    page = BLOCK.sub("", (DOCS / "troubleshooting.md").read_text("utf-8"))
    quoted = re.findall(r"`([^`]+)`", page.replace("\n    ", " "))
    texts = [text for text in quoted if text.count(" ") >= 3 and not text.startswith("meterkit ")]
    assert len(texts) >= 15
    cut = re.compile(r"…|\b\d+\b|plans\.yaml|allow\b")
    pieces = {piece.strip(" ():,") for text in texts for piece in cut.split(text)}
    assert sorted(piece for piece in pieces if len(piece) > 8 and piece not in known) == []


def test_every_decision_has_its_number_and_an_index_entry() -> None:
    index = (ROOT / "docs/design/index.md").read_text("utf-8")
    listed = re.findall(r"\(decisions/(\S+\.md)\)", index)
    found = sorted(path.name for path in (ROOT / "docs/design/decisions").glob("*.md"))
    assert (listed, len({name[:4] for name in found})) == (found, len(found))
