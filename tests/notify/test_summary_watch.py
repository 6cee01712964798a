"""``period.summary``: what a customer used in a period that is over, told once to each channel."""
# Internals: a watch looks when the test says so.

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers import subscribed_customer as subscribed
from drivers.audit_database import to_ms
from drivers.messages import PLANS, any_event, kit_of, mailbox, pass_over, receiver
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.notify.watches import SummaryWatch
from meterkit.store.messages import tell
from meterkit.store.tasks import TaskLease
from meterkit.testing import Clock

if TYPE_CHECKING:
    from drivers.messages import Receiver
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

SUMMARIES: Final = (
    PLANS.replace("[usage.threshold, payment.failed]", "[period.summary]")
    .replace("meters:\n", "meters:\n  tokens: {{unit: token}}\n", 1)
    .replace(
        "included: 10, overage: deny, warn_at: [50, 100]",
        "included: 10, overage: {{bill: {{per: 1, amount_cents: 12}}}}",
    )
    .replace("{{unit: request}}", "{{unit: request, stripe: {{event_name: requests}}}}")
)
BEGIN: Final = datetime(2031, 5, 30, 12, tzinfo=UTC)


def told(hook: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body)["data"] for _, body in hook.posts]


def watch_of(kit: MeterKit) -> SummaryWatch:
    return SummaryWatch(kit.store, any_event, pause_s=0)


async def look(kit: MeterKit, watch: SummaryWatch) -> None:
    await watch.look()
    await pass_over(kit, "webhook")


async def test_each_period_with_usage_is_summed_up_once(store_url: str) -> None:
    clock = Clock(BEGIN)
    async with (
        receiver() as hook,
        mailbox() as box,
        kit_of(store_url, clock, url=hook.url, plans=SUMMARIES, smtp_url=box.url) as kit,
    ):
        watch = watch_of(kit)
        await look(kit, watch)
        await kit.record("acme", "requests", 8)
        clock.set(datetime(2031, 6, 1, 0, 59, 59, tzinfo=UTC))
        await look(kit, watch)
        assert [] == hook.posts
        clock.advance(timedelta(seconds=2))
        for _ in range(2):
            await look(kit, watch)
            clock.advance(timedelta(hours=1))
        assert [{"requests": {"used": 8, "overage": 0, "before": 0}}] == [one["meters"] for one in told(hook)]
        hook.posts.clear()

        await kit.record("acme", "requests", 12)
        await kit.record("bolt", "tokens", 5)
        clock.set(datetime(2031, 7, 1, 2, tzinfo=UTC))
        await look(kit, watch)
        await look(kit, watch)
        summaries = {data["customer"]: data for data in told(hook)}
        assert ["acme", "bolt"] == sorted(data["customer"] for data in told(hook))
        assert summaries["acme"] == {
            "id": summaries["acme"]["id"],
            "customer": "acme",
            "at": "2031-07-01T02:00:00Z",
            "period_start": "2031-06-01T00:00:00Z",
            "period_end": "2031-07-01T00:00:00Z",
            "overage_cents": 24,
            "meters": {"requests": {"used": 12, "overage": 2, "before": 8}},
        }
        assert {"tokens": {"used": 5, "overage": 0, "before": 0}} == summaries["bolt"]["meters"]
        await pass_over(kit, "email")
        (mail,) = [mail for mail in box.mails if "acme" in mail["To"] and "Jun" in mail["Subject"]]
        assert mail["Subject"] == "Your usage from 1 Jun 2031 to 30 Jun 2031"
        plain = mail.get_body(("plain",))
        assert plain is not None
        assert (
            "- 12 requests (request), 2 of them beyond what your plan includes; 8 in the period before"
            in (plain.get_content())
        )
        assert "costs USD 0.24." in plain.get_content()


