"""Plans that have left the plans file: their customers keep what they pay for."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.delivery import kit_for
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from faults.refusals import eventually
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import UnknownPlanError

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)
HEAD: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens: {unit: token, stripe: {event_name: ai_tokens, report: REPORT}}
  seats: {unit: seat, kind: gauge}
features: [reports]
credits: {ai: {costs: {requests: 1}}}
addons:
  more: {price: {amount_cents: 500, interval: month}, meters: {requests: {included: 20}}}
billing: {changes: {upgrade: UPGRADE}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 10}, tokens: {included: 5, overage: deny}, seats: {included: 1}}
"""
PAID: Final = """
  KEY:
    rank: RANK
    price: {amount_cents: 1500, interval: month}
    seat_price: {amount_cents: 700}
    features: [reports]
    addons: [more]
    meters:
      requests: {included: 100, rate: 1000/hour, warn_at: [80]}
      tokens: {included: 10, overage: {bill: {per: 1, amount_cents: 5}}}
      seats: {included: 5}
    grants: [{credit: ai, quantity: 50, every: period, rollover: {at_most: 60, for: 1 period}}]
    subjects: {user: {requests: {rate: 10/minute}}}
"""


def plans(*keys: str, report: str = "overage", upgrade: str = "now", requests: int = 100) -> str:
    """A plans file with these paid plans; each costs and gives the same."""
    paid = (PAID.replace("KEY", key).replace("RANK", str(nth)) for nth, key in enumerate(keys, 1))
    text = HEAD.replace("REPORT", report).replace("UPGRADE", upgrade) + "".join(paid)
    return text.replace("included: 100", f"included: {requests}")


@asynccontextmanager
async def selling(store_url: str, text: str) -> AsyncGenerator[Shop]:
    """A shop that sells a plans file by lookup keys, and a customer on its plan ``old``, with add-ons."""
    async with shop(store_url, catalog=loads(text), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="old")
        yield at


def with_file(at: Shop, store_url: str, text: str) -> MeterKit:
    """Another process, with another plans file."""
    return kit_for(store_url, at.url, clock=at.clock, catalog=loads(text))


async def gives(kit: MeterKit) -> tuple[str, str | None, Any]:
    """The plan, whether the file lacks it, and the included requests and tokens."""
    customer, usage = await kit.customers.get("acme"), await kit.usage("acme")
    included = [usage["meters"][name]["included"] for name in ("requests", "tokens", "seats")]
    return customer.plan, customer.missing_plan, included


async def billed(at: Shop) -> list[int]:
    """The metered quantities of all invoices."""
    lines = [line for invoice in await at.invoices() for line in invoice["lines"]["data"]]
    prices = {price["id"] for price in await at.stripe_list("/v1/prices") if price["recurring"]["meter"]}
    return [one["quantity"] for one in lines if one["pricing"]["price_details"]["price"] in prices]


@pytest.mark.parametrize("how", [{"report": "usage"}, {"upgrade": "period_end"}], ids=["usage", "period_end"])
async def test_f_30k_a_plan_renamed_by_the_recipe_bills(store_url: str, how: dict[str, Any]) -> None:
    """Until the period ended its customers had the default plan: of 35 units of overage 5 were billed."""
    async with selling(store_url, plans("old", **how)) as at:
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 15)
        async with with_file(at, store_url, plans("old", "new", **how)) as kit:
            await kit.stripe.sync()
            changed = (await kit.subscriptions.change_plan("acme", "new")).subscription
            assert changed.pending_change is not None
        async with with_file(at, store_url, plans("new", **how)) as kit:
            await kit.subscriptions.sync("acme")
            assert await gives(kit) == ("old", "old", [100, 10, 5])
            assert (await kit.consume("acme", "requests", 90)).allowed
            await kit.record("acme", "tokens", 30)
            assert (await kit.usage("acme"))["meters"]["tokens"]["overage"] == 35
            await kit.flush(everything=True)
            at.go(END + DAY)
            await kit.subscriptions.sync("acme")
            assert await gives(kit) == ("new", None, [100, 10, 5])
            at.go(END + 2 * DAY)
            assert sum(await billed(at)) == (45 if "report" in how else 35)


