"""In which life of its server a shard is: one that has begun anew may have forgotten what was delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

__all__ = ["ServerLife", "ServerLives"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLife:
    """What a shard and its server say.

    Attributes:
        now: the server's ``run_id``, which is another one after each start, and each other server's; None: it
            does not say.
        known: that in which all of the shard's deliveries are known; empty: none was made yet.
        noticed: another one that was met since; empty: none.
        noticed_ms: when that was met first.
    """

    now: str | None
    known: str = ""
    noticed: str = ""
    noticed_ms: int = 0

    @property
    def is_known(self) -> bool:
        """Whether the shard is where it was when it was delivered from last, as far as anybody can tell."""
        return self.now is None or self.now == self.known


class ServerLives:
    """The lives of the servers that have a store's shards, for delivery.

    Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(self) -> None:
        """Have each shard of a new store remember the life that it begins in."""
        keys, admin = self._store.keys, (await self._store.admin()).for_delivery()
        groups: dict[Admin, list[str]] = {}
        for shard in range(keys.shards):
            key = keys.shard(shard, "life")
            groups.setdefault(await admin.at(key), []).append(key)
        for server, names in groups.items():
            pipe = server.client.pipeline(transaction=False)
            pipe.execute_command("INFO", "server")
            replies: list[Any] = await server.ask(pipe.execute(raise_on_error=False))
            info = replies[0]
            now = None if isinstance(info, Exception) else info.get("run_id")
            if now is not None:
                pipe = server.client.pipeline(transaction=False)
                for name in names:
                    pipe.hsetnx(name, "known", now)
                await server.ask(pipe.execute())

    async def of(self, shard: int) -> ServerLife:
        """In which life a shard is."""
        key = self._store.keys.shard(shard, "life")
        server = await (await self._store.admin()).for_delivery().at(key)
        pipe = server.client.pipeline(transaction=False)
        pipe.execute_command("INFO", "server")
        pipe.hgetall(key)
        replies: list[Any] = await server.ask(pipe.execute(raise_on_error=False))
        info, kept = replies
        if isinstance(kept, Exception):
            raise StoreError(f"the store failed: {kept}") from kept
        now = None if isinstance(info, Exception) else info.get("run_id")
        fields = {name.decode(): value.decode() for name, value in kept.items()}
        return ServerLife(
            now=now,
            known=fields.get("known", ""),
            noticed=fields.get("noticed", ""),
            noticed_ms=int(fields.get("noticed_ms", 0)),
        )

    async def notice(self, shard: int, life: ServerLife) -> None:
        """Remember since when the server is in this life."""
        await self._write(shard, {"noticed": life.now or "", "noticed_ms": f"{self._store.now_ms()}"})

    async def confirm(self, shard: int, life: ServerLife) -> None:
        """Remember that in this life all of the shard's deliveries are known."""
        await self._write(shard, {"known": life.now or "", "noticed": ""})

    async def _write(self, shard: int, fields: dict[str, str]) -> None:
        key = self._store.keys.shard(shard, "life")
        admin = (await self._store.admin()).for_delivery()
        await admin.ask(admin.client.hset(key, mapping=fields))
