"""Figures of the usage page, as HTML and as JSON."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, replace
from datetime import timedelta
from fractions import Fraction
from math import ceil
from threading import Semaphore
from typing import TYPE_CHECKING, Final, NotRequired, Protocol, TypedDict
from weakref import WeakKeyDictionary

from meterkit.catalog import override
from meterkit.catalog.addons import with_addons
from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.models import SPEND
from meterkit.catalog.value_parsers import micros_per_minor_unit
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_overrides import without_priced_overage
from meterkit.decisions.customer_state import entitlements_of, seat_meter
from meterkit.decisions.periods import DAY_MS, from_ms, iso, to_ms
from meterkit.decisions.plan_shares import effective_terms
from meterkit.errors import MeterkitError
from meterkit.insights.audit.async_database import database_at
from meterkit.insights.refusing_limits import find_refusing_limits
from meterkit.insights.simulation.plan_costs import PlanOffers, plan_cost, read_tenures
from meterkit.log_throttle import MINUTE_S, Throttle
from meterkit.pages.forecast import credit_balances, forecast_usage
from meterkit.pages.other_plans import price_on_plans
from meterkit.pages.subject_figures import read_subjects
from meterkit.redis.daemon_thread import in_thread
from meterkit.store.customer_usage import count_reported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from meterkit.catalog import Catalog, Entitlement, Plan
    from meterkit.catalog.value_parsers import Unlimited
    from meterkit.customers.customers import Customers
    from meterkit.customers.grants import Grants
    from meterkit.customers.history import HistoryEntry
    from meterkit.delivery.reconciler import Reconciler
    from meterkit.insights.audit.database import DaySums
    from meterkit.insights.health_report import Health
    from meterkit.insights.refusing_limits import RefusingLimit
    from meterkit.insights.simulation.plan_costs import PlanCost, PlanTenure, TrialTerms
    from meterkit.insights.statement.statements import Statements
    from meterkit.notify.messages import Messages
    from meterkit.outbox.operator_commands import Intents
    from meterkit.pages.forecast import PeriodForecast
    from meterkit.pages.other_plans import OtherPlan
    from meterkit.pages.subject_figures import SubjectFigures
    from meterkit.settings import Settings
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage
    from meterkit.store.rate_usage import RateUsage
    from meterkit.store.store import Store
    from meterkit.subscriptions.service.stripe_customers import Contact
    from meterkit.subscriptions.service.subscriptions_facade import Subscriptions
    from meterkit.subscriptions.webhooks.webhook_endpoint import Webhooks

_warned: Final[WeakKeyDictionary[Store, Throttle]] = WeakKeyDictionary()
_logger = logging.getLogger("meterkit.pages")

_TIMEOUT_S: Final = 3.0
_DATABASE_SLOTS: Final = Semaphore(8)
"""Connections of pages to the audit log's database: few, so that draining the log always gets one."""
_SHOWN_GRANTS: Final = frozenset({"pending", "active"})
_SHOWN_CHANGES: Final = frozenset(
    {"plan", "status", "access", "seats", "addons", "cancellation", "scheduled"}
)
_HISTORY_MAX: Final = 20


class PagesKit(Protocol):
    """The parts of :class:`meterkit.MeterKit` that the pages use."""

    settings: Settings
    store: Store

    @property
    def contact(self) -> Callable[[str], Awaitable[Contact | None]] | None:
        """The app's function for contacts."""
        ...

    @property
    def customers(self) -> Customers:
        """Customers."""
        ...

    @property
    def grants(self) -> Grants:
        """Grants of customers."""
        ...

    @property
    def notify(self) -> Messages:
        """Messages by webhook and e-mail."""
        ...

    @property
    def outbox(self) -> Intents:
        """Usage sealed for Stripe."""
        ...

    @property
    def statement(self) -> Statements:
        """Statements."""
        ...

    @property
    def subscriptions(self) -> Subscriptions:
        """Subscriptions of customers."""
        ...

    @property
    def webhooks(self) -> Webhooks:
        """Receiver of Stripe's events."""
        ...

    @property
    def catalog(self) -> Catalog:
        """The active catalog."""
        ...

    async def usage(self, customer: str, *, period: datetime | str | None = None) -> CustomerUsage:
        """Read the usage of a customer in a period."""
        ...

    async def rates(self, customer: str) -> Sequence[RateUsage]:
        """Read the rates of a customer."""
        ...

    async def health(self, *, scan_keys: bool = True) -> Health:
        """Run the checks of ``meterkit doctor``."""
        ...

    @property
    def reconcile(self) -> Reconciler:
        """Comparison with Stripe."""
        ...


