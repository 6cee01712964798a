"""``meterkit reconcile``: exits 1 where our books and Stripe's differ."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from drivers.command_line import InProcessShell, Shell
from drivers.redrives import recorded
from meterkit import MeterKit, MeterkitError
from meterkit.testing import StripeEmulator
from servers.stores import Server
from storage.conftest import forget_all
from storage.moto_bucket import BOTO3
from storage.test_histories import PLANS

pytestmark = pytest.mark.anyio


async def test_books_are_compared(stored: Shell) -> None:
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_customer("cus_acme")
    with emulator.running() as url:
        key = "sk_test_1"
        stored.environment |= {"METERKIT_STRIPE_API_KEY": key, "METERKIT_STRIPE_API_BASE": url}
        async with stored.kit(stripe_api_key=key, stripe_api_base=url) as kit:
            nothing = stored.run("reconcile")
            assert (nothing.code, nothing.out) == (0, "")
            assert "unknown customer acne" in stored.run("reconcile", "acne").err
            await kit.customers.link("acme", "cus_acme")
            await kit.record("acme", "tokens", 25)
            await kit.flush(everything=True)
            same = stored.run("reconcile", "acme")
            assert same.code == 0
            assert same.out.splitlines()[-1].split()[-4:] == ["25", "25", "25", "0"]
            whole, brief = stored.run("reconcile", "--all"), stored.run("reconcile")
            assert (whole.out, whole.code) == (same.out, 0)
            assert (brief.code, brief.out, brief.err) == (0, "", "all 1 agree with Stripe\n")
            emulator.fail_next("lose")
            await kit.record("acme", "tokens", 5)
            await kit.flush(everything=True)
        differs = stored.run("reconcile", "--json", "--repair")
        (one,) = differs.json
        assert (differs.code, one["delivered"], one["confirmed"], one["agrees"]) == (1, 30, 25, False)
        told = stored.run("reconcile")
        assert (told.code, "1 of 1 do not agree" in told.err) == (1, True)
        assert "acme" in told.out
        assert stored.run("reconcile", "--period", "2020-01").code == 0
        assert stored.run("reconcile", "--period", "soon").code == 2


@pytest.mark.parametrize("part", ["state", "counters", "history"])
async def test_damaged_customers_are_named_and_others_compared(stored: Shell, part: str) -> None:
    async with recorded(stored) as (kit, emulator):
        emulator.add_customer("cus_acme")
        await kit.record("bob", "tokens", 25)
        await kit.flush(everything=True)
        keys, admin = kit.store.keys.customer("bob"), await kit.store.admin()
        if part == "state":
            await admin.ask(admin.client.hset(keys.state, "data", "x"))
        else:
            key = {"counters": keys.counters, "history": keys.history}[part]
            await admin.ask(admin.client.delete(key))
            await admin.ask(admin.client.set(key, "of another program", px=600_000))
        done = stored.run("reconcile", "--json")
        assert ([one["customer"] for one in done.json], done.code) == (["acme"], 1)
        assert "no comparison with Stripe for customer 'bob': the stored data cannot be read" in done.err
        alone = stored.run("reconcile", "bob")
        assert (alone.code, alone.out, "no usage of this period" in alone.err) == (1, "", False)
        with pytest.raises(MeterkitError, match="of these customers cannot be read: 'bob'"):
            await kit.reconcile()


async def test_usage_without_a_stripe_customer_is_not_compared(stored: Shell) -> None:
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    with emulator.running() as url:
        stored.environment |= {"METERKIT_STRIPE_API_KEY": "sk_test_1", "METERKIT_STRIPE_API_BASE": url}
        async with stored.kit() as kit:
            await kit.record("bob", "tokens", 25)
        done = stored.run("reconcile")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith(
        "0 of 1 agree with Stripe; 1 cannot be compared, as Stripe has counted nothing"
    )


@asynccontextmanager
async def restored(stored: Shell) -> AsyncGenerator[MeterKit]:
    """A kit whose store says that a restore has parked 25 tokens of acme's."""
    async with recorded(stored) as (kit, emulator):
        emulator.add_customer("cus_acme")
        emulator.fail_next("error", status=401, path="/v1/billing/meter_events")
        await kit.flush(everything=True, timeout_s=0)
        (intent,) = await kit.outbox.list()
        await kit.outbox.park(intent.identifier)
        now_ms = kit.store.now_ms()
        key = kit.store.keys.shard(kit.store.keys.customer("acme").shard, "intents")
        admin = await kit.store.admin()
        text = await admin.ask(admin.client.hget(key, intent.identifier))
        marks = {"restored": f"{now_ms - 60_000}-{now_ms}", "why": "this may be among them"}
        kept = json.dumps({**json.loads(text), **marks})
        await admin.ask(admin.client.hset(key, intent.identifier, kept))
        yield kit


