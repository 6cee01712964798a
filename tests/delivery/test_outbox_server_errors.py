"""What a server says of itself while usage is sealed is no fault of a customer: none is set aside for it."""
# Internals: a script that answers with each error of a server.

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import NOW, desk
from meterkit import StoreError
from meterkit.outbox.outbox import Outbox
from meterkit.redis.scripts import Script

if TYPE_CHECKING:
    from drivers.delivery import Desk

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("valkey")]


async def dirty(at: Desk) -> dict[bytes, float]:
    """Whose usage is to be sealed, and when."""
    client: Any = (await at.kit.store.admin()).client
    return dict(await client.zrange("mk:{0}:dirty", 0, -1, withscores=True))


@pytest.mark.parametrize(
    ("said", "is_set_aside"),
    [
        ("READONLY You can't write against a read only replica.", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("NOPERM this user has no permissions to run the 'evalsha' command", False),
        ("NOSCRIPT No matching script. Please use EVAL.", False),
        ("CLUSTERDOWN Hash slot not served", False),
        ("LOADING Redis is loading the dataset in memory", False),
        ("BUSY Redis is busy running a script.", False),
        ("ERR user_script:50: attempt to index a nil value", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True),
    ],
)
async def test_nobody_is_set_aside_for_what_a_server_says_of_itself(
    store_url: str, said: str, is_set_aside: bool
) -> None:
    # R8: redis-py cuts most codes off the message, and fifty customers waited ten minutes.
    async with desk(store_url, shards=1) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        outbox = Outbox(at.kit.store, await at.kit.store.admin())
        text = f"#!lua\nreturn redis.error_reply([[{said}]])"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        at.kit.store.scripts["seal"] = Script("seal", text, sha)
        before = await dirty(at)
        if is_set_aside:
            assert list((await outbox.seal(0, due_ms=None, most=50)).aside) == ["acme"]
            assert (await dirty(at))[b"acme"] >= (NOW.timestamp() + 600) * 1000
        else:
            with pytest.raises(StoreError, match="failed"):
                await outbox.seal(0, due_ms=None, most=50)
            assert await dirty(at) == before


async def test_scripts_that_a_server_lost_are_given_to_it_again(
    store_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # R8: between the loading of a script and its use.
    async with desk(store_url, shards=1) as at:
        await at.link("acme", "zeta")
        for customer in ("acme", "zeta"):
            await at.kit.record(customer, "requests", 6)

        def lose(pipe: Any, _text: str) -> None:
            pipe.execute_command("SCRIPT", "FLUSH")

        monkeypatch.setattr("redis.asyncio.client.Pipeline.script_load", lose)
        with pytest.raises(StoreError):
            await at.flush(everything=True, timeout_s=0)
        monkeypatch.undo()
        assert (await at.flush(everything=True)).delivered == 2
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
