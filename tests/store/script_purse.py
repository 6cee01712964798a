"""What a customer has besides what the plan includes, said once more in plain Python: grants and credits.

A grant pays while it is in force, in an order; each line of the ledger says what became of how much of it.
What the plan gives is there as soon as its period begins, and on file with the first that is recorded in it.
With everything that is recorded, grants that pay no more leave.
Use beyond a balance in money is a debt. Each grant first repays it, as soon as it is in force.
Rests live on at a period's end where the plan says so, the youngest first, as far as there is room.
A grant that is given once in a life is remembered for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import pairwise
from typing import Final, NamedTuple

from meterkit.catalog import Catalog, Credit, Entitlement, Plan
from meterkit.decisions.allowance import Allowance, GrantLine
from meterkit.decisions.customer_state import CustomerState
from store.script_counts import DAY_MS, MINUTE_MS, MOST

FOREVER_MS: Final = 9 * 10**15
NO_REV: Final = "1:0"
MICRO: Final = 10**6

Period = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Given:
    """A grant: units of a meter (``m:NAME``) or micro-credits of a credit (``c:NAME``), times in ms."""

    name: str
    target: str
    quantity: int
    priority: int
    effective: int
    expires: int
    created: int
    stays: int
    used: int = 0

    @property
    def left(self) -> int:
        return self.quantity - self.used

    @property
    def terms(self) -> tuple[int, int, int, int]:
        return self.priority, self.effective, self.expires, self.created

    @property
    def text(self) -> str:
        numbers = (self.quantity, self.used, *self.terms, self.stays)
        return " ".join((self.target, *map(str, numbers)))

    def pays_at(self, now: int) -> bool:
        return self.effective <= now < self.expires

    @property
    def is_spent(self) -> bool:
        """Whether it has paid its last; what the plan gave is kept for the period."""
        return self.left == 0 and self.name.startswith("a ")

    @property
    def kind(self) -> str:
        """Which grant of a plan it is, whatever the period."""
        return self.name.rpartition(" ")[0]

    def turns(self, starts: Sequence[int], start: int) -> int:
        """How many periods have begun since it was given, up to one; the same one may begin anew."""
        return sum(self.effective + 2 * MINUTE_MS <= at <= start for at in starts)

    def is_of(self, start: int) -> bool:
        """Whether a plan gave it in the period that began then."""
        words = self.name.split(" ")
        return words[0] == "p" and words[-1] == str(start)


class Youngest(NamedTuple):
    """When the youngest of some grants was created, and its quantity; the larger of two."""

    created: int
    quantity: int


def due(plan: Plan, period: Period) -> Sequence[Given]:
    """What a plan gives in a period, in the order in which it is used up; equal lines together."""
    found: dict[str, GrantLine] = {}
    for grant in plan.grants:
        if grant.every == "once":
            continue
        life_ms, target = grant.expires_ms or 0, f"{'c' if grant.kind == 'credit' else 'm'}:{grant.name}"
        of = grant.id or f"{grant.priority}-{f'{life_ms}ms' if life_ms else 'period'}"
        name, quantity = f"p {target} {of}", grant.quantity * (MICRO if grant.kind == "credit" else 1)
        quantity += found[name][2] if name in found else 0
        found[name] = (name, target, quantity, grant.priority, life_ms)
    lines = sorted(found.values(), key=lambda line: (line[3], line[4] or FOREVER_MS, line[0].split(" ")[1:]))
    return due_of(lines, period)


def due_of(lines: Sequence[GrantLine], period: Period) -> Sequence[Given]:
    """The grants of a period, by the lines of its plans."""
    start, end = period
    found: list[Given] = []
    for name, target, quantity, priority, life_ms in lines:
        expires = start + life_ms if life_ms > 0 else end
        of_app = (f"{name} {start}", target, quantity, priority, start, expires)
        found.append(Given(*of_app, created=start, stays=max(end, expires)))
    return found


def once_of(plan: Plan | None) -> Mapping[str, tuple[str, int, int, int]]:
    """What a plan gives once in a life: target, quantity, priority and life (ms; 0: the period's)."""
    found: dict[str, tuple[str, int, int, int]] = {}
    for grant in reversed(plan.grants if plan else ()):
        if grant.every == "once":
            life_ms, target = grant.expires_ms or 0, f"{'c' if grant.kind == 'credit' else 'm'}:{grant.name}"
            of = grant.id or f"{grant.priority}-{f'{life_ms}ms' if life_ms else 'period'}-once"
            quantity = grant.quantity * (MICRO if grant.kind == "credit" else 1)
            found[f"o {target} {of}"] = (target, quantity, grant.priority, life_ms)
    return found


class Part(NamedTuple):
    """Units of one meter, classified; ``reported``: how many go to Stripe, under whose event."""

    meter: str
    quantity: int
    within: int
    granted: int
    credited: int
    overage: int
    over_cap: int
    reported: int
    reported_as: str
    is_too_much: bool

    @property
    def classes(self) -> tuple[int, ...]:
        """Included units, units that grants and credits paid, overage, and units over the cap."""
        return self[2:7]


@dataclass(frozen=True, slots=True)
class Debt:
    """Micro-credits that are owed, and when the last of them were used."""

    owed: int
    since: int


class Means:
    """All grants that a customer has at an instant: on file, and of the plan's what is due."""

    def __init__(
        self,
        purse: Purse,
        plan: Plan | None,
        period: Period,
        now: int,
        *,
        is_named: bool = True,
        allowance: Allowance | None = None,
    ) -> None:
        self.now, self.start, self.is_named = now, period[0], is_named
        self.ended = [grant for grant in purse.grants.values() if grant.stays <= now]
        self.grants = {grant.name: grant for grant in purse.grants.values() if grant.stays > now}
        self.burned, self.repaid, self.cut = Counter[str](), Counter[str](), Counter[str]()
        self.lived_on: Counter[str] = Counter()
        self.debts: dict[str, Debt] = dict(purse.debts)
        self.once: dict[str, int] = dict(purse.once)
        self.rolls = allowance.rolls if allowance else None
        recurring = [grant for grant in purse.grants.values() if grant.name.startswith("p ")]
        # It was written together with all that were due by then.
        self.newest = max((purse.written, *(grant.effective for grant in recurring)))
        # An edit of the plans file takes nothing back.
        history = allowance.history if allowance else ""
        self.trims = not history or history != purse.history
        self._recall()
        self.left = dict(purse.left)
        self.births = dict(purse.births)
        # What was given for this period is known until it is over.
        for grant in list(self.grants.values()):
            if grant.is_of(self.start):
                self.grants[grant.name] = replace(grant, stays=max(grant.stays, period[1]))
        births = [g.created for g in purse.grants.values()] + [one.created for one in purse.births.values()]
        changed = allowance.grants if allowance else None
        gives = (
            () if plan is None else due(plan, period) if changed is None else due_of(changed.lines, period)
        )
        current = {gift.kind for gift in gives}
        for earlier in allowance.earlier if allowance else ():
            span = earlier.start_ms, earlier.end_ms
            if self.newest >= earlier.end_ms:
                continue
            rolling = frozenset(line[0] for line in earlier.grants.lines if line[4] < 0)
            gifts = due_of(earlier.grants.lines, span)
            gifts = [gift for gift in gifts if gift.expires > now or gift.kind in rolling]
            if earlier.is_certain or any(birth < earlier.end_ms for birth in births):
                kinds = {line[0] for line in earlier.grants.lines}
                over = [g for g in self.ended if g.kind in kinds or g.kind not in current]
                self._give(gifts, dict(earlier.grants.limits), span, is_over=True, rolling=rolling, over=over)
        self._give(gives, {} if changed is None else dict(changed.limits), period)
        if allowance is not None and allowance.once is not None:
            for one in allowance.once:
                self._give_once(
                    one.line[0], one.line[1:], (one.start_ms or period[0], one.end_ms or period[1])
                )
        else:
            for name, terms in once_of(plan).items():
                self._give_once(name, terms, period)
        self._live_on()
        self._repay(now)

    def _recall(self) -> None:
        """Keep grants that have ended and may live on, also those that are used up."""
        if self.rolls is None:
            return
        oldest, kinds = self.rolls.starts[0] - 2 * MINUTE_MS, dict(self.rolls.rules)
        for grant in [g for g in self.ended if g.kind in kinds and g.effective > oldest]:
            self.ended.remove(grant)
            self.grants[grant.name] = replace(grant, stays=self.rolls.starts[-1])

    def _live_on(self) -> None:
        """At the end of each period, what is left lives on, the youngest first, as far as there is room."""
        starts = self.rolls.starts if self.rolls else ()
        for nth, (start, end) in enumerate(pairwise(starts)):
            self._repay(start - 1)
            for kind, rules in self.rolls.rules if self.rolls else ():
                room, periods = rules[nth]
                older = [g for g in self.grants.values() if g.kind == kind and g.turns(starts, start)]
                for grant in sorted(older, key=lambda g: g.effective, reverse=True):
                    stays = min(room, grant.left)
                    if grant.expires >= end:
                        room -= stays
                    elif grant.expires >= start and grant.turns(starts, start) <= periods and grant.left:
                        room -= stays
                        self.cut[grant.name] += grant.left - stays
                        gone = replace(grant, used=grant.quantity - stays)
                        if stays:
                            self.lived_on[f"rollover {starts[max(0, nth - 1)]} {start} {grant.name}"] += stays
                            gone = replace(gone, expires=end, stays=max(grant.stays, end))
                        self.grants[grant.name] = gone
        self.cut = +self.cut

    def _give_once(self, name: str, terms: tuple[str, int, int, int], period: Period) -> None:
        """Give what never was given; if its first period is long over, nothing is left of it."""
        target, quantity, priority, life_ms = terms
        start, end = period
        expires = start + life_ms if life_ms else end
        if f"once{name[1:]}" in self.once:
            return
        self.once[f"once{name[1:]}"] = start
        if expires > self.now:
            of_plan = (f"{name} {start}", target, quantity, priority, start, expires)
            self.grants[of_plan[0]] = Given(*of_plan, created=start, stays=max(expires, end))

    def lived(self, target: str) -> int:
        """The rests of earlier periods that are left."""
        if self.rolls is None:
            return 0
        *_, start, _ = self.rolls.starts
        kinds = dict(self.rolls.rules)
        able = [g for g in self.grants.values() if g.kind in kinds and g.effective + 2 * MINUTE_MS <= start]
        return sum(grant.left for grant in able if self._pays(grant, target))

    def _give(
        self,
        gifts: Sequence[Given],
        limits: Mapping[str, int],
        period: Period,
        *,
        is_over: bool = False,
        rolling: AbstractSet[str] = frozenset(),
        over: Sequence[Given] = (),
    ) -> None:
        """Add what is due of a period; where its plan changed, no more than its limits stays unused.

        Ended ones were given, too.
        """
        start, end = period

        def given(target: str) -> Sequence[Given]:
            return [g for g in self.in_order if g.target == target and (g.is_of(start) or is_within(g))]

        def is_within(grant: Given) -> bool:
            return is_over and grant.name.startswith("p ") and start <= grant.effective < end

        def own(target: str) -> Sequence[Given]:
            youngest = {g.kind: g for g in sorted(given(target), key=lambda g: g.effective)}
            return [g for g in self.in_order if g.kind in youngest and youngest[g.kind] is g]

        for target, limit in limits.items() if self.trims else ():
            for grant in reversed(own(target)):
                beyond = sum(g.quantity for g in given(target)) - limit
                kept = grant.quantity - min(max(0, beyond), grant.left)
                self.grants[grant.name] = replace(grant, quantity=kept)
        gone = [g for g in over if is_within(g)]
        for new in gifts:
            of_target = sum(grant.quantity for grant in gifts if grant.target == new.target)
            had = [g for g in gone if g.target == new.target]
            spare = limits.get(new.target, of_target) - sum(g.quantity for g in (*given(new.target), *had))
            prefix = new.name.rpartition(" ")[0]
            known = next((g for g in own(new.target) if g.kind == prefix), None)
            own_quantity = (known.quantity if known else 0) + sum(g.quantity for g in had if g.kind == prefix)
            more = min(new.quantity - own_quantity, spare)
            if more > 0 and known is None:
                self.grants[new.name] = replace(new, quantity=more)
            elif more > 0 and known and (known.expires > self.now or not is_over or prefix in rolling):
                longer = max(known.expires, new.expires) if known.expires > self.now else known.expires
                self.grants[known.name] = replace(
                    known, quantity=known.quantity + more, expires=longer, stays=max(known.stays, longer)
                )

    @property
    def in_order(self) -> Sequence[Given]:
        return sorted(self.grants.values(), key=lambda g: (g.priority, g.expires, g.created, g.name))

    def of(self, target: str) -> int:
        left = sum(grant.left for grant in self.grants.values() if self._pays(grant, target))
        return left - (self.debts[target].owed if target in self.debts else 0)

    def had(self, targets: Iterable[str]) -> bool:
        """Whether any grant of some targets stood behind them in this period, whatever it has left."""
        return (
            any(g.target in targets and g.effective <= self.now for g in self.grants.values())
            or any(g.target in targets and g.stays > self.start for g in self.ended)
            or any(self.left.get(target, -1) >= self.start for target in targets)
            or any(target in self.debts for target in targets)
        )

    def pay(self, meter: str, units: int, credit: Credit | None, model: str | None) -> tuple[int, int]:
        """How many units of a meter grants pay, and how many of the rest a credit at the model's price."""
        granted = self._burn(meter, f"m:{meter}", units, 1)
        if credit is None:
            return granted, 0
        target, cost = f"c:{credit.name}", cost_of(credit, meter, model)
        credited = self._burn(meter, target, units - granted, cost)
        beyond = units - granted - credited
        if not (credit.is_money and self.is_named):
            return granted, credited
        if beyond:
            before = self.debts[target].owed if target in self.debts else 0
            owed = min(beyond * cost, MOST + self.of(target))
            if owed > 0:
                self.debts[target] = Debt(before + owed, self.now)
                self.burned[f"beyond {meter} {self.start} {target}"] += owed
        return granted, credited + beyond

    def last(self, target: str) -> int | None:
        """The quantity of a target's newest grant, ended ones included, void ones not."""
        every = [g for g in (*self.grants.values(), *self.ended) if g.target == target]
        known = [Youngest(g.created, g.quantity) for g in every]
        known += [self.births[target]] if target in self.births else []
        return max(known).quantity if known else None

    def _burn(self, meter: str, target: str, units: int, cost: int) -> int:
        paid = min(units, max(0, self.of(target)) // cost)
        owed = paid * cost
        for grant in self.in_order:
            part = min(owed, grant.left) if self._pays(grant, target) else 0
            if part:
                self.grants[grant.name] = replace(grant, used=grant.used + part)
                self.burned[f"burn {meter} {self.start} {grant.name}"] += part
                owed -= part
        assert owed == 0
        return paid

    def _repay(self, at: int) -> None:
        """Pay what is owed with what came into force by then, the earliest first; it may be over now."""
        paid: Counter[int] = Counter()
        for target, debt in list(self.debts.items()):
            owed, every = debt.owed, [*self.grants.values(), *self.ended]
            able = [g for g in every if g.target == target and g.effective <= at < FOREVER_MS]
            for grant in sorted(able, key=lambda g: (g.effective, g.priority, g.expires, g.created, g.name)):
                part = min(owed, grant.left) if grant.expires > debt.since else 0
                owed -= part
                paid[id(grant)] += part
                self.repaid[grant.name] += part
            self.debts[target] = Debt(owed, debt.since)
            if not owed:
                del self.debts[target]

        def after(grant: Given) -> Given:
            return replace(grant, used=grant.used + paid[id(grant)])

        self.grants = {name: after(grant) for name, grant in self.grants.items()}
        self.ended = list(map(after, self.ended))
        self.repaid = +self.repaid

    def _pays(self, grant: Given, target: str) -> bool:
        return grant.target == target and grant.pays_at(self.now)


class Purse:
    """The grants on file, the lines of their ledger, and until when both are kept (0: no key has been).

    Of grants that have left it keeps by target until when one paid, and which was the youngest; and when the
    latest period began in which the store wrote down all that was due.
    """

    def __init__(self) -> None:
        self.written, self.history = 0, ""
        self.grants, self.debts = dict[str, Given](), dict[str, Debt]()
        self.lines, self.ids = dict[str, tuple[int, ...]](), dict[str, tuple[tuple[str, int], ...]]()
        self.once: dict[str, int] = {}
        self.left, self.births = dict[str, int](), dict[str, Youngest]()
        self.lives = 0

    def add(self, grant_id: str, new: Sequence[Given], now: int, *, most: int) -> list[int | bytes]:
        """Add a grant of the app's, of all its targets or of none."""
        asked = tuple((grant.target, grant.quantity) for grant in new)
        if grant_id in self.ids:
            same = self.ids[grant_id] == asked
            return [0, now] if same else [1, _words(self.ids[grant_id]).encode()]
        self.repay(now)
        stay = [grant for grant in self.grants.values() if grant.stays > now]
        for grant in new:
            owed = self.debts[grant.target].owed if grant.target in self.debts else 0
            if sum(g.left for g in stay if g.target == grant.target) - owed + grant.quantity > MOST:
                return [2, grant.target.encode()]
        live = [grant for grant in stay if grant.name.startswith("a ")]
        if len(live) + len(new) > most:
            return [3, len(live)]
        for grant in [g for g in self.grants.values() if g.stays <= now and g.name.startswith("a ")]:
            self._leave(grant, grant.stays - 1)
        for grant in new:
            self.grants[grant.name] = grant
            self.lines[f"grant {grant.name}"] = (grant.quantity, *grant.terms)
        self.ids[grant_id] = asked
        self.lives = FOREVER_MS
        return [0, now]

    def void(self, names: Sequence[str], now: int) -> int:
        self.repay(now)
        found = 0
        for name in names:
            grant = self.grants.pop(name, None)
            if grant is not None or self._is_used_up(name, now):
                self.lines[f"void {name}"] = (0 if grant is None else grant.left, now)
                found += 1
        return found

    def _is_used_up(self, name: str, now: int) -> bool:
        """Whether a grant of the app's has left because it was used up; it may have its payment back."""
        line = self.lines.get(f"grant {name}")
        is_left = line is not None and f"void {name}" not in self.lines and name.startswith("a ")
        return is_left and line is not None and line[3] > now

    def repay(self, now: int) -> None:
        means = Means(self, None, (now, FOREVER_MS), now)
        for grant in (*means.grants.values(), *means.ended):
            self.grants[grant.name] = replace(self.grants[grant.name], used=grant.used)
            if grant.is_spent and means.repaid[grant.name] and grant.stays > now:
                self._leave(self.grants[grant.name], now)
        for name, part in means.repaid.items():
            self._add(f"repay {name}", part)
        self.debts = means.debts

    def keep(self, means: Means, *, has_state: bool) -> None:
        """Keep what has been paid, what the plan gives, and nothing that pays no more."""
        grew = self.debts != means.debts or self.once != means.once
        self.debts, self.once = means.debts, means.once
        gone = {grant.name for grant in means.ended}
        before = {grant.name: grant.quantity for grant in self.grants.values() if grant.name not in gone}
        for grant in means.ended:
            self.grants[grant.name] = grant
            self._leave(grant, grant.stays - 1)
        for grant in means.grants.values():
            known = before.get(grant.name, 0)
            if grant.quantity != known:
                grew = True
                line = f"grant {grant.name}"
                if line in self.lines:
                    self._add(f"raise {known} {grant.name}", grant.quantity - known)
                else:
                    self.lines[line] = (grant.quantity, *grant.terms)
            self.grants[grant.name] = grant
            if grant.is_spent:
                self._leave(grant, means.now)
        written = means.burned + means.lived_on
        for line, part in written.items():
            self._add(line, part)
        for name, part in means.repaid.items():
            self._add(f"repay {name}", part)
        for name, part in means.cut.items():
            self._add(f"expire {name}", part)
        if grew or means.lived_on or means.cut:
            last = max((grant.stays for grant in self.grants.values()), default=means.now)
            keeps = means.rolls.keeps_ms if means.rolls else 0
            is_known = has_state or self.debts or (self.once and means.is_named)
            self.lives = FOREVER_MS if is_known else max(last, means.now) + 40 * DAY_MS + keeps

    def texts(self) -> dict[str, str]:
        kept = {grant.name: grant.text for grant in self.grants.values()}
        for target, at in self.left.items():
            kept[f"past {target}"] = f"{at} {self.births[target].quantity} {self.births[target].created}"
        kept |= {f"d {target}": f"{debt.owed} {debt.since}" for target, debt in self.debts.items()}
        return kept | {field: str(start) for field, start in self.once.items()}

    def ledger(self) -> dict[str, str]:
        kept = {line: " ".join(map(str, numbers)) for line, numbers in self.lines.items()}
        return kept | {f"id {grant_id}": _words(asked) for grant_id, asked in self.ids.items()}

    def _leave(self, grant: Given, at: int) -> None:
        del self.grants[grant.name]
        if grant.left:
            self._add(f"expire {grant.name}", grant.left, grant.expires)
        self.left[grant.target] = max(at, self.left.get(grant.target, 0))
        youngest = Youngest(grant.created, grant.quantity)
        self.births[grant.target] = max(youngest, self.births.get(grant.target, youngest))

    def _add(self, line: str, quantity: int, *more: int) -> None:
        self.lines[line] = (self.lines.get(line, (0,))[0] + quantity, *more)


def _words(asked: Iterable[tuple[str, int]]) -> str:
    return " ".join(f"{target} {quantity}" for target, quantity in asked)


def ledger_sums(lines: Mapping[str, str]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for line, text in lines.items():
        what, _, rest = line.partition(" ")
        if what in {"id", "beyond", "rollover"}:
            continue
        words = {"burn": 2, "raise": 1}.get(what, 0)
        name = rest.split(" ", words)[words]
        sums[name] += int(text.partition(" ")[0]) * (1 if what in {"grant", "raise"} else -1)
    return Counter({name: left for name, left in sums.items() if left})


def may_have(rev: str, state: CustomerState, plan: Plan, catalog: Catalog, *, is_named: bool = True) -> bool:
    """Whether grants count: the app's, the plan's, or what an earlier plan gave, which stays; or debts."""
    plans = catalog.plans.values() if rev != NO_REV else (plan,)
    can_owe = is_named and any(credit.is_money for credit in catalog.credits.values())
    return state.granted or can_owe or any(plan.grants for plan in plans)


def credit_of(catalog: Catalog, meter: str) -> Credit | None:
    return next((credit for credit in catalog.credits.values() if meter in credit.costs), None)


def targets_of(catalog: Catalog, meter: str) -> set[str]:
    """What may stand behind a meter."""
    credit = credit_of(catalog, meter)
    return {f"m:{meter}"} | ({f"c:{credit.name}"} if credit else set())


def cost_of(credit: Credit, meter: str, model: str | None) -> int:
    """What a unit costs that a model used, in micro-credits: by the first pattern that fits its name."""
    prices = credit.by_model.get(meter)
    fitting = (
        (price for pattern, price in prices.models if fnmatchcase(model or "", pattern)) if prices else ()
    )
    return next(iter(fitting), credit.costs[meter])


class Claims(NamedTuple):
    """What is counted against a credit: included units used, units held, and what those would cost at most.

    ``held_credit`` is known of meters whose cost depends on the model, in micro-credits.
    """

    counted: Callable[[str], int]
    held: Callable[[str], int]
    held_credit: Callable[[str], int]


def room(
    meter: str,
    means: Means,
    catalog: Catalog,
    entitlements: Mapping[str, Entitlement],
    claims: Claims,
    cost: int | None = None,
) -> int:
    """Units that grants and credits add; what others hold beyond their own means claims the credit first.

    Where the cost depends on the model, ``cost`` is that of the model asked for, and the meter's own holds
    claim the credit, too: at the prices of their models, or at the highest where that is less.
    """
    units, credit = means.of(f"m:{meter}"), credit_of(catalog, meter)
    if credit is None:
        return units
    free, claim, uncovered, highest = means.of(f"c:{credit.name}"), 0, 0, 1
    for other, fixed in credit.costs.items():
        included, prices = entitlements[other].included, credit.by_model.get(other)
        if included is None or (other == meter and not prices):
            continue
        own = max(0, included - claims.counted(other)) + means.of(f"m:{other}")
        beyond = max(0, claims.held(other) - own)
        most = max(prices.default, *(price for _, price in prices.models)) if prices else fixed
        claimed = min(beyond * most, claims.held_credit(other)) if prices else beyond * fixed
        if other == meter:
            claim, uncovered, highest = claimed, beyond, most
        else:
            free -= claimed
    free = max(min(0, means.of(f"c:{credit.name}")), free)
    if claim > max(0, free):  # The credit does not pay all of them, but so many even at the highest price.
        return units + min(uncovered, free // highest)
    units, free = units + uncovered, free - claim
    return units + free // (cost or credit.costs[meter])


def lowered(catalog: Catalog, before: Means, after: Means) -> list[tuple[str, int]]:
    """The credits whose balance has fallen below their share of the last grant, and what is left."""
    low: list[tuple[str, int]] = []
    for credit in catalog.credits.values():
        target = f"c:{credit.name}"
        last = after.last(target)
        if credit.low_balance_percent is not None:
            threshold = Fraction((last or 0) * credit.low_balance_percent, 100)
            if before.of(target) >= threshold > after.of(target):
                low.append((target, after.of(target)))
    return low
