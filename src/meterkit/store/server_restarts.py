"""Restart detection for the servers of a store: a restarted one may have forgotten deliveries."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

_SEEN_EVERY_MS: Final = 60_000
_DOUBTED: Final = "doubted"
_TIMES: Final = ("noticed_ms", "sealed_ms", "seen_ms", "till_ms")
# In one word redis-py does not make a mapping of the whole reply, which cost half of an idle pass.
_INFO: Final = "INFO server"
_INFO_REPLICATION: Final = "INFO replication"
_IS_MASTER: Final = re.compile(rb"^role:master", re.MULTILINE)
_RUN_ID: Final = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_WAIT_MAX_MS: Final = 70 * 86_400_000  # Usage waits for a link at most a month and 35 days.


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLife:
    """Life of a shard's server, from one start to the next, by its ``run_id``.

    Attributes:
        now: current ``run_id``; None: the server does not tell it.
        known: ``run_id`` in which all deliveries of the shard are known; empty: no delivery yet.
        noticed: another ``run_id``, noticed since; empty: none.
        noticed_ms: time at which that was noticed first.
        sealed_ms: time at which all usage pending then was sealed; 0: not possible.
        seen_ms: last delivery from the shard in its known life, to the minute; 0: unknown.
        till_ms: end of the span of forgotten deliveries, if it is not ``noticed_ms``; otherwise 0.
        forgot: start and end of that span (ms) at the last compared restart; empty: there was none.
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
        """Whether the server has not restarted since the last delivery, as far as it tells."""
        return self.now == self.known or (self.now is None and self.known != _DOUBTED)

    @property
    def is_noticed(self) -> bool:
        """Whether the current life was noticed, as far as the server tells it."""
        return self.noticed == (self.now or "")


