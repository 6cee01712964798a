"""Lives in which Stripe refuses later what it took: of any minute, and where totals are damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import meter_token
from meterkit.redis.connection import pack
from store.delivery_driver import Delivery
from store.delivery_model import STEERED, Intent, Refuse
from store.script_counts import DAY_MS, MINUTE_MS
from store.script_plans import START_MS

if TYPE_CHECKING:
    from store.script_model import Customer

NAME: Final = "ada"
STATES: Final = ("queued", "leased", "parked", "dead")
METERS: Final = ("requests", "tokens")
AMONG: Final = (-MINUTE_MS, -1000, 0, 0, 1000, MINUTE_MS, DAY_MS)


class Refusing(Delivery):
    """One customer's intents and what was delivered of it, anew in each step; one of them is refused."""

    def step(self) -> None:
        """Plant, have one refused, and compare all that is stored."""
        self.empty()
        self.wall = START_MS + self.random.randrange(DAY_MS)
        customer = self.shard.customers[NAME]
        periods = [START_MS - nth * 31 * DAY_MS for nth in range(self.random.choice((1, 2, 3)))]
        for nth in range(self.random.randrange(1, 4)):
            self._plant(customer, f"i-{nth}", self.random.choice(periods))
        for period in periods:
            if self.random.random() < 0.3:
                customer.closed[f"{period}|{meter_token(self.random.choice(METERS))}d"] = 0
        self.shard.ttls[f"t:{NAME}"] = self.shard.ttls["delivered:1"] = DAY_MS
        self.store("intents", "outbox", "parked", "dead", "delivered:1", f"t:{NAME}")
        if self.random.random() < 0.2:
            self._refuse_damaged(customer)
        else:
            self.refuse(NAME)

    def _plant(self, customer: Customer, identifier: str, period: int) -> None:
        random, meter = self.random, self.random.choice(METERS)
        intent = Intent(
            *(
                NAME,
                "cus_1",
                period,
                meter_token(meter),
                {"requests": meter_token("rows"), "tokens": "tokens"}[meter],
            ),
            value=random.choice((1, 7, 700, -5)),
            minute=period + random.choice(AMONG),
            at=self.wall,
            state=random.choice(STATES),
            first=random.choice((0, self.wall - 5000)),
            key=identifier,
        )
        if random.random() < 0.6:
            intent = replace(intent, state="delivered", minute=intent.minute // 1000 * 1000)
            self.shard.delivered[identifier] = intent.short()
        else:
            self.shard.intents[identifier] = intent
            places = {"parked": self.shard.parked, "dead": self.shard.dead}
            places.get(intent.state, self.shard.outbox)[identifier] = self.wall
        field = f"{period}|{meter_token(meter)}{STEERED[intent.state]}"
        field = field if intent.value > 0 else field[:-1] + field[-1].upper()
        if random.random() < 0.9:
            customer.closed[field] = customer.closed.get(field, 0) + abs(intent.value)

    def _refuse_damaged(self, customer: Customer) -> None:
        """Where the totals cannot be counted in, nothing changes."""
        delivered = {known: short for known, short in self.shard.delivered.items() if int(short[4]) > 0}
        if not delivered:
            return
        identifier, short = self.random.choice(list(delivered.items()))
        token = next(meter_token(one) for one in METERS if (one == "tokens") == (short[2] == "tokens"))
        asked = Refuse(
            identifier=identifier, new_identifier="r", state="dead", why="refused", token=token, customer=NAME
        )
        begun = [int(name[:-6]) for name in customer.closed if name.endswith(f"|{token}d")]
        period = max((one for one in begun if one <= int(short[3]) * 1000), default=None)
        is_text = period is None or self.random.random() < 0.3
        if is_text:
            self.wire(pack("SET", self._key(f"t:{NAME}"), "text"))
        else:
            field = f"{period}|{token}{self.random.choice('dx')}"
            if field.endswith("d") or customer.closed.get(f"{period}|{token}d", 0) >= int(short[4]):
                self.wire(pack("HSET", self._key(f"t:{NAME}"), field, self.random.choice(("x", "1.5", ""))))
        keys = ("intents", "outbox", "delivered:1", asked.state, f"t:{NAME}")
        argv = (identifier, asked.new_identifier, asked.state, asked.why, asked.token, asked.customer)
        reply, found = self.ask("refuse", keys, *argv, self.wall)
        self.store(f"t:{NAME}")
        found.pop(f"t:{NAME}", None)
        closed, customer.closed = customer.closed, {}
        self.check(f"refuse damaged {asked}", 3, reply, found)
        customer.closed = closed