async def test_f_30k_a_removed_plan_keeps_its_terms(store_url: str) -> None:
    """Its customers had the default plan at once, though they went on paying: features and grants too."""
    async with selling(store_url, plans("old")) as at:
        await at.kit.subscriptions.set_addons("acme", {"more": 1})
        await at.kit.customers.set_plan("eve", "old")
        async with with_file(at, store_url, plans().replace("addons:\n", "").replace("  more:", "# ")) as kit:
            assert list(kit.catalog.plans) == ["free"]
            assert await gives(kit) == ("old", "old", [120, 10, 5])
            assert (await kit.customers.get("eve")).missing_plan == "old"
            assert await kit.allows("acme", "reports")
            assert [one.quantity for one in await kit.grants.list("acme")] == [50]
            await kit.customers.override("acme", {"tokens": {"included": 12}})
            assert await gives(kit) == ("old", "old", [120, 12, 5])
            assert (await kit.customers.get("bob")).plan == "free"
            with pytest.raises(UnknownPlanError, match="free"):
                await kit.customers.set_plan("bob", "old")


async def test_what_the_file_lacks_too_is_left_out_of_a_plan(store_url: str) -> None:
    async with selling(store_url, plans("old")) as at:
        lines = plans().splitlines(keepends=True)
        gone = ("features:", "credits:", "addons:", "  more:", "  seats:")
        text = "".join(line for line in lines if not line.startswith(gone)).replace(
            ", seats: {included: 1}", ""
        )
        async with with_file(at, store_url, text) as kit:
            assert (await kit.usage("acme"))["meters"]["requests"]["included"] == 100
            assert (await kit.consume("acme", "requests")).allowed
            await kit.flush(everything=True)


@pytest.mark.parametrize("is_asked", [False, True])
async def test_f_30k_a_process_knows_plans_of_other_files(store_url: str, *, is_asked: bool) -> None:
    """A process with the older file gave customers of a new plan the default one, and counted so."""
    async with (
        selling(store_url, plans("old")) as at,
        with_file(at, store_url, plans("old", "new", requests=300)) as kit,
    ):
        await kit.stripe.sync()
        await kit.subscriptions.change_plan("acme", "new")
        if is_asked:
            await at.kit.check("acme", "requests")
            await eventually(lambda: at.kit.catalog.find_plan("new") is not None)
        assert await gives(at.kit) == ("new", "new", [300, 10, 5])
        assert (await at.kit.consume("acme", "requests", 101)).allowed


async def test_an_older_file_replaces_no_newer_terms(store_url: str) -> None:
    async with selling(store_url, plans("old")) as at:
        async with with_file(at, store_url, plans("old", requests=200)):
            pass
        async with with_file(at, store_url, plans("old")) as kit:
            assert (await gives(kit))[2][0] == 100
        async with with_file(at, store_url, plans()) as kit:
            assert (await gives(kit))[2][0] == 200


async def test_a_reload_keeps_the_terms_of_a_plan_that_left(store_url: str, tmp_path: Path) -> None:
    file = tmp_path / "plans.yaml"
    file.write_text(plans("old"))
    async with MeterKit(file, redis_url=store_url, flush=False, shards=4) as kit:
        await kit.customers.set_plan("acme", "old")
        file.write_text(plans())
        assert await kit.reload()
        assert await gives(kit) == ("old", "old", [100, 10, 5])
        file.write_text(plans("old", requests=40))
        assert await kit.reload()
        assert await gives(kit) == ("old", None, [40, 10, 5])


@pytest.mark.leaves_keys("a definition written by hand")
async def test_a_damaged_definition_leaves_the_default_plan(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with selling(store_url, plans("old")) as at:
        admin = await at.kit.store.admin()
        await admin.ask(admin.client.hset("mk:plans", "plan old", "{"))
        async with with_file(at, store_url, plans()) as kit:
            assert await gives(kit) == ("free", "old", [10, 5, 5])
            await kit.check("acme", "requests")
            assert "what is stored of the 'plan old' cannot be read" in caplog.text
            assert "plan 'old', which customer 'acme' is on, is neither in" in caplog.text