class ServerLives:
    """Lives of the servers of a store's shards, for delivery.

    Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._checked: dict[Admin, tuple[int, int]] = {}  # Number of connections, and time of the check (ms).

    async def begin(self) -> None:
        """Store the current life of each shard in a new store."""
        admin, keys = (await self._store.admin()).for_delivery(), self._store.keys
        for server, shards in (await self._map_servers(admin)).items():
            now = await _fetch_run_id(server)
            if now is not None:
                # A shard whose key is damaged reports that itself.
                await server.ask_each(("hsetnx", keys.shard(shard, "life"), "known", now) for shard in shards)

    async def find_unnoticed(self, admin: Admin) -> Mapping[int, ServerLife]:
        """Find the shards whose server is in a life that was not noticed yet.

        A server is asked after each new connection, which a restart makes necessary, and once a minute. If
        all its shards know the life, each stores the time before anything is sent: so a backup tells which
        deliveries it may lack.
        """
        found: dict[int, ServerLife] = {}
        for server, shards in (await self._map_servers(admin)).items():
            # A node that is down does not delay the others; its shards report the error.
            with suppress(StoreError):
                found |= await self._find_at_server(server, shards)
        return found

    async def _find_at_server(self, server: Admin, shards: Sequence[int]) -> Mapping[int, ServerLife]:
        connected, now_ms = server.connected, self._store.now_ms()
        after, checked_ms = self._checked.get(server, (-1, 0))
        if after == connected and 0 <= now_ms - checked_ms < _SEEN_EVERY_MS:
            return {}
        now = await _fetch_run_id(server)
        unnoticed: Mapping[int, ServerLife] = (
            {} if now is None else await self._compare_shards(now, now_ms, server, shards)
        )
        if not unnoticed:
            self._checked[server] = connected, now_ms
        return unnoticed

    async def _compare_shards(
        self, now: str, now_ms: int, server: Admin, shards: Sequence[int]
    ) -> Mapping[int, ServerLife]:
        keys = self._store.keys
        found = await server.ask_each(("hgetall", keys.shard(shard, "life")) for shard in shards)
        replies = zip(shards, found, strict=True)
        lives = {shard: _parse_life(now, kept) for shard, kept in replies if not isinstance(kept, Exception)}
        unnoticed = {
            shard: life
            for shard, life in lives.items()
            if life.known and now not in {life.known, life.noticed}
        }
        for shard in await self._follow_moves(unnoticed):
            del unnoticed[shard]
        if not unnoticed:
            current = [keys.shard(shard, "life") for shard, life in lives.items() if life.known == now]
            await server.ask_all(("hset", key, "seen_ms", f"{now_ms}") for key in current)
        return unnoticed

    async def _follow_moves(self, lives: Mapping[int, ServerLife]) -> Sequence[int]:
        """Confirm the lives of shards whose slots have moved from another living master; return these shards.

        A slot moves with all its keys. After a failover the former master is gone, or is a replica.
        """
        if not lives or self._store.address.kind != "cluster":
            return []
        masters = set[str | None]()
        for server in await (await self._store.admin()).servers():
            with suppress(StoreError):  # One that is down is not living on.
                masters.add(await _fetch_run_id(server, of_master=True))
        moved = [shard for shard, life in lives.items() if life.known in masters]
        for shard in moved:
            await self._write_fields(shard, {"known": lives[shard].now or "", "noticed": ""})
        return moved

    async def mark_doubted(self, since_ms: int) -> None:
        """Mark all waiting usage for comparison with Stripe, as after restoring a backup of that time."""
        now = f"{self._store.now_ms()}"
        fields = {"known": _DOUBTED, "noticed": "", "noticed_ms": now, "sealed_ms": "0", "till_ms": "0"}
        for shard in range(self._store.keys.shards):
            await self._write_fields(shard, {**fields, "seen_ms": f"{since_ms}"})

    async def _map_servers(self, admin: Admin) -> Mapping[Admin, Sequence[int]]:
        """Servers with their shards."""
        keys = self._store.keys
        if self._store.address.kind != "cluster":
            return {admin: range(keys.shards)}
        servers: dict[Admin, list[int]] = {}
        for shard in range(keys.shards):
            with suppress(StoreError):
                servers.setdefault(await admin.at(keys.shard(shard, "life")), []).append(shard)
        return servers

    async def read_life(self, shard: int) -> ServerLife:
        """Life of a shard's server."""
        key = self._store.keys.shard(shard, "life")
        server = await (await self._store.admin()).for_delivery().at(key)
        pipe = server.client.pipeline(transaction=False)
        pipe.execute_command(_INFO)
        pipe.hgetall(key)
        replies: list[Any] = await server.ask(pipe.execute(raise_on_error=False))
        info, kept = replies
        if isinstance(kept, Exception):
            raise StoreError(f"the store failed: {kept}") from kept
        life = _parse_life(_parse_run_id(info), kept)
        if life.known and not (life.is_known or life.is_noticed) and await self._follow_moves({shard: life}):
            life = replace(life, known=life.now or "")
        return life

    async def mark_link_doubted(self, customer: str) -> None:
        """Mark usage waiting for a link for comparison, if it may have been delivered before a restart.

        A backup may be older than the link: then usage delivered by that link waits for a link again.
        """
        keys = self._store.keys.customer(customer)
        admin = await self._store.admin()
        life = self._store.keys.shard(keys.shard, "life")
        forgot: bytes | None = await admin.ask(admin.client.hget(life, "forgot"))
        if not forgot or await admin.ask(admin.client.zscore(keys.unlinked, customer)) is None:
            return
        from_ms, till_ms = forgot.decode().split("-")
        now_ms = self._store.now_ms()
        if now_ms <= int(till_ms) + _WAIT_MAX_MS:
            fields = {"known": _DOUBTED, "noticed": "", "noticed_ms": f"{now_ms}", "sealed_ms": "0"}
            await self._write_fields(keys.shard, {**fields, "seen_ms": from_ms, "till_ms": till_ms})

    async def record_noticed(self, shard: int, life: ServerLife, noticed_ms: int, *, is_sealed: bool) -> None:
        """Store the time at which a life was noticed, and whether pending usage is sealed now."""
        sealed_ms = f"{self._store.now_ms()}" if is_sealed else "0"
        fields = {"noticed": life.now or "", "noticed_ms": f"{noticed_ms}", "sealed_ms": sealed_ms}
        if life.known != _DOUBTED:
            fields["till_ms"] = "0"
        await self._write_fields(shard, fields)

    async def confirm(self, shard: int, life: ServerLife) -> None:
        """Store that all deliveries of a shard are known in this life."""
        fields = {"known": life.now or "", "noticed": "", "seen_ms": f"{self._store.now_ms()}"}
        fields["till_ms"] = "0"
        if life.known and life.seen_ms:
            fields["forgot"] = f"{life.seen_ms}-{life.till_ms or life.noticed_ms}"
        await self._write_fields(shard, fields)

    async def _write_fields(self, shard: int, fields: dict[str, str]) -> None:
        key = self._store.keys.shard(shard, "life")
        admin = (await self._store.admin()).for_delivery()
        await admin.ask(admin.client.hset(key, mapping=fields))


async def _fetch_run_id(server: Admin, *, of_master: bool = False) -> str | None:
    """Fetch the ``run_id`` of a server; None: it does not tell it, or, with ``of_master``, is a replica."""
    pipe = server.client.pipeline(transaction=False)
    pipe.execute_command(_INFO)
    pipe.execute_command(_INFO_REPLICATION)
    info, replication = await server.ask(pipe.execute(raise_on_error=False))
    is_master = isinstance(replication, bytes) and _IS_MASTER.search(replication) is not None
    return _parse_run_id(info) if is_master or not of_master else None


def _parse_run_id(info: bytes | Exception) -> str | None:
    match = None if isinstance(info, Exception) else _RUN_ID.search(info)
    return None if match is None else match[1].decode()


def _parse_life(now: str | None, kept: Mapping[bytes, bytes]) -> ServerLife:
    """Parse the stored life. Where a time cannot be read, all waiting usage is compared with Stripe."""
    fields = {name.decode(): value.decode("utf-8", "replace") for name, value in kept.items()}
    times_ms, damaged = dict.fromkeys(_TIMES, 0), set[str]()
    for name in _TIMES:
        try:
            times_ms[name] = int(fields.get(name, 0))
        except ValueError:
            damaged.add(name)
    return ServerLife(
        now=now,
        known=_DOUBTED if damaged else fields.get("known", ""),
        noticed="" if damaged & {"noticed_ms", "sealed_ms"} else fields.get("noticed", ""),
        forgot=fields.get("forgot", ""),
        **times_ms,
    )
