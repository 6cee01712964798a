"""Clients of ``memory://`` that execute a command at once, without the streams of redis-py."""

from __future__ import annotations

from typing import Any

import fakeredis
from redis.exceptions import RedisError


class DirectConnection:
    """A connection to a server of fakeredis, without requests and replies in bytes."""

    def __init__(self, server: Any) -> None:
        client: Any = fakeredis.FakeRedis(server=server, version=(7, 0))
        self._connection = client.connection_pool.get_connection()
        self._socket: Any = self._connection._sock

    def execute_command(self, *parts: Any) -> Any:
        """Execute one command. Raises what redis-py raises where the server refuses it."""
        self._socket._process_command([_encoded(part) for part in parts])
        reply = self._socket.responses.get_nowait()
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def close(self) -> None:
        """There is nothing to close."""


class DirectClient(fakeredis.FakeAsyncRedis):
    """A client of redis-py's whose commands a :class:`DirectConnection` executes."""

    def __init__(self, *, server: Any) -> None:
        inherited: Any = super()
        inherited.__init__(server=server, version=(7, 0))
        self._direct = DirectConnection(server)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute one command."""
        return self._execute(args, options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        """Several commands, which are executed one after the other."""
        inherited: Any = super()
        pipeline = inherited.pipeline(*args, **options)

        async def execute(*, raise_on_error: bool = True) -> list[Any]:
            stack, pipeline.command_stack = pipeline.command_stack, []
            replies = [self._reply(*command) for command in stack]
            if raise_on_error and (errors := [reply for reply in replies if isinstance(reply, RedisError)]):
                raise errors[0]
            return replies

        pipeline.execute = execute
        return pipeline

    def _reply(self, parts: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The reply to a command, or the error."""
        try:
            return self._execute(parts, options)
        except RedisError as error:
            return error

    def _execute(self, parts: tuple[Any, ...], options: dict[str, Any]) -> Any:
        name = parts[0]
        reply = self._direct.execute_command(*name.split(), *parts[1:])
        options.pop("keys", None)
        callback: Any = self.response_callbacks.get(name)
        return reply if callback is None else callback(reply, **options)


def _encoded(part: Any) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()
