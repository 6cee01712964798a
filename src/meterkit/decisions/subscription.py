"""A customer's stored subscription, its scheduled changes by the clock, and access under dunning."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from sys import intern
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.decisions.item_prices import (
    NO_PRICES,
    base_interval,
    interval_of,
    with_known_meters,
)
from meterkit.terms.rows import LINES, fact_spans

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from _typeshed import DataclassInstance

    from meterkit.catalog import Dunning
    from meterkit.catalog.models import Bought
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.terms.rows import Terms

Status = Literal[
    "active",
    "trialing",
    "past_due",
    "unpaid",
    "paused",
    "incomplete",
    "incomplete_expired",
    "canceled",
]
TrialEndAction = Literal["continue", "cancel", "pause"]
ENDED: Final[frozenset[Status | None]] = frozenset({"canceled", "incomplete_expired"})
"""The statuses that a subscription never leaves."""
OWING: Final[frozenset[Status | None]] = frozenset({"past_due", "unpaid"})
"""The statuses with an open invoice that was not paid."""
BILLED: Final[frozenset[Status | None]] = frozenset({"active", "past_due", "unpaid"})
"""The statuses in which usage is billed: not in a trial or a pause."""
_BRINGING: Final[frozenset[Status]] = frozenset({"active", "past_due"})
NOT_BEGUN: Final[frozenset[Status]] = frozenset({"incomplete", "incomplete_expired"})
_ADDONS: Final = frozenset({"addons", "pending_addons"})
NEVER_MS: Final = 9_000_000_000_000_000
_AFTER_TRIAL: Final[dict[TrialEndAction, Status]] = {
    "continue": "active",
    "cancel": "canceled",
    "pause": "paused",
}
Access = Literal["full", "grace", "restricted", "suspended"]


def without_defaults(record: DataclassInstance) -> dict[str, Any]:
    """The fields of a record that differ from their defaults, as they are stored."""
    defaults = {field.name: field.default for field in fields(record)}  # MISSING equals no value.
    return {name: value for name, value in asdict(record).items() if value != defaults[name]}


def parse_bought(kept: Iterable[Iterable[Any]]) -> Bought:
    """Read add-ons as JSON keeps them."""
    return tuple((key, quantity) for key, quantity in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionState:
    """A customer's subscription, as it was when it was last fetched from Stripe.

    Scheduled changes bind by the clock alone: a trial's end, a cancellation, another plan or seats.
    Times are in milliseconds since the epoch.

    Attributes:
        id: at Stripe, ``sub_…``.
        status: as Stripe reported it.
        plan: key of the plan whose price it has; None: no plan of the plans file has it.
        seats: in all, those that the plan and add-ons cover included; 0: it has no seat price.
        covered_seats: how many of them the plan and add-ons covered, by the plans file that it was read by;
            -1: not known.
        addons: add-ons that its items sell, whether or not the plan allows them.
        start_ms, end_ms: its current period; the end is the first instant after it.
        former_start_ms: first instant of the period before, where a person has moved the anchor since; 0:
            the anchor says it.
        usage_start_ms, usage_end_ms: the current period of its metered prices, where that is another one; 0:
            it is not.
        anchor_ms: its ``billing_cycle_anchor``.
        cancel_at_ms: when it ends: ``cancel_at``, or the period's end where that is when it is canceled.
        cancel_at_period_end: whether it ends with its period.
        trial_start_ms: first instant of its trial, if that was given after its creation; 0: it began then.
        trial_end_ms: first instant after its trial.
        trial_end_action: effect of the trial's end: without a payment method, ``end_behavior``.
        pending_plan, pending_seats: plan and seats after a scheduled change.
        pending_addons: add-ons after it; None: it leaves them as they are.
        pending_at_ms: instant of that change.
        failures: failed attempts to collect an open invoice: the most of any since one was paid last.
        failed_at_ms: since when the first of these is owed: when it was finalized, or due where it was sent;
            0: not known.
        ended_at_ms: when it ended.
        created_ms: when it was made; 0: not known.
        never_began: whether it was ended before it was paid for, or on trial.
        awaits_payment_method: whether its plan requires a payment method and none is saved: so it is not in
            force (``incomplete``), or will not be from the end of its trial on.
        void_from_ms: from when on its invoices are voided, as its collection is paused so; None: it is not.
        void_until_ms: when collection resumes; None: not by itself.
        metered: its metered prices, as ``METER=PRICE``, in order, with blanks between them.
        prices: prices of its metered items; empty: not known, or none.
        pending_prices: those after a scheduled change.
        by_lines: whether invoice lines, not metered prices, bill the usage of its current period.
        pending_lines_ms: scheduled instant from which on the other ones do; None: none is known.
        base_price, seat_price: of its plan and of one seat, each as ``AMOUNT CURRENCY INTERVAL``; empty: not
            known, or there is none.
        addon_prices: of one of each add-on, likewise, by its key.
        mark: of the last change that meterkit made of it; empty: there was none.
        mrr: monthly recurring revenue, in millionths of the currency's smallest unit.
        currency: in lower case; empty: not known.
    """

    id: str
    status: Status
    plan: str | None
    seats: int = 0
    covered_seats: int = -1
    addons: Bought = ()
    start_ms: int
    end_ms: int
    anchor_ms: int
    cancel_at_ms: int | None = None
    cancel_at_period_end: bool = False
    trial_start_ms: int = 0
    trial_end_ms: int | None = None
    trial_end_action: TrialEndAction = "continue"
    pending_plan: str | None = None
    pending_at_ms: int | None = None
    pending_seats: int | None = None
    pending_addons: Bought | None = None
    failures: int = 0
    failed_at_ms: int = 0
    ended_at_ms: int | None = None
    created_ms: int = 0
    former_start_ms: int = 0
    usage_start_ms: int = 0
    usage_end_ms: int = 0
    never_began: bool = False
    awaits_payment_method: bool = False
    void_from_ms: int | None = None
    void_until_ms: int | None = None
    metered: str = ""
    prices: ItemPrices = NO_PRICES
    pending_prices: ItemPrices = NO_PRICES
    by_lines: bool = False
    pending_lines_ms: int | None = None
    base_price: str = ""
    seat_price: str = ""
    addon_prices: tuple[tuple[str, str], ...] = ()
    mark: str = ""
    mrr: int = 0
    currency: str = ""

    def kept(self) -> dict[str, object]:
        """Its stored fields: all except defaults. A state stores the prices."""
        return without_defaults(self)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> SubscriptionState:
        """Inverse of :meth:`kept`; ignores fields of a newer release."""
        found = {name: value for name, value in kept.items() if name in cls.__slots__}
        status = found.get("status")
        if isinstance(status, str):
            found["status"] = intern(status)  # A process keeps it for each customer that it knows.
        for name in found.keys() & _ADDONS:
            found[name] = parse_bought(found[name])
        if "addon_prices" in found:
            found["addon_prices"] = tuple((key, price) for key, price in found["addon_prices"])
        return cls(**found)

    @property
    def usage_period(self) -> tuple[int, int]:
        """Start and end of the period that the next invoice bills the usage of."""
        if self.usage_end_ms:
            return self.usage_start_ms, self.usage_end_ms
        return self.start_ms, self.end_ms

    @property
    def has_begun(self) -> bool:
        """Whether it was ever paid for, or on trial: else nothing but access follows from it."""
        return self.status not in NOT_BEGUN and not self.never_began

    def has_begun_at(self, now_ms: int) -> bool:
        """Whether it has begun, and its trial has not ended without the payment method that it requires."""
        return self.has_begun and not (self.awaits_payment_method and self._has_trial_ended(now_ms))

    def status_at(self, now_ms: int) -> Status:
        """Its status by the clock: a scheduled change takes effect before Stripe reports it."""
        if self.status in ENDED:
            return self.status
        if self.cancel_at_ms is not None and now_ms >= self.cancel_at_ms:
            return "canceled"
        if self._has_trial_ended(now_ms):
            return "incomplete" if self.awaits_payment_method else _AFTER_TRIAL[self.trial_end_action]
        return self.status

    def plan_at(self, now_ms: int) -> str | None:
        """The plan that it is of, a scheduled one from its time on; None: no plan of the plans file."""
        if self.pending_plan is not None and self._is_changed(now_ms):
            return self.pending_plan
        return self.plan

    def seats_at(self, now_ms: int, covered: int | None = None) -> int:
        """The seats that are paid for; none once it has ended.

        Args:
            now_ms: the instant.
            covered: how many the plan and add-ons cover by the plans file at hand; None: not known.
        """
        if self.status_at(now_ms) in ENDED:
            return 0
        if self.pending_seats is not None and self._is_changed(now_ms):
            return self.pending_seats
        if covered is None or self.covered_seats < 0 or not self.seats:
            return self.seats
        return self.seats + covered - self.covered_seats

    def addons_at(self, now_ms: int) -> Bought:
        """The add-ons that are paid for; none once it has ended."""
        if not (self.addons or self.pending_addons) or self.status_at(now_ms) in ENDED:
            return ()
        if self.pending_addons is not None and self._is_changed(now_ms):
            return self.pending_addons
        return self.addons

    def prices_at(self, at_ms: int) -> ItemPrices:
        """Prices of metered items by the clock; see :meth:`CustomerState.prices_at` for the past."""
        if at_ms < self.created_ms or not self.has_begun_at(at_ms) or at_ms >= self.ends_ms():
            return NO_PRICES
        if not self._is_changed(at_ms):
            return self.prices
        is_same_plan = self.pending_plan in {None, self.plan}
        return self.pending_prices or (self.prices if is_same_plan else NO_PRICES)

    def with_known_plan(
        self, known: SubscriptionState, plans: Collection[str], addons: Collection[str] = ()
    ) -> SubscriptionState:
        """Keep the stored plan, seats and add-ons that the plans file at hand lacks: it may be an older file.

        If the prices have changed since to those of a plan of this file, that plan counts.

        Args:
            known: as it was when it was fetched before.
            plans: the keys of the plans of the file at hand.
            addons: the keys of its add-ons.
        """
        if known.id != self.id:
            return self
        is_unchanged = (known.metered, known.mrr, known.currency) == (self.metered, self.mrr, self.currency)
        is_known = known.plan is None or known.plan in plans
        if not is_known and (self.plan is None or is_unchanged):
            covered = known.covered_seats
            return replace(
                self, plan=known.plan, seats=known.seats, covered_seats=covered, addons=known.addons
            )
        unknown = {name: quantity for name, quantity in known.addons if name not in addons}
        if not unknown or not is_unchanged:
            return self
        return replace(self, addons=tuple(sorted((unknown | dict(self.addons)).items())))

    def with_known_meters(self, known: SubscriptionState) -> SubscriptionState:
        """Keep the stored names of meters whose prices at Stripe do not name them."""
        prices, pending = (with_known_meters(of, known.prices) for of in (self.prices, self.pending_prices))
        return replace(self, prices=prices, pending_prices=pending)

    def interval_at(self, now_ms: int) -> Literal["month", "year"] | None:
        """The interval that it is paid for, by its current period; None: not known, as in a trial."""
        if self.status == "trialing" or self._is_changed(now_ms) or not self.has_begun_at(now_ms):
            return None
        return base_interval(self.base_price) or interval_of(self.start_ms, self.end_ms)

    @property
    def made_ms(self) -> int:
        """Instant since which it has periods."""
        return min(self.created_ms or self.start_ms, self.start_ms)

    def ends_ms(self) -> int:
        """Instant of its end, past or scheduled; :data:`NEVER_MS`: no end is known."""
        trial_end_ms = self.trial_end_ms if self.status == "trialing" else None
        if self.status in ENDED:
            known = self.ended_at_ms or self.cancel_at_ms
            return self.end_ms if known is None else known
        cancels_trial = trial_end_ms is not None and self.trial_end_action == "cancel"
        found = (self.cancel_at_ms, trial_end_ms if cancels_trial else None)
        return min((at_ms for at_ms in found if at_ms is not None), default=NEVER_MS)

    def mrr_at(self, now_ms: int) -> int:
        """Monthly recurring revenue; 0 on trial, and unless it is active or past due.

        https://docs.stripe.com/billing/subscriptions/analytics/glossary
        """
        return self.mrr if self.status_at(now_ms) in _BRINGING else 0

    def next_change_ms(self, now_ms: int) -> int:
        """Next scheduled change; :data:`NEVER_MS`: none."""
        if self.status_at(now_ms) in ENDED:
            return NEVER_MS
        trial_end_ms = self.trial_end_ms if self.status == "trialing" else None
        turns = (
            *(self.cancel_at_ms, trial_end_ms, self.pending_at_ms),
            *(self.void_from_ms, self.void_until_ms),
        )
        return min((at_ms for at_ms in turns if at_ms is not None and at_ms > now_ms), default=NEVER_MS)

    def is_unpaid_at(self, now_ms: int) -> bool:
        """Whether nothing is paid for the period of an instant, because its invoice is voided by a pause.

        https://docs.stripe.com/billing/subscriptions/pause-payment
        """
        has_ended = not self.has_begun_at(now_ms) or self.status_at(now_ms) in ENDED
        if has_ended or self.void_from_ms is None or now_ms < self.void_from_ms:
            return False
        return self.void_until_ms is None or now_ms < self.void_until_ms

    def failed_since_ms(self) -> int:
        """Instant of the first failed collection; if not known, the start of the period."""
        return self.failed_at_ms or self.start_ms

    def _has_trial_ended(self, now_ms: int) -> bool:
        ends_ms = self.trial_end_ms
        return self.status == "trialing" and ends_ms is not None and now_ms >= ends_ms

    def _is_changed(self, now_ms: int) -> bool:
        return self.pending_at_ms is not None and now_ms >= self.pending_at_ms


def known_line_switches(known: SubscriptionState, terms: Terms) -> tuple[int, ...]:
    """Instants from which invoice lines, and metered prices again, in turn bill usage.

    Args:
        known: the customer's subscription; what it has scheduled counts.
        terms: of the customer.
    """
    spans = fact_spans(terms, LINES)
    pairs = zip((False, *(span.value for span in spans)), spans, strict=False)
    told = tuple(max(0, span.from_ms) for before, span in pairs if span.value != before)
    return told if known.pending_lines_ms is None else (*told, known.pending_lines_ms)


def meters_switched_by_others(
    known: SubscriptionState | None, found: SubscriptionState | None, now_ms: int
) -> frozenset[str]:
    """The meters at Stripe whose prices others have changed in a subscription, by their ids there.

    A change that meterkit made left its mark, and what a schedule changes was known before. A subscription
    that has ended has no prices to come.

    Args:
        known: as it was known until now.
        found: as Stripe shows it now.
        now_ms: the instant.
    """
    if known is None or found is None or not known.metered or known.id != found.id:
        return frozenset()
    is_expected = known.mark != found.mark or known.plan_at(now_ms) != known.plan or found.status in ENDED
    is_moved = known.pending_lines_ms is not None and known.pending_lines_ms <= found.start_ms
    if is_expected or is_moved or known.metered == found.metered:
        return frozenset()
    changed = set(known.metered.split()) ^ set(found.metered.split())
    return frozenset(pair.partition("=")[0] for pair in changed)


class AccessTerm(NamedTuple):
    """Access of a customer, and its end by the clock (ms since the epoch)."""

    access: Access
    until_ms: int = NEVER_MS


def access_term_of(
    status: Status | None, *, failures: int, failed_at_ms: int, dunning: Dunning, now_ms: int
) -> AccessTerm:
    """Access by a subscription's status at an instant.

    ``past_due`` is *grace* until ``dunning.grace`` is over, or until ``dunning.attempts`` have failed; then
    *restricted*; *suspended* from ``dunning.suspend_after`` on. Both spans count from the first failure.
    ``unpaid`` is suspended; ``paused`` is restricted; all else, no subscription and an unpaid sign-up
    (``incomplete``) included, has full access, of the default plan where a subscription has ended.

    Args:
        status: of the subscription; None: there is none.
        failures: failed attempts to collect the latest invoice.
        failed_at_ms: the first of them.
        dunning: the policy.
        now_ms: the instant.
    """
    if status == "unpaid":
        return AccessTerm("suspended")
    if status == "paused":
        return AccessTerm("restricted")
    if status != "past_due":
        return AccessTerm("full")
    suspension_ms = failed_at_ms + dunning.suspend_after_ms
    grace_end_ms = min(failed_at_ms + dunning.grace_ms, suspension_ms)
    has_failed_often = dunning.attempts is not None and failures >= dunning.attempts
    if now_ms >= suspension_ms:
        return AccessTerm("suspended")
    if now_ms >= grace_end_ms or has_failed_often:
        return AccessTerm("restricted", suspension_ms)
    return AccessTerm("grace", grace_end_ms)


def restrict_unpaid(standing: AccessTerm) -> AccessTerm:
    """Access of a customer whose period is not paid for: at most restricted."""
    return standing._replace(access="restricted") if standing.access in {"full", "grace"} else standing


def is_for_debt(status: Status | None) -> bool:
    """Whether access below full is for an unpaid invoice; otherwise for a pause, also of collection."""
    return status in OWING


def reminders_due(failed_at_ms: int, dunning: Dunning, now_ms: int) -> int:
    """The number of reminders that are due at an instant, counted from the first failure."""
    return sum(failed_at_ms + after_ms <= now_ms for after_ms in dunning.remind_ms)


def next_reminder_ms(failed_at_ms: int, dunning: Dunning, now_ms: int) -> int:
    """Instant of the next reminder; :data:`NEVER_MS`: none is left."""
    due = (failed_at_ms + after_ms for after_ms in dunning.remind_ms)
    return min((at_ms for at_ms in due if at_ms > now_ms), default=NEVER_MS)
