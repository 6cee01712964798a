"""``meterkit plans migrate`` on a real store, at an emulated Stripe."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from drivers.command_line import Done, InProcessShell, Shell
from drivers.delivery import STRIPE_KEY
from drivers.plans import plans_text
from meterkit import MeterKit
from meterkit.catalog import load
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans:
  free:  {price: {amount_cents: 0, interval: month}}
  pro:   {rank: 10, price: {amount_cents: 1000, interval: month, stripe_price: price_pro}}
  pro_2: {rank: 10, price: {amount_cents: 1200, interval: month, stripe_price: price_pro_2}}
  less:  {rank: 5, price: {amount_cents: 500, interval: month, stripe_price: price_less}}
"""


async def run(shell: Shell, *arguments: str) -> Done:
    """Run a command while the emulator serves."""
    return await to_thread.run_sync(lambda: shell.run(*arguments))


@asynccontextmanager
async def on_pro(
    plans: Path, store_url: str, url: str, emulator: StripeEmulator
) -> AsyncGenerator[tuple[MeterKit, Shell]]:
    """Ada and Bob, who pay for the plan pro, and the commands of that kit."""
    settings: Any = {"redis_url": store_url, "stripe_api_key": STRIPE_KEY, "stripe_api_base": url}
    async with MeterKit(plans, flush=False, **settings) as kit:
        emulator.add_plans(kit.catalog)
        for customer in ("ada", "bob"):
            made = await kit.subscriptions.create(customer, "pro")
            assert made.client_secret is not None
            emulator.confirm_payment(made.client_secret)
            await kit.subscriptions.sync(customer)
        variables = {f"METERKIT_{name.upper()}": value for name, value in settings.items()}
        yield kit, InProcessShell(plans.parent, **variables)


@pytest.fixture
async def two_on_pro(
    directory: Path, store_url: str, emulator: StripeEmulator
) -> AsyncGenerator[tuple[MeterKit, Shell]]:
    plans = directory / "plans.yaml"
    plans.write_text(PLANS)
    async with emulator.serve() as url, on_pro(plans, store_url, url, emulator) as opened:
        yield opened


async def test_customers_of_a_plan_are_had_on_another(two_on_pro: tuple[MeterKit, Shell]) -> None:
    kit, shell = two_on_pro
    await kit.customers.set_plan("eve", "pro")
    await kit.customers.set_plan("fay", "free")

    async def migrate(*arguments: str) -> list[tuple[str, bool, str | None]]:
        done = await run(shell, "plans", "migrate", *arguments, "--json")
        assert done.code == 0, done.err
        return [(one["customer"], bool(one["at"]), one["error"]) for one in done.json]

    async def plans() -> list[str]:
        return [(await kit.customers.get(customer)).plan for customer in ("ada", "bob", "eve", "fay")]

    everybody = [("ada", False, None), ("bob", False, None), ("eve", False, None)]
    assert await migrate("pro", "pro_2", "--dry-run") == everybody
    assert await plans() == ["pro", "pro", "pro", "free"]
    assert await migrate("pro", "pro_2") == everybody
    assert await plans() == ["pro_2", "pro_2", "pro_2", "free"]
    assert await migrate("pro", "pro_2") == []

    # Less than before is for the end of what is paid for.
    assert await migrate("pro_2", "less") == [("ada", True, None), ("bob", True, None), ("eve", False, None)]
    assert await plans() == ["pro_2", "pro_2", "less", "free"]
    assert await migrate("pro_2", "less") == []


async def test_customers_of_a_plan_with_another_key_keep_what_they_pay(
    directory: Path, two_on_pro: tuple[MeterKit, Shell]
) -> None:
    """The doctor's cure was refused: "of a price that no plan of the plans file has"."""
    kit, shell = two_on_pro
    (directory / "plans.yaml").write_text(PLANS.replace("  pro: ", "  solo:"))
    assert await kit.reload()
    done = await run(shell, "plans", "migrate", "pro", "solo", "--json")
    assert [(one["customer"], one["at"], one["error"]) for one in done.json] == [
        ("ada", None, None),
        ("bob", None, None),
    ]
    found = [await kit.subscriptions.sync(customer) for customer in ("ada", "bob")]
    assert [one and one.plan for one in found] == ["solo", "solo"]
    assert [(await kit.customers.get(customer)).plan for customer in ("ada", "bob")] == ["solo", "solo"]
    assert (await run(shell, "plans", "migrate", "pro", "solo", "--json")).json == []


async def test_customers_of_a_price_without_a_plan_have_a_way_out(
    directory: Path, two_on_pro: tuple[MeterKit, Shell]
) -> None:
    """A plan sold by its lookup key got another one, and a price: each advice led to the next refusal."""
    kit, shell = two_on_pro
    plans, old = directory / "plans.yaml", PLANS.replace(", stripe_price: price_pro}", "}")
    new = old.replace("  pro: ", "  solo:").replace("1000", "1500")
    plans.write_text(new)
    assert await kit.reload()
    assert (await run(shell, "stripe", "sync")).code == 0
    refused = (await run(shell, "plans", "migrate", "pro", "solo", "--json")).json
    assert "back into the file, beside the one that replaces it" in refused[0]["error"]
    added = next(line for line in new.splitlines(keepends=True) if "solo:" in line)
    plans.write_text(old + added)
    assert await kit.reload()
    done = await run(shell, "plans", "migrate", "pro", "solo", "--json")
    assert [(one["customer"], one["error"]) for one in done.json] == [("ada", None), ("bob", None)]
    plans.write_text(new)
    assert await kit.reload()
    assert [(await kit.customers.get(customer)).plan for customer in ("ada", "bob")] == ["solo", "solo"]


