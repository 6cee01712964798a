"""``meterkit correct``: says exactly what was done with how many units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterkit import MeterKit

if TYPE_CHECKING:
    from pathlib import Path

    from commands import Shell

pytestmark = pytest.mark.anyio


async def test_units_are_taken_back_once_an_id(stored: Shell, directory: Path, store_url: str) -> None:
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        await kit.record("acme", "tokens", 25)
    words = ("correct", "acme", "tokens=1_8", "--reason", "a loop", "--id", "T-1")
    done = stored.run(*words)
    assert (done.code, done.out) == (0, "tokens: 18 of 18 taken back: 15 overage, 3 included\n")
    again = stored.run(*words)
    assert (again.code, again.out) == (0, done.out)
    assert "T-1 was corrected before; nothing has changed" in again.err
    assert stored.run("usage", "acme", "--json").json["meters"]["tokens"]["recorded"] == 7
    more = stored.run("correct", "acme", "tokens=9", "--reason", "a loop", "--id", "T-2", "--json")
    assert (more.code, more.json[0]["taken_back"], more.json[0]["beyond"]) == (1, 7, 2)
    history = stored.run("customers", "history", "acme", "--json").json
    assert [entry["kind"] for entry in history] == ["correction", "correction"]
    assert history[0]["after"].endswith(": a loop")
    assert history[0]["cause"].startswith("operator")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("correct", "acme", "tokens=1", "--reason", "x"), 2, "--id"),
        (("correct", "acme", "tokens=1", "--id", "x"), 2, "--reason"),
        (("correct", "acme", "tokens", "--reason", "x", "--id", "x"), 2, "NAME=QUANTITY"),
        (("correct", "nobody", "tokens=1", "--reason", "x", "--id", "x"), 1, "nobody"),
    ],
)
def test_what_cannot_be_corrected_is_said(
    stored: Shell, words: tuple[str, ...], code: int, said: str
) -> None:
    done = stored.run(*words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
