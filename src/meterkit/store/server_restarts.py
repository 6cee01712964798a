"""In which life of its server a shard is: one that has begun anew may have forgotten what was delivered."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

_SEEN_EVERY_MS: Final = 60_000
_DOUBTED: Final = "doubted"
# In one word redis-py does not make a mapping of the whole reply, which cost half of an idle pass.
_INFO: Final = "INFO server"
_RUN_ID: Final = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_LONGEST_MS: Final = 70 * 86_400_000  # Usage waits for a link for so long at most: a month and 35 days.


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLife:
    """What a shard and its server say.

    Attributes:
        now: the server's ``run_id``, which is another one after each start, and each other server's; None: it
            does not say.
        known: that in which all of the shard's deliveries are known; empty: none was made yet.
        noticed: another one that was met since; empty: none.
        noticed_ms: when that was met first.
        sealed_ms: when all was sealed that was pending then; 0: that could not be done.
        seen_ms: when the shard was delivered from last in its known life, a minute more or less; 0: unknown.
        till_ms: until when deliveries may have been forgotten, where that is not ``noticed_ms``; else 0.
        forgot: the same two instants (ms) of the last restart that was compared; empty: there was none.
    """

    now: str | None
    known: str = ""
    noticed: str = ""
    noticed_ms: int = 0
    sealed_ms: int = 0
    seen_ms: int = 0
    till_ms: int = 0
    forgot: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the shard is where it was when it was delivered from last, as far as anybody can tell."""
        return self.now == self.known or (self.now is None and self.known != _DOUBTED)

    @property
    def is_met(self) -> bool:
        """Whether this life was noticed, as far as the server says in which it is."""
        return self.noticed == (self.now or "")


