"""The same random life where grants and credits stand behind the plans."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.decisions.customer_state import CustomerState, bounds_of
from meterkit.decisions.plan_history import with_plan_changes
from meterkit.decisions.subscription import SubscriptionState
from meterkit.redis.connection import pack
from meterkit.store.hold import Used
from meterkit.store.settlement import Settlement
from store.script_counts import DAY_MS, MINUTE_MS, MOST
from store.script_driver import World
from store.script_model import NEVER_MS
from store.script_plans import ANONYMOUS, CUSTOMERS, PAID
from store.script_purse import MICRO, Given, Purse
from store.script_requests import view_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from meterkit.store.views import CustomerView
    from store.script_wires import Wire


class PaidWorld(World):
    """Customers who have something besides what their plan includes."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random) -> None:
        super().__init__(wire, texts, random, sales=PAID)

    def deeds(self) -> Mapping[str, float]:
        return _DEEDS

    def step(self) -> None:
        super().step()
        for name in (*CUSTOMERS, ANONYMOUS):
            if 0 < self.model.customers[name].purse.lives <= self.wall and self.random.random() < 0.3:
                keys = self.keys.customer(name, anonymous=name == ANONYMOUS)
                self.wire(pack("DEL", keys.grants, keys.ledger))
                self.model.customers[name].purse = Purse()

    def edge(self, name: str) -> int:
        customer = self.model.customers[name]
        now = max(self.wall, customer.seen)
        given = customer.purse.grants.values()
        turns = sorted(at for grant in given for at in (grant.effective, grant.expires) if at > now)
        if turns and turns[0] < now + 40 * DAY_MS and self.random.random() < 0.15:
            return turns[0] + self.random.choice((-1, 0, 1))
        return super().edge(name)

    # Deeds.

    def grant(self, name: str) -> None:
        """Give something, once or more in one instant."""
        terms = self._terms()
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            terms = terms if self.random.random() < 0.6 else self._terms()
            known = self.model.customers[name].purse.ids
            if known and self.random.random() < 0.25:
                grant_id = self.random.choice(list(known))
                targets = [target for target, _ in known[grant_id]]
                if self.random.random() < 0.1:
                    targets = self.random.sample(_TARGETS, 2)
            else:
                grant_id = f"g{self.random.randrange(10**6)}"
                targets = self.random.sample(_TARGETS, self.random.choice((1, 1, 2, 3)))
            granted = {target: self._granted(name, target, grant_id) for target in targets}
            self.add(name, grant_id, granted, terms)

    def add(
        self, name: str, grant_id: str, quantities: Mapping[str, int], terms: tuple[int, int, int]
    ) -> None:
        """Add one grant of the app's, of several targets."""
        if name == ANONYMOUS:
            return
        customer, keys = self.model.customers[name], self.keys.customer(name)
        state = CustomerState.parse(customer.data)
        if not state.granted:
            self.put(name, replace(state, granted=True))
        priority, effective, expires = terms
        asked = sorted(quantities.items())
        more = (priority, effective or self.wall, expires, self.wall, expires)
        new = [Given(f"a {target} {grant_id}", target, quantity, *more) for target, quantity in asked]
        most = self.random.choice((256, 256, 8, len(customer.purse.grants) + 1))
        words = (grant_id, most, *terms, *(word for one in asked for word in one), self.wall)
        reply = self.run("grant", (keys.grants, keys.ledger), *words)
        expected = customer.purse.add(grant_id, new, self.wall, most=most)
        self.compare(f"grant {name} {words}", expected, reply)
        self.seen[f"grant {expected[0]!r}"] += 1

    def void(self, name: str) -> None:
        if name == ANONYMOUS:
            return
        purse, keys = self.model.customers[name].purse, self.keys.customer(name)
        live = sorted(grant for grant in purse.grants if grant.startswith("a "))
        names = [*self.random.sample(live, min(len(live), self.random.choice((1, 1, 2)))), "a m:calls none"]
        names = names[: self.random.choice((1, 2, 3))]
        reply = self.run("void", (keys.grants, keys.ledger), *names, self.wall)
        expected = purse.void(names, self.wall)
        self.compare(f"void {name} {names}", expected, reply)
        self.seen[f"void {expected > 0}"] += 1

    def hoard(self, name: str) -> None:
        """More is paid by a grant than can be counted."""
        if name == ANONYMOUS:
            return
        most = 10**15 - 1
        terms = (0, 0, self.wall + MINUTE_MS)
        for nth in range(9):
            self.add(name, f"h{self.wall} {nth}".replace(" ", "-"), {"m:calls": most}, terms)
        # One more than there may be, where there is none and where there is something.
        self.add(name, f"h{self.wall}", {"m:notes": MOST + 1}, terms)
        granted = self.model.customers[name].purse.grants.values()
        left = sum(grant.left for grant in granted if grant.target == "m:calls")
        for more in ({}, {"c:ai": MICRO}):
            self.add(name, f"h{self.wall}", {**more, "m:calls": MOST + 1 - left}, terms)
        known = self._customer(name)
        for quantity in (*[most] * 9, 10, 9, 8, 1, 1, 1):
            self._settle(Settlement(known, used=Used({"calls": quantity})))

    def dwindle(self, name: str) -> None:
        """Use so much that exactly the share is left below which a balance is low; then one unit more."""
        known, customer = self._customer(name), self.model.customers[name]
        means = customer.means(max(self.wall, customer.seen), view_of(known))
        last = means.last("c:ai") if means else None
        included = known.entitlements["words"].included
        if means is None or last is None or included is None:
            return
        credit = self.catalog.credits["ai"]
        spare = means.of("c:ai") - last * (credit.low_balance_percent or 0) // 100
        own = max(0, included - customer.included["words"]) + means.of("m:words")
        for quantity in (own + spare // credit.costs["words"], 1):
            if 0 < quantity < 10**15 and spare >= 0:
                self._settle(Settlement(known, used=Used({"words": quantity})))

    def outgrow(self, name: str) -> None:
        """Change the plan, and use something, when what a plan gave expires, or just before or after."""
        customer = self.model.customers[name]
        now = max(self.wall, customer.seen)
        ending = [g.expires for g in customer.purse.grants.values() if now < g.expires < g.stays]
        if name == ANONYMOUS or not ending:
            return
        self.wall = min(ending) + self.random.choice((-2, -1, -1, 0))
        for _ in range(2):
            state = CustomerState.parse(customer.data)
            self.put(name, replace(state, plan=self.random.choice(self.sales.plans)))  # A moment later.
            recorded = {"words": self.random.choice((1, 30, 70)), "calls": self.random.choice((0, 7))}
            known = self._customer(name)
            self._settle(Settlement(known, used=Used(recorded)))
            self.check(name)

    # What deeds are made of.

    def _terms(self) -> tuple[int, int, int]:
        """Priority, when it becomes effective, when it expires."""
        later = self.wall + 1, self.wall + self.random.randrange(3 * DAY_MS)
        effective = self.random.choice((0, 0, 0, 0, self.wall - DAY_MS, *later))
        lives = self.random.choice((1, 1000, MINUTE_MS, DAY_MS, 9 * DAY_MS, 40 * DAY_MS))
        expires = max(self.wall, effective) + lives
        priority = self.random.choice((0, 5, 20, 20, 50, 50, 1000))
        return priority, effective, expires if self.random.random() < 0.6 else NEVER_MS

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        purse = self.model.customers[name].purse
        known = purse.lines.get(f"grant a {target} {grant_id}")
        if known is not None and self.random.random() < 0.6:
            return known[0]
        if target == "c:ai" and self.random.random() < 0.04:
            left = MOST - sum(grant.left for grant in purse.grants.values() if grant.target == target)
            fits = max(MICRO, left // MICRO * MICRO)
            return self.random.choice((fits, min(fits + MICRO, MOST), MOST))
        return self.random.choice(_GRANTED[target])


class FullWorld(PaidWorld):
    """A world in which somebody is granted exactly as much as can be counted."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "fill": 5}

    def fill(self, name: str) -> None:
        """Grant all that can be of a meter of which no other grant gives anything, for a moment."""
        self.add(name, f"f{self.wall}", {_APART: MOST}, (0, 0, self.wall + 1))

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        return 1 if target == _APART else super()._granted(name, target, grant_id)


class SharesWorld(PaidWorld):
    """A world of subscribers whose plans change amid a period, and who have units that money pays for."""

    def deeds(self) -> Mapping[str, float]:
        return {**super().deeds(), "amend": 12, "outgrow": 0, "vouch": 5}

    def amend(self, name: str) -> None:
        """Change the plan of a subscription, or begin one."""
        if name == ANONYMOUS:
            return
        state = CustomerState.parse(self.model.customers[name].data)
        begins = self.wall - DAY_MS if state.subscription is None else state.subscription.start_ms
        subscription = SubscriptionState(
            id="sub_1",
            status="active",
            plan=self.random.choice(("gift", "more", "more", "bare", "vast")),
            start_ms=begins,
            end_ms=begins + 31 * DAY_MS,
            anchor_ms=begins,
            created_ms=begins,
        )
        changed = replace(state, subscription=subscription, stripe_customer=f"cus_{name}")
        self.put(name, with_plan_changes(state, changed, self.catalog, self.wall))

    def vouch(self, name: str) -> None:
        """Grant some of what a balance in money pays for."""
        units = self.random.choice((1, 400_000, 3_000_000))
        self.add(name, f"v{self.wall}", {_CHARGED: units}, (50, 0, NEVER_MS))

    def _granted(self, name: str, target: str, grant_id: str) -> int:
        return 1 if target == _CHARGED else super()._granted(name, target, grant_id)

    def _own_start(self, known: CustomerView, at: int) -> int:
        return bounds_of(known.state, known.effective.counting, at).start_ms


_APART: Final = "m:notes"
_CHARGED: Final = "m:usd_charged"
_GRANTED: Final = {
    "c:ai": (MICRO, MICRO, 2 * MICRO, 3 * MICRO, 20 * MICRO),
    "c:ink": (MICRO, 2 * MICRO, 9 * MICRO),
    "c:usd": (MICRO, 2 * MICRO, 5 * MICRO),
    "m:calls": (1, 2, 5, 20),
    "m:words": (7, 64, 300),
    "m:images": (1, 3),
    "m:pages": (1, 2, 9),
}
_TARGETS: Final = tuple(_GRANTED)
_DEEDS: Final[Mapping[str, float]] = {
    "decide": 40,
    "reserve": 6,
    "renew": 2,
    "settle": 26,
    "record": 14,
    "amend": 3,
    "fence": 0.7,
    "seal": 0.5,
    "stranger": 1,
    "flood": 0.1,
    "correct": 0.3,
    "grant": 6,
    "void": 1.5,
    "hoard": 0.15,
    "dwindle": 1,
    "outgrow": 0.7,
    "age": 0.15,
}
