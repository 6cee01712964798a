"""Benchmarks that nothing else runs still run: a smoke run of each, whose figures mean little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]


@pytest.mark.whole
def test_trying_prices_on_a_long_log_can_be_measured() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/simulate.py"), "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "events served again in a second" in done.stdout, done.stderr
