"""The scripts, on real servers and on the one within the process, against the model."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from drivers.counters import flat_of, packed_of
from meterkit.decisions.asked import Demand
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.redis import scripts
from meterkit.redis.connection import pack_each
from meterkit.redis.producer import pack_sequence
from meterkit.store.customer_usage import usage_of
from meterkit.store.hold import Held, Used
from meterkit.store.settlement import Settlement
from store.script_corners import FullWorld, MonthWorld, SharesWorld, TurnWorld
from store.script_counts import DAY_MS
from store.script_driver import World, life
from store.script_mutants import in_depth
from store.script_paid import PaidWorld
from store.script_plans import CUSTOMERS
from store.script_wires import CLOCK, clock_answers, fake_wire, load_texts, server_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from random import Random

    from meterkit.store.customer_usage import CustomerUsage
    from servers.stores import Server
    from store.script_wires import Wire

RANDOMS = st.randoms(use_true_random=False)
KINDS = (World, PaidWorld)
# A driver that never gets a script to say something has not tested it.
SAID = (
    {
        f"decide {what}"
        for what in ("d 0", "d 1", "d 2", "d 3", "c 0", "c 1", "f 0", "f 1", "h 0", "s 0", "s 5", "v 4")
    }
    | {f"settle {code}" for code in (*range(7), 8, 9)}
    | {"late", "paid", "usage.threshold"}
)


@pytest.fixture
def wire(valkey: Server) -> Iterator[Wire]:
    with server_wire(valkey) as execute:
        yield execute


@pytest.mark.parametrize("seed", range(in_depth(2, 6)))
def test_the_scripts_do_what_the_model_does(wire: Wire, seed: int) -> None:
    world = World(wire, load_texts(), life(seed))
    assert _unsaid(world, SAID, steps=in_depth(2500, 5000)) == set()


@pytest.mark.parametrize("seed", range(in_depth(2, 6)))
def test_the_scripts_do_what_the_model_does_with_grants_and_credits(wire: Wire, seed: int) -> None:
    world = PaidWorld(wire, load_texts(), life(seed))
    told = {"credits.low", "balance", "grant 0", "grant 1", "grant 2", "grant 3", "void True", "void False"}
    told |= {"owed", "repaid"}
    assert _unsaid(world, SAID | told, steps=in_depth(2000, 4000)) == set()


def _unsaid(world: World, said: set[str], *, steps: int) -> set[str]:
    """Walk so many steps, and on until all of this was said; what was not."""
    left = said
    for step in range(20_000):
        left = said - {what for what, times in world.seen.items() if times} if step >= steps else left
        if not left:
            break
        world.step()
    for name in CUSTOMERS:
        world.check(name)
    return left


@pytest.mark.parametrize(
    ("kind", "steps"), [(MonthWorld, 1500), (TurnWorld, 1500), (FullWorld, 1500), (SharesWorld, 400)]
)
def test_the_scripts_do_what_the_model_does_in_corners(wire: Wire, kind: type[World], steps: int) -> None:
    world = kind(wire, load_texts(), life(0))
    for _ in range(steps):
        world.step()
    for name in CUSTOMERS:
        world.check(name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_period_that_cannot_be_closed_is_left_as_it_is(wire: Wire, kind: type[World]) -> None:
    # Half of it was added to the totals, and again at each further try.
    world = kind(wire, load_texts(), life(0))
    for _ in range(1000):
        world.step()
    assert any(customer.period for customer in world.model.customers.values())
    for name in CUSTOMERS:
        world.damage(name)
        world.check(name)


@pytest.mark.parametrize("kind", KINDS)
def test_redis_does_what_the_model_does(redis_server: Server, kind: type[World]) -> None:
    with server_wire(redis_server) as execute:
        world = kind(execute, load_texts(), life(11))
        for _ in range(1500):
            world.step()


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_within_the_process_does_what_the_model_does(kind: type[World]) -> None:
    world = kind(fake_wire(), load_texts("fake"), life(12))
    for _ in range(in_depth(600, 3000)):
        world.step()


def test_a_life_that_hypothesis_invents(wire: Wire) -> None:
    class Life(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = World(wire, load_texts(), life(0))

        @rule(random=RANDOMS)
        def time_passes(self, random: Random) -> None:
            self.world.random = random
            self.world.tick(self.world.anybody())

        @rule(random=RANDOMS)
        def somebody_asks(self, random: Random) -> None:
            self.world.random = random
            self.world.decide(self.world.anybody())

        @rule(random=RANDOMS)
        def a_request_ends(self, random: Random) -> None:
            self.world.random = random
            self.world.settle(self.world.anybody())

        @rule(random=RANDOMS)
        def a_customer_is_changed(self, random: Random) -> None:
            self.world.random = random
            self.world.amend(self.world.anybody())

        @rule(name=st.sampled_from(CUSTOMERS))
        def all_is_compared(self, name: str) -> None:
            self.world.check(name)

    run_state_machine_as_test(Life, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_the_servers_time_is_taken_in_whole_milliseconds(wire: Wire) -> None:
    wall = (resources.files("meterkit") / "lua/include/server_ms.lua").read_text(encoding="utf-8")
    assert wall in scripts.load("decide").text
    assert clock_answers(wire, wall) == CLOCK


def world_of(wire: Wire) -> World:
    return World(wire, load_texts(), life(0))


def test_a_refused_stranger_leaves_nothing_behind(wire: Wire, valkey: Server) -> None:
    world = world_of(wire)
    reply = ask(world, "ada", {"plain": 31})
    assert reply[0] == 1
    assert valkey.command("KEYS", "*:c:*") == []


def test_a_refusal_at_the_turn_of_a_slot_does_not_let_holds_vanish(wire: Wire) -> None:
    world = world_of(wire)
    world.wall -= world.wall % 300_000
    assert ask(world, "ada", {"tokens": 2000})[0] == 0
    world.wall += 300_000
    # 2,000 of 7,000 are held; each of these brings the counters to the new slot, or would.
    assert ask(world, "ada", {"tokens": 5001})[0] == 1
    assert ask(world, "ada", {"tokens": 5001})[0] == 1
    assert ask(world, "ada", {"tokens": 1}, mode="c")[0] == 0
    assert ask(world, "ada", {"tokens": 5001})[3 * 2 + 3 :] == [7000, 0, 2000]


def test_a_hold_of_a_slot_that_has_not_begun_gives_back_nothing(wire: Wire) -> None:
    world = world_of(wire)
    assert ask(world, "ada", {"tokens": 100})[0] == 0
    assert settle(world, "ada", recorded={"tokens": 60})[0] == 0
    slot = world.wall // 300_000
    for ahead in (1, 2, 3):
        assert settle(world, "ada", held={"tokens": 50}, slot=slot + ahead)[0] == 0
    shown = usage(world, "ada")["meters"]["tokens"]
    assert (shown["held"], shown["recorded"], shown["unlinked"]) == (100, 60, 60)


def test_what_was_only_recorded_counts_in_a_rate_for_two_windows(wire: Wire) -> None:
    world = world_of(wire)
    assert settle(world, "ada", rated={"tokens": 1})[0] == 0
    counters = world.keys.customer("ada").counters
    assert world.ask("PEXPIRETIME", counters) == world.wall + 2 * 30 * DAY_MS + 900_000


def test_a_period_that_becomes_longer_keeps_its_counts_and_ends_later(wire: Wire) -> None:
    world = world_of(wire)
    world.wall = to_ms(datetime(2040, 6, 5, tzinfo=UTC))
    for nth, plan in enumerate(("free", "tight")):
        put(world, "ada", f"1:{nth}", CustomerState(plan=plan))
        assert settle(world, "ada", recorded={"jobs": 1})[0] == 0
        world.wall += 10 * DAY_MS
    world.wall += 30 * DAY_MS
    assert settle(world, "ada", recorded={"jobs": 1})[0] == 0
    shown = usage(world, "ada")
    assert shown["meters"]["jobs"]["recorded"] == 3
    assert (shown["period"]["start"], shown["period"]["end"]) == (
        datetime(2040, 6, 1, tzinfo=UTC),
        datetime(2041, 1, 1, tzinfo=UTC),
    )


def test_a_period_is_over_where_a_shorter_one_has_begun_since(wire: Wire) -> None:
    world = world_of(wire)
    world.wall = to_ms(datetime(2040, 4, 5, tzinfo=UTC))
    put(world, "ada", "1:0", CustomerState(plan="tight"))
    assert settle(world, "ada", recorded={"jobs": 1})[0] == 0
    world.wall = to_ms(datetime(2040, 6, 5, tzinfo=UTC))
    put(world, "ada", "1:1", CustomerState(plan="free"))
    assert usage(world, "ada")["meters"]["jobs"]["recorded"] == 0
    assert settle(world, "ada", recorded={"jobs": 2})[0] == 0
    shown = usage(world, "ada")
    assert shown["meters"]["jobs"]["recorded"] == 2
    assert shown["period"]["start"] == datetime(2040, 6, 1, tzinfo=UTC)
    start_ms = to_ms(datetime(2040, 1, 1, tzinfo=UTC))
    kept = world.ask("HGETALL", world.keys.customer("ada").totals)
    closed = dict(zip(kept[::2], kept[1::2], strict=True))
    field = f"{start_ms}|{meter_token('jobs')}".encode()
    assert closed[field + b"i"] == b"1"
    # It ended where the shorter one began.
    assert int(closed[f"{start_ms}|e".encode()]) == to_ms(datetime(2040, 6, 1, tzinfo=UTC))


def test_a_caller_ahead_of_time_does_not_begin_the_next_period(wire: Wire) -> None:
    world = world_of(wire)
    ends = to_ms(datetime(2040, 7, 1, tzinfo=UTC))
    world.wall = ends - 30_000
    put(world, "ada", "1:0", CustomerState(plan="free"))
    assert settle(world, "ada", recorded={"jobs": 1})[0] == 0
    learn(world, "ada", "1:0", CustomerState(plan="free"), ends + 1)
    assert settle(world, "ada", recorded={"jobs": 1})[0] == 4
    assert ask(world, "ada", {"jobs": 1})[0] == 2
    assert usage(world, "ada")["meters"]["jobs"]["recorded"] == 1


def test_at_the_very_end_of_a_period_nothing_is_closed_by_clocks_that_differ(wire: Wire) -> None:
    world = world_of(wire)
    ends = to_ms(datetime(2040, 7, 1, tzinfo=UTC))
    demands, flags = {"jobs": Demand(needed=1, taken=1)}, {"billed_always": False, "rates_only": False}
    for mode, before_ms, times in (("d", 30_000, 2), ("c", 0, 20)):
        world.wall = ends - before_ms
        for _ in range(times):
            world.skews = before_ms == 0
            world.ask_for(world.processes[0].get("ada"), demands, mode, flags)
    assert world.seen["decide c 3"]


def put(world: World, name: str, rev: str, state: CustomerState) -> None:
    keys = world.keys.customer(name)
    world.ask("HSET", keys.state, "rev", rev, "data", state.dump())
    flat = flat_of(world.fields(keys.counters))
    if flat:
        world.ask("HSET", keys.counters, "h", packed_of(flat | {"r": ""})["h"])
    learn(world, name, rev, state, world.wall)


def learn(world: World, name: str, rev: str, state: CustomerState, now_ms: int) -> None:
    customers = world.processes[0]
    customers.learn(customers.get(name), [2, now_ms, rev.encode(), state.dump().encode()])


def settle(
    world: World,
    name: str,
    *,
    recorded: Mapping[str, int] | None = None,
    rated: Mapping[str, int] | None = None,
    held: Mapping[str, int] | None = None,
    slot: int = 0,
) -> Any:
    known, used = world.processes[0].get(name), Used(recorded or {}, rated or {})
    head, tail = Settlement(known, held=Held(held or {}, (), slot), used=used).pack()
    world.numbers["w"] += 1
    place = pack_sequence(slot, world.numbers["w"]) + pack_each([world.wall])
    return world.wire(head + pack_each(["mk:{0}:w:w"]) + tail + place)


def usage(world: World, name: str) -> CustomerUsage:
    keys = world.keys.customer(name)
    sha = world.scripts["usage"].sha
    names = (keys.counters, keys.state, keys.totals, keys.grants, keys.levels)
    reply = world.ask("EVALSHA", sha, len(names), *names, world.wall)
    return usage_of(name, world.catalog, reply)


def ask(world: World, name: str, quantities: dict[str, int], *, mode: str = "d") -> Any:
    known = world.processes[0].get(name)
    demands = {meter: Demand(needed=quantity, taken=quantity) for meter, quantity in quantities.items()}
    call = known.prepare_asking(demands, mode, in_flight=True)
    return world.wire(b"".join(call.packed) + b"$13\r\n%d\r\n" % world.wall)
