"""What is wrong where the store is several servers: what sentinels say, and which slots nobody has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.cli.doctor.findings import Finding, named
from meterkit.errors import StoreError
from meterkit.redis.cluster import find, slot_of
from meterkit.redis.sentinel import named_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit import MeterKit

__all__ = ["CHECKS", "no_replica"]


async def _sentinels(kit: MeterKit) -> tuple[str, list[Finding]]:
    address, timeout_s, clock = kit.store.address, kit.settings.store_timeout, kit.store.clock
    said: dict[str, str] = {}
    for place in address.places:
        try:
            said[str(place)] = str(await named_by(place, address, timeout_s=timeout_s, clock=clock))
        except StoreError as error:
            said[str(place)] = f"no master: {error}"
    return ", ".join(sorted(set(said.values()))), _disagreement(said)


async def _slots(kit: MeterKit) -> tuple[str, list[Finding]]:
    keys, timeout_s = kit.store.keys, kit.settings.store_timeout
    slots = await find(kit.store.address, (), timeout_s=timeout_s, clock=kit.store.clock)
    names = [keys.meta, keys.events, *(keys.shard(shard, "") for shard in range(keys.shards))]
    return f"{len(slots.places)} nodes", _uncovered(
        [name for name in names if slots.of(slot_of(name)) is None]
    )


def no_replica() -> list[Finding]:
    """A server that another may take the place of, which does not follow it."""
    return [
        Finding(
            check="replication",
            problem="no replica follows the server, and another one may take its place that lacks what is"
            " sent: with a live Stripe key nothing is delivered from there",
            cure="start its replica again",
        )
    ]


def _disagreement(said: Mapping[str, str]) -> list[Finding]:
    """What the sentinels name, by their places."""
    masters = list(said.values())
    most = max(masters, key=masters.count)
    return [
        Finding(
            check="sentinels",
            problem=f"the sentinel at {place} names {master}"
            + ("" if master == most else f", most others {most}"),
            cure="see that it runs, and that it reaches the others",
        )
        for place, master in said.items()
        if master != most or master.startswith("no master")
    ]


def _uncovered(nobodys: Sequence[str]) -> list[Finding]:
    """Keys whose slots no node of the cluster has."""
    if not nobodys:
        return []
    return [
        Finding(
            check="slots",
            problem=f"no node has the slots of {named(nobodys)}: what is asked of them is refused",
            cure="redis-cli --cluster fix, or start the node that had them",
        )
    ]


CHECKS: Final[Mapping[str, Mapping[str, Callable[[MeterKit], Awaitable[tuple[str, list[Finding]]]]]]] = {
    "sentinel": {"sentinels": _sentinels},
    "cluster": {"slots": _slots},
}
"""By the kind of the store's address, what is looked at besides."""