class AddonCharge(TypedDict):
    """The price of an add-on in the quantity that is bought, per ``interval`` of :class:`PeriodCost`."""

    addon: str
    name: str
    quantity: int
    cents: int


class PeriodCost(TypedDict):
    """Cost of the period so far, in minor units.

    ``plan_cents`` is the price of the plan per ``interval``, ``seats_cents`` of seats beyond the included,
    and ``addons``, if there are any, has each add-on: by the customer's subscription items, otherwise by the
    plans file; ``plan_currency`` is set if they have another currency. ``overage_cents`` is the sum over
    meters; ``unpriced`` names meters with overage that is billed at a price only Stripe has. ``is_free`` is
    set if nothing of the period is billed: it is a trial, or a pause.
    """

    currency: str
    plan_cents: int
    seats_cents: int
    addons: NotRequired[list[AddonCharge]]
    interval: str
    overage_cents: int
    unpriced: list[str]
    plan_currency: NotRequired[str]
    is_free: NotRequired[bool]


class DailyUsage(TypedDict):
    """The units of each meter by day (UTC); each list is as long as ``days``."""

    days: list[str]
    meters: dict[str, list[int]]


class SeatFigures(TypedDict):
    """The gauge of seats: seats in use and included seats, with those that are paid for.

    ``seat_cents`` is the price of one more in minor units, by the subscription's item if it has one; None:
    the plan sells none.
    """

    meter: str
    used: int
    included: int | Unlimited
    seat_cents: int | None


class StorageFigures(TypedDict):
    """The gauge of storage, and its bytes beyond the included."""

    meter: str
    beyond_included: int


class UsageFigures(TypedDict):
    """All figures of the usage page.

    ``customer_name`` is from the kit's ``contact``; None: it gave none.
    ``days`` is None if there is no audit log or its database fails; ``invoices`` if Stripe does not
    answer. ``forecast`` is None until a whole day with usage has passed, and without ``days``. Periods other
    than the current one have only ``usage``, ``days``, ``invoices`` and ``history``; the old plan is not
    stored: ``plan_name`` is the current one.
    """

    usage: CustomerUsage
    customer_name: str | None
    plan_name: str
    cost: PeriodCost | None
    forecast: PeriodForecast | None
    other_plans: list[OtherPlan]
    seats: SeatFigures | None
    storage: StorageFigures | None
    subjects: list[SubjectFigures]
    history: list[dict[str, object]]
    previous_period: str
    refused_now: Sequence[RefusingLimit]
    budgets: list[BudgetFigures]
    top_up: TopUpPage | None
    rates: list[dict[str, object]]
    grants: list[dict[str, object]]
    days: DailyUsage | None
    invoices: list[dict[str, object]] | None


def last_second_before(start: datetime) -> str:
    """Name the period before the one that begins then. A day does not: both may lie in it."""
    return iso(start - timedelta(seconds=1))


