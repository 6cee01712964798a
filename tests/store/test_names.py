"""Names of the store's host: a resolver that hangs costs the app nothing, and is asked once at a time."""

# Internals: how often a name is looked up shows nowhere else.

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest

from faults.refusals import eventually, kit_at
from meterkit.errors import StoreError
from meterkit.redis.handshake import connect
from meterkit.redis.url import Address
from servers.stores import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.redis.connection import Connection

pytestmark = pytest.mark.anyio

NAME = "localhost"
ASK: Final = socket.getaddrinfo


class Resolver:
    """The system's, but for one name: of that nothing is heard until it is let go.

    Attributes:
        addresses: what the name leads to.
        answers: whether it is let go.
        asked: how often that was asked.
    """

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1"]
        self.answers = threading.Event()
        self.asked = 0

    def getaddrinfo(self, host: Any, *arguments: Any, **named: Any) -> Any:
        if host != NAME:
            return ASK(host, *arguments, **named)
        self.asked += 1
        self.answers.wait(30)
        return [found for address in self.addresses for found in ASK(address, *arguments, **named)]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.answers.set()


async def connected(port: int | None) -> Connection:
    address = Address(kind="tcp", host=NAME, port=port or 0)
    return await connect(address, (), timeout_s=10, on_end=lambda _connection, _why, _unsent: None)


@pytest.mark.each_loop
async def test_i9_a_hung_resolver_takes_no_thread_from_the_app(store_url: str, resolver: Resolver) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    url = f"redis://{NAME}:{urlsplit(store_url).port}/0"
    async with kit_at(url, store_timeout=0.25, start_timeout=1) as kit:
        admin = await kit.store.admin()
        with pytest.raises(StoreError, match="cannot be reached: no answer within"):
            await kit.consume("acme", "requests", 1)
        with pytest.raises(StoreError, match="Timeout connecting"):
            await admin.ask(admin.client.ping())
        async with asyncio.timeout(240):
            assert await asyncio.to_thread(lambda: "free") == "free"
        assert resolver.asked == 1
        resolver.answers.set()
        await eventually(lambda: kit.store.lanes[asyncio.get_running_loop()].connected)
        assert (await kit.consume("acme", "requests", 1)).allowed
        assert await admin.client.ping()


@pytest.mark.each_loop
async def test_the_addresses_of_a_name_are_tried_in_turn(store_url: str, resolver: Resolver) -> None:
    resolver.addresses = ["127.0.0.77", "127.0.0.1"]
    resolver.answers.set()
    connection = await connected(urlsplit(store_url).port)
    assert b"PONG" == await connection.ask("PING")
    await connection.close()
    with pytest.raises(StoreError, match=f"{NAME}:.* cannot be reached: Connection refused$"):
        await connected(free_port())
