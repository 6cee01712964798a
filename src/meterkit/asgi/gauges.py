"""``kit.gauges``: how far the gauges of customers are filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.asgi.context import find_request_of
from meterkit.catalog.meters import check_change, check_gauge, check_quantity
from meterkit.store.gauge_levels import change_level, read_level
from meterkit.store.input_checks import check_customer, check_event_id

if TYPE_CHECKING:
    from typing import Literal

    from meterkit.asgi.exchange import Exchange
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView


class Gauges:
    """Levels of ``gauge`` meters, such as stored bytes or seats: the app sets them, limits check them.

    A level belongs to no billing period and stays until it is changed. Within a request of an anonymous
    customer, the address that it goes by means that customer.

    What a request was admitted with (``storage``, ``grow``) stays set aside until the level is changed within
    that request, or it ends.

    Where enforcement is ``off`` nothing is kept: all levels are 0.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, customer: str, meter: str) -> int:
        """Read the level, in the meter's unit; 0 if none was set.

        Raises:
            CustomerError, UnknownMeterError: an argument cannot be used.
            StoreError: the store does not answer.
        """
        meter = check_gauge(meter, self._store.catalog.meters)
        view, _ = self._find_customer(customer)
        return 0 if self._store.is_off else await read_level(self._store, view, meter)

    async def set(self, customer: str, meter: str, quantity: int, *, event_id: str | None = None) -> int:
        """Set the level, whatever the plan allows: it is a fact. Binds the next decision.

        Args:
            customer: the customer's id.
            meter: a gauge of the plans file.
            quantity: an integer from 0 to 10^15 - 1, in the meter's unit.
            event_id: the app's own id of this change. The same id counts once for each gauge (35 days).

        Returns:
            The level by now; with an ``event_id`` that has counted before, as it is.

        Raises:
            CustomerError, QuantityError, UnknownMeterError, MeterkitError: an argument cannot be used, or
                ``event_id`` has changed the gauge otherwise.
            StoreError: the store does not answer; whether the level was set is not known.
        """
        return await self._change_level(
            customer, meter, check_quantity(quantity), how="set", event_id=event_id
        )

    async def adjust(self, customer: str, meter: str, quantity: int, *, event_id: str | None = None) -> int:
        """Raise the level by a quantity, or lower it by one below 0, whatever the plan allows.

        With an ``event_id`` the call may be repeated after a StoreError: it counts once.

        Args:
            customer: the customer's id.
            meter: a gauge of the plans file.
            quantity: an integer of at most 15 digits, in the meter's unit.
            event_id: the app's own id of this change. The same id counts once for each gauge (35 days).

        Returns:
            The level by now; with an ``event_id`` that has counted before, as it is.

        Raises:
            QuantityError: the level would be below 0 or above 10^15 - 1, and stays as it is.
            CustomerError, UnknownMeterError, MeterkitError: an argument cannot be used, or ``event_id`` has
                changed the gauge otherwise.
            StoreError: the store does not answer; whether the level was changed is not known.
        """
        return await self._change_level(
            customer, meter, check_change(quantity), how="adjust", event_id=event_id
        )

    async def _change_level(
        self,
        customer: str,
        meter: str,
        quantity: int,
        *,
        how: Literal["set", "adjust"],
        event_id: str | None,
    ) -> int:
        meter = check_gauge(meter, self._store.catalog.meters)
        view, served = self._find_customer(customer)
        if event_id is not None:
            event_id = check_event_id(event_id)
        if self._store.is_off:
            return 0
        level = await change_level(self._store, view, meter, quantity, how=how, event_id=event_id)
        if served is not None:
            served.release_gauge(meter)
        return level

    def _find_customer(self, customer: str) -> tuple[CustomerView, Exchange | None]:
        """Find a customer, and its request that is being served."""
        customer = check_customer(customer)
        served = find_request_of(customer, self._store)
        if served is None:
            return self._store.cache.get(customer), None
        return self._store.cache.get(customer, anonymous=served.is_anonymous), served
