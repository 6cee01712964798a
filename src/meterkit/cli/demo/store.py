"""A process that ends the demonstration's store where the demonstration is killed and cannot do so itself."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from meterkit.redis.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["ended_with_us"]


@contextmanager
def ended_with_us(directory: Path) -> Generator[None]:
    """Have the embedded server in a directory end with this process, however that ends."""
    # A session of its own, so that Ctrl-C reaches this process alone, which stops things in order.
    command = [sys.executable, "-m", __name__, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield


def main() -> None:
    """Be a user of the server until standard input ends, which the other process holds open."""
    server = EmbeddedServer(sys.argv[1])
    server.start()
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
