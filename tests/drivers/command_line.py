"""Runs the command line: in processes of its own, as people and programs do, or in the tests' process."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import os
import pty
import runpy
import sys
import traceback
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Final
from unittest import mock

import pytest

from drivers.documented_json import check_json
from drivers.forked_command import RunningCommand, fork_command, run_forked
from meterkit import MeterKit

TIMEOUT_S = 300.0
_WITH_SIGNALS: Final = (("worker",), ("demo",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
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
        } | {"PYTHONFAULTHANDLER": "1", "METERKIT_STORE_TIMEOUT": "60", **variables}

    def kit(self, **settings: Any) -> MeterKit:
        """A kit with the plans file and the store of the commands, which delivers nothing by itself."""
        url = self.environment["METERKIT_REDIS_URL"]
        return MeterKit(self.directory / "plans.yaml", redis_url=url, flush=False, **settings)

    def run(self, *arguments: str, stdin: str = "") -> Done:
        return self._run_forked(arguments, stdin)

    def run_at_terminal(self, *arguments: str, answer: str) -> Done:
        """Run a command whose input is a terminal at which a line is typed."""
        ours, theirs = pty.openpty()
        try:
            os.write(ours, f"{answer}\n".encode())
            return self._run_forked(arguments, stdin=Path(os.ttyname(theirs)))
        finally:
            os.close(theirs)
            os.close(ours)

    def _run_forked(self, arguments: Sequence[str], stdin: str | Path) -> Done:
        with TemporaryDirectory() as directory:
            given, out, err = (Path(directory) / name for name in ("stdin", "stdout", "stderr"))
            for path, text in ((given, stdin), (out, ""), (err, "")):
                if isinstance(text, str):
                    path.write_text(text)
            streams = (stdin if isinstance(stdin, Path) else given, out, err)
            code = run_forked(arguments, self.directory, self.environment, streams, timeout_s=TIMEOUT_S)
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


class InProcessShell(Shell):
    """A shell whose commands run within the tests' process, in a fifth of the CPU time.

    For tests of what a command does and prints; signals, terminals and broken pipes need a process.
    """

    def run(self, *arguments: str, stdin: str = "") -> Done:
        """Run a command to its end; in a thread where an event loop is running already."""
        if arguments[:1] in _WITH_SIGNALS:
            return self._run_forked(arguments, stdin)
        found = list[Done]()

        def run() -> None:
            found.append(_run_here(arguments, self.directory, self.environment, stdin))

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            run()
        else:
            thread = Thread(target=run)
            thread.start()
            thread.join()
        check_json(arguments, found[0].out)
        return found[0]


def _run_here(arguments: Sequence[str], directory: Path, environment: Mapping[str, str], stdin: str) -> Done:
    """Be the command; all that it changes of the process is restored."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.object(sys, "argv", ["meterkit", *arguments]),
        mock.patch.object(sys, "path", [str(directory), *sys.path]),
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(directory),
        warnings.catch_warnings(),
        _modules_forgotten(directory),
        _logging_of_its_own(),
    ):
        warnings.resetwarnings()
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            runpy.run_module("meterkit", run_name="__main__", alter_sys=False)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:  # noqa: BLE001 - as Python itself ends a program
            traceback.print_exc()
            code = 1
    return Done(code=code, out=out.getvalue(), err=err.getvalue())


@contextmanager
def _modules_forgotten(directory: Path) -> Generator[None]:
    """Drop the modules that the command imports from its directory: another test may have others so named."""
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{directory}/"):
                del sys.modules[name]
        importlib.invalidate_caches()


@contextmanager
def _logging_of_its_own() -> Generator[None]:
    """Give the command loggers without handlers and levels, as a new process has them."""
    names = ("", *(name for name in logging.Logger.manager.loggerDict if name.startswith("meterkit")))
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger, logger.handlers, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers = []
        logger.setLevel(logging.NOTSET if logger.name != "root" else logging.WARNING)
    try:
        yield
    finally:
        for logger, handlers, level in kept:
            logger.handlers = handlers
            logger.setLevel(level)


def first_line(process: RunningCommand) -> str:
    return process.stdout.readline().strip()