class ServerLives:
    """The lives of the servers that have a store's shards, for delivery.

    Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looked: dict[Admin, tuple[int, int]] = {}  # After which connection, and when (ms).

    async def begin(self) -> None:
        """Have each shard of a new store remember the life that it begins in."""
        admin = (await self._store.admin()).for_delivery()
        for server, shards in (await self._servers(admin)).items():
            now = await _run_id(server)
            if now is not None:
                pipe = server.client.pipeline(transaction=False)
                for shard in shards:
                    pipe.hsetnx(self._store.keys.shard(shard, "life"), "known", now)
                await server.ask(pipe.execute())

    async def unmet(self, admin: Admin) -> Mapping[int, ServerLife]:
        """The shards whose server is in a life that was not noticed yet.

        A server is asked after each connection to it, and once a minute: one that begins anew has closed
        those that it had. Where all shards know their server, each remembers when that was, before anything
        is sent: by that a backup tells what it may have forgotten.
        """
        found: dict[int, ServerLife] = {}
        for server, shards in (await self._servers(admin)).items():
            # A node that is away holds up no other; each of its shards says what is wrong.
            with suppress(StoreError):
                found |= await self._unmet_at(server, shards)
        return found

    async def _unmet_at(self, server: Admin, shards: Sequence[int]) -> Mapping[int, ServerLife]:
        connected, now_ms = server.connected, self._store.now_ms()
        after, looked_ms = self._looked.get(server, (-1, 0))
        if after == connected and 0 <= now_ms - looked_ms < _SEEN_EVERY_MS:
            return {}
        now = await _run_id(server)
        unmet: Mapping[int, ServerLife] = (
            {} if now is None else await self._unmet_in(now, now_ms, server, shards)
        )
        if not unmet:
            self._looked[server] = connected, now_ms
        return unmet

    async def _unmet_in(
        self, now: str, now_ms: int, server: Admin, shards: Sequence[int]
    ) -> Mapping[int, ServerLife]:
        names = [self._store.keys.shard(shard, "life") for shard in shards]
        pipe = server.client.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(name)
        lives = [_life(now, kept) for kept in await server.ask(pipe.execute())]
        unmet = {
            shard: life
            for shard, life in zip(shards, lives, strict=True)
            if life.known and now not in {life.known, life.noticed}
        }
        if not unmet:
            pipe = server.client.pipeline(transaction=False)
            for name, life in zip(names, lives, strict=True):
                if life.known == now:
                    pipe.hset(name, "seen_ms", f"{now_ms}")
            await server.ask(pipe.execute())
        return unmet

    async def doubt(self, since_ms: int) -> None:
        """Have all that waits compared with Stripe, as after a restore of a backup of that instant."""
        now = f"{self._store.now_ms()}"
        fields = {"known": _DOUBTED, "noticed": "", "noticed_ms": now, "sealed_ms": "0", "till_ms": "0"}
        for shard in range(self._store.keys.shards):
            await self._write(shard, {**fields, "seen_ms": f"{since_ms}"})

    async def _servers(self, admin: Admin) -> Mapping[Admin, Sequence[int]]:
        """The servers, with the shards that each has."""
        keys = self._store.keys
        if self._store.address.kind != "cluster":
            return {admin: range(keys.shards)}
        servers: dict[Admin, list[int]] = {}
        for shard in range(keys.shards):
            with suppress(StoreError):
                servers.setdefault(await admin.at(keys.shard(shard, "life")), []).append(shard)
        return servers

    async def of(self, shard: int) -> ServerLife:
        """In which life a shard is."""
        key = self._store.keys.shard(shard, "life")
        server = await (await self._store.admin()).for_delivery().at(key)
        pipe = server.client.pipeline(transaction=False)
        pipe.execute_command(_INFO)
        pipe.hgetall(key)
        replies: list[Any] = await server.ask(pipe.execute(raise_on_error=False))
        info, kept = replies
        if isinstance(kept, Exception):
            raise StoreError(f"the store failed: {kept}") from kept
        return _life(_run_id_in(info), kept)

    async def doubt_link(self, customer: str) -> None:
        """Have usage that waits for a link compared first, where it may have been delivered before a restart.

        A backup may be older than the link: what was delivered by that link waits for one once more.
        """
        keys = self._store.keys.customer(customer)
        admin = await self._store.admin()
        life = self._store.keys.shard(keys.shard, "life")
        forgot: bytes | None = await admin.ask(admin.client.hget(life, "forgot"))
        if not forgot or await admin.ask(admin.client.zscore(keys.unlinked, customer)) is None:
            return
        from_ms, till_ms = forgot.decode().split("-")
        now_ms = self._store.now_ms()
        if now_ms <= int(till_ms) + _LONGEST_MS:
            fields = {"known": _DOUBTED, "noticed": "", "noticed_ms": f"{now_ms}", "sealed_ms": "0"}
            await self._write(keys.shard, {**fields, "seen_ms": from_ms, "till_ms": till_ms})

    async def notice(self, shard: int, life: ServerLife, noticed_ms: int, *, is_sealed: bool) -> None:
        """Remember since when the server is in this life, and whether what was pending is sealed now."""
        sealed_ms = f"{self._store.now_ms()}" if is_sealed else "0"
        fields = {"noticed": life.now or "", "noticed_ms": f"{noticed_ms}", "sealed_ms": sealed_ms}
        if life.known != _DOUBTED:
            fields["till_ms"] = "0"
        await self._write(shard, fields)

    async def confirm(self, shard: int, life: ServerLife) -> None:
        """Remember that in this life all of the shard's deliveries are known."""
        fields = {"known": life.now or "", "noticed": "", "seen_ms": f"{self._store.now_ms()}"}
        if life.known and life.seen_ms:
            fields["forgot"] = f"{life.seen_ms}-{life.till_ms or life.noticed_ms}"
        await self._write(shard, fields)

    async def _write(self, shard: int, fields: dict[str, str]) -> None:
        key = self._store.keys.shard(shard, "life")
        admin = (await self._store.admin()).for_delivery()
        await admin.ask(admin.client.hset(key, mapping=fields))


async def _run_id(server: Admin) -> str | None:
    """Names the life of a server; None: it does not say."""
    pipe = server.client.pipeline(transaction=False)
    pipe.execute_command(_INFO)
    (info,) = await server.ask(pipe.execute(raise_on_error=False))
    return _run_id_in(info)


def _run_id_in(info: bytes | Exception) -> str | None:
    match = None if isinstance(info, Exception) else _RUN_ID.search(info)
    return None if match is None else match[1].decode()


def _life(now: str | None, kept: Mapping[bytes, bytes]) -> ServerLife:
    fields = {name.decode(): value.decode() for name, value in kept.items()}
    return ServerLife(
        now=now,
        known=fields.get("known", ""),
        noticed=fields.get("noticed", ""),
        noticed_ms=int(fields.get("noticed_ms", 0)),
        sealed_ms=int(fields.get("sealed_ms", 0)),
        seen_ms=int(fields.get("seen_ms", 0)),
        till_ms=int(fields.get("till_ms", 0)),
        forgot=fields.get("forgot", ""),
    )
