"""Intents: usage sealed for one meter event each, with its state; found by identifier or position."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from meterkit.decisions.ambiguity import SURE_MS
from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError
from meterkit.store.counting import count_at

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
    from datetime import datetime

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

BY_HAND: Final = "parked by hand"
"""Begins why an intent is parked that a person has parked."""
CANNOT_BE_COUNTED: Final = 2
"""What move.lua and change_state.lua say of an intent where its customer's totals cannot be counted in."""
State = Literal["leased", "queued", "delivered", "parked", "dead"]
IntentState = Literal["queued", "leased", "parked", "dead"]
"""Where an intent is that is not delivered; ``leased``: it is being sent."""
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
NONCE_DIGITS: Final = 32
"""Hex digits that an identifier begins with: the same for all that is sealed of a customer at once."""
SEALED_DIGITS: Final = 28
"""Those of them that are the same for all customers that are sealed with it."""
# How many characters a word has from the one before, by what it begins with: no identifier begins so.
_SHARED: Final[Mapping[str, int]] = {".": NONCE_DIGITS + 1, ":": SEALED_DIGITS, "!": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """An intent as the outbox keeps it.

    Attributes:
        value: quantity in the meter's unit; below 0: it takes units back that Stripe has.
        timestamp: Unix seconds, a whole minute.
        key: the idempotency key of the next try.
        sealed_ms: when it was made.
        due_ms: when it is, or was, due.
    """

    identifier: str
    customer: str
    stripe_customer: str
    period: str
    meter_token: str
    event_name: str
    value: int
    timestamp: int
    key: str
    sealed_ms: int
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An intent that was leased, to be sent.

    Attributes:
        now_ms: the store's clock then.
        first_ms: when it was tried first before; 0: Stripe certainly does not have it.
        attempts: how often it was tried, with this one.
    """

    intent: Sealed
    now_ms: int
    first_ms: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The next state of a leased intent.

    Into ``queued`` it goes with a delay, a new idempotency key or an empty one, and ``untried`` where Stripe
    certainly does not have it, as if it had never been tried. Into ``parked`` it goes with the delay after
    which it is compared with Stripe's summaries, 0: it is not. ``batch``: the idempotency key of a call with
    several intents that Stripe may have taken, by which it may tell of them later; empty: there was none.
    """

    intent: Sealed
    state: State
    delay_ms: int = 0
    key: str = ""
    untried: bool = False
    why: str = ""
    batch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a shard has to do: customers with pending usage, intents on their way."""

    shard: int
    dirty: int
    outbox: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """An intent that is parked or dead, and why.

    Attributes:
        restored: whether a restore of the store has parked it.
    """

    customer: str
    meter: str
    quantity: int
    state: Literal["parked", "dead"]
    why: str
    restored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A delivery to Stripe that is sealed and not made: usage of one customer, meter and minute.

    Attributes:
        identifier: Stripe's name for it, too: the meter event's ``identifier``.
        stripe_customer: whom it is addressed to.
        meter: its name in the plans file; that of an earlier one where it has gone from there.
        event_name: of the meter at Stripe.
        quantity: in the meter's unit; below 0: it takes units back that Stripe has.
        minute: the meter event's timestamp: it decides which invoice it is on.
        period_start: the first instant of the billing period that it is of.
        state: ``queued``; ``leased``: it is being sent; ``parked``: it waits for a person or a comparison;
            ``dead``: Stripe will never accept it.
        why: the outcome of the last try, or the reason of this state; may be empty.
        attempts: how often it was tried.
        first_attempt_at: since when Stripe may have it; None: Stripe certainly does not have it.
        sealed_at: when it was made.
        age_s: how long ago that is, in seconds.
        compared_at: when it is compared with Stripe's summary of its minute; None: it is not.
        restored: whether it was parked after a restore of the store: Stripe may have it under another
            identifier, and it is never sent before that is compared.
    """

    identifier: str
    customer: str
    stripe_customer: str
    meter: str
    event_name: str
    quantity: int
    minute: datetime
    period_start: datetime
    state: IntentState
    why: str
    attempts: int
    first_attempt_at: datetime | None
    sealed_at: datetime
    age_s: int
    compared_at: datetime | None
    restored: bool = False

    @property
    def is_parked_by_hand(self) -> bool:
        """Whether a person has parked it: it is redriven where it is named, and not with all others."""
        return self.state == "parked" and self.why.startswith(BY_HAND)


def read_intent(identifier: str, due_ms: int, fields: Mapping[str, str]) -> Sealed:
    """An intent from what is kept of it."""
    return Sealed(
        identifier=identifier,
        customer=fields["customer"],
        stripe_customer=fields["stripe"],
        period=fields["period"],
        meter_token=fields["meter"],
        event_name=fields["event"],
        value=int(fields["value"]),
        timestamp=int(fields["time"]),
        key=fields["key"],
        sealed_ms=int(fields["at"]),
        due_ms=due_ms,
    )


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
        """When it was tried first; 0: Stripe certainly does not have it."""
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
    """Whether Stripe accepted an intent and refused it later: it may have another try of it."""
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


def batch_text(identifiers: Iterable[str]) -> str:
    """Identifiers as they are kept, a word each; see :func:`intents_in`."""
    words, before = list[str](), ""
    for identifier in sorted(identifiers):
        for mark, shared in _SHARED.items():
            if identifier[:shared] == before[:shared]:
                words.append(mark + identifier[shared:])
                break
        before = identifier
    return " ".join(words)


def intents_in(text: str) -> list[str]:
    """Identifiers of a batch; the inverse of :func:`batch_text`."""
    found, before = list[str](), ""
    for word in text.split(" "):
        before = before[: _SHARED[word[0]]] + word[1:]
        found.append(before)
    return found


async def count_members(
    store: Store, admin: Admin, names: Iterable[str], *, limit: str | int
) -> dict[tuple[int, Any], int]:
    """The sorted sets of all shards that have members up to a score, and how many: by shard and name.

    On a cluster each shard may be on another server; those of one that is away count as one: what is asked of
    them next says what is wrong, and the others go on.

    Args:
        store: whose shards.
        admin: asks them.
        names: of the sets in each shard.
        limit: the score, or ``+inf``.

    Raises:
        StoreError: the store does not answer.
    """
    places, keys = _of_all_shards(store.keys, tuple(names))
    return {
        places[nth]: members for nth, members in (await count_at(store, admin, keys, limit=limit)).items()
    }


@lru_cache(maxsize=64)
def _of_all_shards(keys: Keys, names: tuple[str, ...]) -> tuple[list[tuple[int, str]], list[str]]:
    """The sets of these names, by shard and name, and their keys: each pass of a flusher asks the same."""
    places = [(shard, name) for shard in range(keys.shards) for name in names]
    return places, [keys.shard(shard, name) for shard, name in places]
