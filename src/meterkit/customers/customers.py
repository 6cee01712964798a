"""Customers (``kit.customers``): plan, status, link to a Stripe customer, overrides."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar, get_args

from meterkit.catalog import override as lay_over
from meterkit.catalog.budgets import NO_LIMIT, find_lower_budgets
from meterkit.catalog.meters import check_feature
from meterkit.catalog.models import SPEND
from meterkit.catalog.subjects import override_subject
from meterkit.catalog.value_parsers import micro_money
from meterkit.customers.deletion import delete_customer
from meterkit.customers.history import read_history
from meterkit.customers.links import StripeLinker, check_stripe_customer
from meterkit.customers.states import CustomerStates, list_customer_pages
from meterkit.decisions.customer_overrides import overrides_at, with_overrides, with_subject_override
from meterkit.decisions.customer_state import effective_plan
from meterkit.decisions.limit_policies import rate_numbers
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subjects import subject_member
from meterkit.decisions.subscription import Status
from meterkit.decisions.transitions import find_transitions
from meterkit.errors import MeterkitError, UnknownPlanError
from meterkit.safe_text import plain_text
from meterkit.store.input_checks import (
    check_customer,
    check_end_ms,
    check_features,
    check_overrides,
    check_subjects,
    is_text,
    shown,
    to_json_value,
)
from meterkit.store.subject_usage import usage_by
from meterkit.store.unreadable_data import UnreadableDataError, read_each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.customers.deletion import Deleted
    from meterkit.customers.history import HistoryEntry
    from meterkit.customers.links import StripeHooks
    from meterkit.customers.states import StoredState
    from meterkit.decisions.customer_overrides import Stored
    from meterkit.decisions.customer_state import CustomerState, EffectivePlan
    from meterkit.decisions.subscription import Access
    from meterkit.store.store import Store
    from meterkit.store.subject_usage import SubjectUsage

    Change = Callable[[Stored], dict[str, dict[str, object]]]

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """A customer's record: everything except its usage.

    Attributes:
        plan: the key of the active plan.
        missing_plan: the customer's plan if the plans file lacks it. It keeps its terms, unless these are not
            known: then the default plan replaces it. None: the file has the plan.
        status: of the subscription, by the clock, or as it was set by hand; None: there is none.
        access: what the customer may do.
        access_since: when that became so (UTC); None: not known, or since ever.
        subscription: its id at Stripe; None: there is none.
        seats: that it pays for, in all; 0: it has no seat price.
        addons: those in force beside the plan, with their quantities.
        currency: of the customer's amounts.
        trial_end: first instant after its trial (UTC), while that is ahead; else None.
        cancel_at: when it ends (UTC); None: no end is known.
        pending_plan, pending_seats, pending_addons, pending_at: what is scheduled to change, and when (UTC);
            None: nothing.
        stripe_customer: the linked Stripe customer, or None.
        overrides: meter to what the customer gets differently.
        feature_overrides: feature to whether the customer has it, whatever the plan says.
        price_changes: meter to when the price of its override takes effect (UTC), where that is later.
        subject_overrides: ``KIND:ID`` to what that user, team or the like gets differently.
        override_ends: when an override ends (UTC), by the meter, or by ``feature NAME`` or
            ``subject KIND:ID``; those without an end are left out.
    """

    customer: str
    plan: str
    missing_plan: str | None
    status: Status | None
    access: Access
    access_since: datetime | None
    subscription: str | None
    seats: int
    addons: Mapping[str, int]
    currency: str
    trial_end: datetime | None
    cancel_at: datetime | None
    pending_plan: str | None
    pending_seats: int | None
    pending_addons: Mapping[str, int] | None
    pending_at: datetime | None
    stripe_customer: str | None
    overrides: Mapping[str, Mapping[str, object]]
    feature_overrides: Mapping[str, bool]
    subject_overrides: Mapping[str, Mapping[str, object]]
    override_ends: Mapping[str, datetime]
    price_changes: Mapping[str, datetime]


def build_customer(customer: str, found: StoredState, catalog: Catalog, now_ms: int) -> Customer:
    """The record of a customer, as shown at an instant."""
    state = found.state
    own = overrides_at(state.overrides, now_ms)
    _, force = find_transitions(found.force, state, catalog, now_ms)
    subscription = state.subscription
    trial_end_ms = None if subscription is None else subscription.trial_end_ms
    is_missing = state.plan is not None and state.plan not in catalog.plans
    return Customer(
        customer=customer,
        plan=force.plan,
        missing_plan=state.plan if is_missing else force.missing_plan,
        status=force.status,
        access=force.access,
        access_since=_instant_or_none(force.since_ms),
        subscription=force.subscription,
        seats=force.seats,
        addons=dict(force.addons),
        currency=catalog.in_currency(state.currency).currency,
        trial_end=_instant_or_none(trial_end_ms) if force.status == "trialing" else None,
        cancel_at=_instant_or_none(force.cancel_at_ms),
        pending_plan=force.pending_plan,
        pending_seats=force.pending_seats,
        pending_addons=None if force.changed_addons is None else dict(force.changed_addons),
        pending_at=_instant_or_none(force.pending_at_ms),
        stripe_customer=state.stripe_customer,
        overrides=own.asked,
        feature_overrides=own.features,
        subject_overrides=own.subjects,
        override_ends={name: from_ms(until_ms) for name, until_ms in own.ends.items()},
        price_changes={name: from_ms(at_ms) for name, at_ms in own.price_changes.items()},
    )


def _instant_or_none(at_ms: int | None) -> datetime | None:
    return from_ms(at_ms) if at_ms else None


_LISTED_AT_ONCE: Final = 100


async def read_customers(store: Store, customers: Sequence[str]) -> Sequence[Customer]:
    """The records of several customers.

    Raises:
        UnreadableDataError: the record of one cannot be read.
    """

    async def refuse(customer: str, error: Exception) -> None:
        raise UnreadableDataError(f"the record of customer {customer!r} cannot be read: {error!r}") from error

    found, now_ms = await read_each(customers, CustomerStates(store).find_many, refuse), store.now_ms()
    return [build_customer(*one, store.catalog, now_ms) for one in zip(customers, found, strict=True)]


class Customers:
    """Reads and changes customers. A change binds the very next decision of every process.

    Each method raises :class:`~meterkit.errors.CustomerError` for an id that is not allowed and
    :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store, at_stripe: StripeHooks | None = None) -> None:
        self._store = store
        self._at_stripe = at_stripe
        self._states = CustomerStates(store)
        self._links = StripeLinker(store)

    async def get(self, customer: str) -> Customer:
        """A customer; one without a record is on the default plan.

        Raises:
            UnreadableDataError: the record cannot be read.
        """
        (found,) = await read_customers(self._store, [check_customer(customer)])
        return found

    async def known(self, customer: str) -> bool:
        """Whether anything is known of a customer: that it was set up, what it used, a gauge's level.

        So does all else that only a deletion erases: e-mails that it declined, jobs, a history that a failed
        deletion left for a repeat.
        """
        customer, keys = check_customer(customer), self._store.keys
        of_customer = keys.customer(customer)
        names = (
            *(of_customer.state, of_customer.counters, of_customer.totals, of_customer.levels),
            *(of_customer.history, of_customer.corrections, of_customer.objects),
            *(keys.jobs(customer), keys.unwanted(customer)),
        )
        return bool(await self._store.ask("exists", *names))

    async def list(self) -> AsyncIterator[Customer]:
        """All customers that have a record, in no order."""
        admin = await self._store.admin()
        async with aclosing(list_customer_pages(admin, self._store.keys, _LISTED_AT_ONCE)) as pages:
            async for page in pages:
                for listed in await read_customers(self._store, page):
                    yield listed

    async def history(self, customer: str) -> Sequence[HistoryEntry]:
        """The history of a customer: the last thousand changes or so with their reasons, oldest first."""
        return await read_history(self._store, check_customer(customer))

    async def set_plan(self, customer: str, plan: str | None) -> Customer:
        """Put a customer on a plan, at once, until the plan of the customer's subscription changes.

        None takes it back: that of the subscription counts again, or the default plan.

        Raises:
            UnknownPlanError: the plans file has no such plan.
        """
        catalog = self._store.catalog
        if plan is not None and (not is_text(plan) or plan not in catalog.plans):
            raise UnknownPlanError.of(plan, catalog.plans)
        plan = None if plan is None else catalog.plans[plan].key

        return await self._change_state(customer, lambda state: replace(state, plan=plan))

    async def set_status(self, customer: str, status: Status | None) -> Customer:
        """Set a status by hand, until that of the customer's subscription changes; None takes it back.

        Raises:
            MeterkitError: Stripe has no such status.
        """
        if status is not None and status not in get_args(Status):
            words = ", ".join(get_args(Status))
            raise MeterkitError(f"status: found {shown(status)}; allowed are {words} and None")
        status = next((word for word in get_args(Status) if word == status), None)
        now_ms = self._store.now_ms()

        def change(state: CustomerState) -> CustomerState:
            if state.status == status:
                return state
            return replace(state, status=status, status_since_ms=now_ms)

        return await self._change_state(customer, change)

    async def override(
        self,
        customer: str,
        overrides: Mapping[str, Mapping[str, object]],
        features: Mapping[str, bool] | Iterable[str] | None = None,
        until: datetime | None = None,
    ) -> Customer:
        """Give a customer something else than the plan does, in the notation of the plans file.

        ``{"requests": {"included": 5_000}}`` leaves all else of the plan's entitlement as it is; an empty
        mapping for a meter takes its override back.

        Args:
            customer: the customer's id.
            overrides: meter to an entitlement.
            features: a list of features that the customer has besides the plan's; or a mapping, in which
                False takes one away. Empty: all overrides of features are taken back. None: they stay.
            until: an aware instant at which what is given here ends; None: it does not.

        A price of overage becomes one at Stripe: now, or when the period ends (``billing.changes``).

        Raises:
            MeterkitError: an argument is of another form, ``until`` is naive or not in the future, or no
                invoice can bill a price: there is no Stripe key or no subscription, or Stripe cannot bill so.
                Or ``included`` differs from the free tier of the price that bills the subscription's usage.
            StripeError: Stripe refuses, or does not answer; ask again.
            UnknownFeatureError: the plans file has no such feature.
            PlansError: an override cannot be read; with all that is wrong.

        A limit of ``spend`` above the budget of the customer's plan is refused: the lower one would apply.
        """
        customer = check_customer(customer)
        given, switched = check_overrides(overrides), check_features(features)
        for name in switched or ():
            check_feature(name, self._store.catalog.features)
        now_ms = await self._states.clock_ms(customer)
        until_ms = None if until is None else check_end_ms(until, now_ms)
        catalog = self._store.catalog
        gone = await self._overridden_meters_gone(customer, given)
        laid = {meter: entry for meter, entry in given.items() if entry or meter not in gone}
        for plan in catalog.plans.values():
            for entitlement in lay_over(catalog, plan, laid, strict=True).values():
                for rate in entitlement.rates:
                    rate_numbers(rate, entitlement.meter)
        kept: dict[str, dict[str, object]] = {
            meter: to_json_value(value, meter) for meter, value in given.items()
        }

        def change(state: CustomerState) -> CustomerState:
            if SPEND in kept:
                _check_budget(catalog, effective_plan(state, catalog, now_ms), kept[SPEND])
            changed = with_overrides(state.overrides, kept, switched, until_ms=until_ms, now_ms=now_ms)
            return replace(state, overrides=changed)

        if self._at_stripe is None:
            return await self._change_state(customer, change)
        await self._at_stripe.store_override(customer, list(kept), change)
        return await self.get(customer)

    async def _overridden_meters_gone(self, customer: str, given: Mapping[str, object]) -> AbstractSet[str]:
        """Those of some meters that have left the plans file while an override of the customer has them."""
        gone = given.keys() - self._store.catalog.meters.keys()
        if not gone:
            return gone
        _, state = await self._states.read(customer)
        return gone & state.overrides.keys()

    def subject(self, customer: str, **subject: str) -> CustomerSubject[Customer]:
        """One subject of a customer: ``kit.customers.subject("acme", user="u_7")``.

        Raises:
            CustomerError: an id is not allowed.
            MeterkitError: it is not one subject of a kind that a plan declares.
        """

        async def change(customer: str, change: Callable[[Stored], dict[str, dict[str, object]]]) -> Customer:
            return await self._change_state(
                customer, lambda state: replace(state, overrides=change(state.overrides))
            )

        return CustomerSubject(
            customer,
            subject,
            catalog=lambda: self._store.catalog,
            clock_ms=self._states.clock_ms,
            change=change,
        )

    async def spend_limit(
        self, customer: str, amount_cents: int | None, per: Literal["period", "day", "hour"] = "period"
    ) -> Customer:
        """Set how much a customer may spend on overage and from balances in money, per span.

        Of this limit and the budget of the customer's plan the lower one holds. Limits of several spans hold
        at once.

        Args:
            customer: the customer's id.
            amount_cents: in minor units of the currency; 0: nothing beyond what is included; None: the limit
                is taken back.
            per: the span: the billing period; a day or an hour, both of UTC.

        Raises:
            MeterkitError: no plan of the plans file has a budget, so that nothing counts what is spent; or an
                override limits another span until an instant, which one end for both would change.
            PlansError: the amount is no whole number from 0 to 99,999,999,999, or there is no such span.
        """
        customer = check_customer(customer)
        catalog = self._store.catalog
        if not catalog.counts_spend:
            raise MeterkitError(
                "spend_limit: no plan has a budget, so what is spent is not counted; write"
                " `budget: {amount_cents: unlimited}` in a plan"
            )
        given: Mapping[str, object] = {per: amount_cents}
        for plan in catalog.plans.values():
            lay_over(catalog, plan, {SPEND: given}, strict=True)
        now_ms = await self._states.clock_ms(customer)

        def change(state: CustomerState) -> CustomerState:
            own = overrides_at(state.overrides, now_ms)
            kept = {span: limit for span, limit in own.meters.get(SPEND, {}).items() if span != per}
            if kept and SPEND in own.ends and amount_cents is not None:
                raise MeterkitError(
                    f"spend_limit: an override limits what {customer!r} spends per {' and '.join(kept)} until"
                    f" {from_ms(own.ends[SPEND]).isoformat()}; set all by `override`, or wait till then"
                )
            limits = {span: limit for span, limit in {**kept, **given}.items() if limit is not None}
            until_ms = own.ends.get(SPEND) if amount_cents is None else None
            changed = with_overrides(state.overrides, {SPEND: limits}, None, until_ms=until_ms, now_ms=now_ms)
            return replace(state, overrides=changed)

        return await self._change_state(customer, change)

    async def link(
        self, customer: str, stripe_customer: str, *, look: bool = True, force: bool = False
    ) -> Customer:
        """Link a customer to a Stripe customer: from now on its usage is delivered. Repeated: a no-op.

        If the kit has a Stripe key, this asks Stripe for the Stripe customer first, and reads its
        subscription before it returns.

        Args:
            customer: the app's own id.
            stripe_customer: ``cus_…``.
            look: False: the subscription is read in the background.
            force: True: Stripe is not asked whether it has the Stripe customer.

        Raises:
            CustomerError: Stripe has no such customer, or has deleted it; or the customer is linked to
                another Stripe customer, or that one to another customer.
            StripeError: Stripe refuses, or does not answer. The message says whether the link is made: it is
                where only the subscription could not be read, which is tried again in the background.
        """
        check_stripe_customer(stripe_customer)
        asked = None if force else self._at_stripe
        if asked is not None and (await self.get(customer)).stripe_customer != stripe_customer:
            await asked.refuse_unknown_stripe_customer(customer, stripe_customer)
        await self._links.make(customer, stripe_customer)
        if self._at_stripe is not None:
            await self._at_stripe.sync_linked_customer(customer, now=look, is_known=not force)
        return await self.get(customer)

    async def unlink(self, customer: str) -> Customer:
        """Undo a link. Idempotent: a repeat finishes a try that failed.

        Usage that Stripe certainly knows nothing of waits for the next link, as if there had never been one.
        Usage that was sent, or is being sent, stays with the Stripe customer that it was addressed to. What
        is known of its subscription is forgotten.
        """
        await self._links.undo(customer)
        return await self.get(customer)

    async def delete(self, customer: str, *, cancel: bool = False) -> Deleted:
        """Forget a customer: all that is stored by its id, and usage that was never linked to Stripe.

        No event of Stripe, and no import, brings the customer back. The Stripe customer stays at Stripe.
        Unpaid pages and top-up invoices that meterkit opened for it are closed.

        Args:
            customer: the app's own id.
            cancel: end the customer's subscription first, now; what was used until then is billed.

        Raises:
            CustomerError: the customer has a subscription that has not ended, or usage that is on its way to
                Stripe, parked or dead.
            StripeError: Stripe refuses, or does not answer; nothing is deleted.
        """
        customer = check_customer(customer)
        if self._at_stripe is not None:
            await self._at_stripe.prepare_deletion(customer, cancel=cancel)
        return await delete_customer(self._store, customer)

    async def _change_state(
        self, customer: str, change: Callable[[CustomerState], CustomerState]
    ) -> Customer:
        await self._states.change(customer, change)
        return await self.get(customer)


