"""Units beyond plain tokens reach the meters and the balance in money of the customer who caused them."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import until
from drivers.llm_apps import metered, read_all
from tokens.recordings import compact
from tokens.unit_payloads import PAYLOADS

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tokens.unit_payloads import Payload

pytestmark = pytest.mark.anyio

METERS: Final = (
    *("input_tokens", "output_tokens", "cache_write_1h_tokens", "input_audio_tokens", "output_image_tokens"),
    *("web_searches", "rerank_searches", "input_document_pages", "input_audio_seconds"),
)
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
routes:
  - {match: "POST /declared", usage: WORD}
  - {match: "POST /auto", usage: auto}
plans:
  free: {price: {amount_cents: 0, interval: month}}
meters:
""" + "".join(f"  {name}: {{unit: unit}}\n" for name in METERS)


SERVED: Final = [payload for payload in PAYLOADS if not (payload.has_dated_price or payload.outlives)]


@pytest.mark.parametrize("payload", SERVED, ids=[payload.name for payload in SERVED])
async def test_a_response_is_metered_and_charged_by_its_units(payload: Payload, store_url: str) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        start = {"status": 200, "headers": [(b"content-type", b"application/json")]}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": compact(payload.value)})

    body = compact({"model": next((call.priced_as for call in payload.calls), None), "messages": []})
    async with metered(app, store_url, plans=PLANS.replace("WORD", payload.usage)) as at:
        await at.kit.grants.add("acme", {"usd": 10}, grant_id="g1")
        for path in ("/declared", "/auto"):
            assert (await at.client.post(path, content=body)).status_code == 200
        lanes = at.kit.store.lanes.values()
        await until(lambda: not any(lane.unsettled for lane in lanes))
        ledger = await at.kit.grants.ledger("acme")
        rows = (await at.kit.usage("acme"))["meters"]
    micros = 2 * sum((Fraction(call.micros or 0) for call in payload.calls), Fraction(0))
    assert -sum(line.quantity for line in ledger if line.entry == "burn") == floor(micros)
    units = Counter[str]()
    for call in payload.calls:
        units.update(call.units)
    assert {name: rows[name]["recorded"] for name in METERS} == {name: 2 * units[name] for name in METERS}
