"""Tests of the metered app."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from meterkit import MeterKit
from meterkit.testing import Clock, StripeEmulator, override

ADA = "account-1"
FIVE_WORDS = {"text": "what is in my file"}
BROWSER = {"origin": "http://localhost:3000"}


def used(client: TestClient, kit: MeterKit) -> dict[str, Any]:
    assert client.portal is not None
    meters = client.portal.call(kit.usage, ADA)["meters"]
    return {name: meters[name]["used"] for name in ("requests", "total_tokens", "uploaded_bytes")}


def test_streams_uploads_and_background_tasks_count(client: TestClient, meterkit_kit: MeterKit) -> None:
    assert client.post("/ask", json=FIVE_WORDS).text == "file my in is what "
    assert used(client, meterkit_kit) == {"requests": 1, "total_tokens": 10, "uploaded_bytes": 0}
    uploaded = client.post("/files", files={"upload": b"the sea was calm"})
    assert client.get("/files").json() == {f"{uploaded.json()['id']}": "calm was sea the Summarize:"}
    assert used(client, meterkit_kit) == {"requests": 3, "total_tokens": 20, "uploaded_bytes": 16}


def test_the_free_plan_ends(client: TestClient, meterkit_kit: MeterKit) -> None:
    assert [client.post("/ask", json=FIVE_WORDS).status_code for _ in range(4)] == [200, 200, 200, 429]
    with override(meterkit_kit, plan="pro"):
        assert client.post("/ask", json=FIVE_WORDS).status_code == 200


def test_a_websocket_counts_and_ends_with_the_plan(client: TestClient, meterkit_kit: MeterKit) -> None:
    token = client.headers["authorization"].removeprefix("Bearer ")
    with client.websocket_connect(f"/live?token={token}") as websocket:
        for _ in range(3):
            websocket.send_text("what is in my file")
            assert [websocket.receive_text() for _ in range(6)] == ["file ", "my ", "in ", "is ", "what ", ""]
        websocket.send_text("what is in my file")
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert (closed.value.code, closed.value.reason) == (1008, "total_tokens-period")
    assert used(client, meterkit_kit)["total_tokens"] == 30


def test_a_browser_can_read_refusals(client: TestClient) -> None:
    preflight = client.options("/ask", headers=BROWSER | {"access-control-request-method": "POST"})
    assert preflight.status_code == 200
    refused = [client.post("/ask", json=FIVE_WORDS, headers=BROWSER) for _ in range(4)][3]
    assert refused.headers["access-control-allow-origin"] == BROWSER["origin"]
    assert "retry-after" in refused.headers["access-control-expose-headers"].lower()


def test_a_customer_buys_upgrades_and_leaves(
    client: TestClient, meterkit_kit: MeterKit, meterkit_clock: Clock, stripe_emulator: StripeEmulator
) -> None:
    assert client.portal is not None
    sync = partial(client.portal.call, meterkit_kit.subscriptions.sync, ADA)
    pages = {"success_url": "http://localhost:3000/done", "cancel_url": "http://localhost:3000/plans"}
    page = client.post("/billing/checkout", json={"plan": "pro", **pages}).json()["url"]
    stripe_emulator.complete_checkout(page)
    subscription = sync()
    assert (subscription.plan, subscription.status) == ("pro", "active")

    for _ in range(12):  # 120 tokens; pro includes 100
        assert client.post("/ask", json=FIVE_WORDS).status_code == 200
    period = client.portal.call(meterkit_kit.usage, ADA)["period"]
    meterkit_clock.set(period["start"] + (period["end"] - period["start"]) / 2)
    assert client.put("/billing/subscription/plan", json={"plan": "max"}).status_code == 200
    upgrade, first = client.get("/billing/invoices").json()
    # Half of max, less half of pro, and 20 tokens at 200 cents per 1,000.
    assert (first["total_cents"], upgrade["total_cents"]) == (1900, 2450 - 950 + 4)

    client.post("/billing/subscription/cancel", json={"immediately": False})
    meterkit_clock.set(period["end"] + timedelta(hours=2))
    assert sync().status == "canceled"
    assert client.portal.call(meterkit_kit.usage, ADA)["plan"] == "free"