async def usage_figures(
    kit: PagesKit, customer: str, at_ms: int | None = None, *, subjects: bool = True
) -> UsageFigures:
    """Read the figures of a customer.

    Args:
        kit: the customer's kit.
        customer: the id.
        at_ms: an instant of the period; None: now.
        subjects: False leaves out usage by subjects.

    Raises:
        CustomerError: the id is not allowed.
        StoreError: the store does not answer.
    """
    usage = await kit.usage(customer, period=None if at_ms is None else from_ms(at_ms))
    catalog = kit.catalog.in_currency(usage["currency"])
    start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
    now_ms, plan = kit.store.now_ms(), catalog.find_plan(usage["plan"])
    name, days, invoices, history, had = await asyncio.gather(
        read_name(kit, customer),
        _days(kit, usage),
        _invoices(kit, customer),
        kit.customers.history(customer),
        read_tenures(kit.store, start_ms, {customer: start_ms}, customer=customer),
    )
    found: UsageFigures = {
        "usage": usage,
        "customer_name": name,
        "plan_name": usage["plan"] if plan is None else plan.name,
        "cost": None,
        "forecast": None,
        "other_plans": [],
        "seats": None,
        "storage": None,
        "subjects": [],
        "history": _newest_changes(history),
        "previous_period": last_second_before(usage["period"]["start"]),
        "refused_now": [],
        "budgets": [],
        "top_up": None,
        "rates": [],
        "grants": [],
        "days": days,
        "invoices": invoices,
    }
    if not start_ms <= now_ms < end_ms:
        return found
    shown = plan if subjects else None
    rates, grants, of_subjects = await asyncio.gather(
        kit.rates(customer), kit.grants.list(customer), read_subjects(kit.store, catalog, customer, shown)
    )
    tenure, now = had[customer], from_ms(now_ms)
    terms, priced = _terms_in_tenure(catalog, tenure), _cost_of_charged(catalog, plan, tenure)
    budgets = budgets_in(catalog, usage, rates, now)
    seats, cost = seats_of(catalog, usage, priced), cost_of(catalog, usage, priced, is_free=tenure.is_unpaid)
    return {
        **found,
        "cost": cost,
        "forecast": _make_forecast(catalog, days, usage, cost, now_ms, terms, budgets),
        "other_plans": _price_other_plans(catalog, usage, tenure, seats, terms),
        "seats": seats,
        "storage": stored_of(catalog, usage),
        "subjects": of_subjects,
        "refused_now": find_refusing_limits(catalog, usage, rates, now),
        "budgets": budgets,
        "top_up": top_up_page(catalog),
        "rates": [_rate_figures(rate) for rate in rates if rate["meter"] != SPEND],
        "grants": [asdict(grant) for grant in grants if grant.status in _SHOWN_GRANTS],
    }


async def read_entitlements(kit: PagesKit, customer: str) -> Mapping[str, Entitlement]:
    """Read what a customer gets of each meter now: the plan's, with overrides, add-ons and own prices.

    Raises:
        StoreError: the store does not answer.
    """
    _, state = await CustomerStates(kit.store).read(customer)
    return entitlements_of(effective_terms(state, kit.catalog, kit.store.now_ms()), kit.catalog)


def _cost_of_charged(catalog: Catalog, plan: Plan | None, tenure: PlanTenure) -> PlanCost | None:
    """Cost of the plan that the subscription charges, with seats and add-ons; None: it is not known."""
    charged = catalog.find_plan(tenure.charged_plan) or plan
    own = (tenure.seats, tenure.fixed, tenure.addons)
    return None if charged is None else plan_cost(catalog, charged, *own)


def _rate_figures(rate: RateUsage) -> dict[str, object]:
    return {**rate, "reset_after": ceil(rate["reset_after"].total_seconds())}


def _price_other_plans(
    catalog: Catalog, usage: CustomerUsage, tenure: PlanTenure, seats: SeatFigures | None, own: TrialTerms
) -> list[OtherPlan]:
    # Another plan needs the seats in use, not all that are paid for.
    needs = replace(tenure, seats=0 if seats is None else seats["used"])
    offers = PlanOffers(catalog, own_prices=True)
    others: list[tuple[Plan, TrialTerms]] = []
    for plan in catalog.plans.values() if catalog.has_amounts else ():
        if plan.key != usage["plan"]:
            sold, composed = needs.on(plan), with_addons(plan, needs.addons, catalog)
            if plan.key == catalog.default_plan:
                sold = replace(sold, overrides=without_priced_overage(sold.overrides))
            given = override(catalog, composed, sold.overrides)
            others.append((replace(composed, entitlements=given), offers.to(sold)))
    used = {name: counts["recorded"] for name, counts in usage["meters"].items()}
    counted = {name: counts["overage"] for name, counts in usage["meters"].items()}
    return price_on_plans(catalog, others, used, own, counted)


def _terms_in_tenure(catalog: Catalog, tenure: PlanTenure) -> TrialTerms:
    terms = PlanOffers(catalog, own_prices=True).to(tenure)
    terms = replace(terms, labels={}) if tenure.is_usage_unpaid else terms
    return replace(terms, fixed_cents=Fraction(0), labels={}) if tenure.is_unpaid else terms


def _newest_changes(history: Sequence[HistoryEntry]) -> list[dict[str, object]]:
    shown = [asdict(entry) for entry in reversed(history) if entry.kind in _SHOWN_CHANGES]
    return shown[:_HISTORY_MAX]


