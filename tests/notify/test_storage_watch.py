"""``storage.over``: found in the levels of gauges, and told once while a customer stores too much."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any, Final

import pytest

from drivers.many_customers import copy_customer, counted_scripts
from drivers.messages import NOW, Mailbox, Receiver, kit_of, pass_over, receiver, storage_watch
from drivers.subscribed_customer import sweep
from meterkit import MeterKit, StoreError
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {{storage: {{unit: byte, kind: gauge}}, seats: {{unit: seat, kind: gauge}}}}
storage:
  gauge: storage
  objects: {{bucket: uploads, key: "{{customer}}/{{type}}/{{path:path}}"}}
  types: [documents, backups]
notify:
  webhook: {{url: "{url}", events: [storage.over]}}
  email: {{events: [storage.over], from: billing@example.com}}
plans:
  free: {{price: {{amount_cents: 0, interval: month}},
    meters: {{storage: {{included: 1000, overage: {{percent: 10, grace: 7d}}}}, seats: {{included: 1}}}}}}
  team: {{price: {{amount_cents: 0, interval: month}}, meters: {{storage: {{included: 2000}}}}}}
"""


def uploaded(customer: str, kind: str, size: int, clock: Clock) -> str:
    stored = {"key": f"{customer}/{kind}/{size}", "size": size, "sequencer": "01"}
    record: dict[str, Any] = {"eventVersion": "2.1", "eventName": "ObjectCreated:Put"}
    record["eventTime"] = clock.now().isoformat().replace("+00:00", "Z")
    record["s3"] = {"bucket": {"name": "uploads"}, "object": stored}
    return json.dumps({"Records": [record]})


@pytest.fixture
async def kit(store_url: str, clock: Clock, box: Mailbox) -> AsyncGenerator[MeterKit]:
    async with kit_of(store_url, clock, plans=PLANS, smtp_url=box.url) as opened:
        yield opened


def told(hook: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body)["data"] for _, body in hook.posts]


class Looks:
    """Looks at the list only: all levels were restated while there was none."""

    def __init__(self, kit: MeterKit) -> None:
        self._kit, self._watch = kit, storage_watch(kit)

    async def __call__(self) -> None:
        await self._watch.check()
        await pass_over(self._kit, "webhook")


@pytest.fixture
async def look(kit: MeterKit) -> Looks:
    look = Looks(kit)
    await look()
    return look


async def test_a_full_storage_is_told_once(
    hook: Receiver, box: Mailbox, kit: MeterKit, look: Looks, clock: Clock
) -> None:
    await kit.storage.count(uploaded("acme", "documents", 300, clock))
    await kit.storage.count(uploaded("acme", "backups", 700, clock))
    await kit.gauges.set("bolt", "seats", 5)
    await look()
    assert [] == hook.posts
    await kit.storage.count(uploaded("acme", "documents", 1, clock))
    clock.advance(timedelta(minutes=2))
    for _ in range(3):
        await look()
    (data,) = told(hook)
    assert data == {
        "id": data["id"],
        "customer": "acme",
        "at": "2031-06-10T12:02:30Z",
        "meter": "storage",
        "used": 1_001,
        "included": 1_000,
        "since": "2031-06-10T12:00:30Z",
        "until": "2031-06-17T12:00:30Z",
        "types": {"backups": 700, "documents": 301},
        "remaining": 99,
    }
    await pass_over(kit, "email")
    (mail,) = box.mails
    assert mail["Subject"] == "Your storage is full"
    plain = mail.get_body(("plain",))
    assert plain is not None
    assert "1 byte more than the 1 kB" in plain.get_content()
    assert "From 17 Jun 2031 on you cannot add files." in plain.get_content()
    assert "- backups: 700 bytes\r\n- documents: 301 bytes" in plain.get_content()


async def test_who_is_above_again_is_told_after_two_days(
    hook: Receiver, kit: MeterKit, look: Looks, clock: Clock
) -> None:
    for days, level in ((0, 1_001), (0, 1_000), (1, 1_001), (1, 900), (3, 900), (0, 1_001), (0, 1_001)):
        clock.advance(timedelta(days=days))
        await kit.gauges.set("acme", "storage", level)
        await look()
    assert [1_001, 1_001] == [data["used"] for data in told(hook)]
    assert 2 == len({data["id"] for data in told(hook)})
    for _ in range(5):  # The level stays: no further event.
        clock.advance(timedelta(days=1))
        await look()
    assert 2 == len(hook.posts)


