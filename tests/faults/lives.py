"""Random lives of a customer: a year in which anything may happen at any time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, TypeVar

import pytest

from books.correction_oracle import Correction, Corrections
from books.credit_oracle import WORK, Purse
from books.kept_terms import Terms, read_terms
from books.price_oracle import Ledger
from drivers.world import Killed, Refused, World, run
from faults.life_shop import ADDONS, CURRENCIES, METERS, PLANS, ShopFile
from faults.operator_acts import ACTS, Desk, Nothing
from meterkit import Corrected, PendingChange
from meterkit.errors import MeterkitError, QuantityError

_T = TypeVar("_T")

START: Final = datetime(2031, 1, 5, 9, 20, 30, tzinfo=UTC)
YEAR: Final = timedelta(days=365)
CUSTOMER: Final = "acme"
STRIPE_CUSTOMER: Final = "cus_acme"
# How often each kind of event comes, of a hundred.
KINDS: Final = {
    "use": 50,
    "change_plan": 12,
    "set_seats": 4,
    "cancel": 3,
    "cancel_now": 2,
    "resume": 3,
    "subscribe": 8,
    "fail_payments": 2,
    "mend_payments": 4,
    "portal_cancel": 1,
    "change_at_stripe": 3,
    "stripe_away": 3,
    "hooks_away": 2,
    "hooks_lost": 1,
    "hooks_twice": 2,
    "kill": 4,
    "by_hand": 14,
    "other_handler": 1,
    "new_prices": 4,
    "correct": 8,
}
# They come between the others, drawn on their own.
_BESIDE: Final = {"set_addons": 30, "use": 70}
_CHOICES: Final = {"use": METERS, "correct": METERS, "by_hand": ACTS}
ALLOWANCES: Final = ("prorated", "whole")
DOWNGRADES: Final = ("period_end", "now")
IDLE: Final = timedelta(days=7)
# Around the end of a period, in minutes from it.
AROUND: Final = (-7, 2, 13, 40, 70, 180)


@dataclass(frozen=True, kw_only=True)
class Event:
    at: timedelta
    kind: str
    what: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{START + self.at:%m-%d %H:%M} {self.kind} {self.what} {self.number}"


def drawn(seed: int) -> list[Event]:
    """The events of a seed's life: any at any time, and use of add-ons and credits between them."""
    events = _drawn_of_all(seed)
    random = Random(f"{seed} beside")  # noqa: S311 - a story, not a secret
    at = timedelta()
    while (at := at + timedelta(minutes=random.choice((4, 90, 6_000, 12_000)), seconds=30)) < YEAR:
        (kind,) = random.choices([*_BESIDE], [*_BESIDE.values()])
        what = random.choice(ADDONS) if kind == "set_addons" else WORK
        events.append(Event(at=at, kind=kind, what=what, number=random.randint(1, 60)))
    return sorted(events, key=lambda event: event.at)


