"""Drives the scripts of delivery and administration, and the model, with the same random life of a shard.

What a shard holds is set up directly; after each script everything that is stored is compared.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from meterkit.store.keys import meter_token
from meterkit.store.periods import bounds_at
from store.delivery_checks import SKEWS, Checks, live, pairs, texts_of
from store.delivery_model import KEPT_MS, LETTERS, Intent, Move, Seal
from store.script_counts import DAY_MS, MINUTE_MS, SLOT_MS
from store.script_model import NEVER_MS, NO_REV, Times, View
from store.script_plans import START_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from store.script_wires import Wire

    Deed = Callable[["Delivery", str], None]

# Months of the calendar, and months that begin and end within a minute.
ANCHORS: Final = {"ada": None, "bob": START_MS - 20 * DAY_MS + 30_000, "cid": START_MS + 4 * SLOT_MS + 1}
METERS: Final = ("requests", "tokens", "pages", "rows")
# An event's name may be anything, also what stands for another meter.
EVENTS: Final = {"requests": meter_token("rows"), "tokens": "tokens", "pages": "pdf_pages", "rows": "db rows"}
QUANTITIES: Final = (1, 2, 700, 10**15 - 1, 10**15, 2 * 10**15 - 2, 3 * 10**15 + 5, 9 * 10**15)
TOKENS: Final = ("worker-a", "worker-b")
WRITERS: Final = ("w:1", "w:2")
LINK: Final = "l:cus_1"
BESIDE: Final = (-1, 0, 0, 1)
# Steps until everything begins again, with little to compare.
LIFE: Final = 80


class Delivery(Checks):
    """A shard in a store, the model of it, three customers and a clock."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random, *, slack_ms: int = 0) -> None:
        super().__init__(wire, texts, slack_ms=slack_ms)
        self.random, self.steps, self.wall = random, 0, START_MS

    def step(self) -> None:
        """Let time pass or not, and something be there, then let somebody do something."""
        if self.steps % LIFE == 0:
            self.empty()
            self.wall = START_MS + self.random.randrange(DAY_MS)
        self.steps += 1
        self.shard.fresh.clear()
        name = self.random.choice(list(ANCHORS))
        self._tick(name)
        for _ in range(self.random.randrange(3)):
            self._one_of(_PLANTS)(self, name)
        self._one_of(_DEEDS)(self, name)

    def _one_of(self, weighed: Sequence[tuple[Deed, int]]) -> Deed:
        weights = [weight for _, weight in weighed]
        return self.random.choices(weighed, weights)[0][0]

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
        kinds = (customer.included, customer.overage, customer.granted, customer.credited)
        recorded = self.random.choice(kinds)
        if sum(counts[meter] for counts in kinds) + quantity <= 9 * 10**15:
            recorded[meter] += quantity
            if self.random.random() < 0.9:
                customer.pending[meter] += quantity
        customer.cached = self.random.choice((customer.rev, customer.rev, None))
        if self.random.random() < 0.3:
            customer.stamps[meter] = (self.wall // MINUTE_MS + self.random.randrange(-1, 9)) * MINUTE_MS
        if self.random.random() < 0.3:
            customer.holds[meter].take(customer.seen, 3)
            customer.flights[meter].take(customer.seen, 1)
        waiting = self.random.choice((self.shard.dirty, self.shard.dirty, self.shard.unlinked))
        waiting.setdefault(name, self.wall + self.random.randrange(SLOT_MS))
        if waiting is self.shard.dirty:
            customer.lives = NEVER_MS
        self.store(f"c:{name}", "dirty", "unlinked")

    def plant_closed(self, name: str) -> None:
        """What is pending of periods that are over, or were cut short a minute ago, or a few ahead."""
        customer, token = self.shard.customers[name], meter_token(self.random.choice(METERS))
        begins = START_MS - self.random.randrange(3) * 31 * DAY_MS
        edge = self.wall // MINUTE_MS + self.random.choice((-9, 1, 4, 5, 6, 7))
        customer.closed.setdefault(
            f"{begins}|e", edge * MINUTE_MS + self.random.choice((0, 0, -1, 1, 30_000))
        )
        customer.closed[f"{begins}|{token}p"] = self.random.choice(QUANTITIES)
        if self.random.random() < 0.3:
            customer.closed[f"{begins}|{token}i"] = 7
        self.shard.ttls.setdefault(f"t:{name}", DAY_MS)
        self.store(f"t:{name}")

    def plant_age(self, _: str) -> None:
        """Keys that were given their lives long ago."""
        for key in self.shard.ttls:
            self.shard.ttls[key] = DAY_MS
        self.store(*self.shard.ttls)

    def plant_old(self, name: str) -> None:
        """Deliveries of a month ago, to a millisecond, and some of which nothing but the name is left."""
        for number in self.random.sample(range(10**6), self.random.choice((1, 5, 12))):
            identifier, token = f"old-{number}", meter_token("rows")
            if self.random.random() < 0.9:
                intent = Intent(name, f"cus_{name}", START_MS, token, "db rows", 1, START_MS, key="k")
                intent.state = "delivered"
                self.shard.intents[identifier] = intent
            self.shard.delivered[identifier] = self.wall - KEPT_MS + self.random.randrange(-3, 3)
        self.store("intents", "delivered")

    def plant_grants(self, name: str) -> None:
        """Grants, and the ledger of them."""
        self.shard.grants[name] = {f"grant-{self.random.randrange(9)}": "tokens 100 0"}
        self.shard.ledgers[name] = {"grant grant-0": "100"}
        self.store(f"g:{name}", f"j:{name}")

    def plant_lease(self, _: str) -> None:
        """A lease that is lost, or somebody else's."""
        self.shard.strings.pop("lease", None)
        if self.random.random() < 0.7:
            self.shard.strings["lease"] = self.random.choice(TOKENS)
            self.shard.ttls["lease"] = DAY_MS
        self.store("lease")

    def plant_writer(self, _: str) -> None:
        """Numbers of settlements that were applied."""
        writer = self.random.choice(WRITERS)
        self.shard.strings[writer] = str(self.random.choice((1, 12, 10**12)))
        self.shard.ttls[writer] = DAY_MS
        self.store(writer)

    def plant_moved(self, name: str) -> None:
        """Nothing is on its way of a customer, or in one state only."""
        customer = self.shard.customers[name]
        kept = self.random.choice(("", *"qlkdx"))
        customer.closed = {
            field: count for field, count in customer.closed.items() if field[-1] not in "qlkdxp"
        }
        if kept:
            self.shard.ttls.setdefault(f"t:{name}", DAY_MS)
            customer.closed[f"{START_MS}|{meter_token('rows')}{kept}"] = self.random.randrange(2)
        self.shard.intents = {
            known: intent for known, intent in self.shard.intents.items() if intent.customer != name
        }
        for scores in (self.shard.outbox, self.shard.delivered):
            for known in set(scores) - set(self.shard.intents):
                del scores[known]
        self.shard.dirty.pop(name, None)
        self.store(f"t:{name}", "intents", "outbox", "delivered", "dirty")

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

    # Deeds.

    def seal(self, name: str) -> None:
        customer = self.shard.customers[name]
        now = max(self.wall, customer.seen)
        view = self._view(name, now if self.random.random() < 0.9 else now - 20 * DAY_MS)
        events = {meter_token(meter): event for meter, event in EVENTS.items() if self.random.random() < 0.9}
        asked = Seal(
            stripe=self.random.choice(("", *[f"cus_{name}"] * 9)),
            events=events,
            outlive_ms=self.random.choice((900_000, 40 * DAY_MS)),
            live_ms=self.random.choice((900_000, 60 * DAY_MS)),
        )
        skew = self.random.choice(SKEWS) if self.random.random() < 0.1 else 0
        times = Times(wall=self.wall, claimed=self.wall - skew)
        nonce = f"{self.random.getrandbits(128):032x}"
        until_ms = min(view.valid_until_ms, view.next_end_ms)
        terms = [until_ms, *view.period, view.next_end_ms, asked.outlive_ms, asked.live_ms]
        argv = [view.rev, json.dumps(terms), nonce, name, asked.stripe]
        argv += [part for event in events.items() for part in event]
        keys = (f"c:{name}", f"s:{name}", f"t:{name}", "dirty", "intents", "outbox")
        reply, found = self.ask("seal", keys, *argv, times.claimed, skew=skew)
        expected, made = self.shard.seal(name, view, asked, times)
        self._adopt(made, nonce, found.get("intents", {}), now)
        self.check(f"seal {name} {view} {asked} {times}", expected, reply, found)

    def move(self, _: str) -> None:
        latest = list(self.shard.intents)[-4:]
        identifier = self.random.choice((*latest * 4, *self.shard.intents, "nobody"))
        intent = self.shard.intents.get(identifier)
        states = self.random.sample(list(LETTERS), self.random.choice((1, 2, 3)))
        if intent is not None and intent.state not in states and self.random.random() < 0.8:
            states[0] = intent.state
        asked = Move(
            token=self.random.choice((*TOKENS, *[self.shard.strings.get("lease", "nobody")] * 9)),
            states=tuple(states),
            state=self.random.choice((*LETTERS, "leased", "queued", "delivered")),
            delay_ms=self.random.choice((0, 1, 60_000)),
            key=self.random.choice(("", f"key-{self.random.randrange(99)}")),
            why=self.random.choice(("", "", "no such customer")),
            untried=self.random.random() < 0.3,
        )
        name = intent.customer if intent is not None else "ada"
        keys = ("intents", "outbox", f"t:{name}", "lease", "delivered")
        listed = "".join(f"{state} " for state in states)
        argv = (asked.state, asked.delay_ms, asked.key, asked.why, int(asked.untried))
        reply, found = self.ask("move", keys, identifier, asked.token, listed, *argv, self.wall)
        self.check(f"move {identifier} {asked}", self.shard.move(identifier, asked, self.wall), reply, found)

    def lease(self, _: str) -> None:
        token, ttl_ms = self.random.choice(TOKENS), self.random.choice((0, 600_000, 900_000))
        reply, found = self.ask("lease", ("lease",), token, ttl_ms, self.wall)
        self.check(f"lease {token} {ttl_ms}", self.shard.lease(token, ttl_ms), reply, found)

    def amend(self, name: str) -> None:
        """Somebody changes a customer; now and then somebody else was faster."""
        read = self._rev(name)
        rev, linked = f"1:{self.random.randrange(10**6)}", self.random.random() < 0.6
        data, seal_at_ms = f'{{"plan":"{self.random.randrange(99)}"}}', self.wall + self.random.randrange(9)
        keys = (f"c:{name}", f"s:{name}", "customers", "dirty", "unlinked")
        argv = (read, rev, data, name, int(linked), seal_at_ms)
        reply, found = self.ask("amend", keys, *argv, self.wall)
        expected = self.shard.amend(name, read, rev, data, linked=linked, seal_at_ms=seal_at_ms)
        self.check(f"amend {argv}", expected, reply, found)

    def forget(self, name: str) -> None:
        read = self._rev(name)
        keys = (
            f"c:{name}",
            f"s:{name}",
            f"t:{name}",
            "customers",
            "dirty",
            "unlinked",
            f"g:{name}",
            f"j:{name}",
        )
        reply, found = self.ask("forget", keys, read, name, self.wall)
        self.check(f"forget {name} {read}", self.shard.forget(name, read), reply, found)

    def claim(self, name: str) -> None:
        read = self.random.choice((self.shard.strings.get(LINK, ""), *ANCHORS, ""))
        owner = self.random.choice(("", name))
        reply, found = self.ask("claim", (LINK,), read, owner, self.wall)
        self.check(f"claim {read!r} {owner!r}", self.shard.claim(LINK, read, owner), reply, found)

    def retire(self, _: str) -> None:
        writer = self.random.choice(WRITERS)
        reply, found = self.ask("retire", (writer,), self.wall)
        self.check(f"retire {writer}", self.shard.retire(writer), reply, found)

    def usage(self, name: str) -> None:
        customer = self.shard.customers[name]
        keys = (f"c:{name}", f"s:{name}", f"t:{name}", f"g:{name}")
        reply, found = self.ask("usage", keys, self.wall)
        *head, counters, totals, grants = reply
        shown = [*head, live(pairs(counters)), pairs(totals), pairs(grants)]
        told = [texts_of(customer.fields()), texts_of(customer.closed), self.shard.grants.get(name, {})]
        expected = [self.wall, customer.rev.encode(), customer.data.encode(), *told]
        self.check(f"usage {name}", expected, shown, found)

    # What deeds are made of.

    def _rev(self, name: str) -> str:
        return self.random.choice((*[self.shard.customers[name].rev] * 4, NO_REV, "1:other"))

    def _view(self, name: str, now: int) -> View:
        bounds = bounds_at(now, anchor_ms=ANCHORS[name])
        rev = self.random.choice((*[self.shard.customers[name].rev] * 19, "1:other"))
        until = self.random.choice((*[NEVER_MS] * 19, now))
        return View(
            rev=rev,
            valid_until_ms=until,
            period=(bounds.start_ms, bounds.end_ms),
            next_end_ms=bounds.next_end_ms,
            entitlements={},
            linked=True,
            seal_delay_ms=0,
        )

    def _adopt(self, made: list[Intent], nonce: str, found: Mapping[str, Any], now: int) -> None:
        """Give what was made the identifiers that it was given: meters come in no order."""
        for nth in range(1, len(made) + 1):
            identifier = f"{nonce}-{nth}"
            for intent in made:
                intent.key = identifier
            chosen = next((intent for intent in made if intent.stored() == found.get(identifier)), made[0])
            made.remove(chosen)
            self.shard.intents[identifier], self.shard.outbox[identifier] = chosen, now


_PLANTS: Final = (
    (Delivery.plant_usage, 50),
    (Delivery.plant_closed, 8),
    (Delivery.plant_age, 8),
    (Delivery.plant_old, 2),
    (Delivery.plant_grants, 3),
    (Delivery.plant_lease, 8),
    (Delivery.plant_writer, 4),
    (Delivery.plant_moved, 3),
    (Delivery.plant_gone, 2),
    (Delivery.plant_new, 4),
)
_DEEDS: Final = (
    (Delivery.seal, 50),
    (Delivery.move, 40),
    (Delivery.amend, 12),
    (Delivery.lease, 8),
    (Delivery.forget, 6),
    (Delivery.claim, 6),
    (Delivery.retire, 4),
    (Delivery.usage, 4),
)
