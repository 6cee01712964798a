"""Intents as the store keeps them until they are delivered, found by identifier or by where they wait."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.decisions.ambiguity import SURE_MS
from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

__all__ = ["REFUSED", "RESTORED", "Kept", "find_kept", "intents_of", "is_refused", "kept_in"]

_PAGE: Final = 500
_NUMBERS: Final = ("period", "value", "time", "first", "attempts", "at")
_FIELDS: Final = frozenset({"state", "customer", "stripe", "meter", "event", "key"})
_WHOLE: Final = re.compile(r"(-?\d{1,19} ?){6}")
# What Stripe refused later; and of one that stands for usage of many minutes.
_OF_ITS_PAST: Final = ("refused", "since", "till", "base", "together", "restored", "rest")

RESTORED: Final = "restored"
"""The field of what was parked after a restore: when deliveries may have been forgotten; see comparing."""

REFUSED: Final = "r"
"""Ends the identifier of what Stripe has taken and refused later; see refuse.lua."""


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
    def customer(self) -> str:
        """Whose usage it is."""
        return self.fields["customer"]

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
        MeterkitError: it cannot be read.
        StoreError: the store does not answer.
    """
    admin = (await store.admin()).for_delivery()
    pipe = admin.client.pipeline(transaction=False)
    for shard in range(store.keys.shards):
        pipe.hget(store.keys.shard(shard, "intents"), identifier)
    found: list[bytes | None] = await admin.ask(pipe.execute())
    for shard, data in enumerate(found):
        if data is not None:
            if not intents_of(admin, shard, [identifier], [data])[0]:
                raise MeterkitError(f"intent {identifier} of shard {shard} cannot be read")
            return Kept.read(identifier, shard, data)
    return None


async def kept_in(
    store: Store, admin: Admin, shard: int, place: str, *, most: int = _PAGE
) -> AsyncGenerator[Sequence[Kept]]:
    """Pages of the intents in a shard's sorted set, in its order.

    Args:
        store: where they are.
        admin: asks it.
        shard: which of its shards.
        place: the set: ``outbox``, ``parked`` or ``dead``.
        most: how many a page has at most.

    Raises:
        StoreError: the store does not answer.
    """
    client, keys = admin.client, store.keys
    members: list[bytes] = await admin.ask(client.zrange(keys.shard(shard, place), 0, -1))
    for start in range(0, len(members), most):
        page = members[start : start + most]
        texts: list[bytes | None] = await admin.ask(client.hmget(keys.shard(shard, "intents"), page))
        named = [
            (member.decode(), data)
            for member, data in zip(page, texts, strict=True)
            if data is not None  # It is delivered meanwhile.
        ]
        fields = intents_of(admin, shard, [name for name, _ in named], [data for _, data in named])
        yield [
            Kept(identifier=name, shard=shard, text=data.decode(), fields=found)
            for (name, data), found in zip(named, fields, strict=True)
            if found
        ]


def intents_of(
    admin: Admin, shard: int, identifiers: Sequence[str], texts: Sequence[bytes | None]
) -> Sequence[Mapping[str, str]]:
    """The fields of intents: none of the missing, and none of the unreadable, which the log names once.

    Args:
        admin: by which they were read.
        shard: where they are.
        identifiers: of the intents.
        texts: as the store keeps them.
    """
    try:
        # As one text: each by itself takes twice as long.
        found: list[Any] = json.loads(b"[%b]" % b",".join(text or b"{}" for text in texts))
        if len(found) == len(texts) and all(map(_is_whole, found)):
            return found
    except ValueError:
        pass
    return [_read(admin, shard, *one) for one in zip(identifiers, texts, strict=True)]


def _read(admin: Admin, shard: int, identifier: str, text: bytes | None) -> Mapping[str, str]:
    if text is None:
        return {}
    try:
        fields: Any = json.loads(text)
    except ValueError:
        fields = None
    if fields and _is_whole(fields):
        return cast("Mapping[str, str]", fields)
    admin.say_once(
        f"intent {identifier} of shard {shard} cannot be read and is left; all others are delivered"
    )
    return {}


def _is_whole(fields: Any) -> bool:
    """Whether an intent has all that it must; empty: it is missing."""
    if not isinstance(fields, dict):
        return False
    texts = cast("dict[str, Any]", fields)
    if not texts:
        return True
    try:
        return (
            bool(_WHOLE.fullmatch(" ".join([texts[name] for name in _NUMBERS]))) and texts.keys() >= _FIELDS
        )
    except (LookupError, TypeError):
        return False