async def test_only_a_smaller_plan_makes_storage_too_much(hook: Receiver, kit: MeterKit, look: Looks) -> None:
    for customer, first, then in (("acme", "team", "free"), ("bolt", "free", "team")):
        await kit.customers.set_plan(customer, first)
        await kit.gauges.set(customer, "storage", 1_500)
        await kit.customers.set_plan(customer, then)
    await look()
    assert ["acme"] == [data["customer"] for data in told(hook)]


@pytest.mark.parametrize(
    ("over_limit", "overage", "level", "remaining", "advice"),
    [
        ("block_growth", {}, 1_500, 0, "You cannot add files until you delete some."),  # Above the tolerance.
        ("block_growth", {"overage": "deny"}, 1_050, 0, "You cannot add files until you delete some."),
        ("block_growth", {}, 1_050, 50, "From 17 Jun 2031 on you cannot add files."),
        ("allow", {}, 1_500, 500, "You can add 500 bytes more."),
    ],
)
async def test_it_says_until_when_files_may_be_added(
    box: Mailbox, over_limit: str, overage: dict[str, str], level: int, remaining: int, advice: str
) -> None:
    plans = f"{PLANS}billing: {{{{changes: {{{{over_limit: {over_limit}}}}}}}}}\n"
    async with (
        receiver() as hook,
        kit_of("memory://", Clock(NOW), plans=plans, url=hook.url, smtp_url=box.url) as kit,
    ):
        look = Looks(kit)
        await kit.customers.set_plan("acme", "team")
        await kit.gauges.set("acme", "storage", level)
        await kit.customers.override("acme", {"storage": {"included": 1_000, **overage}})
        await kit.customers.set_plan("acme", "free")
        assert (await kit.check("acme", "storage", remaining)).allowed
        assert not (await kit.check("acme", "storage", remaining + 1)).allowed
        await look()
        await pass_over(kit, "email")
        (data,) = told(hook)
    assert (data["remaining"], data["until"] is None) == (remaining, "17 Jun" not in advice)
    plain = box.mails[-1].get_body(("plain",))
    assert plain is not None
    assert advice in plain.get_content()


@pytest.mark.parametrize("damage", ["ValueError", "StoreError", "key"])
async def test_a_damaged_level_keeps_no_other_customer_from_being_told(
    hook: Receiver, kit: MeterKit, look: Looks, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for customer in ("acme", "bolt", "core"):
        await kit.gauges.set(customer, "storage", 1_500)
    admin = await kit.store.admin()
    keys = kit.store.keys.customer("bolt")
    if damage == "StoreError":
        await admin.ask(admin.client.set(keys.totals, "of another program", px=600_000))
    elif damage == "key":
        await admin.ask(admin.client.delete(keys.levels))
        await admin.ask(admin.client.set(keys.levels, "of another program", px=600_000))
    else:
        await admin.ask(admin.client.hset(keys.levels, "storage", b"x"))
    for _ in range(2):
        await look()
    assert ["acme", "core"] == sorted(data["customer"] for data in told(hook))
    error = "ValueError" if damage == "key" else damage
    told_of = f"no storage.over for customer 'bolt': the stored data cannot be read: {error}"
    assert caplog.text.count(told_of) == 1


async def test_the_end_of_an_override_makes_storage_too_much(
    hook: Receiver, kit: MeterKit, look: Looks, clock: Clock
) -> None:
    ends = clock.now() + timedelta(hours=1)
    await kit.customers.override("acme", {"storage": {"included": 2_000}}, until=ends)
    await kit.gauges.set("acme", "storage", 1_500)
    await look()
    assert hook.posts == []
    clock.advance(timedelta(hours=1))
    await sweep(kit)
    await look()
    assert ["acme"] == [data["customer"] for data in told(hook)]


@pytest.mark.each_store
@pytest.mark.parametrize(
    ("before", "included", "customers"),
    [
        (2_000, 1_500, []),
        (2_000, 1_400, ["acme", "bolt"]),
        (1_000, 1_500, []),
        (1_000, 1_499, ["acme", "bolt"]),
    ],
)
async def test_a_plans_file_that_includes_less_is_noticed(
    store_url: str, before: int, included: int, customers: list[str]
) -> None:
    """No script runs for customers who do nothing, with or without a state."""
    clock, plans = Clock(NOW), PLANS.replace("included: 1000", f"included: {before}")
    async with kit_of(store_url, clock, plans=plans) as kit:
        await kit.customers.set_plan("bolt", "free")
        for customer in ("acme", "bolt"):
            await kit.gauges.set(customer, "storage", 1_500)
    plans = PLANS.replace("included: 1000", f"included: {included}")
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=plans) as kit:
        look = Looks(kit)
        for _ in range(3):
            await look()
        assert customers == sorted(data["customer"] for data in told(hook))


