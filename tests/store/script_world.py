"""What every world begins with: a store with the scripts in it, a clock that is set, and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, ClassVar, Final

from drivers.counters import pack_field
from meterkit.catalog import Catalog
from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.keys import FORMAT, CustomerKeys, Keys
from meterkit.decisions.packed import unpack_field
from meterkit.redis.connection import pack, pack_each
from meterkit.redis.scripts import Script
from meterkit.redis.settlement_queue import pack_sequence
from meterkit.store.settlement import Settlement
from meterkit.store.views import CustomerCache, CustomerView, PreparedDecision
from store.script_plans import START_MS
from store.script_wires import NAMES, Wire

NO_CHANGES: Final = '{"entries":[],"notices":[],"gauges":[],"ended":{"at":"0","labels":{}},"period":[0,0]}'


class MismatchError(AssertionError):
    """The scripts and the model do not agree."""


def fields_of(flat: Sequence[bytes]) -> dict[str, bytes]:
    """The fields of a hash, of which a reply has names and values in turn."""
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def weighed(listed: str) -> dict[str, float]:
    """Deeds, each with how often it is done."""
    return {deed: float(often) for deed, often in (one.split() for one in listed.split(", "))}


def load_script(wire: Wire, name: str, text: str) -> Script:
    """The script, which the server knows from then on; a MismatchError where it does not compile."""
    sha = wire(pack("SCRIPT", "LOAD", text))
    if not isinstance(sha, bytes | str):
        raise MismatchError(f"{name} does not compile: {sha}")
    return Script(name, text, sha.decode() if isinstance(sha, bytes) else sha)


class ScriptWorld:
    catalog: Catalog
    names: ClassVar[tuple[str, ...]] = NAMES

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        self.wire, self.random = wire, random
        self.wall: int = START_MS
        self.wire(pack("FLUSHALL"))
        self.scripts = {name: load_script(wire, name, text) for name, text in texts.items()}
        self.keys = Keys("mk", 1)
        self.number = 0  # Of the newest settlement.

    def run(self, script: str, keys: Sequence[str], *argv: str | int) -> Any:
        return self.wire(pack("EVALSHA", self.scripts[script].sha, len(keys), *keys, *argv))

    def process(self, seal_delay_ms: int = 0) -> CustomerCache:
        return CustomerCache(
            self.catalog,
            keys=self.keys,
            decide=self.scripts["decide"],
            settle=self.scripts["settle"],
            allot=self.scripts.get("allot_requests"),
            seal_delay_ms=seal_delay_ms,
            now_ms=lambda: self.wall,
            on_unclaimed=lambda _call, _slot: None,
        )

    def send(self, packed: bytes) -> Any:
        return self.wire(packed + pack_each([self.wall]))

    def decided(
        self, view: CustomerView, prepare: Callable[[CustomerView], PreparedDecision]
    ) -> tuple[PreparedDecision, Any]:
        """Have a request decided by the newest state of its customer."""
        while True:
            decision = prepare(view)
            reply = self.send(b"".join(decision.packed))
            if isinstance(reply, Exception) or reply[0] != 2:
                return decision, reply
            view = view.cache.learn(view, reply)

    def settled(self, settlement: Settlement) -> list[Any]:
        """Have a settlement applied by the newest state of its customer; the reply."""
        self.number += 1
        while True:
            reply = self.send(self.packed(settlement, "w", self.number))
            if isinstance(reply, Exception) or reply[0] != 4:
                break
            settlement.on_stale(reply)
        found: list[Any] = [reply] if isinstance(reply, int | bytes | str | Exception) else reply
        self.compare(f"settled {settlement.used} {settlement.occurred_ms}", 0, found[0])
        return found

    def packed(self, settlement: Settlement, writer: str, number: int) -> bytes:
        """A settlement of a writer, but for the time."""
        head, tail = settlement.pack()
        producer = pack_each([self.keys.producer(0, writer)])
        return head + producer + tail + pack_sequence(settlement.slot, number)

    def one_of(self, deeds: Mapping[str, float]) -> Any:
        """The method of a deed, by how often each is done."""
        return getattr(self, self.random.choices(list(deeds), list(deeds.values()))[0])

    def pop_notices(self, key: str) -> list[dict[str, str]]:
        """The notices since, which are gone then."""
        entries = self.wire(pack("XRANGE", key, "-", "+"))
        if entries:
            self.wire(pack("DEL", key))
        found = (fields_of(fields) for _, fields in entries)
        return [{name: value.decode() for name, value in fields.items()} for fields in found]

    def compare(self, what: str, expected: Any, found: Any) -> None:
        if expected != found:
            raise MismatchError(f"{what} at {self.wall}: expected {expected!r}, found {found!r}")


def amended(
    keys: Keys,
    amend: Script,
    customer: str,
    revs: Sequence[str],
    state: str,
    wall: int,
    changes: str = NO_CHANGES,
    *,
    linked: int = 0,
) -> bytes:
    """The request that gives a customer another state in place of that with the first rev."""
    names = keys.customer(customer)
    argv: tuple[str | int, ...] = (*revs, state, customer, linked, wall, "", "", 0, changes, wall)
    touched = [names.counters, names.state, keys.shard(0, "customers"), names.dirty, names.unlinked]
    touched += [keys.turns(0), names.history, names.notices, names.levels, names.totals, names.over]
    return pack("EVALSHA", amend.sha, len(touched), *touched, *argv)


class OneCustomer(ScriptWorld):
    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random)
        self.processes = [self.process() for _ in range(2)]
        self.rev = NO_STATE
        self.open: list[tuple[PreparedDecision, int]] = []
        self.seen: set[str] = set()

    @property
    def view(self) -> CustomerView:
        return self.random.choice(self.processes).get("ada")

    @property
    def own(self) -> CustomerKeys:
        return self.keys.customer("ada")

    def next_rev(self) -> str:
        before, self.rev = self.rev, f"{FORMAT}:{self.random.randrange(10**12):012x}"
        return before

    def put_state(self, data: str) -> None:
        """Replace the state by hand: the counters know none then."""
        self.wire(pack("HSET", self.own.state, "rev", self.rev, "data", data))
        head = self.wire(pack("HGET", self.own.counters, "h"))
        if head is not None:
            *times, _ = unpack_field(head)
            self.wire(pack("HSET", self.own.counters, "h", pack_field(*times, "")))
