"""``usage.spike``: found in the audit log, and sent once a day, in units and in cents."""
# Internals: a watch looks when the test says so.

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.audit_database import Row, insert_rows, to_ms
from drivers.messages import NOW, PLANS, SECRET, any_event, kit_of, pass_over, receiver
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import SettingsError, StoreError
from meterkit.insights.audit.calls import AuditDatabase
from meterkit.notify.spikes import SpikesToday, SpikeWatch
from meterkit.store.messages import tell
from meterkit.testing import Clock

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

SPIKES: Final = (
    PLANS.replace("usage.threshold", "usage.spike")
    .replace(
        "included: 10, overage: deny, warn_at: [50, 100]",
        "included: 10, overage: {{bill: {{per: 100, amount_cents: 12}}}}",
    )
    .replace("{{unit: request}}", "{{unit: request, stripe: {{event_name: requests}}}}")
)
MIDNIGHT_MS: Final = to_ms(NOW.replace(hour=0, minute=0, second=0))
HOUR_MS: Final = 3_600_000


def row(customer: str, at_ms: int, quantity: int) -> Row:
    return Row(
        event=f"{customer}-{at_ms}",
        meter="requests",
        kind="recorded",
        customer=customer,
        period_start_ms=None,
        recorded_at_ms=at_ms,
        quantity=quantity,
    )


def written(directory: Path) -> str:
    """An audit log in which acme uses 100 units in each hour, and bolt too; now acme uses 5,000."""
    url = f"sqlite:///{directory}/audit.db"
    hours = range(-30 * 24, 13)
    rows = [
        row(customer, MIDNIGHT_MS + hour * HOUR_MS, 5_000 if customer == "acme" and hour == 12 else 100)
        for hour in hours
        for customer in ("acme", "bolt")
    ]
    insert_rows(url, rows)
    return url


async def test_a_spike_is_sent_once_a_day(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, url = Clock(NOW), written(tmp_path)
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=SPIKES, audit_url=url) as kit:
        watch = SpikeWatch(kit.store, AuditDatabase(url), any_event)

        async def cut(*args: Any) -> None:
            await tell(*args)
            raise StoreError("cut off")

        monkeypatch.setattr("meterkit.notify.watches.tell", cut)
        with pytest.raises(StoreError, match="cut off"):
            await watch.look()
        monkeypatch.setattr("meterkit.notify.watches.tell", tell)
        clock.advance(timedelta(minutes=5))
        for _ in range(3):  # The first tells it again, as it was told.
            await watch.look()
        await pass_over(kit, "webhook", "webhook")
        ((_, body),) = hook.posts
        (found,) = await SpikesToday(kit.store).all()
        assert (found.customer, found.meter, found.used, found.usual) == ("acme", "requests", 5_000, 100)
        data = json.loads(body)["data"]
        assert (data.pop("id"), data) == (
            json.loads(body)["data"]["id"],
            {
                "customer": "acme",
                "at": "2031-06-10T12:00:30Z",
                "meter": "requests",
                "span": "hour",
                "used": 5_000,
                "usual": 100,
                "four_weeks_at_this_pace": 28 * 24 * 5_000,
                "last_four_weeks": 28 * 24 * 100,
                "used_cents": 600,
                "usual_cents": 12,
                "four_weeks_at_this_pace_cents": 403_200,
                "last_four_weeks_cents": 8_064,
            },
        )


def test_without_an_audit_log_the_key_is_refused_with_its_cure() -> None:
    catalog = loads(SPIKES.format(url="http://127.0.0.1:9"))
    with pytest.raises(
        SettingsError, match=r"usage\.spike under notify, which needs the audit log: set METER"
    ):
        MeterKit(catalog, redis_url="memory://")


async def test_a_reload_with_spikes_needs_an_audit_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(PLANS.format(url="http://127.0.0.1:9"))
    kit = MeterKit(path, redis_url="memory://", notify_secret=SECRET)
    before = kit.catalog.content_hash
    path.write_text(SPIKES.format(url="http://127.0.0.1:9"))
    with pytest.raises(SettingsError, match=r"plans\.yaml lists usage\.spike .* needs the audit log"):
        await kit.reload()
    assert before == kit.catalog.content_hash
    caplog.clear()
    path.write_text(PLANS.format(url="http://127.0.0.1:10"))
    assert await kit.reload()
    assert "sends no messages by email: METERKIT_SMTP_URL is not set" in caplog.text
    assert "by webhook" not in caplog.text