async def test_f121_what_a_restore_has_parked_is_shown_and_settled(stored: Shell) -> None:
    async with restored(stored) as kit:
        left = stored.run("outbox", "redrive", "--all")
        assert (left.code, left.out, "1 were parked after a restore and stay parked" in left.err) == (
            0,
            "",
            True,
        )
        would = stored.run("recover", "--dry-run")
        assert (would.code, "nothing was changed: --dry-run" in would.err) == (1, True)
        assert would.out.splitlines()[-1].split() == ["acme", "tokens", "25", "0", "0", "25"]
        assert [one.state for one in await kit.outbox.list()] == ["parked"]
        done = stored.run("recover", "--json")
        (row,) = done.json["recovered"]
        assert (done.code, row["sent"], done.json["rebuilt"]) == (0, 25, [])
        again = stored.run("recover")
        assert (again.code, again.out) == (0, "")
        assert "nothing is parked after a restore" in again.err
        unknown = stored.run("recover", "--customer", "acne", "--dry-run")
        assert "unknown customer acne; did you mean 'acme'?" in unknown.err
        # A backup of that instant was put back: all that waits is compared, by whoever delivers.
        doubted = stored.run("recover", "--since", "2026-01-01T00:00:00Z")
        assert (doubted.code, "are not compared with Stripe yet" in doubted.err) == (1, True)
        assert stored.run("recover", "--since", "yesterday").code == 2
        future = stored.run("recover", "--since", "2126-01-01T00:00:00Z")
        assert (future.code, "which is in the future" in future.err) == (1, True)


async def test_a_restarted_embedded_store_is_no_failed_dry_run(directory: Path) -> None:
    shell = InProcessShell(directory, METERKIT_REDIS_URL=f"embedded://{directory}/store")
    async with recorded(shell) as (kit, emulator):
        emulator.add_customer("cus_acme")
        await kit.flush(everything=True)
        await kit.record("acme", "tokens", 5)
        await kit.stop()
        would = shell.run("recover", "--dry-run")
        assert (would.code, "1 shards are not compared with Stripe yet" in would.err) == (0, True)
        assert shell.run("recover").code == 1
        await kit.start()


def test_drift_is_shown_and_corrected(valkey: Server, tmp_path: Path) -> None:
    (tmp_path / "plans.yaml").write_text(PLANS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        address = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
        forget_all(address)
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        access = {name.upper(): value for name, value in keys.items()}
        access |= {"AWS_DEFAULT_REGION": "us-east-1", "METERKIT_STORAGE_ENDPOINT": address}
        shell = InProcessShell(tmp_path, METERKIT_REDIS_URL=valkey.url, METERKIT_SHARDS="4", **access)
        s3 = BOTO3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
        s3.create_bucket(Bucket="uploads")
        for key, size in (("ada/images/a", 7), ("bob/images/a", 5)):
            s3.put_object(Bucket="uploads", Key=key, Body=b"x" * size)
        looked = shell.run("storage", "recalculate", "--dry-run", "--json")
        assert (looked.code, looked.json) == (0, {"ada": 7, "bob": 5})
        assert shell.run("storage", "recalculate", "bob").out.split()[-2:] == ["bob", "5"]
        assert shell.run("storage", "recalculate", "--json").json == {"ada": 7}
        assert "all stored bytes are correct" in shell.run("storage", "recalculate").err
        assert "unknown customer bobb" in shell.run("storage", "recalculate", "bobb").err
    finally:
        server.stop()
