"""Stripe as a few objects: what pure decisions of delivery read and write there."""

from __future__ import annotations

from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from meterkit.errors import StripeError
from meterkit.settings import Settings
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.outbox.journal import JournalRow
    from meterkit.stripe.api import Objects
    from meterkit.stripe.request import Parameter


class Written(NamedTuple):
    """A call that changes something."""

    path: str
    params: Mapping[str, Any]
    key: str | None


class ObjectsAtStripe(StripeApi):
    """Shows objects, and lists of them, by path; what is posted to an object is in it from then on.

    Where a path has a number in place of an object, Stripe refuses with that status.
    """

    def __init__(self, shown: Mapping[str, Any]) -> None:
        super().__init__(Settings.load(stripe_api_key="sk_test_1", stripe_api_base="http://127.0.0.1:9"))
        self.shown: dict[str, Any] = dict(shown)
        self.asked: dict[str, Mapping[str, Parameter] | None] = {}
        self.written: list[Written] = []

    async def get(self, path: str, params: Mapping[str, Parameter] | None = None) -> dict[str, Any]:
        """An object."""
        self.asked[path] = params
        found = self.shown.get(path, HTTPStatus.NOT_FOUND)
        if isinstance(found, int):
            raise StripeError("no such object", status=found)
        return dict(found)

    async def list(self, path: str, params: Mapping[str, Parameter] | None = None) -> Objects:
        """A list of objects."""
        self.asked[path] = params
        found = self.shown.get(path, [])
        if isinstance(found, int):
            raise StripeError("no such list", status=found)
        return [dict(one) for one in found]

    async def post(
        self, path: str, params: Mapping[str, Parameter] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Change an object."""
        self.written.append(Written(path, params or {}, idempotency_key))
        return {**self.shown.get(path, {}), **(params or {})}


class Counted:
    """What Stripe has counted of one customer, by minute (s)."""

    server_time_s = None

    def __init__(self, units: Mapping[int, int]) -> None:
        self._units = units
        self.asked: list[int] = []

    async def refresh(self) -> None:
        pass

    def meter_ids(self, event_name: str) -> Sequence[str]:
        return (event_name,)

    async def counted(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> Decimal:
        assert (stripe_customer, event_name) == ("cus_acme", "api_requests")
        self.asked.append(start_s)
        return Decimal(sum(units for minute_s, units in self._units.items() if start_s <= minute_s < end_s))


class Rows:
    """A journal of deliveries that was begun long ago."""

    def __init__(self, *rows: JournalRow) -> None:
        self._rows = rows

    async def write(self, rows: Sequence[JournalRow]) -> None:
        self._rows += tuple(rows)

    async def read(self, customer: str, event_name: str, since_ms: int) -> Sequence[JournalRow]:
        assert (customer, event_name) == ("acme", "api_requests")
        return [row for row in self._rows if row.delivered_at_ms >= since_ms]

    async def remove(self, identifiers: Sequence[str]) -> None:
        raise NotImplementedError

    async def begun_ms(self) -> int:
        return 1