def _make_forecast(
    catalog: Catalog,
    days: DailyUsage | None,
    usage: CustomerUsage,
    cost: PeriodCost,
    now_ms: int,
    terms: TrialTerms,
    budgets: Sequence[BudgetFigures],
) -> PeriodForecast | None:
    if days is None:
        return None
    start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
    # The first day is complete if the period began with it; today never is.
    complete = {name: of[int(start_ms % DAY_MS > 0) : -1] for name, of in days["meters"].items()}
    used = [any(units) for units in zip(*complete.values(), strict=True)]
    if True not in used:
        return None
    since = {name: of[used.index(True) :] for name, of in complete.items()}
    balances = credit_balances(catalog, usage["balance_micros"])
    so_far_cents = 0 if cost.get("is_free") else cost["overage_cents"]
    rest_days = (end_ms - now_ms) / DAY_MS
    left = [one["limit_micros"] - one["spent_micros"] for one in budgets if one["policy"] == PERIOD_BUDGET]
    budget_cents = Fraction(max(0, left[0]), micros_per_minor_unit(catalog.currency)) if left else None
    return forecast_usage(since, usage["meters"], rest_days, terms, balances, so_far_cents, budget_cents)


def seats_of(catalog: Catalog, usage: CustomerUsage, priced: PlanCost | None) -> SeatFigures | None:
    """Read the seats of a customer; None: the plans file counts none."""
    meter = seat_meter(catalog.meters)
    if meter is None or meter not in usage["meters"]:
        return None
    counts = usage["meters"][meter]
    price = None if priced is None or priced.seat is None else priced.seat.cents()
    return {"meter": meter, "used": counts["used"], "included": counts["included"], "seat_cents": price}


def stored_of(catalog: Catalog, usage: CustomerUsage) -> StorageFigures | None:
    """Read a customer's storage; None: the plans file has no storage, or the period is over."""
    meter = None if catalog.storage is None else catalog.storage.gauge
    if meter is None or "types" not in usage["meters"].get(meter, ()):
        return None
    return {"meter": meter, "beyond_included": beyond_included(usage["meters"][meter])}


def beyond_included(gauge: MeterUsage) -> int:
    """Return the excess of a gauge over the included quantity. Gauges are not billed: no ``overage``."""
    return 0 if gauge["included"] == "unlimited" else max(0, gauge["used"] - gauge["included"])


def cost_of(catalog: Catalog, usage: CustomerUsage, priced: PlanCost | None, *, is_free: bool) -> PeriodCost:
    """Compute the cost of the plan, of seats beyond the included, of add-ons, and of overage so far.

    Args:
        catalog: has the prices.
        usage: of the period.
        priced: the price of the plan, its seats and add-ons; None: the plans file lacks the plan.
        is_free: nothing of the period is billed.
    """
    counts = usage["meters"]
    # A derived meter has its own event and price. A gauge has no overage to bill. The cost of a price by
    # model is part of its meter's cost.
    billed = [
        name
        for name, meter in catalog.meters.items()
        if meter.stripe is not None and not meter.is_row and name in counts
    ]
    found: PeriodCost = {
        "currency": catalog.currency,
        "plan_cents": 0 if priced is None else priced.base.cents(),
        "interval": "month" if priced is None else priced.base.interval,
        "seats_cents": 0 if priced is None else priced.seats_cents,
        "overage_cents": sum(counts[name]["overage_cents"] or 0 for name in billed),
        "unpriced": [
            name
            for name in billed
            if counts[name]["overage"]
            and counts[name]["overage_cents"] is None
            and count_reported(counts[name])
        ],
    }
    if priced is not None and priced.addons:
        found["addons"] = [
            {"addon": one.key, "name": one.name, "quantity": one.quantity, "cents": one.cents}
            for one in priced.addons
        ]
    if priced is not None and priced.base.currency != catalog.currency:
        found["plan_currency"] = priced.base.currency
    if is_free:
        found["is_free"] = True
    return found


def days_of(sums: DaySums, start_ms: int, until_ms: int) -> DailyUsage:
    """Arrange sums by day, with zeros for days without usage.

    Args:
        sums: units by day (days since 1970) and meter, of one period.
        start_ms: start of the period; earlier usage counts on its first day.
        until_ms: the last shown instant; later usage counts on the last day.
    """
    first, last = start_ms // DAY_MS, max(start_ms, until_ms) // DAY_MS
    meters: dict[str, list[int]] = {}
    for (day, meter), units in sums.items():
        row = meters.setdefault(meter, [0] * (last - first + 1))
        row[min(max(day, first), last) - first] += units
    shown = [f"{from_ms(day * DAY_MS):%Y-%m-%d}" for day in range(first, last + 1)]
    return {"days": shown, "meters": dict(sorted(meters.items()))}


