"""redis-py client of a cluster: each command goes to the node that has its key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from redis.commands import AsyncCoreCommands
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - redis-py's
    MovedError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # noqa: A004 - redis-py's
    TryAgainError,
)

from meterkit.cancellation import start_task
from meterkit.errors import StoreError
from meterkit.redis.discovery import redirection_of, slot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from meterkit.redis.discovery import SlotFinder, Slots
    from meterkit.redis.url import HostPort

_TRIES: Final = 16
_TRY_AGAIN_S: Final = 0.02
_WITH_KEYS: Final = frozenset({"EVAL", "EVALSHA"})
# Text of redis-py's errors if it has sent nothing.
_NOT_CONNECTED: Final = " connecting to "
# Errors by which another node has the slots now, or soon will.
_AWAY: Final = (ConnectionError, TimeoutError, ClusterDownError, ReadOnlyError, OSError)

# Redis-py's own client of clusters takes no TLS context, does not wait for a free connection, may send ASKING
# over one connection and the command over another, and wants the right to COMMAND.


class ClusterClient(AsyncCoreCommands):
    """redis-py interface over one client per node; a command without a reply is never sent again.

    Args:
        find: asks where the slots are; gets the nodes to ask first.
        client_of: redis-py's client of one node; the same for the same place.
    """

    _event_dispatcher: Any = None  # Redis-py's own clients have one.

    def __init__(self, find: SlotFinder, client_of: Callable[[HostPort], Any]) -> None:
        self._find = find
        self._client_of = client_of
        self._slots: Slots | None = None
        self._last: Collection[HostPort] = ()
        self._lookup_lock = asyncio.Lock()

    async def places(self) -> tuple[HostPort, ...]:
        """All masters. Raises StoreError where no node answers."""
        return (await self._known_slots()).places

    async def place_of(self, key: str | bytes) -> HostPort:
        """The node that has a key.

        Raises:
            StoreError: no node answers, or none has it.
        """
        slot = slot_of(key)
        place = (await self._known_slots()).of(slot)
        if place is None:
            self._slots = None
            raise StoreError(f"no node of the cluster has slot {slot}", executed=False)
        return place

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command at the node of its key, or at every master if it has none."""
        key = _key_of(args)
        if key is None:
            clients = [self._client_of(place) for place in await self.places()]
            asked = (start_task(client.execute_command(*args, **options)) for client in clients)
            return (await asyncio.gather(*asked))[0]
        return await self._run_redirected(await self.place_of(key), key, _Command(args, options), None)

    def pipeline(self, *, transaction: bool = True) -> _Pipeline:
        """Pipeline of commands; those of a transaction have keys of one shard."""
        return _Pipeline(self, is_transaction=transaction)

    async def run(self, commands: Sequence[_Command], *, raise_on_error: bool) -> list[Any]:
        """Run the commands of a pipeline, those of each node at once; their replies in order."""
        nodes: dict[HostPort, list[int]] = {}
        for number, command in enumerate(commands):
            nodes.setdefault(await self.place_of(_required_key(command)), []).append(number)
        replies: list[Any] = [None] * len(commands)

        async def run_at(place: HostPort, numbers: list[int]) -> None:
            found = await self._run_batch(place, [commands[number] for number in numbers])
            for number, reply in zip(numbers, found, strict=True):
                replies[number] = await self._retry_failed(place, commands[number], reply)

        await asyncio.gather(*(start_task(run_at(place, numbers)) for place, numbers in nodes.items()))
        for reply in replies:
            if raise_on_error and isinstance(reply, Exception):
                raise reply
        return replies

    async def run_transaction(self, commands: Sequence[_Command]) -> list[Any]:
        """Run commands on one shard as a transaction; their replies in order."""
        for _ in range(_TRIES):
            key = _required_key(commands[0])
            place = await self.place_of(key)
            pipe = self._client_of(place).pipeline(transaction=True)
            for args, options in commands:
                pipe.execute_command(*args, **options)
            try:
                replies: list[Any] = await pipe.execute()
            except (AskError, TryAgainError):
                self._slots = None
                await asyncio.sleep(_TRY_AGAIN_S)
            except (RedisError, OSError) as error:
                await self._find_other_node(place, key, error)
            else:
                return replies
        raise _slot_moving_error()

    async def aclose(self, *, close_connection_pool: bool | None = None) -> None:
        """Close nothing: the nodes' clients are closed by their owner."""
        del close_connection_pool

    async def _known_slots(self) -> Slots:
        async with self._lookup_lock:
            if self._slots is None:
                self._slots = await self._find(self._last)
                self._last = self._slots.places
            return self._slots

    async def _run_batch(self, place: HostPort, commands: Sequence[_Command]) -> list[Any]:
        """Run commands at a node; the replies, or their errors."""
        pipe = self._client_of(place).pipeline(transaction=False)
        for args, options in commands:
            pipe.execute_command(*args, **options)
        try:
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            return [error] * len(commands)
        return replies

    async def _retry_failed(self, place: HostPort, command: _Command, reply: Any) -> Any:
        if not isinstance(reply, Exception):
            return reply
        try:
            return await self._run_redirected(place, _required_key(command), command, reply)
        except (RedisError, StoreError, OSError) as failed:  # As pipelines have it.
            return failed

    async def _run_redirected(self, place: HostPort, key: Any, command: _Command, reply: Any) -> Any:
        """Run a command; run it at another node if this one certainly did not execute it."""
        for _ in range(_TRIES):
            if reply is None:
                [reply] = await self._run_batch(place, [command])
            if isinstance(reply, AskError) and not isinstance(reply, MovedError):
                asked = redirection_of(str(reply), place)
                _, reply = await self._run_batch(asked, [_Command(("ASKING",), {}), command])
            if not isinstance(reply, Exception):
                return reply
            if isinstance(reply, MovedError):
                self._slots = None
                place = redirection_of(str(reply), place)
            elif isinstance(reply, AskError | TryAgainError):
                await asyncio.sleep(_TRY_AGAIN_S)
                place = await self.place_of(key)
            else:
                place = await self._find_other_node(place, key, reply)
            reply = None
        raise _slot_moving_error()

    async def _find_other_node(self, place: HostPort, key: Any, error: Exception) -> HostPort:
        """Find the node that has a key's slot now, after a failed connection. Raises any other error."""
        if isinstance(error, _AWAY):
            self._slots = None
        if not (isinstance(error, ConnectionError) and _NOT_CONNECTED in str(error)):
            raise error
        now = await self.place_of(key)
        if now == place:
            raise error
        return now


