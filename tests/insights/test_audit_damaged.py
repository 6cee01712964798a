"""A customer of whom nothing can be rebuilt is named, and keeps no other from being rebuilt."""
# Internals: keys that hold what meterkit never writes.

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.audited_kit import audited, lose_all, rebuild, rows_in, sqlite_in
from drivers.kit_parts import parts_of
from meterkit import StripeError
from meterkit.decisions.keys import meter_token
from meterkit.health.audit_log import look_at_audit_log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from drivers.audited_kit import Audited
    from meterkit.decisions.keys import CustomerKeys

    Damage = Callable[[Any, CustomerKeys], Awaitable[Any]]

pytestmark = pytest.mark.anyio

ROWS: Final = meter_token("rows")
DAMAGES: Final[dict[str, Damage]] = {
    "a meter": lambda client, keys: client.hset(keys.counters, f"{ROWS}m", "many"),
    "no counters": lambda client, keys: client.set(keys.counters, "text"),
    "the end of a period": lambda client, keys: client.hset(keys.totals, "1|e", "1.5"),
    "half a state": lambda client, keys: client.hset(keys.state, mapping={"rev": "2:9", "data": '{"plan"'}),
    "another state": lambda client, keys: client.hset(keys.state, mapping={"rev": "2:9", "data": "[1]"}),
    "no ledger": lambda client, keys: client.set(keys.history, "text"),
}


async def used_by(at: Audited, *customers: str) -> Any:
    """Each has used rows, and the store has lost all."""
    for nth, name in enumerate(customers, 1):
        await at.kit.record(name, "rows", nth)
    await at.drainer.drain()
    await lose_all(at)
    admin: Any = await at.kit.store.admin()
    return admin.client


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_customer_is_named_and_the_others_are_rebuilt(
    store_url: str, tmp_path: Path, damage: str
) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        client = await used_by(at, "acme", "beta", "zeta")
        keys = at.kit.store.keys.customer("beta")
        await DAMAGES[damage](client, keys)
        for is_dry in (True, False):
            found = {one.customer: one for one in await rebuild(at, dry_run=is_dry)}
            left = found.pop("beta")
            if is_dry and damage == "no ledger":
                continue  # It is only entered into where something is done.
            assert (left.meter, left.period_start, left.raised, left.is_done) == ("", None, 0, False)
            assert left.advice.startswith("nothing is rebuilt of this customer: ")
            told = {name: (one.raised, one.is_done) for name, one in found.items()}
            assert told == {"acme": (1, True), "zeta": (3, True)}
        for key in (keys.counters, keys.totals, keys.state, keys.history):
            await client.delete(key)
        at.kit.store.use(at.kit.store.catalog)
        (mended,) = await rebuild(at)
        assert (mended.customer, mended.raised) == ("beta", 2)


async def test_unreadable_entries_stop_only_their_shards_rebuild(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        client = await used_by(at, "acme", "beta", "zeta")
        keys = at.kit.store.keys
        shard = keys.customer("beta").shard
        await client.xadd(keys.audit(shard), {"k": "of another release", "d": "", "at": 1})
        found = {one.customer: one for one in await rebuild(at)}
        beside = {name for name in found if keys.customer(name).shard == shard}
        assert "acme" in set(found) - beside
        assert "entries of its shard still wait" in found["beta"].advice
        assert {name for name, one in found.items() if not one.is_done} == beside


@pytest.mark.parametrize("part", ["entries", "sums"])
async def test_a_damaged_shard_is_named_and_others_are_drained(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        keys, names = at.kit.store.keys, ("acme", "beta", "zeta")
        client = await used_by(at, *names)
        shard = keys.customer("beta").shard
        others = [name for name in names if keys.customer(name).shard != shard]
        for name in others:
            await at.kit.record(name, "rows", 7)
        key = keys.audit(shard) if part == "entries" else keys.audit_sums(shard)
        await client.set(key, "text")
        for _ in range(2):
            await at.drainer.drain()
        found = {one.customer: one for one in await rebuild(at)}
        assert (found["beta"].is_done, [found[name].is_done for name in others]) == (
            False,
            [True] * len(others),
        )
        drained = [row for row in await asyncio.to_thread(rows_in, at.url) if row["quantity"] == 7]
        assert sorted(row["customer"] for row in drained) == others != []
        told = [record.getMessage() for record in caplog.records if record.name == "meterkit.audit"]
        assert len([line for line in told if f"shard {shard} of the audit log is left" in line]) == 1
        _, findings = await look_at_audit_log(parts_of(at.kit))
        unread = [one for one in findings if one.problem.startswith(f"the audit log of shard {shard} cannot")]
        assert len(unread) == (part == "entries")
        await client.delete(key)


async def test_a_rebuild_that_ends_early_has_told_what_it_did(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.kit.record("zeta", "tokens", 130)
        await used_by(at, "acme")
        await at.desk.link("zeta")
        at.desk.emulator.fail_next("error", status=401, path="*", times=None)
        found: list[Any] = []
        with pytest.raises(StripeError):
            await rebuild(at, found=found)
        assert [(one.customer, one.raised) for one in found] == [("acme", 1)]


async def test_a_customer_whom_stripe_does_not_have_is_named(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        await at.desk.link("acme")
        for name in ("acme", "gone"):
            await at.kit.record(name, "tokens", 130)
        await at.drainer.drain()
        await lose_all(at)
        await at.kit.customers.link("gone", "cus_gone", force=True)
        await at.kit.customers.link("acme", "cus_acme", force=True)
        # The meters and what it has of acme are told; of the other Stripe knows nobody.
        at.desk.emulator.fail_next("error", status=404, path="*", skip=2)
        found = {one.customer: one for one in await rebuild(at)}
        assert (found["acme"].parked, found["acme"].is_done) == (30, True)
        assert found["gone"].is_done is False
        assert "Stripe does not say what it has: " in found["gone"].advice
