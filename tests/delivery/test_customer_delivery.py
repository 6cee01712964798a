"""One customer's usage is delivered at once, before what bills it ends."""

from __future__ import annotations

from datetime import timedelta

import pytest

from drivers.delivery import desk

pytestmark = pytest.mark.anyio


async def test_only_the_customers_own_usage_is_due_at_once(store_url: str) -> None:
    async with desk(store_url, flush_interval=300) as at:
        await at.link("acme", "bolt")
        for customer in ("acme", "bolt"):
            await at.kit.record(customer, "requests", 3)
        assert await at.deliver("acme", timeout_s=10)
        assert (at.accepted("acme"), at.accepted("bolt")) == (3, 0)


async def test_what_is_not_delivered_in_time_is_told(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 3)
        at.emulator.fail_next("error", status=500, times=None)
        assert not await at.deliver("acme", timeout_s=0)
    told = [record.getMessage() for record in caplog.records if record.name == "meterkit.delivery"]
    assert told[-1] == (
        "3 units that customer 'acme' has used are not delivered within 0 s: they are not on the"
        " invoice that ends the subscription"
    )


async def test_what_one_pass_delivers_is_in_time(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 3)
        assert await at.deliver("acme", timeout_s=0)
    assert not [record for record in caplog.records if record.name == "meterkit.delivery"]


async def test_what_adds_up_to_nothing_is_on_its_way_too(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 7)
        await at.flush(everything=True)
        at.emulator.fail_next("error", status=429, times=None, path="/v1/billing/meter_events")
        await at.kit.record("acme", "requests", 7)
        await at.flush(everything=True, timeout_s=0)
        await at.kit.correct("acme", {"requests": 7}, reason="a loop", correction_id="c-1")
        assert (await at.kit.usage("acme"))["meters"]["requests"]["queued"] == 0
        assert not await at.deliver("acme", timeout_s=0)
        assert "14 units that customer 'acme' has used are not delivered" in caplog.text
        at.emulator.clear_faults()
        at.clock.advance(timedelta(hours=1))
        assert await at.deliver("acme", timeout_s=10)
        assert at.accepted("acme") == 7