def _check_budget(catalog: Catalog, effective: EffectivePlan, limits: Mapping[str, object]) -> None:
    """Raise MeterkitError if a limit is above the budget of the customer's plan."""
    catalog, key = catalog.in_currency(effective.currency), effective.plan.key
    plan = catalog.plan_or_default(key)
    without = replace(plan, entitlements={**plan.entitlements, SPEND: NO_LIMIT})
    own = lay_over(catalog, without, {SPEND: limits})[SPEND]
    for span, micros in find_lower_budgets(plan.entitlements[SPEND], own).items():
        budget = micro_money(micros, catalog.meters[SPEND].unit)
        raise MeterkitError(
            f"override: the plan {key} has a budget of {budget} per {span}, and the lower one applies; raise"
            " `budget` in the plans file, or give the customer a plan with a higher one"
        )


class CustomerSubject(Generic[_Record]):
    """A user, a team or another subject of a customer; ``kit.customers.subject(customer, user="u_7")``.

    Args:
        customer: the customer's id.
        subject: the kind to the id.
        catalog: gives the active catalog.
        clock_ms: asks for the clock of the server that has a customer.
        change: replaces the overrides of the customer, and returns the customer's record.

    Raises:
        CustomerError: an id is not allowed.
        MeterkitError: it is not one subject of a kind that a plan declares.
    """

    def __init__(
        self,
        customer: str,
        subject: Mapping[str, str],
        *,
        catalog: Callable[[], Catalog],
        clock_ms: Callable[[str], Awaitable[int]],
        change: Callable[[str, Change], Awaitable[_Record]],
    ) -> None:
        customer = check_customer(customer)
        self._customer = customer
        given = check_subjects(subject)
        if len(given) != 1:
            raise MeterkitError(
                f"subject: found {len(given)} subjects; name one, as in subject({customer!r:.80}, user='u_7')"
            )
        self._kind, self._id = given[0]
        self._catalog, self._clock_ms, self._change = catalog, clock_ms, change
        check_kind(self._kind, catalog())

    async def override(
        self, limits: Mapping[str, Mapping[str, object]] | None, until: datetime | None = None
    ) -> _Record:
        """Give the subject something else than the plan does; binds the very next decision of every process.

        ``{"requests": {"rate": "50/minute"}}`` leaves all else as the plan has it, and replaces earlier
        overrides of this subject. A budget is replaced as a whole: without ``per`` it is of the period.

        Args:
            limits: meter to its limits, and ``budget``, in the notation of the plans file; empty or None:
                its overrides are taken back.
            until: an aware instant at which what is given here ends; None: it does not.

        Returns:
            The customer's record.

        Raises:
            MeterkitError: ``until`` is naive or not in the future, or 500 subjects of the customer have
                overrides, which is the most.
            PlansError: an override cannot be read; with all that is wrong.
            StoreError: the store does not answer.
        """
        given = check_overrides(limits or {})
        now_ms = await self._clock_ms(self._customer)
        until_ms = None if until is None else check_end_ms(until, now_ms)
        catalog, member = self._catalog(), subject_member(self._kind, self._id)
        for plan in catalog.all_plans:
            if self._kind in plan.subjects:
                found = override_subject(catalog, plan.subjects[self._kind], given, strict=True)
                for entitlement in found.limits.values():
                    for rate in entitlement.rates:
                        rate_numbers(rate, entitlement.meter)
        kept: dict[str, object] = {meter: to_json_value(value, meter) for meter, value in given.items()}

        def change(stored: Stored) -> dict[str, dict[str, object]]:
            return with_subject_override(stored, member, kept, until_ms=until_ms, now_ms=now_ms)

        return await self._change(self._customer, change)


def check_kind(kind: str, catalog: Catalog) -> str:
    """Return a kind of subject that a plan declares, as a plain text. Raises MeterkitError."""
    known = sorted({name for plan in catalog.all_plans for name in plan.subjects})
    if kind not in known:
        declared = f"declared are {', '.join(known)}" if known else "no plan declares any"
        raise MeterkitError(
            f"subject: found the kind {kind!r:.80}; {declared}; write `subjects: {{{kind:.80}: {{…}}}}` in a"
            " plan"
        )
    return plain_text(kind)


async def usage_of_kind(store: Store, customer: str, kind: str) -> Sequence[SubjectUsage]:
    """Usage of each subject of a kind in this period; see :meth:`meterkit.MeterKit.usage`.

    Raises:
        MeterkitError: no plan declares subjects of this kind.
        StoreError: the store does not answer.
    """
    return await usage_by(store, customer, check_kind(kind, store.catalog))
