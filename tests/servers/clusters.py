"""Several real servers for tests: a cluster, and a master with replicas that sentinels watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from meterkit.redis.discovery import slot_of
from servers.stores import Server, free_port, spawn_sentinel, spawn_server

_READY_S: Final = 120.0
_SLOTS: Final = 16_384
_PAGE: Final = 100
SERVICE: Final = "mk"


@dataclass(slots=True, kw_only=True)
class Cluster:
    """Nodes of a cluster; each master has an equal part of the slots at first."""

    masters: list[Server]
    replicas: list[Server]

    @property
    def nodes(self) -> list[Server]:
        return [*self.masters, *self.replicas]

    @property
    def living(self) -> list[Server]:
        return [node for node in self.nodes if node.process.poll() is None]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.masters)

    def owner(self, key: str) -> Server:
        port = _owner_port(self.living[0], slot_of(key))
        return next(node for node in self.nodes if node.port == port)

    def _agrees_on(self, slot: int, owner: Server) -> bool:
        """Whether all nodes that live know the owner of a slot; for a while after a move some do not."""
        return all(_owner_port(node, slot) == owner.port for node in self.living)

    def each(self, *words: str | int) -> list[Any]:
        return [node.command(*words) for node in self.masters if node.process.poll() is None]

    def empty(self) -> None:
        for node in self.living:
            if node.command("ROLE")[0] == "master":
                node.command("FLUSHALL")

    @contextmanager
    def moving(self, key: str, to: Server) -> Generator[Callable[[], int]]:
        """Move a key's slot to another node by hand, as redis-cli does; what it gives moves a page of keys.

        At the end the rest is moved, and all masters that live are told.
        """
        slot, source = slot_of(key), self.owner(key)
        _wait(lambda: self._agrees_on(slot, source))
        ids = {server.port: server.command("CLUSTER", "MYID") for server in (source, to)}
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to.port])

        def move() -> int:
            names = source.command("CLUSTER", "GETKEYSINSLOT", slot, _PAGE)
            if names:
                source.command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *names)
            return len(names)

        yield move
        while move():
            pass
        for node in (to, source, *self.masters):
            if node.process.poll() is None:
                node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[to.port])

    @contextmanager
    def joined(self, *args: str) -> Generator[Server]:
        """A further master without slots, for as long as the block runs; at the end all others forget it.

        Its slots must be elsewhere by then.
        """
        # Else it would follow the node that takes its last slot.
        options = ("--cluster-enabled", "yes", "--cluster-allow-replica-migration", "no", *args)
        with spawn_server(*options, "--cluster-port", str(free_port())) as node:
            first = self.masters[0]
            bus = node.command("CONFIG", "GET", "cluster-port")["cluster-port"]
            first.command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            name = node.command("CLUSTER", "MYID")
            _wait(lambda: all(_knows(other, name) for other in self.living))
            _wait(lambda: _info(node)["cluster_state"] == "ok")
            self.masters.append(node)
            try:
                yield node
            finally:
                self.masters.remove(node)
                for other in self.living:
                    other.command("CLUSTER", "FORGET", name)

    def move(self, key: str, to: Server) -> None:
        with self.moving(key, to):
            pass


@contextmanager
def spawn_cluster(
    *args: str, masters: int = 3, replicas: bool = False, node_timeout_ms: int = 30_000
) -> Generator[Cluster]:
    """Start a cluster, and wait until it takes writes: two seconds.

    ``node_timeout_ms``: after how long a node counts as failed; short where one is to fail, as a busy machine
    may keep a healthy one silent for a second.
    """
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms), *args)
        servers = [
            stack.enter_context(spawn_server(*options, "--cluster-port", str(free_port())))
            for _ in range(2 * masters if replicas else masters)
        ]
        cluster = Cluster(masters=servers[:masters], replicas=servers[masters:])
        for number, node in enumerate(cluster.masters):
            begin, end = number * _SLOTS // masters, (number + 1) * _SLOTS // masters
            node.command("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for number, node in enumerate(servers):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first = servers[0]
        for node in servers[1:]:
            bus = node.command("CONFIG", "GET", "cluster-port")["cluster-port"]
            first.command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        _wait(lambda: all(_info(node)["cluster_known_nodes"] == str(len(servers)) for node in servers))
        for master, replica in zip(cluster.masters, cluster.replicas, strict=False):
            name = master.command("CLUSTER", "MYID")
            _wait(partial(_knows, replica, name))
            replica.command("CLUSTER", "REPLICATE", name)
        _wait(lambda: all(_info(node)["cluster_state"] == "ok" for node in servers))
        _wait(lambda: all(_follows(replica) for replica in cluster.replicas))
        yield cluster


@dataclass(slots=True, kw_only=True)
class Watched:
    """A master and its replica, in this order at first, and the sentinels that watch them."""

    servers: list[Server]
    sentinels: list[Server]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    @property
    def master(self) -> Server:
        """The server that most sentinels name."""
        named = [
            sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) for sentinel in self.sentinels
        ]
        ports = [int(place[1]) for place in named]
        port = max(ports, key=ports.count)
        return next(server for server in self.servers if server.port == port)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        _wait(condition)


@contextmanager
def spawn_watched(
    *args: str, sentinels: int = 3, password: str | None = None, down_after_ms: int = 30_000
) -> Generator[Watched]:
    """Start a master, a replica and sentinels that know each other: two seconds.

    ``password`` is what sentinels ask of their clients.
    """
    with TemporaryDirectory(prefix="mk-") as folder, ExitStack() as stack:
        master = stack.enter_context(spawn_server(*args))
        following = ("--replicaof", f"127.0.0.1 {master.port}")
        replica = stack.enter_context(spawn_server(*args, *following))
        _wait(lambda: _follows(replica))
        options: dict[str, Any] = {"service": SERVICE, "password": password, "down_after_ms": down_after_ms}
        watching = [
            stack.enter_context(spawn_sentinel(master.port, Path(folder), **options))
            for _ in range(sentinels)
        ]
        watched = Watched(servers=[master, replica], sentinels=watching)
        if password is None:
            _wait(lambda: all(_sees(sentinel, sentinels - 1) for sentinel in watching))
        yield watched


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _READY_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the servers are not ready")
        time.sleep(0.01)


def _owner_port(node: Server, slot: int) -> int | None:
    for first, last, (_, port, *_), *_ in node.command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return int(port)
    return None


def _knows(node: Server, name: str) -> bool:
    """Whether a node knows another one by its name; in the handshake it has another name for it."""
    return name in str(node.command("CLUSTER", "NODES"))


def _info(node: Server) -> dict[str, str]:
    lines = str(node.command("CLUSTER", "INFO")).split()
    return dict(line.split(":", 1) for line in lines)


def _follows(replica: Server) -> bool:
    return bool(replica.command("INFO", "replication").get("master_link_status") == "up")


def _sees(sentinel: Server, others: int) -> bool:
    told = sentinel.command("SENTINEL", "MASTER", SERVICE)
    return int(told["num-other-sentinels"]) == others and int(told["num-slaves"]) == 1
