"""Runs the command line in processes of its own, as people and programs do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

TIMEOUT_S = 100.0


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
    """Runs ``python -m meterkit`` in a directory, with none of the caller's own settings."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        ours = ("METERKIT_", "REDIS_URL", "STRIPE_", "COLUMNS")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ours)
        } | {"PYTHONFAULTHANDLER": "1", **variables}

    def run(self, *arguments: str, stdin: str = "") -> Done:
        """Run a command to its end."""
        with self._begin(arguments, stdin=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(stdin, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)
                out, err = process.communicate()
                pytest.fail(f"meterkit {' '.join(arguments)} did not end; it said:\n{out}\n{err}")
        return Done(code=process.returncode, out=out, err=err)

    @contextmanager
    def running(self, *arguments: str) -> Generator[subprocess.Popen[str]]:
        """Run a command beside the test; it is killed if it has not ended with the block."""
        with self._begin(arguments, stdin=subprocess.DEVNULL) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def _begin(self, arguments: Sequence[str], *, stdin: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "meterkit", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def first_line(process: subprocess.Popen[str]) -> str:
    """The next line that a running command prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
