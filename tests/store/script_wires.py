"""How a packed request reaches a script: over a socket, or within the process."""

from __future__ import annotations

import socket
import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import fakeredis
import hiredis
from redis.exceptions import ResponseError

from drivers.lua_runtime import compile_once
from meterkit.redis import scripts
from meterkit.redis.connection import pack, unpack
from servers.stores import Server

NAMES: Final = (
    "decide",
    "settle",
    "fence_producer",
    "amend_state",
    "read_usage",
    "add_grant",
    "void_grants",
    "set_level",
    "record_objects",
    "hold_upload",
    "allot_requests",
)
_LATE: Final = (1_763_625_600, 999_999)
CLOCK: Final = {(0, 0): 0, (1, 0): 1000, (0, 999): 0, (0, 1000): 1, (0, 1001): 1, _LATE: 1_763_625_600_999}
"""What the server's TIME says, seconds and microseconds, and the milliseconds that it comes to."""


class Wire(Protocol):
    """Executes packed requests in one round trip; an error reply is returned, not raised.

    Returns the reply of a single request, and the list of replies of several.
    """

    def __call__(self, *requests: bytes) -> Any: ...


@contextmanager
def server_wire(server: Server) -> Generator[Wire]:
    with socket.create_connection(("127.0.0.1", server.port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.settimeout(120)
        reader = hiredis.Reader(replyError=RuntimeError)

        def next_reply() -> Any:
            while (reply := reader.gets()) is False:
                reader.feed(link.recv(65536))
            return reply

        def execute(*requests: bytes) -> Any:
            link.sendall(b"".join(requests))
            found = [read_reply(request, next_reply()) for request in requests]
            return found[0] if len(requests) == 1 else found

        yield execute


def fake_wire() -> Wire:
    server = fakeredis.FakeServer()
    compile_once(server)
    client: Any = fakeredis.FakeRedis(server=server, version=(7, 0))

    def execute(*requests: bytes) -> Any:
        if len(requests) == 1:
            return execute_one(requests[0])
        return [execute_one(request) for request in requests]

    def execute_one(request: bytes) -> Any:
        parts = unpack(request)
        try:
            if parts[0] in {b"HGETALL", b"ZRANGE"}:  # redis-py would make dictionaries of these.
                return client.eval("return redis.call(unpack(ARGV))", 0, *parts)
            return read_reply(request, client.execute_command(*parts))
        except ResponseError as error:
            return RuntimeError(str(error))

    return execute


def read_reply(request: bytes, reply: Any) -> Any:
    """The reply as a list, where a script has a shorter one: an allowed request, and a settlement."""
    if not request.partition(b"\r\n$7\r\n")[2].startswith(b"EVALSHA"):
        return reply
    if isinstance(reply, bytes) and len(reply) >= 5 * 8:
        return list(struct.unpack(f"<{len(reply) // 8}q", reply))
    is_clock = isinstance(reply, int) and reply > 10**12
    return [0, reply] if is_clock else reply


def load_texts(dialect: scripts.Dialect = "server", names: Sequence[str] = NAMES) -> dict[str, str]:
    """Scripts under a clock that is set."""
    return {name: scripts.load(name, clock="caller", dialect=dialect).text for name in names}


def clock_answers(wire: Wire, wall: str) -> dict[tuple[int, int], Any]:
    """What the scripts take the times of :data:`CLOCK` for; `wall` is the text that reads the server's."""
    server = "local redis = {call = function() return {ARGV[1], ARGV[2]} end}"
    return {time: wire(pack("EVAL", f"{server}\n{wall}\nreturn server_ms()", 0, *time)) for time in CLOCK}