async def test_a_smaller_plan_is_noticed_beside_a_damaged_customer(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock, plans = Clock(NOW), PLANS.replace("included: 1000", "included: 2000")
    async with kit_of(store_url, clock, plans=plans) as kit:
        for customer in ("acme", "bolt", "core"):
            await kit.customers.set_plan(customer, "free")
            await kit.gauges.set(customer, "storage", 1_500)
        admin = await kit.store.admin()
        damaged = {"data": "{", "rev": "9:of another program"}
        await admin.ask(admin.client.hset(kit.store.keys.customer("bolt").state, mapping=damaged))
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, plans=PLANS) as kit:
        look = Looks(kit)
        for _ in range(2):
            await look()
        assert ["acme", "core"] == sorted(data["customer"] for data in told(hook))
    assert "no storage.over for customer 'bolt': the stored data cannot be read" in caplog.text


async def test_f_344_a_start_restates_no_level_again(hook: Receiver, store_url: str, clock: Clock) -> None:
    """Each process that had begun restated all levels above the smallest plan's, one after the other."""
    most = 0
    for first, begins in enumerate((NOW, NOW + timedelta(minutes=10), NOW + timedelta(days=1))):
        clock.set(begins)
        async with kit_of(store_url, clock, url=hook.url, plans=PLANS) as kit:
            if first == 0:
                await kit.gauges.set("acme", "storage", 1_500)
                await copy_customer(kit, "acme", 20)
            async with counted_scripts(kit, "set_level") as counts:
                await storage_watch(kit).check()
        assert counts.runs == (0 if begins.minute else 21)
        most = max(most, counts.most)
    assert 1 < most <= 8


async def test_f_344_a_long_list_is_read_in_pages(
    hook: Receiver, kit: MeterKit, look: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.notify.storage_and_period_watches._LEVELS_AT_ONCE", 3)
    for nth in range(8):
        await kit.gauges.set(f"customer-{nth}", "storage", 1_500)
    await look()
    assert sorted(data["customer"] for data in told(hook)) == [f"customer-{nth}" for nth in range(8)]


async def test_levels_are_restated_once_a_day(
    hook: Receiver, kit: MeterKit, look: Looks, clock: Clock
) -> None:
    await kit.gauges.set("acme", "storage", 1_500)
    admin = await kit.store.admin()
    await admin.ask(admin.client.delete(kit.store.keys.customer("acme").over))
    for hours in (23, 1):
        assert hook.posts == []
        clock.advance(timedelta(hours=hours))
        await look()
    await look()
    assert ["acme"] == [data["customer"] for data in told(hook)]


async def test_without_scan_storage_that_is_too_much_is_told(
    valkey: Server, store_url: str, clock: Clock
) -> None:
    valkey.command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@all", "-scan")
    url = store_url.replace("redis://", "redis://reader:secret@")
    async with receiver() as hook, kit_of(url, clock, url=hook.url, plans=PLANS) as kit:
        await kit.gauges.set("acme", "storage", 1_500)
        with pytest.raises(StoreError, match="scan"):
            await storage_watch(kit).check()
        await pass_over(kit, "webhook")
        assert ["acme"] == [data["customer"] for data in told(hook)]
    valkey.command("ACL", "DELUSER", "reader")
