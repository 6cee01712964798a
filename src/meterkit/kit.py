"""MeterKit: the methods of a kit. :mod:`meterkit.assembly` makes its parts."""

from __future__ import annotations

import logging
from asyncio import to_thread
from functools import partial
from importlib import import_module
from time import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

from meterkit.asgi.context import is_anonymous
from meterkit.asgi.input_estimator import guard_estimator
from meterkit.assembly import Parts
from meterkit.catalog import Catalog, enforced
from meterkit.catalog.former_plans import list_definitions, with_former_plans
from meterkit.catalog.meters import (
    check_counter,
    check_quantities,
    check_quantity,
    collect_quantities,
)
from meterkit.catalog.notes import log_notes
from meterkit.catalog.plans_file_watcher import WatchedPlans
from meterkit.catalog.usage_meters import USAGE_METERS
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.periods import occurred_ms, period_ms
from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import import_alone
from meterkit.safe_text import plain_text
from meterkit.serving import KitLifecycle, LoopServer, store_of
from meterkit.store.call_amounts import price_quantities
from meterkit.store.input_checks import check_customer, check_event_id, check_subjects
from meterkit.store.recorded_calls import read_captured, record_calls
from meterkit.store.reservations import Reservation

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from llm_usage.estimate import InputEstimator
    from meterkit.decisions.decision import Decision
    from meterkit.insights.by_model import ModelUsage
    from meterkit.insights.health_report import Health
    from meterkit.settings import Settings, SettingsKeywords
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.rate_usage import RateUsage
    from meterkit.store.recorded_calls import RecordedUsage
    from meterkit.store.subject_usage import SubjectUsage
    from meterkit.store.views import CustomerView
    from meterkit.subscriptions.service.stripe_customers import ContactSource
    from meterkit.sync import SyncMeterKit

__all__ = ["MeterKit"]

_logger = logging.getLogger("meterkit")
_Handler = TypeVar("_Handler", bound="Callable[[Any], object]")