async def test_i4_what_another_plan_pays_for_stays(two_on_pro: tuple[MeterKit, Shell]) -> None:
    """Plans by hand, and the default one in place of a restricted one, moved what is paid for."""
    kit, shell = two_on_pro
    await kit.customers.set_plan("ada", "less")
    await kit.customers.set_status("bob", "paused")
    bob = await kit.customers.get("bob")
    assert (bob.plan, bob.access) == ("free", "restricted")

    async def migrate(*arguments: str) -> dict[str, bool]:
        done = await run(shell, "plans", "migrate", *arguments, "--json")
        assert done.code == 0, done.err
        return {one["customer"]: bool(one["subscription"]) for one in done.json}

    async def paid() -> list[tuple[str | None, object]]:
        found = [await kit.subscriptions.get(customer) for customer in ("ada", "bob")]
        return [(one.plan, one.pending_change) for one in found if one is not None]

    assert await migrate("less", "pro_2") == {"ada": False}
    assert await migrate("free", "less") == {}
    assert ((await kit.customers.get("ada")).plan, await paid()) == ("pro_2", [("pro", None)] * 2)
    # Who is restricted keeps what is paid for, and moves with it.
    assert await migrate("pro", "pro_2") == {"bob": True}
    assert await paid() == [("pro", None), ("pro_2", None)]


async def test_who_cannot_be_migrated_is_named_and_the_others_are(
    emulator: StripeEmulator, two_on_pro: tuple[MeterKit, Shell]
) -> None:
    kit, shell = two_on_pro
    emulator.fail_payments((await kit.customers.get("ada")).stripe_customer or "")
    done = await run(shell, "plans", "migrate", "pro", "pro_2")
    assert done.code == 1
    assert "not migrated: " in done.out
    assert "1 of 2 customers stay on pro; remove the cause, then run it again" in done.err
    assert [(await kit.customers.get(customer)).plan for customer in ("ada", "bob")] == ["pro", "pro_2"]


@pytest.mark.parametrize("part", ["state", "counters"])
async def test_damaged_customers_are_named_and_others_migrated(
    two_on_pro: tuple[MeterKit, Shell], part: str
) -> None:
    kit, shell = two_on_pro
    for customer in ("abe", "eve"):
        await kit.customers.set_plan(customer, "pro")
        await kit.record(customer, "requests", 5)
    keys, admin = kit.store.keys.customer("abe"), await kit.store.admin()
    key = {"state": keys.state, "counters": keys.counters}[part]
    await admin.ask(admin.client.set(key, "of another program", px=600_000))
    done = await run(shell, "plans", "migrate", "pro", "pro_2", "--json")
    assert [one["customer"] for one in done.json if not one["error"]] == ["ada", "bob", "eve"]
    assert done.code == 1
    if part == "state":
        assert "the state of customer 'abe' cannot be read" in done.err
    else:
        (failed,) = (one for one in done.json if one["error"])
        assert (failed["customer"], "cannot be read" in failed["error"]) == ("abe", True)
    assert [(await kit.customers.get(customer)).plan for customer in ("ada", "eve")] == ["pro_2", "pro_2"]


def test_what_cannot_be_is_refused(tmp_path: Path, store_url: str) -> None:
    (tmp_path / "plans.yaml").write_text(PLANS)
    for new, said in (
        ("pro2", "TO: found 'pro2'; allowed are the plans free, less, pro, pro_2; did you mean 'pro_2'?"),
        ("pro", "FROM and TO are both 'pro'; name two plans"),
    ):
        done = InProcessShell(tmp_path, METERKIT_REDIS_URL=store_url).run("plans", "migrate", "pro", new)
        assert (done.code, said in done.err) == (1, True), done.err


async def test_all_usage_moves_as_the_plans_file_has_it(
    directory: Path, store_url: str, emulator: StripeEmulator
) -> None:
    plans = directory / "plans.yaml"
    plans.write_text(plans_text("invoice_lines").replace("{usage: lines}", "{usage: meters}"))
    async with emulator.serve() as url, on_pro(plans, store_url, url, emulator) as (kit, shell):
        refused = await run(shell, "plans", "migrate", "--usage", "lines")
        assert (refused.code, "the plans file has `usage: meters`" in refused.err) == (1, True)
        both = await run(shell, "plans", "migrate", "pro", "--usage", "lines")
        assert (both.code, "give FROM and TO, or --usage lines" in both.err) == (2, True)
        plans.write_text(plans_text("invoice_lines"))
        kit.store.use(load(plans))
        await kit.subscriptions.cancel("bob")
        keys, admin = kit.store.keys, await kit.store.admin()
        await admin.ask(admin.client.hset(keys.customer("abe").state, "data", "x"))
        await admin.ask(admin.client.sadd(keys.shard(keys.customer("abe").shard, "customers"), "abe"))
        for arguments in (["--dry-run"], []):
            done = await run(shell, "plans", "migrate", "--usage", "lines", "--json", *arguments)
            (moved,) = done.json
            # The stored data of Abe cannot be read.
            assert (done.code, moved["customer"], moved["error"]) == (1, "ada", None)
            assert "the state of customer 'abe' cannot be read" in done.err
        known = await kit.subscriptions.get("ada")
        assert known is not None
        assert datetime.fromisoformat(moved["at"]) == known.current_period_end
        assert (await run(shell, "plans", "migrate", "--usage", "lines", "--json")).json == []
