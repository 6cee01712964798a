"""Intents that nobody is sending: found by identifier, and taken from state to state, with an entry."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.ambiguity import SURE_MS
from meterkit.decisions.periods import from_ms
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store

__all__ = ["REFUSED", "Kept", "Steered", "find_kept", "is_refused", "steer"]

_CHANGED: Final = 1
_CANNOT_BE_COUNTED: Final = 2
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
# What Stripe refused later; and of one that stands for usage of many minutes.
_OF_ITS_PAST: Final = ("refused", "since", "base")
_OF_ITS_PLACE: Final = ("why", "look", "looked")

REFUSED: Final = "r"
"""Ends the identifier of what Stripe has taken and refused later; see refuse.lua."""

Steered = Literal["queued", "parked", "dead", "delivered", "dropped"]
"""A state that an intent is taken into; ``dropped``: it is counted as dead, and kept no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An intent as the store keeps it; see seal.lua.

    Attributes:
        text: the same as it was read; what it is compared by.
    """

    identifier: str
    shard: int
    text: str
    fields: Mapping[str, str]

    @classmethod
    def read(cls, identifier: str, shard: int, data: bytes) -> Kept:
        """An intent from what is kept under its identifier."""
        text = data.decode()
        return cls(identifier=identifier, shard=shard, text=text, fields=json.loads(text))

    @property
    def first_ms(self) -> int:
        """When it was tried first; 0: Stripe certainly has nothing of it."""
        return int(self.fields["first"])

    @property
    def tried_since_ms(self) -> int:
        """The first attempt that a comparison goes by: what was refused later was tried before that."""
        refused_ms = int(self.fields.get("refused", "0"))
        return refused_ms - SURE_MS if refused_ms else self.first_ms

    @property
    def minute_s(self) -> int:
        """Its timestamp in Unix seconds."""
        return int(self.fields["time"])

    @property
    def value(self) -> int:
        """Its quantity in the meter's unit."""
        return int(self.fields["value"])

    def in_words(self) -> str:
        """What it is, for the ledger."""
        minute = from_ms(self.minute_s * 1000).strftime("%Y-%m-%dT%H:%MZ")
        return (
            f"{self.fields['state']}: {self.value} of {self.fields['event']} at {minute}, {self.identifier}"
        )

    def renamed(self, identifier: str, now_ms: int) -> Kept:
        """The same, as it is to be delivered under a new identifier, and as if it were sealed now."""
        known = {name: text for name, text in self.fields.items() if name not in _OF_ITS_PAST}
        fields = {**known, "key": identifier, "first": "0", "attempts": "0", "at": str(now_ms)}
        return replace(self, identifier=identifier, fields=fields)


def is_refused(identifier: str) -> bool:
    """Whether an intent is what Stripe has taken and refused later: it may have another try of it."""
    return identifier.endswith(REFUSED)


async def find_kept(store: Store, identifier: str) -> Kept | None:
    """An intent by its identifier, in whichever shard it is.

    Raises:
        StoreError: the store does not answer.
    """
    admin = (await store.admin()).for_delivery()
    pipe = admin.client.pipeline(transaction=False)
    for shard in range(store.keys.shards):
        pipe.hget(store.keys.shard(shard, "intents"), identifier)
    found: list[bytes | None] = await admin.ask(pipe.execute())
    for shard, data in enumerate(found):
        if data is not None:
            return Kept.read(identifier, shard, data)
    return None


async def steer(
    store: Store,
    kept: Kept,
    state: Steered,
    *,
    cause: str,
    after: str = "",
    to_be: Kept | None = None,
    compare_in_ms: int | None = None,
    more: Mapping[str, str] = _NOTHING,
) -> bool:
    """Take an intent into a state, at once with the totals, unless it has changed since it was read.

    Args:
        store: where it is.
        kept: as it was read.
        state: what it is to be in.
        cause: for the ledger of its customer.
        after: what became of it, for that ledger; empty: nothing is entered.
        to_be: what it is to be besides; default: as it was read.
        compare_in_ms: how long until it is compared with Stripe's summaries; None: it is not.
        more: its further fields: ``why``; ``look`` and ``looked``, what Stripe's summary said, and when.

    Raises:
        StoreError: the store does not answer, or the customer's totals cannot be counted in.
    """
    to_be, keys = to_be or kept, store.keys.customer(kept.fields["customer"])
    fields = {name: text for name, text in to_be.fields.items() if name not in _OF_ITS_PLACE}
    fields |= {"state": state, **{name: text for name, text in more.items() if text}}
    entry = ("intent", str(store.now_ms()), kept.in_words(), after, cause)
    admin = (await store.admin()).for_delivery()
    names = ("intents", "outbox", "parked", "dead", "compare")
    reply: list[Any] = await admin.run(
        store.scripts["steer"],
        [
            *(store.keys.shard(kept.shard, name) for name in names),
            *(keys.totals, keys.history, store.keys.delivered(kept.shard, store.now_ms())),
            *[store.keys.audit(kept.shard)] * store.is_audited,
        ],
        *(kept.identifier, kept.text, to_be.identifier, json.dumps(fields)),
        "" if compare_in_ms is None else compare_in_ms,
        json.dumps([entry] if after else []),
        json.dumps({**kept.fields, "id": kept.identifier, "by": cause, "reason": after}),
    )
    if reply[0] == _CANNOT_BE_COUNTED:
        raise StoreError(
            f"intent {kept.identifier} stays as it is: what the store keeps under {keys.totals} cannot be"
            " counted in"
        )
    return bool(reply[0] != _CHANGED)
