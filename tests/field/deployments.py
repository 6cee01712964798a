"""The servers that an app is deployed on, each started as its own documentation says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from servers.stores import free_port

Server: TypeAlias = Literal[
    "uvicorn-h11", "uvicorn-httptools", "hypercorn", "granian", "gunicorn", "gunicorn-uvicorn"
]
Loop: TypeAlias = Literal["asyncio", "uvloop"]
Lifespan: TypeAlias = Literal["on", "off", "mounted"]

ROOT: Final = Path(__file__).parents[1]
_STOP_S: Final = 240.0
_WORKERS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How an app is served.

    Attributes:
        lifespan: whether the middleware sees one; ``mounted``: it is inside another app, which hands none on.
    """

    server: Server
    loop: Loop
    lifespan: Lifespan

    def __str__(self) -> str:
        return f"{self.server}-{self.loop}-{self.lifespan}"

    def command(self, port: int) -> Sequence[str]:
        """What a person would type; one process, but two behind gunicorn, which share what it has loaded."""
        off = self.lifespan == "off"
        target = "field.service:app"
        if self.server == "hypercorn":
            # It has no switch: an app that knows no lifespan says so by raising.
            target += "_without_lifespan" if off else ""
            return ("hypercorn", target, "-k", self.loop, "--bind", f"127.0.0.1:{port}")
        if self.server == "granian":
            interface = "asginl" if off else "asgi"
            where = ("--host", "127.0.0.1", "--port", str(port))
            return ("granian", target, "--interface", interface, "--loop", self.loop, *where)
        if self.server.startswith("gunicorn"):
            return ("gunicorn", target, *self._gunicorn(off=off), "--bind", f"127.0.0.1:{port}")
        http = self.server.removeprefix("uvicorn-")
        how = ("--loop", self.loop, "--http", http, "--lifespan", "off" if off else "on")
        return ("uvicorn", target, *how, "--port", str(port))

    def _gunicorn(self, *, off: bool) -> Sequence[str]:
        shared = ("--preload", "--workers", str(_WORKERS))
        if self.server == "gunicorn":
            how = ("--asgi-loop", self.loop, "--asgi-lifespan", "off" if off else "on")
            return (*shared, "--worker-class", "asgi", *how)
        worker = f"field.gunicorn_workers.{'Uvloop' if self.loop == 'uvloop' else 'Asyncio'}Worker"
        return (*shared, "--worker-class", worker + ("WithoutLifespan" if off else ""))


ALL: Final = tuple(
    Deployment(server=server, loop=loop, lifespan=lifespan)
    for server, loop, lifespan in product(get_args(Server), get_args(Loop), get_args(Lifespan))
)
# Two loops, a server of one process and one that forks: those without ``--whole``.
SOME: Final = (
    Deployment(server="uvicorn-httptools", loop="uvloop", lifespan="on"),
    Deployment(server="gunicorn-uvicorn", loop="asyncio", lifespan="mounted"),
)


class Running:
    """A server that serves the app.

    Attributes:
        url: where.
        log: what it says.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self._process = process
        self.url = url
        self.log = log

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> int:
        """Ask it to end, as init systems and containers do; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_STOP_S)


@contextmanager
def running(deployment: Deployment, folder: Path, **variables: str) -> Generator[Running]:
    """Serve the app until the block is left; whoever wants to know how it ends stops it before."""
    port = free_port()
    log = folder / f"{deployment}.log"
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("METERKIT_", "STRIPE_"))
    }
    environment = kept | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "FIELD_DEPLOYMENT": "mounted" if deployment.lifespan == "mounted" else "alone",
        **variables,
    }
    with (
        log.open("wb") as said,
        subprocess.Popen(
            [sys.executable, "-W", "always::ResourceWarning", "-m", *deployment.command(port)],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            # A group of its own: what a server leaves behind when it is killed goes with it.
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Running(process, f"http://127.0.0.1:{port}", log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
