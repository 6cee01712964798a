"""A directory with a plans file, and a shell in it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from drivers.command_line import InProcessShell, Shell
from drivers.forked_command import IMPORTED_BEFORE, forks
from drivers.plans import plans_text
from meterkit.testing import StripeEmulator

PLANS = plans_text("command_line")


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """Import what commands import, here and in the process that forks them: no test is charged for it."""
    for name in IMPORTED_BEFORE:
        if name.startswith("meterkit"):
            import_module(name)
    process = forks().Process(target=int)
    process.start()
    process.join()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "plans.yaml").write_text(PLANS)
    return tmp_path


@pytest.fixture
def shell(directory: Path) -> Shell:
    return InProcessShell(directory)


@pytest.fixture
def stored(directory: Path, store_url: str) -> Shell:
    """A shell whose store is empty and real."""
    return InProcessShell(directory, METERKIT_REDIS_URL=store_url)


@pytest.fixture
def emulator() -> StripeEmulator:
    """An account with the meter of the plans file, and a customer."""
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_customer("cus_1")
    return emulator