def _drawn_of_all(seed: int) -> list[Event]:
    random = Random(seed)  # noqa: S311 - a story, not a secret
    events = [
        Event(at=timedelta(), kind="open_shop", what=ALLOWANCES[seed % 2], number=seed // 2 % 6),
        Event(at=timedelta(), kind="subscribe", what=random.choice(PLANS), number=random.randint(1, 6)),
    ]
    at = timedelta()
    while True:
        # Often minutes apart, so that one thing comes into another; else days.
        minutes = random.choice((1, 4, 15, 90, 1_500, 6_000, 12_000, 20_000))
        at += timedelta(minutes=minutes, seconds=random.randint(0, 59))
        if at >= YEAR:
            return events
        (kind,) = random.choices([*KINDS], [*KINDS.values()])
        what = random.choice(_CHOICES.get(kind, PLANS))
        events.append(Event(at=at, kind=kind, what=what, number=random.randint(1, 60)))


@dataclass(kw_only=True)
class Life:
    """A life that is being lived; ``told`` has what has happened."""

    world: World
    ledger: Ledger
    corrections: Corrections
    purse: Purse
    told: list[str] = field(default_factory=list[str])
    _file: ShopFile = field(default_factory=ShopFile)
    _later: Terms | None = None
    _waiting: tuple[str | None, datetime] | None = None
    _released: Terms | None = None
    _back_at: dict[str, datetime] = field(default_factory=dict[str, datetime])
    _turned_at: datetime = START
    _acted_at: datetime = START
    _ends: list[datetime] = field(default_factory=list[datetime])
    _changes: int = 0
    _currency: str = CURRENCIES[0]

    async def live(self, events: Sequence[Event]) -> None:
        """Live a year, and on in peace until its last invoice is final."""
        world = self.world
        world.emulator.add_plans(self._file.catalog)
        world.emulator.add_customer(STRIPE_CUSTOMER)
        world.emulator.add_payment_method(STRIPE_CUSTOMER)
        await world.do(world.kit.customers.link(CUSTOMER, STRIPE_CUSTOMER))
        await world.do(world.kit.gauges.set(CUSTOMER, "seats", 1))
        for event in events:
            await self._until(START + event.at)
            came = await self._do(event)
            self.told.append(f"{event}: {came}")
        for name in ("stripe", "hooks", "lost", "elder"):
            self._back_at[name] = world.now
        world.process.dies_at = 0
        await self._until(world.now + timedelta(minutes=30))
        await self._mend_payments()
        for asked in self.corrections.unsettled:
            await self._corrected(asked)
        await self._until(world.now + timedelta(days=37))

    async def _do(self, event: Event) -> str:
        """Have an event happen; what came of it."""
        act: Callable[[Event], Coroutine[Any, Any, object]] = getattr(self, f"_{event.kind}")
        self.world.alternate()
        await self._check_later()
        if event.kind in {"by_hand", "change_at_stripe", "portal_cancel"}:
            self._later = None
        try:
            came = await act(event)
        except Killed:
            await self._revive()
            return "killed"
        except (MeterkitError, Refused) as error:
            return f"{type(error).__name__} {error}"[:160]
        return "" if came is None else str(came)

    async def _open_shop(self, event: Event) -> None:
        downgrade = DOWNGRADES[event.number % len(DOWNGRADES)]
        self._file = replace(self._file, allowance=event.what, downgrade=downgrade)
        self._currency = CURRENCIES[event.number // len(DOWNGRADES)]
        await self._deploy()

    async def _deploy(self, *, beside: bool = False) -> None:
        self.ledger.catalog = self._file.in_currency(self._currency)
        await self.world.deploy(self._file.catalog, beside=beside)

    async def _new_prices(self, event: Event) -> str:
        """The seller changes the usage prices of a plan: for present customers nothing changes."""
        self._file = self._file.with_prices(event.what, event.number)
        # The older file sells at its own prices of usage by lines: no other process has it then.
        is_beside = event.number % 2 == 1 and self._file.usage == "meters"
        if is_beside:
            self._back_at["elder"] = self.world.now + timedelta(days=event.number)
        await self._deploy(beside=is_beside)
        return await self._sync_prices()

    async def _sync_prices(self) -> str:
        """Run ``meterkit stripe sync``, and again where it was killed; Stripe has answered by then."""
        is_away, self.world.stripe_is_away = self.world.stripe_is_away, False
        before = await self.ledger.charged()
        while True:
            try:
                done = await self.world.do(self.world.kit.stripe.sync())
            except Killed:
                await self._revive()
            else:
                break
        self.world.stripe_is_away = is_away
        self.ledger.expect_charged(before, await self.ledger.charged(), "stripe sync")
        assert not done.problems, done.problems
        return f"{sum(line.action == 'made' for line in done.lines)} made"

    async def _use(self, event: Event) -> None:
        process = self.world.process
        # Whether usage was recorded is known here: what becomes of it as a process dies has tests of its own.
        dies_in, process.dies_at = process.dies_at - process.steps, 0
        if event.what == WORK:
            await self.purse.use(event.number // 4 + 1)
        else:
            await self.ledger.record(CUSTOMER, event.what, event.number)
        process.dies_at = process.steps + dies_in if dies_in > 0 else 0

    async def _correct(self, event: Event) -> str:
        """Take units back, once or again, more than there are, or less than nothing."""
        ways, corrections = event.number % 6, self.corrections
        asked = Correction(f"c-{len(corrections.asked)}", event.what, event.number, ways == 1)
        if ways == 2:
            asked = asked._replace(quantity=sum(entry.quantity for entry in self.ledger.log) + 1)
        if ways == 3:
            asked = asked._replace(quantity=-event.number)
        if ways >= 4 and corrections.asked:
            asked = [*corrections.asked.values()][-1]._replace(credit=True)
        try:
            found = await self._corrected(asked)
        except QuantityError:
            assert asked.quantity < 0
            del corrections.asked[asked.id]
            return "refused"
        return f"{asked.id} {found}"

    async def _corrected(self, asked: Correction) -> Corrected:
        while True:
            try:
                return await self.corrections.correct(asked)
            except Killed:
                await self._revive()

    async def _subscribe(self, event: Event) -> str:
        plan = self.ledger.catalog.plans[event.what]
        seats = event.number % 4 + 1 if plan.seat_price is not None else 1
        addons = dict.fromkeys(plan.addons, event.number % 3)
        create = self.world.kit.subscriptions.create
        made = await self.world.do(create(CUSTOMER, plan.key, seats, addons=addons, currency=self._currency))
        await self.ledger.expect_sold(made.subscription.id, plan.key)
        if made.client_secret is not None and made.subscription.status == "incomplete":
            with suppress(ValueError):  # The payment fails.
                self.world.emulator.confirm_payment(made.client_secret)
        return made.subscription.status

    async def _change_plan(self, event: Event) -> str:
        before, bought = await self.ledger.plan_at_stripe(), await self.ledger.addons_at_stripe()
        made = await self._keeping_terms(
            self.world.kit.subscriptions.change_plan(CUSTOMER, event.what), f"to {event.what}"
        )
        if self._waits_since_now(made.subscription.pending_change):
            later = await read_terms(self.world, STRIPE_CUSTOMER)
            self._later = later if later is not None and later.is_lasting else None
        if made.confirmed and made.subscription.pending_change is None and before != event.what:
            await self.ledger.expect_sold(made.subscription.id, event.what)
            listed = self.ledger.catalog.plans[event.what].addons
            await self._expect_addons({key: n for key, n in bought.items() if key in listed})
        return f"{made.subscription.plan}, later {made.subscription.pending_change}"

    async def _set_seats(self, event: Event) -> None:
        await self._keeping(self.world.kit.subscriptions.set_seats(CUSTOMER, event.number % 6 + 1), "seats")

    async def _set_addons(self, event: Event) -> str:
        bought = await self.ledger.addons_at_stripe()
        addons = {event.what: event.number % 6}
        made = await self._keeping(self.world.kit.subscriptions.set_addons(CUSTOMER, addons), "add-ons")
        self._waits_since_now(made.subscription.pending_change)
        if made.client_secret is None and made.subscription.pending_change is None:
            await self._expect_addons({key: n for key, n in (bought | addons).items() if n})
        return f"{made.subscription.addons}, later {made.subscription.pending_change}"

    def _waits_since_now(self, change: PendingChange | None) -> bool:
        """Whether a call has scheduled another change: what waits already is kept as it is."""
        before = self._waiting
        self._waiting = None if change is None else (change.plan, change.effective_at)
        return self._waiting not in {None, before}

    async def _expect_addons(self, wanted: Mapping[str, int]) -> None:
        found = await self.ledger.addons_at_stripe()
        if found != wanted:
            self.ledger.complain(f"Stripe has the add-ons {found}, not {wanted}")

    async def _cancel(self, _: Event) -> None:
        before = await read_terms(self.world, STRIPE_CUSTOMER)
        self._released = before if before is not None and before.phases else self._released
        await self._keeping(self.world.kit.subscriptions.cancel(CUSTOMER), "cancel")

    async def _cancel_now(self, event: Event) -> None:
        cancel = self.world.kit.subscriptions.cancel
        await self.world.do(cancel(CUSTOMER, immediately=True, give_back=event.number % 2 == 0))

    async def _resume(self, _: Event) -> None:
        await self._keeping(self.world.kit.subscriptions.resume(CUSTOMER), "resume")

    async def _keeping(self, work: Coroutine[Any, Any, _T], name: str) -> _T:
        """Have the kit do something that changes no price of usage."""
        self.world.emulator.advance()
        before = await self.ledger.charged()
        try:
            return await self._keeping_terms(work, name)
        finally:
            self.ledger.expect_charged(before, await self.ledger.charged(), name)

    async def _keeping_terms(self, work: Coroutine[Any, Any, _T], name: str) -> _T:
        """Have the kit change a subscription; what an operator has put on it stays."""
        self.world.emulator.advance()
        before = await read_terms(self.world, STRIPE_CUSTOMER)
        if before is not None and name == "resume":
            before = before.under(self._released)
        made = await self.world.do(work)
        after = await read_terms(self.world, STRIPE_CUSTOMER)
        # A cancellation releases the schedule; what resumes it, restores it.
        self._complain(before, after, name, phases=name != "cancel")
        return made

    def _complain(self, before: Terms | None, after: Terms | None, name: str, *, phases: bool = True) -> None:
        for one in [] if before is None else before.lost(after, phases=phases):
            self.ledger.complain(f"{name}: {one}")

    async def _check_later(self) -> None:
        """Expect the terms of before a scheduled change to hold behind it, unless an operator was at work."""
        if self._later is not None:
            self._complain(
                self._later, await read_terms(self.world, STRIPE_CUSTOMER), "a scheduled change", phases=False
            )

    async def _fail_payments(self, _: Event) -> None:
        self.world.emulator.fail_payments(STRIPE_CUSTOMER)

    async def _mend_payments(self, _: Event | None = None) -> None:
        self.world.emulator.mend_payments(STRIPE_CUSTOMER)
        for invoice in await self.world.list("/v1/invoices", customer=STRIPE_CUSTOMER, status="open"):
            with suppress(Refused):
                await self.world.ask("POST", f"/v1/invoices/{invoice['id']}/pay")

    async def _portal_cancel(self, _: Event) -> None:
        for found in await self.world.list("/v1/subscriptions", customer=STRIPE_CUSTOMER):
            await self.world.ask("POST", f"/v1/subscriptions/{found['id']}", cancel_at="max_period_end")

    async def _change_at_stripe(self, event: Event) -> None:
        """A person gives the subscription another plan, with all its items."""
        for found in await self.world.list("/v1/subscriptions", customer=STRIPE_CUSTOMER):
            behavior = ("create_prorations", "always_invoice")[event.number % 2]
            await self.ledger.change_at_stripe(found, event.what, proration_behavior=behavior)

    async def _by_hand(self, event: Event) -> str:
        self._acted_at = self.world.now
        desk = Desk(world=self.world, customer=STRIPE_CUSTOMER, number=event.number)
        first = ACTS.index(event.what)
        for name in ACTS[first:] + ACTS[:first]:
            with suppress(Nothing, Refused):
                await getattr(desk, name)()
                return name
        return "nothing"

    async def _other_handler(self, event: Event) -> None:
        """Another handler makes each draft final as soon as it hears of it, for some weeks."""
        self._back_at["drafts"] = self.world.now + timedelta(days=event.number)

    async def _stripe_away(self, event: Event) -> None:
        self.world.stripe_is_away = True
        self._back_at["stripe"] = self.world.now + timedelta(minutes=3 * event.number)

    async def _hooks_away(self, event: Event) -> None:
        self.world.hooks_are_away = True
        self._back_at["hooks"] = self.world.now + timedelta(hours=event.number / 2)

    async def _hooks_lost(self, event: Event) -> None:
        self.world.hooks_are_lost = True
        self._back_at["lost"] = self.world.now + timedelta(hours=event.number / 4)

    async def _hooks_twice(self, _: Event) -> None:
        await self.world.tell(twice=True)

    async def _kill(self, event: Event) -> None:
        self.world.process.dies_at = self.world.process.steps + event.number

    async def _until(self, instant: datetime) -> None:
        """Let time pass, in which Stripe and the process do by themselves what they do."""
        world = self.world
        await self._learn()
        while (due := self._next_turn()) < instant:
            await world.until(due)
            await self._come_back()
            world.alternate()
            if "drafts" in self._back_at:
                await self._finalize_drafts()
            is_heard = not (world.hooks_are_away or world.hooks_are_lost or world.stripe_is_away)
            with suppress(Killed):
                await world.turn()
                self.ledger.heard_of = world.now if is_heard else self.ledger.heard_of
            await self._revive()
            self._turned_at = world.now
            if not self._ends or self._ends[-1] <= world.now:
                await self._learn()
        await world.until(instant)
        await self._come_back()

    async def _learn(self) -> None:
        """Read what has happened to subscriptions; where something has, when their periods end."""
        times = self.ledger.plan_times
        await times.learn(self.ledger.catalog)
        if times.changes != self._changes:
            self._changes, self._ends = times.changes, await self._bounds()

    async def _finalize_drafts(self) -> None:
        self.world.emulator.advance()
        for draft in await self.world.list("/v1/invoices", customer=STRIPE_CUSTOMER, status="draft"):
            with suppress(Refused):
                await self.world.ask("POST", f"/v1/invoices/{draft['id']}/finalize")

    def _next_turn(self) -> datetime:
        """When the process is to look again: something needs it in time, or days have passed."""
        now = self.world.now
        times = [self._turned_at + IDLE, *(at for at in self._back_at.values() if at > now)]
        if self._acted_at > self._turned_at:
            times.append(self._acted_at + timedelta(minutes=1))
        if self._is_fresh():
            times.append(now.replace(second=15) + timedelta(minutes=6))
        times += [
            at for end in self._ends for around in AROUND if (at := end + timedelta(minutes=around)) > now
        ]
        return max(now, min(times))

    async def _bounds(self) -> list[datetime]:
        bounds = {
            item[bound]
            for found in await self.world.list("/v1/subscriptions", customer=STRIPE_CUSTOMER, status="all")
            for item in found["items"]["data"]
            for bound in ("current_period_start", "current_period_end")
        }
        return [datetime.fromtimestamp(bound, UTC) for bound in sorted(bounds)]

    def _is_fresh(self) -> bool:
        """Whether something was recorded since the last look."""
        return bool(self.ledger.log) and self.ledger.log[-1].at > self._turned_at - timedelta(minutes=6)

    async def _come_back(self) -> None:
        world, over = self.world, {name for name, at in self._back_at.items() if at <= self.world.now}
        for name in over:
            del self._back_at[name]
        world.stripe_is_away = world.stripe_is_away and "stripe" not in over
        world.hooks_are_away = world.hooks_are_away and "hooks" not in over
        world.hooks_are_lost = world.hooks_are_lost and "lost" not in over
        if "elder" in over:
            await world.end_elder()

    async def _revive(self) -> None:
        if not self.world.process.is_alive:
            await self.world.begin()


def lived(
    patched: pytest.MonkeyPatch, events: Sequence[Event], *, usage: str = "meters"
) -> tuple[list[str], list[str]]:
    """Live a life; what is wrong at its end, and what has happened."""
    file = ShopFile(usage=usage)

    async def story(world: World) -> tuple[list[str], list[str]]:
        ledger = Ledger(world=world, catalog=file.catalog)
        corrections = Corrections(ledger=ledger, customer=CUSTOMER)
        purse = Purse(ledger=ledger, customer=CUSTOMER)
        life = Life(world=world, ledger=ledger, corrections=corrections, purse=purse, _file=file)
        await life.live(events)
        await corrections.audit()
        await purse.audit()
        return await life.ledger.audit(), life.told

    return run(patched, story, catalog=file.catalog, start=START)
