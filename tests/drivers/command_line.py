"""Runs the command line in processes of its own, as people and programs do."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from drivers.forked_command import fork_command, run_forked

if TYPE_CHECKING:
    from collections.abc import Generator

    from drivers.forked_command import RunningCommand

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs ``python -m meterkit`` in a directory, with none of the caller's own settings.

    Only the store has more time than by default: one that is slow on a busy machine is not away.
    """

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        ours = ("METERKIT_", "REDIS_URL", "STRIPE_", "COLUMNS")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ours)
        } | {"PYTHONFAULTHANDLER": "1", "METERKIT_STORE_TIMEOUT": "5", **variables}

    def run(self, *arguments: str, stdin: str = "") -> Done:
        """Run a command to its end."""
        with TemporaryDirectory() as directory:
            given, out, err = (Path(directory) / name for name in ("stdin", "stdout", "stderr"))
            for path, text in ((given, stdin), (out, ""), (err, "")):
                path.write_text(text)
            code = run_forked(
                arguments, self.directory, self.environment, (given, out, err), timeout_s=TIMEOUT_S
            )
            done = Done(code=-1 if code is None else code, out=out.read_text(), err=err.read_text())
        if code is None:
            pytest.fail(f"meterkit {' '.join(arguments)} did not end; it said:\n{done.out}\n{done.err}")
        return done

    @contextmanager
    def running(self, *arguments: str) -> Generator[RunningCommand]:
        """Run a command beside the test; it is killed if it has not ended with the block."""
        process = fork_command(arguments, self.directory, self.environment)
        try:
            yield process
        finally:
            process.close()


def first_line(process: RunningCommand) -> str:
    """The next line that a running command prints."""
    return process.stdout.readline().strip()
