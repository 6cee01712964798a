"""Each line of the scripts' arithmetic, made wrong on purpose: the model must notice.

A sample of the mutants, another one whenever a script changes; all of them, in some minutes, with
``METERKIT_ALL_MUTANTS=1``.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

from meterkit.redis.connection import pack
from store.script_checks import MismatchError
from store.script_corners import FullWorld, MonthWorld, SharesWorld, TurnWorld
from store.script_driver import AgingWorld, World, life
from store.script_gauges import GaugeWorld
from store.script_mutants import CONSTANTS, equivalents, mutants, sample_of, source, wrongs
from store.script_paid import PaidWorld
from store.script_plans import CUSTOMERS
from store.script_repeats import RepeatWorld
from store.script_spend import PaidRowsSpendWorld, PaidSpendWorld, RowsSpendWorld, SpendWorld
from store.script_wires import CLOCK, clock_answers, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.stores import Server
    from store.script_mutants import Mutant
    from store.script_wires import Wire

    Kind = type[World | GaugeWorld | SpendWorld]
    Lives = tuple[tuple[Kind, int], ...]

PLAIN: Final[Lives] = ((World, 0), (World, 1), (World, 2))
PAID: Final[Lives] = tuple((PaidWorld, seed) for seed in (0, 1, 2, 11, 12))
AGING: Final[Lives] = ((AgingWorld, 0), (AgingWorld, 2))
SHARES_OF_PLANS: Final[Lives] = ((SharesWorld, 0), (SharesWorld, 1))
FURTHER: Final[Lives] = ((RepeatWorld, 0), (GaugeWorld, 0), (RepeatWorld, 1))
SPENDING: Final[Lives] = ((PaidSpendWorld, 0), (SpendWorld, 0), (PaidSpendWorld, 1))
ROWS: Final[Lives] = tuple((kind, seed) for seed in (0, 1) for kind in (RowsSpendWorld, PaidRowsSpendWorld))
PURSE: Final = (
    *(
        "grant_of",
        "grants",
        "recur",
        "cut_grants",
        "pays_before",
        "add_up",
        "balance",
        "balance_text",
        "backing_of",
    ),
    *("hold_backed", "spend_grants", "burn", "put_away", "write_grants", "repay", "repay_now", "debt_of"),
    *("keep_debt", "grant_text", "keep_balance"),
)
COUNTING: Final = (
    *("confirm_view", "head_of", "window_of", "meter_of", "besides_of", "live_holds", "give_back"),
    *("advance", "correct", "take_number", "expire_at", "overdue", "count_late", "crossed", "notify"),
    *("close_period", "read_counters", "open_meter", "are_whole", "pack_meter", "await_seal"),
    *("keep_counters", "count_recorded", "weigh_event", "correct_rates"),
)
SPENT: Final = ("weigh_spend", "price_of", "count_spend")
# The lives that meet what a file says, the likeliest first.
FILES: Final[Mapping[str, Lives]] = {
    **dict.fromkeys(
        (
            "decide.lua",
            "settle.lua",
            "include/open_further.lua",
            "include/classify.lua",
            "include/within_both.lua",
        ),
        (PAID[0], *FURTHER[:2], SPENDING[0], *PLAIN, *PAID[1:], *FURTHER[2:], *SPENDING[1:], *ROWS[:2]),
    ),
    **dict.fromkeys((f"include/{name}.lua" for name in COUNTING), PLAIN + PAID),
    "include/advance.lua": (*PLAIN, *PAID, (MonthWorld, 0)),
    "include/confirm_view.lua": (*PLAIN, *PAID, (TurnWorld, 0)),
    "include/forget_periods.lua": AGING + PLAIN + PAID,
    CONSTANTS: (*PLAIN, *PAID, *FURTHER[:1]),
    "grant.lua": (*PAID, (FullWorld, 0)),
    "void.lua": PAID,
    **dict.fromkeys((f"include/{name}.lua" for name in PURSE), PAID),
    **dict.fromkeys(
        (f"include/{name}.lua" for name in ("recur", "cut_grants", "burn", "write_grants")),
        PAID + SHARES_OF_PLANS,
    ),
    **dict.fromkeys((f"include/{name}.lua" for name in SPENT), SPENDING),
    "include/owed_of.lua": ROWS,
    "include/weigh_spend.lua": SPENDING + ROWS,
    **dict.fromkeys(("include/backing_of.lua", "include/free_of.lua"), (SPENDING[0], *PAID, SPENDING[2])),
}
STEPS: Final = 5000
SAMPLE: Final = 8
SHARES: Final = 4  # Tests, so that several processes may share them.
EQUIVALENT: Final = equivalents("script_equivalents.txt")


def live(wire: Wire, scripts: Mapping[str, str], kind: Kind, seed: int) -> dict[str, int]:
    """Live some thousand steps; how often each command was called."""
    world = kind(wire, scripts, life(seed))
    wire(pack("CONFIG", "RESETSTAT"))
    for _ in range(STEPS):
        world.step()
    for name in CUSTOMERS:
        world.check(name)
        world.damage(name)
    stats = wire(pack("INFO", "commandstats")).decode()
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}


class Rightly:
    """How often the right scripts call each command in a life."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: dict[tuple[Kind, int], dict[str, int]] = {}

    def live(self, kind: Kind, seed: int) -> dict[str, int]:
        if (kind, seed) not in self._known:
            self._known[kind, seed] = live(self._wire, load_texts(), kind, seed)
        return self._known[kind, seed]


def is_caught(mutant: Mutant, wire: Wire, rightly: Rightly) -> bool:
    """Whether the model answers otherwise, or the scripts ask the store more often than they need to."""
    scripts = mutant.texts(load_texts)
    try:
        for lived in FILES[mutant.file]:
            try:
                calls = live(wire, scripts, *lived)
            except (MismatchError, TypeError, ValueError, IndexError):  # Also what cannot be read at all.
                return True
            if calls != rightly.live(*lived):
                return True
        return False
    finally:
        wire(pack("SCRIPT", "FLUSH"))


@cache
def chosen() -> list[Mutant]:
    every = [mutant for mutant in mutants(tuple(FILES)) if str(mutant) not in EQUIVALENT]
    return sample_of(every, SAMPLE)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(SHARES))
def test_every_mutant_is_caught(valkey: Server, share: int) -> None:
    with server_wire(valkey) as wire:
        rightly = Rightly(wire)
        survivors = [
            str(mutant) for mutant in chosen()[share::SHARES] if not is_caught(mutant, wire, rightly)
        ]
    assert survivors == []


def test_every_mutant_of_the_clock_is_caught(valkey: Server) -> None:
    right = source("include/server_ms.lua")
    with server_wire(valkey) as wire:
        answers = {
            wrong: clock_answers(wire, right.replace(line, wrong))
            for line in right.split("\n")
            if not line.startswith("--")
            for wrong in wrongs(line)
        }
    assert len(answers) > 10
    assert [wrong for wrong, answer in answers.items() if answer == CLOCK] == []


def test_every_equivalent_is_a_mutant_with_a_reason() -> None:
    possible = {str(mutant) for mutant in mutants(tuple(FILES))}
    assert set(EQUIVALENT) <= possible
    assert all(EQUIVALENT.values())
