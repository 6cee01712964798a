"""A kit for which Stripe is away, a subscription of its month, and intents as if they had been sealed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from drivers.delivery import NOW, kit_for
from meterkit import MeterKit
from meterkit.decisions.keys import meter_token
from meterkit.decisions.subscription import SubscriptionState
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import StripeError
from meterkit.outbox.intents import StoredIntent, unpack_batch
from meterkit.outbox.journal import JournalRow
from meterkit.settings import Settings
from meterkit.stripe.api import Objects, StripeApi
from meterkit.stripe.idempotency_keys import IdempotencyKey
from meterkit.stripe.request import Parameter
from meterkit.testing import Clock

__all__ = ["HERE_S", "NOW_MS", "PERIOD_MS", "STAMP_S", "keep", "kit_alone", "subscription", "unpack_batch"]

NOW_MS: Final = int(NOW.timestamp()) * 1000
PERIOD_MS: Final = int(NOW.replace(day=1, hour=0, minute=0, second=0).timestamp()) * 1000
HERE_S: Final = NOW_MS // 60_000 * 60
"""The minute of now."""
STAMP_S: Final = HERE_S - 3 * 3_600
"""The minute of an intent."""


def kit_alone(
    store_url: str = "memory://", *, clock: Callable[[], float] | None = None, **settings: Any
) -> MeterKit:
    """A kit of one shard that has an address for Stripe, at which nothing answers."""
    return kit_for(store_url, "http://127.0.0.1:9", clock=clock or Clock(NOW), shards=1, **settings)


def subscription(**fields: Any) -> SubscriptionState:
    """An active subscription whose period began with June."""
    june: dict[str, Any] = {
        "id": "sub_1",
        "status": "active",
        "plan": "pro",
        "start_ms": PERIOD_MS,
        "end_ms": PERIOD_MS + 30 * 86_400_000,
        "anchor_ms": PERIOD_MS,
    }
    return SubscriptionState(**june | fields)


async def keep(kit: MeterKit, name: str, value: int, *, state: str = "parked", **fields: Any) -> StoredIntent:
    token, admin, keys = meter_token("requests"), await kit.store.admin(), kit.store.keys
    known = {
        "state": state,
        "customer": "acme",
        "stripe": "cus_acme",
        "meter": token,
        "event": "api_requests",
        "key": name,
        "period": f"{PERIOD_MS}",
        "value": f"{value}",
        "time": f"{STAMP_S}",
        "first": "0",
        "attempts": "0",
        "at": f"{NOW_MS}",
    }
    text = json.dumps(known | {field: f"{text}" for field, text in fields.items()})
    await admin.ask(admin.client.hset(keys.shard(0, "intents"), name, text))
    place = "parked" if state == "parked" else "outbox"
    await admin.ask(admin.client.zadd(keys.shard(0, place), {name: NOW_MS}))
    counted = f"{PERIOD_MS}|{token}{'k' if state == 'parked' else 'q'}"
    totals = keys.customer("acme").totals
    await admin.ask(admin.client.hincrby(totals, counted, value))
    await admin.ask(admin.client.expire(totals, 86_400))
    return StoredIntent.read(name, 0, text.encode())


class Written(NamedTuple):
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
        self.asked[path] = params
        found = self.shown.get(path, HTTPStatus.NOT_FOUND)
        if isinstance(found, int):
            raise StripeError("no such object", status=found)
        return dict(found)

    async def list(self, path: str, params: Mapping[str, Parameter] | None = None) -> Objects:
        self.asked[path] = params
        found = self.shown.get(path, [])
        if isinstance(found, int):
            raise StripeError("no such list", status=found)
        return [dict(one) for one in found]

    async def post(
        self,
        path: str,
        params: Mapping[str, Parameter] | None = None,
        *,
        idempotency_key: IdempotencyKey | None = None,
        find: object = None,  # noqa: ARG002 - nothing fails here
    ) -> dict[str, Any]:
        self.written.append(Written(path, params or {}, idempotency_key))
        return {**self.shown.get(path, {}), **(params or {})}


class Counted(StripeSummaries):
    """Summaries of one customer, by minute (s)."""

    def __init__(self, units: Mapping[int, int]) -> None:
        no_api: Any = None
        super().__init__(no_api)
        self._units = units
        self.asked: list[int] = []

    @property
    def server_time_s(self) -> None:
        return None

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
