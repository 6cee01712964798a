"""``meterkit outbox``: what is sealed and not delivered, listed and seen to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from drivers.redrives import recorded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from drivers.command_line import Shell
    from meterkit import Intent

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def dead(stored: Shell, directory: Path, store_url: str) -> AsyncGenerator[Intent]:
    """A dead intent of acme's, whom Stripe did not know and knows by now."""
    async with recorded(stored, directory, store_url) as (kit, emulator):
        await kit.flush(everything=True)
        emulator.add_customer("cus_acme")
        (intent,) = await kit.outbox.list()
        yield intent


async def test_what_is_dead_is_listed_shown_and_redriven(
    stored: Shell, directory: Path, store_url: str
) -> None:
    async with dead(stored, directory, store_url) as intent:
        listed = stored.run("outbox", "list")
        assert listed.code == 1
        assert all(word in listed.out for word in (intent.identifier[:8], "dead", "acme", "tokens", "25"))
        assert all(words in listed.out for words in ("No such", "customer: 'cus_acme'"))
        as_json = stored.run("outbox", "list", "--state", "dead", "--customer", "acme", "--json").json
        assert [one["identifier"] for one in as_json] == [intent.identifier]
        shown = stored.run("outbox", "show", intent.identifier)
        assert (shown.code, "Stripe customer  cus_acme" in shown.out) == (0, True)
        doctor = stored.run("doctor")
        assert "meterkit outbox list" in doctor.out
        redriven = stored.run("outbox", "redrive", "--all", "--reason", "it is there now")
        assert (redriven.code, redriven.out) == (
            0,
            f"redriven: 25 of tokens of customer acme ({intent.identifier})\n",
        )
        assert stored.run("flush", "--all").code == 0
        empty = stored.run("outbox", "list")
        assert (empty.code, empty.out) == (0, "")
        assert "all that is sealed is delivered" in empty.err
        history = stored.run("customers", "history", "acme", "--json").json
        assert (history[-1]["kind"], history[-1]["after"]) == ("intent", "queued: it is there now")
        assert history[-1]["cause"].startswith("operator")


async def test_what_is_parked_waits_and_what_is_refused_is_said(
    stored: Shell, directory: Path, store_url: str
) -> None:
    async with dead(stored, directory, store_url) as intent:
        refused = stored.run("outbox", "park", intent.identifier, "nobody", "--json")
        assert (refused.code, refused.json["parked"]) == (1, [])
        assert [one["intent"] for one in refused.json["refused"]] == [intent.identifier, "nobody"]
        assert "is dead: only what is queued can be parked" in refused.err
        assert stored.run("outbox", "redrive", intent.identifier).code == 0
        parked = stored.run("outbox", "park", intent.identifier, "--reason", "a wrong price")
        assert (parked.code, parked.out.startswith("parked: 25 of tokens")) == (0, True)
        # What a person has parked is redriven by name alone.
        left = stored.run("outbox", "redrive", "--all")
        assert (left.code, left.out) == (0, "")
        assert "1 parked by hand stay so: name them" in left.err
        (listed,) = stored.run("outbox", "list", "--json").json
        assert (listed["state"], listed["why"]) == ("parked", "parked by hand: a wrong price")
        assert stored.run("outbox", "redrive", intent.identifier).out.startswith("redriven: 25 of tokens")
        assert stored.run("outbox", "redrive").code == 2
        assert stored.run("outbox", "redrive", "a", "--all").code == 2


async def test_dropping_wants_a_reason_and_a_yes(stored: Shell, directory: Path, store_url: str) -> None:
    async with dead(stored, directory, store_url) as intent:
        assert stored.run("outbox", "drop", intent.identifier).code == 2
        nobody = stored.run("outbox", "drop", intent.identifier, "--reason", "billed by hand")
        assert (nobody.code, "give --yes" in nobody.err) == (1, True)
        done = stored.run_at_terminal("outbox", "drop", intent.identifier, "--reason", "x", answer="n")
        assert (done.code, "25 of tokens of customer acme" in done.err) == (1, True)
        assert stored.run("outbox", "list").code == 1
        done = stored.run_at_terminal("outbox", "drop", intent.identifier, "--reason", "x", answer="y")
        assert (done.code, "25 of tokens of customer acme" in done.err) == (0, True)
        assert stored.run("outbox", "list").code == 0
        tokens = stored.run("usage", "acme", "--json").json["meters"]["tokens"]
        assert (tokens["dead"], tokens["recorded"]) == (25, 25)