async def test_after_a_week_without_a_look_it_begins_anew(store_url: str) -> None:
    clock = Clock(BEGIN)
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=SUMMARIES) as kit:
        watch = watch_of(kit)
        await kit.record("acme", "requests", 8)
        clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
        await look(kit, watch)  # The first one ever: it tells nothing of what was before.
        await look(kit, watch)
        assert [] == hook.posts
        admin = await kit.store.admin()
        key = "mk:{0}:period.summary:last"
        clock.advance(timedelta(minutes=1))
        await look(kit, watch)
        kept = to_ms(datetime(2031, 6, 1, 1, 1, tzinfo=UTC))
        assert f"{kept}:".encode() == await admin.ask(admin.client.get(key))
        assert 6 * 86_400_000 < await admin.ask(admin.client.pttl(key)) <= 7 * 86_400_000


async def test_a_last_period_is_summed_up_at_its_plans_prices(store_url: str) -> None:
    clock = Clock(subscribed.NOW)
    plans = SUMMARIES.replace(
        "\nplans:\n",
        """
plans:
  pro:
    price: {{amount_cents: 2900, interval: month}}
    meters:
      requests: {{included: 100, overage: {{bill: {{per: 1, amount_cents: 30}}}}}}
""",
    )
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=plans) as kit:
        watch = watch_of(kit)
        await look(kit, watch)
        await subscribed.fetched(kit, subscribed.subscription(cancel_at_ms=subscribed.END))
        await kit.record("acme", "requests", 120)
        clock.set(subscribed.END + timedelta(minutes=1))
        await kit.record("acme", "requests", 3)
        clock.set(subscribed.END + timedelta(hours=1))
        await look(kit, watch)
        assert [] == hook.posts
        clock.advance(timedelta(seconds=1))
        await look(kit, watch)
        (data,) = told(hook)
        assert (data["period_start"], data["period_end"]) == ("2031-05-31T12:00:00Z", "2031-06-30T12:00:00Z")
        assert data["overage_cents"] == 20 * 30
        assert data["meters"] == {"requests": {"used": 120, "overage": 20, "before": 0}}
        clock.set(datetime(2031, 7, 1, 2, tzinfo=UTC))
        await look(kit, watch)
        _, rest = told(hook)
        assert rest["meters"] == {"requests": {"used": 3, "overage": 0, "before": 120}}


async def test_a_process_without_the_lease_leaves_the_rest(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(BEGIN)
    async with kit_of(store_url, clock, plans=SUMMARIES) as kit:
        watch, admin = watch_of(kit), await kit.store.admin()
        lease = kit.store.keys.shard(HOOKS_SHARD, "period.summary:lease")
        await watch.look()
        for customer in ("acme", "bolt", "core"):
            await kit.record(customer, "requests", 8)
        clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
        asked: list[str] = []

        async def pass_on(store: Any, customer: str, kind: str, data: Any) -> None:
            """Tell one customer so slowly that another process has begun meanwhile."""
            asked.append(customer)
            await tell(store, customer, kind, data)
            await admin.ask(admin.client.delete(lease))
            assert await TaskLease(store, lease, lasts_ms=60_000).take()

        monkeypatch.setattr("meterkit.notify.watches.tell", pass_on)
        for told_until_now in (["acme"], ["acme", "bolt"], ["acme", "bolt", "core"]):
            await watch.look()
            assert asked == told_until_now


async def test_a_damaged_customer_keeps_no_other_from_being_told(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(BEGIN)
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=SUMMARIES) as kit:
        watch = watch_of(kit)
        await look(kit, watch)
        for customer in ("acme", "bolt", "core"):
            await kit.record(customer, "requests", 8)
        admin = await kit.store.admin()
        await admin.ask(admin.client.hset(kit.store.keys.customer("bolt").state, "data", "x"))
        clock.set(datetime(2031, 6, 1, 2, tzinfo=UTC))
        await look(kit, watch)
        assert ["acme", "core"] == sorted(data["customer"] for data in told(hook))
    assert (
        "no period.summary for customer 'bolt': what is kept cannot be read: JSONDecodeError" in caplog.text
    )
