"""A ``meterkit`` to put first on PATH: its commands are run in processes that are forked.

What it is told it hands on over a socket: arguments, environment, directory, and its own streams.
"""

from __future__ import annotations

import json
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final

from drivers.forked_command import run_forked

if TYPE_CHECKING:
    from collections.abc import Generator

# Without what Python looks for when it starts: most of the time that is left.
_PROGRAM: Final = """\
#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    told = {{"pid": os.getpid(), "arguments": sys.argv[1:]}}
    told |= {{"at": os.getcwd(), "environment": dict(os.environ)}}
    there.sendall(json.dumps(told).encode() + b"\\n")
    code = int(there.makefile().readline())
sys.exit(code)
"""


@contextmanager
def forked_program(directory: Path, *, timeout_s: float) -> Generator[Path]:
    """Yield a folder, below ``directory``, with the program; its commands end within the timeout."""
    folder = directory / "bin"
    folder.mkdir()
    address = folder / "socket"
    program = folder / "meterkit"
    program.write_text(_PROGRAM.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        serving = Thread(target=_serve, args=(listener, timeout_s), daemon=True)
        serving.start()
        try:
            yield folder
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def _serve(listener: socket.socket, timeout_s: float) -> None:
    running: list[Thread] = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            break  # It was told to end.
        # Several at once: one command may read what another one writes.
        running.append(Thread(target=_run, args=(connection, timeout_s)))
        running[-1].start()
    for thread in running:
        thread.join()


def _run(connection: socket.socket, timeout_s: float) -> None:
    with connection:
        told = json.loads(connection.makefile().readline())
        stdin, stdout, stderr = (Path(f"/proc/{told['pid']}/fd/{fd}") for fd in range(3))
        code = run_forked(
            told["arguments"],
            Path(told["at"]),
            told["environment"],
            (stdin, stdout, stderr),
            timeout_s=timeout_s,
        )
        connection.sendall(b"%d\n" % (1 if code is None else code))
