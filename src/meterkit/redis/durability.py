"""Durability check: is a write persisted before usage is sent that must not be sent twice?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.redis.admin import Admin
    from meterkit.redis.url import Address

Durability = Literal["WAITAOF", "WAIT", "WAITAOF and WAIT", "age", "none"]
"""Method by which a write is persisted: wait for the disk, for a replica, or for both; wait until the write
is old enough; or none."""
DURABILITIES: Final[tuple[Durability, ...]] = get_args(Durability)
SURELY_ON_DISK_MS: Final = 2_000
"""Age from which a write counts as persisted: servers sync their file every second."""

_WAIT_MS: Final = 5_000
_ANSWER_MS: Final = 1_000


def durability_of(*, waits_for_disk: bool, has_file: bool | None, replicas: int | None) -> Durability:
    """Choose the method by which a server persists a write.

    Args:
        waits_for_disk: whether it knows when its append-only file has something (``WAITAOF``).
        has_file: whether it writes an append-only file; None: it does not say.
        replicas: how many copies of it there are; None: it does not say.
    """
    if replicas:
        return "WAITAOF and WAIT" if waits_for_disk else "WAIT"
    if waits_for_disk:
        return "WAITAOF"
    return "none" if has_file is False else "age"


@dataclass(frozen=True, slots=True)
class DurabilityCheck:
    """Check of the store's durability.

    Attributes:
        admin: client of the server.
        address: address of the server.
        needed: whether delivery is refused from a store without persistence.
        kind: kind of the store's address: with ``sentinel`` or ``cluster`` another server may take over.
        logs_warnings: whether dangers to the data are logged.
    """

    admin: Admin
    address: Address
    needed: bool
    kind: str = "tcp"
    logs_warnings: bool = True

    async def find_method(self) -> Durability:
        """Find the method by which the server persists a write.

        Raises:
            StoreError: the store has no persistence, and delivery needs it; or it did not answer.
        """
        if self.address.kind == "memory":
            return "none"
        disk, persistence, replication = await self._answers(
            ("WAITAOF", 1, 0, 1), ("INFO", "persistence"), ("INFO", "replication")
        )
        waits_for_disk = not isinstance(disk, Exception)
        has_file = waits_for_disk or _has_file(disk, persistence)
        replicas = _number(replication, "connected_slaves")
        if replicas is None and (self.kind == "sentinel" or not has_file):
            # Its user may not ask for their number: WAIT returns how many have all writes.
            [answer] = await self._answers(("WAIT", 1, _ANSWER_MS))
            replicas = None if isinstance(answer, Exception) else int(answer)
        if not replicas and await self.has_successor():
            self._report_no_replica()
        method = durability_of(waits_for_disk=waits_for_disk, has_file=has_file, replicas=replicas)
        if method == "none":
            self._report_no_persistence()
        elif method == "age":
            if has_file is None:
                self._warn_once(
                    f"the store at {self.address} does not let its user ask whether it persists writes"
                    " (WAITAOF, INFO): what is delivered waits two seconds instead; give the user +waitaof"
                    " +wait +info"
                )
            await self._check_sync()
        return method

    async def has_successor(self) -> bool:
        """Whether a server that lacks this one's latest writes may take its place.

        Raises:
            StoreError: the store did not answer.
        """
        if self.kind != "cluster":
            return self.kind == "sentinel"
        [nodes] = await self._answers(("CLUSTER", "NODES"))
        if isinstance(nodes, Exception):
            return False  # Its user may not ask; its replicas are known.
        lines = [line.split() for line in _text(nodes).splitlines()]
        own = next((line[0] for line in lines if "myself" in line[2]), "")
        # A replica that the masters consider failed does not take over.
        return any(line[3] == own and "fail" not in line[2].split(",") for line in lines if own)

    def commands(self, method: Durability) -> Sequence[tuple[str | int, ...]]:
        """Commands to send after the writes, on the same connection."""
        disk: tuple[str | int, ...] = ("WAITAOF", 1, 0, _WAIT_MS)
        # One replica is enough: the one that takes over is the one that has most.
        replica: tuple[str | int, ...] = ("WAIT", 1, _WAIT_MS)
        return {"WAITAOF": [disk], "WAIT": [replica], "WAITAOF and WAIT": [disk, replica]}.get(method, [])

    async def check(self, reply: Any) -> None:
        """Check the reply to one of those commands: are the writes persisted?

        Raises:
            StoreError: they were not persisted in time, or the reply is an error.
        """
        if isinstance(reply, Exception):
            raise StoreError(f"the store at {self.address} failed: {reply}") from reply
        if (reply[0] if isinstance(reply, list) else reply) >= 1:
            return
        if isinstance(reply, list):
            await self._check_sync()
        raise StoreError(
            f"the store at {self.address} did not make a lease durable within {_WAIT_MS / 1000:g} s;"
            " nothing is sent before it does"
        )

    def _report_no_replica(self) -> None:
        where = (
            f"the store at {self.address} has no replica that follows it now, and another server may take its"
            " place that lacks what is sent"
        )
        if self.needed:
            raise StoreError(
                f"{where}: nothing is delivered from there until a replica follows. Where a double bill does"
                " not matter, METERKIT_DELIVER_WITHOUT_PERSISTENCE=on",
                executed=False,
            )
        self._warn_once(f"{where} and deliver it again; with a live Stripe key nothing would be delivered")

    def _warn_once(self, message: str) -> None:
        if self.logs_warnings:
            self.admin.warn_once(message)

    async def _answers(self, *commands: tuple[str | int, ...]) -> list[Any]:
        """Run commands in one pipeline; an error is a reply, too."""
        client = self.admin.client
        pipe = client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        answers: list[Any] = await self.admin.ask(pipe.execute(raise_on_error=False))
        return answers

    def _report_no_persistence(self) -> None:
        where = (
            f"the store at {self.address} keeps nothing: it has neither an append-only file nor a replica,"
        )
        if self.needed:
            raise StoreError(
                f"{where} and what a restart makes it forget would be billed twice; nothing is delivered from"
                " there. Set appendonly yes, or, where it is kept in another way or a double bill does not"
                " matter, METERKIT_DELIVER_WITHOUT_PERSISTENCE=on",
                executed=False,
            )
        self._warn_once(
            f"{where} and if it restarts, what was delivered is forgotten and may be delivered again; set"
            " appendonly yes before it bills real customers"
        )

    async def _check_sync(self) -> None:
        """Name the cause if the server is configured never to save to disk."""
        # Hosted servers, and users without the right, refuse the command.
        [found] = await self._answers(("CONFIG GET", "appendfsync"))
        if not isinstance(found, Exception) and found.get("appendfsync") == "no":
            raise StoreError(
                f"the store at {self.address} has appendfsync no: it never knows what is on its disk, so"
                " nothing is sent; set appendfsync everysec",
                executed=False,
            )


def _has_file(disk: Exception, persistence: Any) -> bool | None:
    """Whether the server writes an append-only file, by its refusal of WAITAOF and by INFO; None: unknown."""
    enabled = _number(persistence, "aof_enabled")
    if enabled is not None:
        return bool(enabled)
    # Error of servers with WAITAOF and without a file: "… but appendonly is disabled".
    return False if "appendonly" in str(disk) else None


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _number(info: Any, name: str) -> int | None:
    return None if isinstance(info, Exception) else int(info.get(name, 0))
