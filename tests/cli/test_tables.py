"""Tables: no line is wider than the terminal, and no number or date is cut in two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from drivers.command_line import Shell
from meterkit import MeterKit

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

LONG = "customer-with-a-rather-long-identifier@example.com"
MOST = 10**15 - 1


@pytest.fixture
async def busy(stored: Shell, directory: Path, store_url: str) -> Shell:
    """A shell whose store has customers with much to show."""
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        for customer in ("acme", LONG):
            await kit.customers.link(customer, f"cus_{customer[:4]}NffrFe")
            given: dict[str, dict[str, object]] = {
                "tokens": {
                    "included": 5_000,
                    "rate": ["100/hour", "1000/day"],
                    "overage": {"bill": {"cap": 9}},
                }
            }
            await kit.customers.override(customer, given)
            await kit.grants.add(customer, {"requests": 100_000, "tokens": 5}, grant_id="inv_42")
        await kit.grants.add(
            LONG,
            {"tokens": MOST},
            grant_id="invoice_2031_01_0001_with_a_long_name",
            expires_at=datetime(2131, 1, 1, tzinfo=UTC),
        )
        await kit.record(LONG, "tokens", MOST - 10)
    return stored


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("command", "whole"),
    [
        (("customers", "list"), "cus_custNffrFe"),
        (("grants", "list", LONG), "999,999,999,999,999"),
        (("usage", LONG), "999,999,999,999,989"),
    ],
)
async def test_no_line_of_a_table_is_wider_than_the_terminal(
    busy: Shell, command: tuple[str, ...], whole: str
) -> None:
    # F-69: at 80 columns numbers, dates and ids were cut in two.
    for columns in (70, 132):
        busy.environment["COLUMNS"] = f"{columns}"
        lines = [line.rstrip() for line in busy.run(*command).out.splitlines()]
        told = [line for line in lines if not line.startswith(f"customer {LONG}: plan")]
        assert max(map(len, told)) <= columns
        assert whole in {word for line in told for word in line.split()}
