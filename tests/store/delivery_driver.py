"""Drives the scripts of delivery and administration, and the model, with the same random life of a shard.

What a shard holds is set up directly; after each script everything that is stored is compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from random import Random
from typing import Any, ClassVar, Final

from drivers.counters import flat_of, packed_of
from meterkit.decisions.keys import FORMAT, meter_token
from meterkit.decisions.periods import bounds_at
from meterkit.redis.connection import pack
from store.delivery_checks import SKEWS, Checks, own_keys, pairs, terms_of, texts_of
from store.delivery_corrections import ONCE, Billed, Prices, Restore, restore
from store.delivery_model import (
    LETTERS,
    METERS,
    STEERED,
    TOKENS,
    Amend,
    Billing,
    Intent,
    Move,
    Refuse,
    Seal,
    Steer,
)
from store.script_counts import DAY_MS, MINUTE_MS, SLOT_MS
from store.script_model import NEVER_MS, NO_REV, Customer, Times, View
from store.script_plans import START_MS
from store.script_wires import Wire
from store.script_world import fields_of, weighed

# Months of the calendar, and months that begin and end within a minute.
ANCHORS: Final = {"ada": None, "bob": START_MS - 20 * DAY_MS + 30_000, "cid": START_MS + 4 * SLOT_MS + 1}
# An event's name may be anything, also what stands for another meter.
# Pages have another name by now.
EVENTS: Final = {"requests": meter_token("rows"), "tokens": "tokens", "pages": "db rows", "rows": "db rows"}
QUANTITIES: Final = (1, 2, 700, 10**15 - 1, 10**15, 2 * 10**15 - 2, 3 * 10**15 + 5, 9 * 10**15)
NAME: Final = "ada"
WORKERS: Final = ("worker-a", "worker-b")
WRITERS: Final = ("w:1", "w:2")
LINK: Final = "l:cus_1"
BESIDE: Final = (-1, 0, 0, 1)
# Steps until everything begins again, with little to compare.
LIFE: Final = 80


def text_of(asked: Any) -> str:
    """What a script is asked with as JSON, without what is None."""

    def told(fields: Any) -> dict[str, Any]:
        return {name: value for name, value in fields if value is not None}

    return json.dumps(asdict(asked, dict_factory=told))


class Delivery(Checks):
    """A shard in a store, the model of it, three customers and a clock."""

    cuts: ClassVar[tuple[str, ...]] = ("", "", "", "cut", "cut", "moved")
    taken_back: ClassVar[tuple[int, ...]] = (0, 1, 700, 10**15 - 1)
    by_lines: ClassVar[bool] = False
    """Whether invoice lines bill usage."""
    switches: tuple[int, ...] = ()

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random, *, slack_ms: int = 0) -> None:
        super().__init__(wire, texts, slack_ms=slack_ms)
        self.random, self.steps = random, 0

    def step(self) -> None:
        if self.steps % LIFE == 0:
            self.empty()
            self.wall = START_MS + self.random.randrange(DAY_MS)
        self.steps += 1
        self.shard.fresh.clear()
        name = self.random.choice(list(ANCHORS))
        self._tick(name)
        for _ in range(self.random.randrange(3)):
            self._do_one_of(_PLANTS, name)
        self._do_one_of(_DEEDS, name)

    def _do_one_of(self, deeds: Mapping[str, float], name: str) -> None:
        getattr(self, self.random.choices(list(deeds), list(deeds.values()))[0])(name)

    # Time.

    def _tick(self, name: str) -> None:
        chance, customer = self.random.random(), self.shard.customers[name]
        if chance < 0.3:
            return
        if chance < 0.4:
            self.wall += self.random.choice((1, 999, 1000, 1001, 30_000))
        elif chance < 0.7:
            self.wall = (self.wall // MINUTE_MS + 1) * MINUTE_MS + self.random.choice(BESIDE)
        elif chance < 0.78:
            self.wall = (self.wall // SLOT_MS + 1) * SLOT_MS + self.random.choice(BESIDE)
        elif chance < 0.82:
            self.wall -= self.random.choice((1, 60_000, 240_000))
        elif chance < 0.84:
            self.wall += self.random.choice((DAY_MS, 35 * DAY_MS))
        elif chance < 0.86 and customer.seen:
            self.wall = max(self.wall, customer.seen + MINUTE_MS + self.random.choice(BESIDE))
        elif customer.period is not None:
            minutes = self.random.choice((-5, -4, -3, -3, -2, -2, -1, 0, 0, 0, 1, 2))
            edge = customer.period[1] + minutes * MINUTE_MS
            edge = self.random.choice((edge, edge // MINUTE_MS * MINUTE_MS)) + self.random.choice(BESIDE)
            self.wall = max(self.wall, edge)

    # What is there.

    def plant_usage(self, name: str) -> None:
        """What settlements leave behind."""
        customer, meter = self.shard.customers[name], self.random.choice(METERS)
        quantity = self.random.choice(QUANTITIES)
        if customer.period is None:
            customer.seen, customer.lives = self.wall, self.wall + DAY_MS
            customer.begin(self.wall, self._view(name, self.wall))
        kinds = (customer.included, customer.overage, customer.granted, customer.credited, customer.over_cap)
        recorded = self.random.choice(kinds)
        waits = customer.pending[meter] + self._sealed_units(name)
        if max(waits, sum(counts[meter] for counts in kinds)) + quantity <= 9 * 10**15:
            recorded[meter] += quantity
            if self.random.random() < 0.9:
                customer.pending[meter] += quantity
        customer.cached = self.random.choice((customer.rev, customer.rev, None))
        if self.random.random() < 0.3:
            customer.stamps[meter] = (self.wall // MINUTE_MS + self.random.randrange(-1, 9)) * MINUTE_MS
        if self.random.random() < 0.3:
            customer.holds[meter].take(customer.seen, 3)
            customer.concurrency[meter].take(customer.seen, 1)
        waiting = self.random.choice((self.shard.dirty, self.shard.dirty, self.shard.unlinked))
        waiting.setdefault(name, self.wall + self.random.randrange(SLOT_MS))
        if waiting is self.shard.dirty:
            customer.lives = NEVER_MS
        self.store(f"c:{name}", "dirty", "unlinked")

    def _sealed_units(self, name: str) -> int:
        """Units on their way to Stripe: they may come back to any meter and period of the customer."""
        sealed = (intent.value for intent in self.shard.intents.values() if intent.customer == name)
        return sum(value for value in sealed if value > 0)

    def plant_closed(self, name: str) -> None:
        """What is pending of periods that are over, or were cut short a minute ago, or a few ahead."""
        customer, token = self.shard.customers[name], meter_token(self.random.choice(METERS))
        begins = START_MS - self.random.randrange(3) * 31 * DAY_MS
        edge = self.wall // MINUTE_MS + self.random.choice((-9, 1, 4, 5, 6, 7))
        ends = edge * MINUTE_MS + self.random.choice((0, 0, -1, 1, 30_000))
        customer.closed.setdefault(f"{begins}|e", ends)
        room = max(1, 9 * 10**15 - self._sealed_units(name))
        customer.closed[f"{begins}|{token}p"] = min(self.random.choice(QUANTITIES), room)
        if self.random.random() < 0.3:
            customer.closed[f"{begins}|{token}i"] = 7
        self.shard.ttls.setdefault(f"t:{name}", DAY_MS)
        self.store(f"t:{name}")

    def plant_change(self, name: str) -> None:
        """Prices that were changed in this period, or are being changed; and minutes that no intent has."""
        customer = self.shard.customers[name]
        if customer.period is None:
            return
        begins, minute = customer.period[0], self.wall // MINUTE_MS * MINUTE_MS
        beside = [minute + nth * MINUTE_MS for nth in range(-2, 4)]
        beside += [self.wall + more for more in (-1, 0, 1)]
        if self.random.random() < 0.3:
            self.wall = minute + 2_000 + self.random.choice(BESIDE)
        for kind in "wy":
            if self.random.random() < 0.5:
                customer.closed[f"{begins}|{kind}"] = self.random.choice(beside)
        for meter in METERS:
            if self.random.random() < 0.5:
                changed = [customer.closed.get(f"{begins}|{kind}", minute) for kind in "wy"]
                near = (begins - MINUTE_MS, begins, minute - MINUTE_MS, minute, *changed)
                vacant = -(-self.random.choice(near) // MINUTE_MS) * MINUTE_MS
                customer.closed[f"{begins}|{meter_token(meter)}v"] = vacant
        self.shard.ttls.setdefault(f"t:{name}", DAY_MS)
        self.store(f"t:{name}")

    def plant_age(self, _: str) -> None:
        """Keys that were given their lives long ago."""
        for key in self.shard.ttls:
            self.shard.ttls[key] = DAY_MS
        self.store(*self.shard.ttls)

    def plant_grants(self, name: str) -> None:
        self.shard.grants[name] = {f"grant-{self.random.randrange(9)}": "tokens 100 0"}
        self.shard.ledgers[name] = {"grant grant-0": "100"}
        self.store(f"g:{name}", f"j:{name}")

    def plant_lease(self, _: str) -> None:
        """A lease that is lost, or somebody else's."""
        self.shard.strings.pop("lease", None)
        if self.random.random() < 0.7:
            self.shard.strings["lease"] = self.random.choice(WORKERS)
            self.shard.ttls["lease"] = DAY_MS
        self.store("lease")

    def plant_writer(self, _: str) -> None:
        writer = self.random.choice(WRITERS)
        self.shard.strings[writer] = str(self.random.choice((1, 12, 10**12)))
        self.shard.ttls[writer] = DAY_MS
        self.store(writer)

    def plant_moved(self, name: str) -> None:
        """Nothing is on its way of a customer, or in one state only."""
        customer = self.shard.customers[name]
        kept = self.random.choice(("", *"qlkdxQLKX"))
        for field in [field for field in customer.closed if field[-1].lower() in "qlkdxpz"]:
            del customer.closed[field]
        if kept:
            self.shard.ttls.setdefault(f"t:{name}", DAY_MS)
            customer.closed[f"{START_MS}|{meter_token('rows')}{kept}"] = self.random.randrange(2)
        self.shard.dirty.pop(name, None)
        self._drop_intents(name)
        self.store(f"t:{name}", "dirty")

    def _drop_intents(self, name: str) -> None:
        kept = {known: intent for known, intent in self.shard.intents.items() if intent.customer != name}
        self.shard.intents = kept
        for scores in (self.shard.outbox, self.shard.parked, self.shard.dead, self.shard.compare):
            for known in set(scores) - set(kept):
                del scores[known]
        self.store("intents", "outbox", "parked", "dead", "compare")

    def plant_gone(self, name: str) -> None:
        """What the server does with counters whose time has come."""
        self.shard.expire(name)
        self.store(f"c:{name}")
        if self.random.random() < 0.3:
            self.shard.dirty.pop(name, None)
            self.shard.unlinked[name] = self.wall
            self.store("dirty", "unlinked")

    def plant_new(self, name: str) -> None:
        """Usage in the first minute of a period."""
        self.plant_gone(name)
        begins = bounds_at(self.wall, anchor_ms=ANCHORS[name]).end_ms
        self.wall = begins + self.random.choice((0, 1, 29_999, self.random.randrange(MINUTE_MS)))
        self.plant_usage(name)

    def choose_cut(self, _name: str) -> str:
        return self.random.choice(self.cuts)

    # Deeds.

    def seal(self, name: str) -> bool:
        """Have what is pending sealed; whether that was done."""
        customer = self.shard.customers[name]
        now = customer.now(self.wall)
        view = self._view(name, now if self.random.random() < 0.9 else now - 20 * DAY_MS)
        events = self._events()
        this = now // MINUTE_MS * MINUTE_MS
        ends = [end for field, end in customer.closed.items() if field[-1] == "e"]
        beside = [at // MINUTE_MS * MINUTE_MS + MINUTE_MS * n for at in (this, *ends) for n in range(-3, 4)]
        taken = self.random.sample(beside, self.random.choice((0, 0, 0, 1, 3, 6)))
        cutting = self.choose_cut(name)
        if cutting == "moved":  # By a little, or too little to be another period.
            start, end = view.period
            more = self.random.choice((0, 2 * MINUTE_MS - 1, 2 * MINUTE_MS, 5 * MINUTE_MS))
            view = replace(view, period=(start + more, end))
        asked = Seal(
            taken=tuple(taken),
            stripe=self.random.choice(("", *[f"cus_{name}"] * 9)),
            events=events,
            outlive_ms=self.random.choice((900_000, 400 * DAY_MS)),
            live_ms=self.random.choice((900_000, 60 * DAY_MS)),
            invoices=self.invoices(now, ends),
            cut=(self.wall + 90_000, self._labels()) if cutting == "cut" else None,
            is_moved=cutting == "moved",
        )
        skew = self.random.choice(SKEWS) if self.random.random() < 0.1 else 0
        times = Times(wall=self.wall, claimed=self.wall - skew)
        nonce = f"{self.random.getrandbits(128):032x}"
        cut = json.dumps({"till": str(asked.cut[0]), "labels": asked.cut[1]}) if asked.cut else cutting
        argv: tuple[str | bytes, ...] = (
            *(view.rev, terms_of(view, asked.outlive_ms, asked.live_ms), nonce, name, asked.stripe),
            *(json.dumps(taken), "" if asked.invoices is None else text_of(asked.invoices), cut),
            *(part for event in events.items() for part in event),
        )
        reply, found = self.ask("seal", self._seal_keys(name), *argv, times.claimed, skew=skew)
        if reply[0] == 0:  # Meters come in no order.
            reply = [*reply[:5], *sorted(zip(reply[5::2], reply[6::2], strict=False))]
            self.seen["late"] += len(reply[4])
        expected, made = self.shard.seal(name, view, asked, times)
        lines = expected[2] - len(made) if made else 0
        self._adopt(made, nonce, found.get("intents", {}), now, lines)
        self.check(f"seal {name} {view} {asked} {times}", expected, reply, found)
        return expected[0] == 0 and bool(asked.stripe)

    def _seal_keys(self, name: str) -> tuple[str, ...]:
        return (*own_keys(name, "cst"), "dirty", "intents", "outbox", f"h:{name}", "items")

    def invoices(self, now: int, ends: Sequence[int]) -> Billing | None:
        """The invoices that a seal goes by, of periods with these ends: none, but see Overtaking."""
        del now, ends
        return None

    def seal_broken(self, name: str) -> None:
        """A field that must be a whole number is none: nothing is done."""
        self._ask_broken("seal", name, self._seal_keys(name), "f" * 32, name, f"cus_{name}", "[]", "", "")

    def restore_broken(self, name: str) -> None:
        """So it is with units that are to be taken back."""
        self._ask_broken(
            "correct_usage", name, self._restore_keys(name, "r:2"), name, '{"meters": []}', "2", "{}"
        )

    def _ask_broken(self, script: str, name: str, keys: tuple[str, ...], *argv: str) -> None:
        """Have a field of the counters or totals be no whole number."""
        customer = self.shard.customers[name]
        view = replace(self._view(name, customer.now(self.wall)), valid_until_ms=NEVER_MS)
        counters = packed_of(self._stored().get(f"c:{name}", {}))
        fields = {f"c:{name}": [field for field in counters if field[-1] in "hm"]}
        fields[f"t:{name}"] = [field for field in customer.closed if field[-1] in "efhpigcoqlkdxztrafQLKDXZ"]
        if not any(fields.values()):
            return
        key = self.random.choice([key for key, names in fields.items() if names])
        field = self.random.choice(fields[key])
        self.wire(pack("HSET", self._key(key), field, self.random.choice(("x", "1.5", "-1", ""))))
        reply, found = self.ask(script, keys, view.rev, terms_of(view), *argv, self.wall)
        self.store(key)
        found[key] = texts_of(customer.fields() if key[0] == "c" else customer.closed)
        self.check(f"{script} broken {field}", [4, self.wall, field.encode()], reply, found)

    def move(self, _: str) -> None:
        latest = list(self.shard.intents)[-4:]
        wanted = [self.random.choice((*latest * 4, *self.shard.intents, "nobody")) for _ in range(3)]
        wanted = list(dict.fromkeys(wanted))[: self.random.choice((1, 1, 2, 3))]
        intents = [self.shard.intents.get(identifier) for identifier in wanted]
        states = self.random.sample(list(LETTERS), self.random.choice((1, 2, 3)))
        if intents[0] is not None and intents[0].state not in states and self.random.random() < 0.8:
            states[0] = intents[0].state
        token = self.random.choice((*WORKERS, *[self.shard.strings.get("lease", "nobody")] * 9))
        moves = [self._move(identifier) for identifier in wanted]
        names = [intent.customer if intent is not None else "ada" for intent in intents]
        count, sample = self.random.choice((0, 0, 1, 2)), self.random.sample
        batches = {f"batch-{nth}": " ".join(sample(wanted, len(wanted))) for nth in range(count)}
        reply, found = self._ask_move(token, states, moves, names, batches)
        expected = self.shard.move(token, states, moves, batches, self.wall)
        self.check(f"move_intents {token} {states} {moves}", expected, reply, found)

    def move_broken(self, _: str) -> None:
        """Of an intent whose customer's totals cannot be counted in nothing changes but when it is due."""
        token = self.shard.strings.get("lease")
        if token is None or not self.shard.intents:
            return
        identifier, intent = self.random.choice(list(self.shard.intents.items()))
        move, key = self._move(identifier), f"t:{intent.customer}"
        field = intent.field(self.random.choice((intent.state, move.state)))
        if self.random.random() < 0.3:
            self.wire(pack("SET", self._key(key), "text"))
        else:
            wrong = self.random.choice(("x", "1.5", "", "1x"))
            self.wire(pack("HSET", self._key(key), field, wrong))
        reply, found = self._ask_move(token, [intent.state], [move], [intent.customer], {})
        self.shard.ttls[key] = DAY_MS
        self.store(key)
        found[key] = texts_of(self.shard.customers[intent.customer].closed)
        self.rows[key] = [b"hash", DAY_MS, -1, []]
        if identifier in self.shard.outbox:
            self.shard.outbox[identifier] = self.wall + 2 * SLOT_MS
        self.check(f"move_intents broken {identifier}", [0, self.wall, [2]], reply, found)

    def _move(self, identifier: str) -> Move:
        return Move(
            identifier=identifier,
            state=self.random.choice((*LETTERS, "leased", "queued", "delivered")),
            delay_ms=self.random.choice((0, 1, 60_000)),
            key=self.random.choice(("", f"key-{self.random.randrange(99)}")),
            why=self.random.choice(("", "", "no such customer")),
            untried=int(self.random.random() < 0.3),
        )

    def _ask_move(
        self, token: str, states: Sequence[str], moves: Sequence[Move], names: Sequence[str], sent: Any
    ) -> tuple[Any, dict[str, Any]]:
        shared = ("intents", "outbox", "lease", "delivered:1", "parked", "dead", "compare", "batches:1")
        words = "".join(f"{state} " for state in states)
        argv = (token, words, json.dumps(moves), json.dumps(list(sent.items())))
        return self.ask("move_intents", (*shared, *(f"t:{name}" for name in names)), *argv, self.wall)

    def change_state(self, _: str) -> None:
        free = {known: intent for known, intent in self.shard.intents.items() if intent.state != "leased"}
        if not free:
            return
        identifier = self.random.choice(list(free))
        asked, key = self._steer(identifier, free[identifier]), f"t:{free[identifier].customer}"
        if self.random.random() < 0.1:
            self._steer_broken(asked, key)
            return
        if self.random.random() < 0.1:
            asked = replace(asked, read=f"{asked.read} ")
        reply, found = self._ask_steer(asked)
        expected = self.shard.change_state(asked, self.wall, is_audited=bool(self._audit()))
        self.check(f"change_state {asked}", expected, reply, found)

    def _steer_broken(self, asked: Steer, key: str) -> None:
        """Where the totals cannot be counted in, nothing changes, unless it stays in its state."""
        known, customer = self.shard.intents[asked.identifier], self.shard.customers[asked.intent.customer]
        if known.state == asked.intent.state:
            return
        field = known.field(self.random.choice((known.state, asked.intent.state)))
        self.wire(pack("HSET", self._key(key), field, self.random.choice(("x", "1.5", "", "1x"))))
        reply, found = self._ask_steer(asked)
        self.store(key)
        found[key] = texts_of(customer.closed)
        self.check(f"change_state broken {field}", [2, self.wall], reply, found)

    def _ask_steer(self, asked: Steer) -> tuple[Any, dict[str, Any]]:
        name = asked.intent.customer
        sets = ("intents", "outbox", "parked", "dead", "compare")
        keys = (*sets, *own_keys(name, "th"), "delivered:1", *self._audit())
        compare = "" if asked.compare_ms is None else asked.compare_ms
        argv = (asked.identifier, asked.read, asked.new_identifier, json.dumps(asked.intent.stored()))
        more = (compare, json.dumps(asked.entries), asked.dropped)
        return self.ask("change_state", keys, *argv, *more, self.wall)

    def _steer(self, identifier: str, known: Intent) -> Steer:
        """Another state, or the same, under its identifier or another."""
        read = self.parse_sealed(identifier)
        state = self.random.choice((*STEERED, known.state, known.state))
        state = "parked" if state == "leased" else state
        renamed = state != known.state and self.random.random() < 0.3
        chosen = self.random.choice((0, known.first, self.wall))
        return Steer(
            identifier=identifier,
            read=read,
            new_identifier=f"{self.random.getrandbits(64):x}" if renamed else identifier,
            intent=replace(known, state=state, first=chosen, why=self.random.choice(("", "seen"))),
            compare_ms=self.random.choice((None, 0, 600_000)) if state == "parked" else None,
            dropped=f"of {known.customer}",
            entries=[[f"{what}{nth}" for what in "katfc"] for nth in range(self.random.randrange(3))],
        )

    def refuse(self, name: str) -> None:
        sent = [known for known in self.shard.delivered if not known.startswith("dropped|")]
        identifier = self.random.choice((*sent * 3, *self.shard.intents, "nobody"))
        intent, short = self.shard.intents.get(identifier), self.shard.delivered.get(identifier)
        owner = intent.customer if intent is not None else short[0] if short is not None else name
        event = intent.event if intent is not None else short[2] if short is not None else "tokens"
        new, state = f"{self.random.getrandbits(64):x}r", self.random.choice(("parked", "dead"))
        owner = self.random.choice((*[owner] * 9, name))
        asked = Refuse(identifier, new, state, "refused", self.tokens_of(event), owner)
        reply, found = self.ask_refuse(asked)
        self.check(f"refuse_intent {asked}", self.shard.refuse(asked, self.wall), reply, found)

    def tokens_of(self, event: str) -> str:
        """The meters of an event name in any order, as a refusal is asked with them."""
        named = [f"{meter_token(meter)} " for meter in METERS if EVENTS[meter] == event]
        return "".join(self.random.sample(named, len(named)))

    def ask_refuse(self, asked: Refuse) -> tuple[Any, dict[str, Any]]:
        keys = ("intents", "outbox", "delivered:1", asked.state, f"t:{asked.customer}")
        return self.ask("refuse_intent", keys, *asked, self.wall)

    def to_restore(self) -> dict[str, list[str]]:
        """The meters that units are taken back of, each with the tokens of its events."""
        meters = self.random.sample(METERS, self.random.choice((1, 2)))
        # Another meter may be derived from it.
        both = {meter: dict.fromkeys((meter, self.random.choice((meter, *METERS)))) for meter in meters}
        return {meter: list(map(meter_token, every)) for meter, every in both.items()}

    def prices(self) -> Prices:
        """What units cost that are taken back: nothing here, but see Repricing."""
        return Prices()

    def billed(self, tokens: Mapping[str, Sequence[str]]) -> Billed | None:
        """What invoices have of meters, each with the tokens of its events: none here, but see Restoring."""
        del tokens
        return None

    def restore(self, name: str) -> None:
        """Units are taken back; now and then they were before, or a count is no number."""
        customer = self.shard.customers[name]
        view = self._view(name, customer.now(self.wall))
        tokens = self.to_restore()
        quantities = {meter: self.random.choice(self.taken_back) for meter in tokens}
        prices, every = self.prices(), [token for of in tokens.values() for token in of]
        included_too = [token for token in dict.fromkeys(every) if self.random.random() < 0.4]
        if prices.rows or self.by_lines:  # Included units have no price.
            included_too = []
        meters: list[list[Any]] = []
        for meter, quantity in quantities.items():
            too = [[token, int(token in included_too)] for token in tokens[meter]]
            rows = [prices.rows] if prices.rows else []
            meters.append([meter, meter_token(meter), quantity, too, *rows])
        paid = {"prices": prices.paid} if prices.paid else {}
        text = json.dumps({"meters": meters, "id": "c-1", "reason": "a loop", "by": "ada", **paid})
        if self.random.random() < 0.9:
            self.shard.strings.pop(ONCE, None)
            self.store(ONCE)
        skew = self.random.choice((0, 0, 0, *SKEWS))
        times = Times(wall=self.wall, claimed=self.wall - skew)
        restored = Restore(
            quantities=quantities,
            tokens=tokens,
            included_too=included_too,
            text=text,
            stripe=self.random.choice(("", *[f"cus_{name}"] * 4)),
            nonce=f"{self.random.getrandbits(128):032x}",
            events={} if self.by_lines else self._events(),
            taken=[self.wall // MINUTE_MS * MINUTE_MS] * self.random.choice((0, 0, 1)),
            digest=f"{self.random.randrange(9)}",
            entries=("a loop", "ada"),
            prices=prices,
            billed=self.billed(tokens),
            by_lines=self.by_lines,
        )
        sending = {
            told: getattr(restored, told) for told in ("stripe", "nonce", "events", "taken", "by_lines")
        }
        if prices.spend:
            sending["spend"] = {"token": meter_token(prices.spend), "prices": prices.of}
        if restored.billed is not None:
            sending["billed"] = asdict(restored.billed)
        keys = (*self._restore_keys(name, ONCE), *self._audit())
        argv = (view.rev, terms_of(view), name, text, restored.digest, json.dumps(sending), times.claimed)
        reply, found = self.ask("correct_usage", keys, *argv, skew=skew)
        audited = bool(self._audit())
        expected, kept = restore(self.shard, name, view, restored, times, is_audited=audited)
        if reply[0] <= 1 and len(reply) > 2:
            told = reply.pop().decode()
            if kept is not None:
                self._compare("what is kept", kept, json.loads(told))
                self.shard.strings[ONCE] = told
            self._compare("what is told", self.shard.strings[ONCE], told)
        self.check(f"correct_usage {name} {view} {restored} {times}", expected, reply, found)
        self.seen["taken back at Stripe"] += f"{restored.nonce}-1" in self.shard.intents
        for units in map(str.split, kept["done"].values() if kept else ()):
            self.seen["units given back"] += units[7] != "0"
            self.seen["credits given back"] += units[8] != "0"
        refunds = [
            text for line, text in self.shard.ledgers.get(name, {}).items() if line.startswith("refund ")
        ]
        self.seen["given up to a refund"] += any(text.split()[2] == str(expected[1]) for text in refunds)
        self.seen["units left to credit notes"] += any(kept.get("by_hand", {}).values() if kept else ())
        self.seen["taken back at Stripe under two events"] += f"{restored.nonce}-2" in self.shard.intents

    def restore_delivered(self, name: str) -> None:
        """So are units that Stripe has, some of which were taken back before."""
        self.plant_usage(name)
        customer = self.shard.customers[name]
        for meter in METERS:
            field = f"{customer.begun[0]}|{meter_token(meter)}"
            included, overage = self.random.choice((0, 0, 5)), self.random.choice((0, 5, 700))
            customer.included[meter], customer.overage[meter] = included, overage
            customer.pending[meter] = self.random.choice((0, 0, 0, 2))
            for letter in "qlkdxzQLKDXZr":
                customer.closed.pop(f"{field}{letter}", None)
            customer.closed[f"{field}d"] = self.random.choice((0, overage, overage + included, 10**15 + 5))
            for letter in self.random.sample("qlkxzQLKDXZr", self.random.choice((0, 0, 1, 2))):
                customer.closed[f"{field}{letter}"] = self.random.choice((0, 1, 2))
            ahead = self.random.choice((None, -9, -1, 0, 1, 2, 3))
            customer.stamps[meter] = 0 if ahead is None else (self.wall // MINUTE_MS + ahead) * MINUTE_MS
        self.shard.ttls.setdefault(f"t:{name}", DAY_MS)
        self._drop_intents(name)
        self.store(f"c:{name}", f"t:{name}")
        self.restore(name)

    def _restore_keys(self, name: str, once: str) -> tuple[str, ...]:
        own = own_keys(name, "cst"), own_keys(name, "gjh")
        return (*own[0], "unlinked", *own[1], once, f"k:{name}", "intents", "outbox")

    def recall(self, name: str) -> None:
        rev = self._rev(name)
        own = [known for known, intent in self.shard.intents.items() if intent.customer == name]
        known = (*own * 4, *self.shard.intents, "nobody")
        wanted = list(dict.fromkeys(self.random.choice(known) for _ in range(3)))
        keys = ("intents", "outbox", *own_keys(name, "tcs"), "unlinked")
        expected = self.shard.recall(name, rev, wanted, self.wall)
        self.judge("recall_intents", keys, rev, name, *wanted, expected=expected)

    def count(self, _: str) -> None:
        keys = ("dirty", "outbox", "unlinked", "parked", "dead")
        places: list[dict[str, int]] = [getattr(self.shard, key) for key in keys]
        scores = [score for place in places for score in place.values()]
        limit = str(self.random.choice(("+inf", *scores)))
        # A key of another type counts as one member.
        self.wire(pack("SET", self._key("damaged"), "text"))
        reply, found = self.ask("count_due", (*keys, "damaged"), limit, self.wall)
        self.wire(pack("DEL", self._key("damaged")))
        del found["damaged"]
        expected = [9, *self.shard.count(places, float(limit)), len(keys) + 1, 1]
        self.check(f"count_due {limit}", expected, [9, *reply], found)

    def lease(self, _: str) -> None:
        token, ttl_ms = self.random.choice(WORKERS), self.random.choice((0, 600_000, 900_000))
        self.judge("lease_shard", ("lease",), token, ttl_ms, expected=self.shard.lease(token, ttl_ms))

    def amend(self, name: str) -> None:
        """Somebody changes a customer; now and then somebody else was faster."""
        chance, seal_at_ms = self.random.random(), self.wall + self.random.randrange(9)
        linked = 0 if chance >= 0.6 else 1 if chance < 0.3 else 2
        force, period = self.shard.forces.get(name, ""), self.shard.customers[name].period
        begins = self.wall if period is None else period[0]
        read, number = self._rev(name), self.random.randrange(10**6)
        asked = Amend(
            read=read,
            rev=f"{FORMAT}:{number}",
            data=f'{{"plan":"{self.random.randrange(99)}"}}',
            read_force=self.random.choice((force, force, force, force, "", "other")),
            force=f'{{"plan":"{self.random.randrange(99)}"}}',
            turn_ms=self.random.choice((0, self.wall + self.random.randrange(9))),
            entries=[[f"{what}{nth}" for what in "katfc"] for nth in range(self.random.randrange(3))],
            notices=[[f"kind{nth}", f'{{"nth":{nth}}}'] for nth in range(self.random.randrange(3))],
            ended_ms=self._ended_ms(begins),
            labels=self._labels() if self.random.random() < 0.6 else {},
            prices=self._follow_prices(name, begins),
            is_free=not self.by_lines and number % 5 == 0,
            # Those ahead make usage that waits due, and change nothing else.
            switches=self.switches or (NEVER_MS,) * (number % 3 == 0),
            period=self._period_of_state(period),
        )
        shared = ("customers", "dirty", "unlinked", "turns")
        keys = (*own_keys(name, "cs"), *shared, f"h:{name}", "notices", *own_keys(name, "vt"), "over")
        changed = {"entries": asked.entries, "notices": asked.notices, "gauges": [], "names": TOKENS}
        ended: dict[str, Any] = {
            "at": str(asked.ended_ms),
            "labels": asked.labels,
            "prices": asked.prices,
            "switches": asked.switches,
        }
        ended |= {"is_free": True} if asked.is_free else {}
        changes = json.dumps({**changed, "ended": ended, "period": asked.period})
        argv = (asked.read, asked.rev, asked.data, name, linked, seal_at_ms)
        more = (asked.read_force, asked.force, asked.turn_ms, changes)
        expected = self.shard.amend(name, asked, self.wall, linked=linked, seal_at_ms=seal_at_ms)
        self.judge("amend_state", keys, *argv, *more, expected=expected)

    def _follow_prices(self, name: str, begins: int) -> dict[str, str]:
        """Prices from now on; now and then settlements have stored those of the latest units."""
        own = Random(begins + 2 * self.wall)  # noqa: S311 - of its own: other steps stay as they were
        closed, labels = self.shard.customers[name].closed, ("1/5", "1000/12", "")
        tokens = [meter_token(meter) for meter in METERS]
        for token in tokens if closed else ():
            if own.random() < 0.4:
                closed[f"{begins}|{token}Y"] = label = own.choice(labels[:2])
                self.wire(pack("HSET", self._key(f"t:{name}"), f"{begins}|{token}Y", label))
        return {token: own.choice(labels) for token in tokens if own.random() < 0.6}

    def _ended_ms(self, begins: int) -> int:
        """When prices ended: mostly about where the period began."""
        return self.random.choice((begins - 1, begins, begins + 1, self.wall))

    def _period_of_state(self, period: tuple[int, int] | None) -> tuple[int, int]:
        """Bounds of now: mostly such as the counters' period just goes on in, or just not."""
        begins, ends = period or (self.wall, self.wall)
        chance = Random(begins + self.wall)  # noqa: S311 - of its own: other steps stay as they were
        start = begins + chance.choice((-MINUTE_MS, 0, 2 * MINUTE_MS - 1, 2 * MINUTE_MS))
        return start, chance.choice((self.wall, self.wall + 1, ends, ends, ends, ends + MINUTE_MS))

    def _events(self) -> dict[str, str]:
        """Mostly all meters, each with the name of its event."""
        return {meter_token(meter): event for meter, event in EVENTS.items() if self.random.random() < 0.9}

    def _labels(self) -> dict[str, str]:
        """Some meters, each with the label of a price."""
        prices, chance = ("1/5", "1/5", "1000/12", "-"), self.random.random
        return {meter_token(meter): self.random.choice(prices) for meter in METERS if chance() < 0.6}

    def forget(self, name: str) -> None:
        read = self._rev(name)
        keys = (*own_keys(name, "cst"), "customers", "dirty", "unlinked", *own_keys(name, "gjvih"))
        sums = ["audit:sums"] * bool(self._audit())
        more = ("turns", *own_keys(name, "kq"), "over", *self._audit(), *sums)
        levels, over = self._key(f"v:{name}"), self._key("over")
        self.wire(pack("HSET", levels, "seats", 1), pack("ZADD", over, self.wall, f"seats:{name}"))
        own, others, later = f"7|abcd1|{name}", f"7|abcd1|x|{name}", f"8|abcd1|{name}"
        if sums:
            self.wire(pack("HSET", self._key("audit:sums"), own, 3, others, 4, later, 5))
        reply, found = self.ask("forget_customer", (*keys, *more), read, name, self.wall)
        if sums:
            left = {others: "4"} if reply[0] == 0 else {own: "3", others: "4", later: "5"}
            self._compare("sums", left, found.pop("audit:sums"))
            self.wire(pack("DEL", self._key("audit:sums")))
        kept = [found.pop(key, None) is not None for key in (f"v:{name}", "over")]
        self._compare("levels", [reply[0] != 0] * 2, kept)
        self.wire(pack("DEL", levels), pack("DEL", over))
        reply[1:2] = [min(1, fields) for fields in reply[1:2]]
        if reply[0] == 0:
            reply[-1].sort()
        expected = self.shard.forget(name, read, self.wall, is_audited=bool(self._audit()))
        self.check(f"forget_customer {name} {read}", expected, reply, found)

    def forget_moved(self, name: str) -> None:
        self.plant_moved(name)
        self.forget(name)

    def claim(self, name: str) -> None:
        read = self.random.choice((self.shard.strings.get(LINK, ""), *ANCHORS, ""))
        owner = self.random.choice(("", name))
        self.judge("change_claim", (LINK,), read, owner, expected=self.shard.claim(LINK, read, owner))

    def fence(self, _: str) -> None:
        writer = self.random.choice(WRITERS)
        self.judge("fence_producer", (writer,), expected=self.shard.fence(writer))

    def usage(self, name: str) -> None:
        customer = self.shard.customers[name]
        reply, found = self.ask("read_usage", own_keys(name, "cstgv"), self.wall)
        *head, counters, totals, levels, funds, ledger = reply
        assert [levels, funds, ledger] == [[], [], []]
        shown = [*head, flat_of(fields_of(counters)), pairs(totals)]
        told = [texts_of(customer.fields()), texts_of(customer.closed)]
        expected = [self.wall, customer.rev.encode(), customer.data.encode(), *told]
        self.check(f"read_usage {name}", expected, shown, found)

    # What deeds are made of.

    def parse_sealed(self, identifier: str) -> str:
        """What the server keeps of it, which Lua may have put in another order."""
        text: bytes = self.wire(pack("HGET", self._key("intents"), identifier))
        return text.decode()

    def _audit(self) -> tuple[str, ...]:
        """The key of the audit log; every other step there is none."""
        return ("audit",) if self.steps % 2 else ()

    def _rev(self, name: str) -> str:
        return self.random.choice((*[self.shard.customers[name].rev] * 4, NO_REV, f"{FORMAT}:other"))

    def _view(self, name: str, now: int) -> View:
        bounds = bounds_at(now, anchor_ms=ANCHORS[name])
        rev = self.random.choice((*[self.shard.customers[name].rev] * 19, f"{FORMAT}:other"))
        until = self.random.choice((*[NEVER_MS] * 19, now))
        period = bounds.start_ms, bounds.end_ms
        return View(rev=rev, valid_until_ms=until, period=period, next_end_ms=bounds.next_end_ms)

    def _adopt(
        self, made: list[Intent], nonce: str, found: Mapping[str, Any], now: int, lines: Any = 0
    ) -> None:
        """Give what was made the identifiers that it was given, after lines: meters come in no order."""
        for nth in range(lines + 1, lines + len(made) + 1):
            identifier = f"{nonce}-{nth}"
            for intent in made:
                intent.key = identifier
            chosen = next((intent for intent in made if intent.stored() == found.get(identifier)), made[0])
            made.remove(chosen)
            self.shard.intents[identifier], self.shard.outbox[identifier] = chosen, now


class Anew(Delivery):
    def begin_anew(self, name: str = NAME) -> Customer:
        self.empty()
        self.wall = START_MS + self.random.randrange(DAY_MS)
        customer = self.shard.customers[name]
        customer.rev, customer.data = "2:7", "{}"
        return customer

    def new_intent(self, meter: str, period: int, value: int, minute: int, name: str = NAME) -> Intent:
        return Intent(
            name, f"cus_{name}", period, meter_token(meter), EVENTS[meter], value, minute, self.wall
        )

    def plant_intent(self, identifier: str, intent: Intent) -> None:
        """An intent where the outbox or another set has it, and where it is counted."""
        intent.key, self.shard.intents[identifier] = identifier, intent
        places = {"parked": self.shard.parked, "dead": self.shard.dead}
        places.get(intent.state, self.shard.outbox)[identifier] = self.wall
        self.shard.customers[intent.customer].closed[intent.field(intent.state)] += abs(intent.value)


_PLANTS: Final = weighed(
    "plant_usage 50, plant_closed 8, plant_change 12, plant_age 8, plant_grants 3, plant_lease 8"
    ", plant_writer 4, plant_moved 3, plant_gone 2, plant_new 4"
)
_DEEDS: Final = weighed(
    "seal 50, seal_broken 6, move 40, move_broken 6, change_state 25, restore 25, restore_delivered 16"
    ", restore_broken 6, refuse 20, recall 10, count 4, amend 12, lease 8, forget 6, forget_moved 5, claim 6"
    ", fence 4, usage 4"
)
