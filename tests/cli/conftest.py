"""A directory with a plans file, and a shell in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.command_line import InProcessShell, Shell

if TYPE_CHECKING:
    from pathlib import Path

PLANS = """\
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens: {unit: token, stripe: {event_name: ai_tokens, report: usage}}
features: [reports]
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 5/hour, included: 1_000}
      tokens: {included: 10, overage: bill}
  pro:
    price: {amount_cents: 2900, interval: month}
    features: all
    meters:
      requests: {included: unlimited}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a right plans file."""
    (tmp_path / "plans.yaml").write_text(PLANS)
    return tmp_path


@pytest.fixture
def shell(directory: Path) -> Shell:
    """A shell that has no store."""
    return InProcessShell(directory)


@pytest.fixture
def stored(directory: Path, store_url: str) -> Shell:
    """A shell whose store is empty and real."""
    return InProcessShell(directory, METERKIT_REDIS_URL=store_url)
