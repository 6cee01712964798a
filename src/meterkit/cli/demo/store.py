"""A watchdog process that stops the demonstration's store if the demonstration is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from meterkit.redis.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_DONE: Final = b"done"
_POLL_S: Final = 0.005


@contextmanager
def ended_with_us(directory: Path) -> Generator[None]:
    """Stop the embedded server in a directory when this process ends, even if it is killed."""
    # A session of its own, so that Ctrl-C reaches this process alone, which stops things in order.
    command = [sys.executable, "-m", __name__, str(directory), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield
        finally:
            with suppress(BrokenPipeError):
                process.communicate(_DONE)


def main() -> None:
    """Use the server until the parent process is done or dead, then stop it."""
    directory, parent = sys.argv[1:]
    server = EmbeddedServer(directory)
    server.start()
    if sys.stdin.buffer.read() != _DONE:
        while os.getppid() == int(parent):  # Of its files it lets go one by one.
            time.sleep(_POLL_S)
    server.stop()


if __name__ == "__main__":
    main()