async def _days(kit: PagesKit, usage: CustomerUsage) -> DailyUsage | None:
    if kit.settings.audit_url is None:
        return None
    start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
    url = kit.settings.audit_url.get_secret_value()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            sums = await in_thread(_read_daily_sums, url, usage["customer"], start_ms)
    except (MeterkitError, ImportError, TimeoutError) as error:
        _warn_throttled(
            kit, "the usage page shows no daily figures: %s", str(error) or "the audit log is too slow"
        )
        return None
    return days_of(sums, start_ms, min(kit.store.now_ms(), end_ms - 1))


def _read_daily_sums(url: str, customer: str, start_ms: int) -> DaySums:
    database = database_at(url)
    if not _DATABASE_SLOTS.acquire(timeout=_TIMEOUT_S):
        raise TimeoutError
    try:
        return database.days(customer, start_ms)
    finally:
        _DATABASE_SLOTS.release()


async def read_name(kit: PagesKit, customer: str) -> str | None:
    """Ask the app's ``contact`` for the name of a customer; None: it gives none, or takes too long."""
    if kit.contact is None:
        return None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            contact = await kit.contact(customer)
    except Exception as error:  # noqa: BLE001 - the app's function may raise anything
        _warn_throttled(kit, "pages show the customer's id, not its name: contact: %s", repr(error))
        return None
    return None if contact is None else contact.name


async def _invoices(kit: PagesKit, customer: str) -> list[dict[str, object]] | None:
    if kit.settings.stripe_api_key is None:
        return []
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return [asdict(invoice) for invoice in await kit.subscriptions.invoices(customer)]
    except (MeterkitError, TimeoutError) as error:
        _warn_throttled(kit, "the usage page shows no invoices: %s", str(error) or "Stripe is too slow")
        return None


def _warn_throttled(kit: PagesKit, message: str, cause: str) -> None:
    if _warned.setdefault(kit.store, Throttle(MINUTE_S)).is_due(message):
        _logger.warning(message, cause)


PERIOD_BUDGET: Final = f"{SPEND}-period"
"""Policy of the budget of the billing period."""


class BudgetFigures(TypedDict):
    """A budget, in millionths of the currency.

    ``spent_micros`` includes holds of running requests. ``resets_at`` is None if nothing of a daily or hourly
    budget is spent.
    """

    policy: str
    spent_micros: int
    limit_micros: int
    resets_at: datetime | None


class TopUpPage(TypedDict):
    """The page on which a balance is topped up, and the amounts in US cents."""

    credit: str
    url: str
    amounts_cents: list[int]


def budgets_in(
    catalog: Catalog, usage: CustomerUsage, rates: Iterable[RateUsage], now: datetime
) -> list[BudgetFigures]:
    """Read the budgets of a customer; that of the billing period comes first."""
    if not catalog.counts_spend:
        return []
    spend, found = usage["meters"][SPEND], list[BudgetFigures]()
    # One that only notifies refuses nothing.
    if spend["included"] != "unlimited" and spend["remaining"] != "unlimited":
        found.append(
            {
                "policy": PERIOD_BUDGET,
                "spent_micros": spend["used"],
                "limit_micros": spend["included"],
                "resets_at": usage["period"]["end"],
            }
        )
    return found + [
        {
            "policy": rate["policy"],
            "spent_micros": rate["used"],
            "limit_micros": rate["limit"],
            "resets_at": now + rate["reset_after"] if rate["reset_after"] > timedelta() else None,
        }
        for rate in rates
        if rate["meter"] == SPEND
    ]


def top_up_page(catalog: Catalog) -> TopUpPage | None:
    """Return the page on which customers buy a balance; None: none is sold, or it has no page."""
    sold = find_top_ups(catalog.credits)
    url = None if sold is None else sold[1].url or catalog.billing.portal_url
    if sold is None or url is None:
        return None
    return {"credit": sold[0], "url": url, "amounts_cents": list(sold[1].packs)}