class _Pipeline(AsyncCoreCommands):
    """Commands that are gathered until they are run."""

    _event_dispatcher: Any = None

    def __init__(self, client: ClusterClient, *, is_transaction: bool) -> None:
        self._client = client
        self._is_transaction = is_transaction
        self._commands: list[_Command] = []

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Keep a command for later."""
        self._commands.append(_Command(args, options))
        return self

    async def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Run all; their replies in order."""
        commands, self._commands = self._commands, []
        if not commands:
            return []
        if self._is_transaction:
            return await self._client.run_transaction(commands)
        return await self._client.run(commands, raise_on_error=raise_on_error)


class _Command(NamedTuple):
    args: tuple[Any, ...]
    options: dict[str, Any]


def _key_of(args: Sequence[Any]) -> Any:
    """The first key of a command of ours; None where it has none."""
    name = args[0]
    if name in _WITH_KEYS:
        return args[3] if int(args[2]) else None
    # Those of two words are about the server.
    return args[1] if len(args) > 1 and " " not in name else None


def _required_key(command: _Command) -> Any:
    key = _key_of(command.args)
    if key is None:
        raise TypeError(f"{command.args[0]} has no key: nothing says which node is meant")
    return key


def _slot_moving_error() -> StoreError:
    return StoreError("a slot of the cluster is being moved; it was not executed", executed=False)
