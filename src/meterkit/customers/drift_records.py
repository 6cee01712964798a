"""Drift records: differences between subscriptions at Stripe and the plans file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from meterkit.customers.states import read_states
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.store.store import Store

DriftKind = Literal[
    "two_subscriptions",
    "unknown_price",
    "two_plans",
    "base_quantity",
    "missing_meter",
    "other_price",
    "inexact_price",
    "metered_twice",
    "other_item",
    "seats",
    "addon",
    "lost_addon",
    "currency",
    "interval",
    "billing_mode",
    "trial_settings",
    "collection_paused",
    "draft_invoice",
    "ledger",
    "usage",
    "new_models",
    "not_compared",
]
_FOR_PEOPLE: Final[frozenset[DriftKind]] = frozenset(
    {
        "two_subscriptions",
        "unknown_price",
        "inexact_price",
        "lost_addon",
        "currency",
        "interval",
        "collection_paused",
        "draft_invoice",
        "ledger",
        "not_compared",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference between a subscription at Stripe and the plans file.

    Attributes:
        subscription: ``sub_…``.
        kind: what differs.
        message: the difference in words, with what was found and what the plans file wants.
    """

    subscription: str
    kind: DriftKind
    message: str

    @property
    def can_repair(self) -> bool:
        """Whether ``repair`` mends it; of the others a person has to decide what the customer pays for."""
        return self.kind not in _FOR_PEOPLE

    def kept(self) -> dict[str, str]:
        """The stored form."""
        return asdict(self)

    @classmethod
    def of(cls, kept: Mapping[str, str]) -> Drift:
        """The inverse of :meth:`kept`."""
        kind = cast("DriftKind", kept["kind"])
        return cls(subscription=kept["subscription"], kind=kind, message=kept["message"])


_KEPT_MS: Final = 35 * 86_400_000
"""A difference is forgotten unless a nightly look finds it again within this time."""


class DriftRecords:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = store.keys.hooks("drift")

    async def put(self, customer: str, found: Sequence[Drift]) -> list[Drift]:
        """Store what was found of a customer; those that were not known before."""
        admin = await self._store.admin()
        before = _read(await admin.ask(admin.client.hget(self._key, customer)))
        if list(found) == before and not found:
            return []
        pipe = admin.client.pipeline(transaction=False)
        if found:
            pipe.hset(self._key, customer, _written(found))
            pipe.pexpire(self._key, _KEPT_MS)
        else:
            pipe.hdel(self._key, customer)
        await admin.ask(pipe.execute())
        return [drift for drift in found if drift not in before]

    async def replace(self, found: Mapping[str, Sequence[Drift]]) -> None:
        """Store what was found of all customers; of the others there is none any more."""
        admin = await self._store.admin()
        gone = set(await admin.ask(admin.client.hkeys(self._key))) - {name.encode() for name in found}
        pipe = admin.client.pipeline(transaction=False)
        for customer, drifts in found.items():
            pipe.hset(self._key, customer, _written(drifts))
        if gone:
            pipe.hdel(self._key, *gone)
        pipe.pexpire(self._key, _KEPT_MS)
        await admin.ask(pipe.execute())

    async def forget(self, customer: str) -> None:
        """Erase what was found of a customer."""
        await self._store.ask("hdel", self._key, customer)

    async def all(self) -> dict[str, tuple[Drift, ...]]:
        """The differences of all linked customers, by customer."""
        admin, keys = await self._store.admin(), self._store.keys
        kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(self._key))
        found = {name.decode(): tuple(_read(data)) for name, data in sorted(kept.items())}
        states = await read_states(admin, keys, list(found))
        return {
            name: drifts
            for name, drifts in found.items()
            if drifts and (name not in states or states[name].stripe_customer is not None)
        }


def _written(found: Sequence[Drift]) -> str:
    return json.dumps([drift.kept() for drift in found], separators=(",", ":"))


def _read(kept: bytes | None) -> list[Drift]:
    """Parse what was found of a customer; nothing of what cannot be read: the next night finds it again."""
    try:
        found: list[dict[str, str]] = json.loads(kept or b"[]")
        return [Drift.of(one) for one in found]
    except UNREADABLE:
        return []