class MeterKit(KitLifecycle, Parts):
    """Meters and limits the customers of a service, and delivers what they used to Stripe.

    The constructor reads the plans file, the settings and the files that ``redis_url`` names for TLS, and
    does no other I/O. A kit may serve several event loops, one after the other or at once, and survives fork.

    Args:
        plans: path of the plans file, or a catalog; default: the setting ``plans``, else ``plans.yaml``.
        clock: seconds since the epoch. Any other than the system's replaces the store's clock too: for tests.
        estimate_input: ``(body, model) -> tokens``: estimates a request's input until its usage is known;
            fast. Default, also after an error: a token for 3 bytes of its texts, in a bill for 4.
        contact: ``(customer) -> Contact(email, name, locale) | None``, sync or async: used to create Stripe
            customers, to send e-mails, and to name the customer on pages. Not stored.
        settings: each setting by its name; see the settings page of the documentation.

    Raises:
        PlansError: the plans file is refused; with all that is wrong in it.
        SettingsError: a setting is refused.
    """

    def __init__(
        self,
        plans: str | os.PathLike[str] | Catalog | None = None,
        *,
        clock: Callable[[], float] = time,
        estimate_input: InputEstimator | None = None,
        contact: ContactSource | None = None,
        **settings: Unpack[SettingsKeywords],
    ) -> None:
        loaded: Settings = import_module("meterkit.settings").Settings.load(**settings)
        self.estimate_input = guard_estimator(estimate_input)
        self._plans = None
        if not isinstance(plans, Catalog):
            self._plans = WatchedPlans(plans or loaded.plans or "plans.yaml")
            plans = self._plans.read(lambda read: read)
        catalog = enforced(plans, loaded.enforcement)
        Parts.__init__(self, store_of(loaded, catalog, clock), loaded, contact)
        tasks = self._list_tasks()
        if self._plans is not None:
            tasks["watch"] = partial(self._plans.watch, self.reload)
        self._serving = LoopServer(self.store, loaded, tasks, self._finish, close=self._close)

    @property
    def catalog(self) -> Catalog:
        """The catalog: plans, meters, routes."""
        return self.store.catalog

    def on(self, event: str) -> Callable[[_Handler], _Handler]:
        """Register a handler, sync or async: ``@kit.on("usage.threshold")``.

        It gets the event, for example a :class:`UsageThreshold`, in one of the processes that have handlers
        of it: at least once; a repeat has the same ``id``. If it raises or takes longer than 30 s, that is
        logged, and it is called again a minute later, ten times in all.

        Raises:
            MeterkitError: there is no such event.
        """
        return partial(self._handlers.add, self._handlers.check_event(event))

    def sync(self) -> SyncMeterKit:
        """Return a blocking kit for code without an event loop: ``with MeterKit(…).sync() as kit: …``."""
        return cast("SyncMeterKit", import_module("meterkit.sync").SyncMeterKit(self))

    async def check(
        self, customer: str, meter: str, quantity: int = 1, *, subjects: Mapping[str, str] | None = None
    ) -> Decision:
        """Check whether the customer may use this quantity of a meter now. Nothing is counted.

        For a gauge: whether it may grow by the quantity.

        Raises:
            CustomerError, QuantityError, UnknownMeterError: an argument cannot be used.
            StoreError: the store cannot decide.
        """
        gauges = [one.name for one in self.catalog.meters.values() if one.kind == "gauge"]
        if meter in gauges:
            demands = {plain_text(meter): Demand(needed=check_quantity(quantity), taken=0)}
        else:
            demands = self._check_demand(meter, quantity)
        return await self.store.check(self._find_view(customer, subjects), demands)

    async def allows(self, customer: str, feature: str) -> bool:
        """Whether the customer's plan has a feature; not while access is suspended.

        With enforcement ``shadow`` or ``off`` no customer is held to a plan: True.

        Raises:
            CustomerError, UnknownFeatureError: an argument cannot be used.
            StoreError: the store cannot say.
        """
        return await self.store.allows(self._find_view(customer, None), feature)

    async def consume(
        self, customer: str, meter: str, quantity: int = 1, *, subjects: Mapping[str, str] | None = None
    ) -> Decision:
        """Count a quantity now, in rates and usage, or be refused and count nothing.

        Raises:
            CustomerError, QuantityError, UnknownMeterError: an argument cannot be used.
            StoreError: the store cannot decide.
        """
        demands = self._check_demand(meter, quantity)
        view = self._find_view(customer, subjects)
        if meter in USAGE_METERS and view.cache.charges:
            view.cache.alarms.log_consumed_tokens(meter)
        return await self.store.consume(view, demands)

    async def record(
        self,
        customer: str,
        meter: str | Mapping[str, int],
        quantity: int | None = None,
        *,
        event_id: str | None = None,
        occurred_at: datetime | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> None:
        """Count a quantity after the fact; never denied.

        Returns once the store has acknowledged it. If the store does not do so within the store timeout, it
        returns once the usage is in the spool, or after another second. That is logged; until the store or
        the disk has the usage, killing this process loses it.

        Args:
            customer: the customer's id.
            meter: a counter of the plans file, or a mapping of counters to quantities: one event.
            quantity: an integer from 0 to 10^15 - 1, in the meter's unit; left out with a mapping.
            event_id: the app's own id of this event. The same id counts once for each meter (35 days).
            occurred_at: when it happened (aware); default: now. Usage of a billing period that is closed goes
                by ``billing.late_usage`` of the plans file, and is logged.
            subjects: kind to id of the customer's user, team or the like; see :class:`meterkit.Caller`.

        Raises:
            CustomerError, QuantityError, UnknownMeterError: an argument cannot be used.
            MeterkitError: ``event_id`` is not a text of 1 to 256 bytes, or has counted another quantity of a
                meter: nothing of this call counts; ``occurred_at`` is naive, or over a minute ahead.
        """
        quantities = collect_quantities(meter, quantity, self.catalog.meters)
        view = self._find_view(customer, subjects)
        if event_id is not None:
            event_id = check_event_id(event_id)
        at_ms = None if occurred_at is None else occurred_ms(occurred_at, self.store.now_ms())
        used = price_quantities(quantities, view.cache, at_ms=at_ms)
        await self.store.record(view, used, event_id=event_id, occurred_ms=at_ms)

    async def record_usage(
        self,
        customer: str | None,
        obj: object,
        *,
        event_id: str | None = None,
        call_id: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> RecordedUsage | None:
        """Count the tokens that a model's answer reports, by model and provider, off the request.

        Args:
            customer: the customer's id; None for a job of a provider: the customer whose request began it.
            obj: what :func:`meterkit.usage_of` can read, or a line of a batch's output.
            event_id: as of :meth:`record`.
            call_id: the provider's id of a job where ``obj`` lacks it, as a line of a batch does.
            subjects: as of :meth:`record`.

        Returns:
            The counted usage; None, and a warning is logged, if there is no usage or no known customer.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used, or no meter counts tokens.
            StoreError: a job was given and the store does not answer; give it again.
        """
        view = None if customer is None else self._find_view(customer, subjects)
        return await record_calls(self.store, view, obj, event_id=event_id, call_id=call_id)

    def reserve(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        model: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> Reservation:
        """Hold quantities now and count the true ones later, off the request.

        ``async with kit.reserve("acme", {"output_tokens": 4096}) as reservation:`` decides over all meters at
        once; look at ``reservation.decision``, then ``await reservation.capture({"output_tokens": 812})``.
        Quantities that are not captured when the block ends are given back.

        Args:
            customer: the customer's id.
            quantities: meter to the quantity that is held, in its unit.
            model: the model that is to be called, where ``prices`` depend on it; None: the highest price is
                held.
            subjects: as of :meth:`record`.

        Raises:
            CustomerError, QuantityError, UnknownMeterError, MeterkitError: an argument cannot be used.
            StoreError: when the block begins: the store cannot decide.
        """
        reserved = collect_quantities(quantities, None, self.catalog.meters)
        check = partial(check_quantities, meters=self.catalog.meters)
        view = self._find_view(customer, subjects)
        read = partial(read_captured, self.store, view, reserved=reserved, requested=model, check=check)
        return Reservation(self.store, view, reserved, read, model)

    @overload
    async def usage(
        self, customer: str, *, by: None = None, period: datetime | str | None = None
    ) -> CustomerUsage: ...
    @overload
    async def usage(
        self, customer: str, *, by: Literal["model"], period: datetime | str | None = None
    ) -> ModelUsage: ...
    @overload
    async def usage(self, customer: str, *, by: Literal["user", "team"]) -> Sequence[SubjectUsage]: ...
    @overload
    async def usage(self, customer: str, *, by: str) -> Sequence[SubjectUsage] | ModelUsage: ...
    async def usage(
        self, customer: str, *, by: str | None = None, period: datetime | str | None = None
    ) -> CustomerUsage | ModelUsage | Sequence[SubjectUsage]:
        """Read a customer's usage of a period; an unknown customer is on the default plan.

        ``period`` is an aware instant in it, or its id; None: this period. For a past period the included
        quantities are not known, and nothing remains. ``by="model"`` reads cost and revenue from the audit
        log; ``by="user"``, or another kind of subjects, shows the usage of each in this period.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used, or the audit log, or what is stored of
                the customer is damaged.
            StoreError: the store does not answer.
        """
        who, at_ms = check_customer(customer), None if period is None else period_ms(period)
        if by is None:
            priced = import_module("meterkit.customers.billed_usage").read_priced_usage
            return cast("CustomerUsage", (await priced(self.store, [who], at_ms=at_ms))[0])
        if by == "model":
            of_models = import_module("meterkit.insights.by_model").usage_by_model
            return cast("ModelUsage", await of_models(self.store, self.settings, who, at_ms))
        of_subjects = import_module("meterkit.customers.customers").usage_of_kind
        return cast("Sequence[SubjectUsage]", await of_subjects(self.store, who, by))

    async def rates(self, customer: str) -> Sequence[RateUsage]:
        """Read the current use of the customer's rates, also of routes; raises as :meth:`usage` does."""
        return await self.store.rates(check_customer(customer))

    async def health(self, *, scan_keys: bool = True) -> Health:
        """Check the store, Stripe's meters and waiting work, as ``meterkit doctor`` does. Changes nothing.

        Each finding has its cure; a check that cannot run is named with the reason.

        Args:
            scan_keys: False leaves out the checks that scan all keys, ``keys``, ``links`` and ``plans``, and
                ``lost``, which reads the audit log of many customers; as the operator pages do.
        """
        examine = import_alone("meterkit.health.check_runner").examine
        return cast("Health", await examine(self, scan_keys=scan_keys))

    async def reload(self) -> bool:
        """Read the plans file again, and decide by it from now on; done by itself after it has changed.

        Requests decided before are settled as decided. Returns whether the catalog differs from the last one.

        Raises:
            PlansError, SettingsError: the file is refused, with all that is wrong in it; nothing changes.
            MeterkitError: there is no file: the kit was made of a catalog.
        """
        if self._plans is None:
            raise MeterkitError("reload: this kit was made of a catalog, not of a plans file")
        if not await to_thread(self._plans.read, self._use):
            return False
        _logger.info("%s has changed and is active", self.catalog.source)
        log_notes(self.catalog, self.settings.enforcement)
        await self._serving.exchange_terms()
        return True

    def _use(self, catalog: Catalog) -> bool:
        if catalog.content_hash == self.catalog.content_hash:
            return False
        self.notify.check(catalog)
        catalog = enforced(catalog, self.settings.enforcement)
        self.store.use(with_former_plans(catalog, list_definitions(self.catalog)))
        return True

    def _find_view(self, customer: str, subjects: Mapping[str, str] | None) -> CustomerView:
        customer = check_customer(customer)
        anonymous = is_anonymous(customer, self.store)
        return self.store.cache.get(customer, anonymous=anonymous, subjects=check_subjects(subjects))

    def _check_demand(self, meter: str, quantity: int) -> dict[str, Demand]:
        name, quantity = check_counter(meter, self.catalog.meters), check_quantity(quantity)
        return {name: Demand(needed=quantity, taken=quantity)}
