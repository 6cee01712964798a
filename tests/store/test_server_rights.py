"""What the server's user must be allowed, and what happens where it is not."""

# Internals: the words with which each right is tried.

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers.delivery import CATALOG, desk
from drivers.sampled import whole
from faults.refusals import eventually
from meterkit import MeterKit, SettingsError, StoreError
from meterkit.redis.server import commands_to_try
from servers.stores import DOCUMENTED, NEEDED, spawn_server, url_of_user

if TYPE_CHECKING:
    from servers.stores import Server

pytestmark = pytest.mark.anyio
SAMPLE = ("EVAL", "SCRIPT|LOAD", "ZADD", "HSET")
DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


@pytest.mark.parametrize(
    "command",
    [
        *SAMPLE,
        *(whole(name) for name in NEEDED if name not in {"CLIENT|SETNAME", *SAMPLE}),
    ],
)
async def test_each_right_is_tried_before_the_store_is_used(valkey: Server, command: str) -> None:
    # F-1a: without ZADD 50 were recorded and pending, and never delivered.
    url = url_of_user(valkey, (name for name in DOCUMENTED if name != command))
    with pytest.raises(SettingsError) as caught:
        async with MeterKit(CATALOG, redis_url=url, flush=False):
            pass
    words = str(caught.value)
    assert f"ACL SETUSER app ~mk:* +{command.lower()}" in words or (
        command in {"EVAL", "SCRIPT|LOAD"} and f"ACL SETUSER app +{command.lower()}" in words
    )
    assert "secret" not in words
    assert valkey.command("DBSIZE") == 0


async def test_the_right_to_name_a_connection_is_told_with_the_others(valkey: Server) -> None:
    url = url_of_user(valkey, [name for name in NEEDED if name != "CLIENT|SETNAME"])
    with pytest.raises(SettingsError, match=r"no right to CLIENT SETNAME; .* \+client\|setname"):
        await MeterKit(CATALOG, redis_url=url, flush=False).start()


async def test_the_right_to_choose_a_database_is_named(valkey: Server) -> None:
    # A process without it started, and served without the store for as long as it ran.
    url = url_of_user(valkey).replace("/0", "/1")
    with pytest.raises(SettingsError, match=r"'select' command\. Add the right: ACL SETUSER app \+select"):
        await MeterKit(CATALOG, redis_url=url, flush=False).start()


async def test_a_running_process_survives_a_lost_right(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url = url_of_user(valkey)
    async with MeterKit(CATALOG, redis_url=url, flush=False, store_timeout=0.2) as kit:
        await kit.record("acme", "requests", 1)
        valkey.command("ACL", "SETUSER", "app", "-script|load")
        valkey.command("CLIENT", "KILL", "TYPE", "normal")
        await eventually(lambda: _is_away(kit))
        await kit.record("acme", "requests", 2)
        await eventually(lambda: "Add the right: ACL SETUSER app +script|load" in caplog.text)
        valkey.command("ACL", "SETUSER", "app", "+script|load")
        await eventually(lambda: _seen(kit))
        await eventually(lambda: _has(kit, 3))


async def _is_away(kit: MeterKit) -> bool:
    return not await _seen(kit)


async def _has(kit: MeterKit, quantity: int) -> bool:
    return (await kit.usage("acme"))["meters"]["requests"]["recorded"] == quantity


async def test_keys_that_the_user_may_not_touch_are_named(valkey: Server) -> None:
    url = url_of_user(valkey, prefix="other")
    with pytest.raises(SettingsError, match=r"no right to keys that begin with mk:.*~mk:\*"):
        async with MeterKit(CATALOG, redis_url=url, flush=False):
            pass


async def _seen(kit: MeterKit) -> bool:
    try:
        return (await kit.check("acme", "requests")).allowed
    except StoreError:
        return False


def test_each_is_tried_with_as_many_words_as_it_needs() -> None:
    # A server that is told of fewer crashes: https://github.com/redis/redis/issues/14843.
    with spawn_server() as server:
        for words in commands_to_try("mk:{0}:dirty", of_cluster=True):
            is_part = words[0] in {"SCRIPT", "CLIENT", "XGROUP", "XINFO", "CLUSTER"}
            name = f"{words[0]}|{words[1]}" if is_part else words[0]
            (entry,) = server.command("COMMAND", "INFO", name).values()
            arity = int(entry["arity"])
            assert len(words) == arity if arity > 0 else len(words) >= -arity, words


async def test_a_user_without_scan_starts_and_is_told_what_fails(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    # F-20j: nothing said so until an hourly task had failed.
    url = url_of_user(valkey, [command for command in DOCUMENTED if command != "SCAN"])
    for _ in range(2):
        async with MeterKit(CATALOG, redis_url=url, flush=False) as kit:
            assert (await kit.consume("acme", "requests")).allowed
    (said, _) = [record.getMessage() for record in caplog.records if "SCAN" in record.getMessage()]
    assert "user 'app' has no right to SCAN; without it, tasks over all customers fail" in said
    assert said.endswith("Add it: ACL SETUSER app +scan")


async def test_a_live_key_delivers_where_the_server_may_not_be_asked(
    valkey: Server,
) -> None:
    # As the page on rights says: meterkit cannot see it.
    async with desk(url_of_user(valkey, NEEDED), stripe_api_key="sk_live_1") as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        await at.flush(everything=True, timeout_s=0)
        at.clock.advance(timedelta(seconds=3))
        assert (await at.flush()).delivered == 1


def test_the_documentation_lists_exactly_these_rights() -> None:
    text = " ".join(DEPLOYMENT.read_text().split())
    assert f"~mk:* {' '.join(f'+{name.lower()}' for name in DOCUMENTED)}" in text.replace(" \\ ", " ")
