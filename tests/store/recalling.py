"""Lives in which sealed usage is taken back: of closed periods, of gone counters, of values below 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import meter_token
from store.delivery_driver import Delivery
from store.delivery_model import METERS, STEERED, Intent
from store.script_counts import DAY_MS, MINUTE_MS
from store.script_plans import START_MS

if TYPE_CHECKING:
    from store.script_model import Customer

NAMES: Final = ("ada", "bob")
STATES: Final = ("queued", "queued", "queued", "leased", "parked")


class Recalling(Delivery):
    """One customer's intents, anew in each step, of which some are taken back."""

    def step(self) -> None:
        """Plant intents of two customers, and take back those of one."""
        self.empty()
        self.wall = START_MS + self.random.randrange(DAY_MS)
        for name in NAMES:
            customer = self.shard.customers[name]
            customer.rev, customer.data = "2:7", "{}"
            self.plant_usage(name)
            self._plant_intents(name, customer)
            if self.random.random() < 0.3:
                self.plant_gone(name)
            self.store(f"s:{name}", f"t:{name}")
        self.store("intents", "outbox", "parked", "dirty", "unlinked")
        self.recall("ada")

    def _plant_intents(self, name: str, customer: Customer) -> None:
        random, open_ms = self.random, customer.begun[0]
        closed_ms = open_ms - 31 * DAY_MS
        if random.random() < 0.5:
            customer.closed[f"{closed_ms}|e"] = random.choice((open_ms, open_ms - 9 * DAY_MS))
        for nth in range(random.randrange(1, 5)):
            period = random.choice((open_ms, closed_ms))
            meter = random.choice(METERS)
            intent = Intent(
                *(name, f"cus_{name}", period, meter_token(meter), f"event {meter}"),
                value=random.choice((1, 7, 700, -5, -700)),
                minute=period + random.randrange(9) * MINUTE_MS,
                at=self.wall,
                state=random.choice(STATES),
                first=random.choice((0, 0, 0, self.wall)),
                key=f"{name}-{nth}",
            )
            field = f"{period}|{meter_token(meter)}{STEERED[intent.state]}"
            field = field[:-1] + (field[-1] if intent.value > 0 else field[-1].upper())
            customer.closed[field] = customer.closed.get(field, 0) + abs(intent.value)
            self.shard.intents[intent.key] = intent
            if intent.state == "parked":
                self.shard.parked[intent.key] = self.wall
            else:
                self.shard.outbox[intent.key] = self.wall
        self.shard.ttls[f"t:{name}"] = DAY_MS
