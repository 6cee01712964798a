"""How the servers of the store keep what they are told: by a file, by replicas, or not at all."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from redis.exceptions import ResponseError

from meterkit.errors import StoreError
from meterkit.redis.durability import Keeping
from meterkit.redis.server import Durability, following

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

__all__ = ["StoreDurability", "read_keeping"]


class StoreDurability(NamedTuple):
    """How what is told is kept.

    Attributes:
        ways: how deliveries are made durable, to how many servers do it so.
        replicas: that follow, of the server with the fewest; None: the user of one may not ask.
    """

    ways: Mapping[Durability, int]
    replicas: int | None


async def read_keeping(store: Store) -> StoreDurability:
    """Ask each server; nothing is logged.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    servers = [admin] if store.address.kind == "memory" else await admin.servers()
    ways, replicas = Counter[Durability](), list[int | None]()
    for server in servers:
        keeping = Keeping(server, server.address, needed=False, kind=store.address.kind, tells=False)
        ways[await _way(keeping)] += 1
        replicas.append(await _replicas(server) if store.address.kind != "memory" else 0)
    known = [number for number in replicas if number is not None]
    return StoreDurability(ways, min(known) if len(known) == len(replicas) else None)


async def _way(keeping: Keeping) -> Durability:
    try:
        return await keeping.way()
    except StoreError as error:
        if error.executed is not False:
            raise
        return "none"  # It has answered, and is told never to see to its disk.


async def _replicas(server: Admin) -> int | None:
    """How many replicas follow a server; None: its user may not ask."""
    try:
        told: Mapping[str, Any] = await server.ask(server.client.info("replication"))
    except StoreError as error:
        if isinstance(error.__cause__, ResponseError):
            return None
        raise
    return following({name: _line(value) for name, value in told.items()})


def _line(value: object) -> str:
    """A value of INFO as the server wrote it, of which redis-py has made a dictionary."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return ",".join(f"{name}={field}" for name, field in fields.items())
    return str(value)
