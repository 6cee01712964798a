"""Intents: usage sealed for one meter event each, as the store keeps it, by identifier or by shard."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
    from datetime import datetime

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

BY_HAND: Final = "parked by hand"
"""Begins the reason of an intent that an operator has parked."""
CANNOT_BE_COUNTED: Final = 2
"""Reply of move_intents.lua and change_state.lua if the customer's totals are not numbers."""
NextState = Literal["leased", "queued", "delivered", "parked", "dead"]
IntentState = Literal["queued", "leased", "parked", "dead"]
"""State of an intent that is not delivered; ``leased``: it is being sent."""
_PAGE: Final = 500
_NUMBERS: Final = ("period", "value", "time", "first", "attempts", "at")
_FIELDS: Final = frozenset({"state", "customer", "stripe", "meter", "event", "key"})
_WHOLE: Final = re.compile(r"(-?\d{1,19} ?){6}")
# Fields of an intent that Stripe refused later, that was rebuilt or restored: a renamed one has none of them.
_OF_ITS_PAST: Final = ("refused", "since", "till", "base", "together", "restored", "rest")
RESTORED: Final = "restored"
"""Field of an intent parked after a restore: the gap in which the store may have lost deliveries."""
REFUSED: Final = "r"
"""Suffix of the identifier of an intent that Stripe accepted and refused later; see refuse_intent.lua."""
NONCE_DIGITS: Final = 32
"""Hex digits at the start of an identifier, the same for a customer's intents of one seal."""
SEALED_DIGITS: Final = 28
"""Digits of these that are the same for all customers of a page."""
# Length of the prefix shared with the previous identifier, by the mark that a word begins with.
_SHARED: Final[Mapping[str, int]] = {".": NONCE_DIGITS + 1, ":": SEALED_DIGITS, "!": 0}
RESEND_MAX_MS: Final = 23 * 3_600_000
"""A retry within this time is counted once: an identifier is unique "within a rolling period of at least
24 hours" (https://docs.stripe.com/api/billing/meter-event/create), and a request takes its time."""

COMPARABLE_AFTER_MS: Final = 26 * 3_600_000
"""After this time Stripe's summaries show an accepted intent: its last attempt is three hours old.

`lua/rebuild_counters.lua` parks an intent as if first tried a day ago, and compares it two hours later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedIntent:
    """A sealed intent, ready to be sent.

    Attributes:
        value: quantity in the meter's unit; below 0: a negative event, which takes units back.
        timestamp: Unix seconds, a whole minute.
        key: the idempotency key of the next try.
        sealed_ms: when it was sealed.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SendAttempt:
    """An attempt to send a leased intent.

    Attributes:
        now_ms: the store's clock when it was leased.
        first_ms: when it was first tried before; 0: Stripe certainly does not have it.
        attempts: number of tries, this one included.
    """

    intent: SealedIntent
    now_ms: int
    first_ms: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentMove:
    """Move of a leased intent into its next state.

    Attributes:
        delay_ms: ``queued``: until the next try. ``parked``: until it is compared with Stripe's summaries; 0:
            it is not compared.
        key: ``queued``: a new idempotency key; empty: the old one.
        untried: whether Stripe certainly does not have it, as if it had never been tried.
        batch: idempotency key of a call with several intents, which an error report may name; empty: none.
    """

    intent: SealedIntent
    state: NextState
    delay_ms: int = 0
    key: str = ""
    untried: bool = False
    why: str = ""
    batch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """Work of a shard: the number of customers with pending usage, and of intents in the outbox."""

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
        identifier: the ``identifier`` of its meter event, too.
        stripe_customer: the customer at Stripe that it bills.
        meter: its name in the plans file, or in an earlier one if it was removed.
        event_name: of the meter at Stripe.
        quantity: in the meter's unit; below 0: it takes units back that Stripe has.
        minute: the meter event's timestamp, which decides the invoice.
        period_start: the first instant of its billing period.
        state: ``queued``; ``leased``: it is being sent; ``parked``: it waits for an operator or a comparison;
            ``dead``: Stripe will never accept it.
        why: the outcome of the last try, or the reason of this state; may be empty.
        attempts: number of tries.
        first_attempt_at: since when Stripe may have it; None: Stripe certainly does not have it.
        sealed_at: when it was sealed.
        age_s: seconds since then.
        compared_at: when it is compared with Stripe's summary of its minute; None: it is not.
        restored: whether it was parked after a restore of the store. Stripe may have it under another
            identifier, so it is compared before it is sent.
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
        """Whether an operator has parked it: it is redriven by its identifier only."""
        return self.state == "parked" and self.why.startswith(BY_HAND)


def parse_sealed(identifier: str, fields: Mapping[str, str]) -> SealedIntent:
    """Parse the stored fields of an intent."""
    return SealedIntent(
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
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIntent:
    """An intent with all its stored fields; see seal.lua.

    Attributes:
        text: as it was read: a change requires that it is still the same.
    """

    identifier: str
    shard: int
    text: str
    fields: Mapping[str, str]

    @classmethod
    def read(cls, identifier: str, shard: int, data: bytes) -> StoredIntent:
        """Parse the text that is stored under an identifier."""
        text = data.decode()
        return cls(identifier=identifier, shard=shard, text=text, fields=json.loads(text))

    @property
    def customer(self) -> str:
        """The customer's id."""
        return self.fields["customer"]

    @property
    def first_ms(self) -> int:
        """Instant of the first try; 0: Stripe certainly does not have it."""
        return int(self.fields["first"])

    @property
    def tried_since_ms(self) -> int:
        """Instant of the first try for a comparison; an intent refused later was tried before its refusal."""
        refused_ms = int(self.fields.get("refused", "0"))
        return refused_ms - RESEND_MAX_MS if refused_ms else self.first_ms

    @property
    def is_rebuilt(self) -> bool:
        """Whether it stands for lost usage of many minutes; see rebuild_counters.lua."""
        return "since" in self.fields

    @property
    def minute_s(self) -> int:
        """Its timestamp in Unix seconds."""
        return int(self.fields["time"])

    @property
    def value(self) -> int:
        """Its quantity in the meter's unit."""
        return int(self.fields["value"])

    def in_words(self) -> str:
        """State, quantity, event name, minute and identifier, for the ledger."""
        minute = from_ms(self.minute_s * 1000).strftime("%Y-%m-%dT%H:%MZ")
        return (
            f"{self.fields['state']}: {self.value} of {self.fields['event']} at {minute}, {self.identifier}"
        )

    def renamed(self, identifier: str, now_ms: int) -> StoredIntent:
        """Return it under a new identifier, untried, as if it were sealed now."""
        known = {name: text for name, text in self.fields.items() if name not in _OF_ITS_PAST}
        fields = {**known, "key": identifier, "first": "0", "attempts": "0", "at": str(now_ms)}
        return replace(self, identifier=identifier, fields=fields)


def is_refused(identifier: str) -> bool:
    """Whether Stripe accepted an intent and refused it later; it may have another try of the same intent."""
    return identifier.endswith(REFUSED)


async def find_intent(store: Store, identifier: str) -> StoredIntent | None:
    """Find an intent by its identifier in all shards.

    Raises:
        MeterkitError: it cannot be read.
        StoreError: the store does not answer.
    """
    admin = (await store.admin()).for_delivery()
    keys = [store.keys.shard(shard, "intents") for shard in range(store.keys.shards)]
    found: list[bytes | None] = await admin.ask_all(("hget", key, identifier) for key in keys)
    for shard, data in enumerate(found):
        if data is not None:
            if not parse_intents(admin, shard, [identifier], [data])[0]:
                raise MeterkitError(f"intent {identifier} of shard {shard} cannot be read")
            return StoredIntent.read(identifier, shard, data)
    return None


async def read_intents(
    store: Store, admin: Admin, shard: int, identifiers: Sequence[str]
) -> Sequence[StoredIntent]:
    """Read intents of a shard by identifier; missing and unreadable ones are left out.

    Raises:
        StoreError: the store does not answer.
    """
    key = store.keys.shard(shard, "intents")
    texts: list[bytes | None] = await admin.ask(admin.client.hmget(key, identifiers))
    parsed = parse_intents(admin, shard, identifiers, texts)
    return [
        StoredIntent(identifier=name, shard=shard, text=text.decode(), fields=fields)
        for name, text, fields in zip(identifiers, texts, parsed, strict=True)
        if text is not None and fields
    ]


async def read_intents_in(
    store: Store, admin: Admin, shard: int, place: str, *, most: int = _PAGE
) -> AsyncGenerator[Sequence[StoredIntent]]:
    """Read the intents of a shard's sorted set in pages, in its order.

    Args:
        store: has the intents.
        admin: asks it.
        shard: the shard.
        place: the set: ``outbox``, ``parked`` or ``dead``.
        most: largest number of intents in a page.

    Raises:
        StoreError: the store does not answer.
    """
    members: list[bytes] = await admin.ask(admin.client.zrange(store.keys.shard(shard, place), 0, -1))
    for start in range(0, len(members), most):
        page = [member.decode() for member in members[start : start + most]]
        yield await read_intents(store, admin, shard, page)  # Without those delivered meanwhile.


def parse_intents(
    admin: Admin, shard: int, identifiers: Sequence[str], texts: Sequence[bytes | None]
) -> Sequence[Mapping[str, str]]:
    """Parse stored intents; missing and unreadable ones have no fields, and unreadable ones are logged once.

    Args:
        admin: logs unreadable intents.
        shard: the shard of the intents.
        identifiers: of the intents.
        texts: as the store has them.
    """
    try:
        # Parsing one by one takes twice as long.
        found: list[Any] = json.loads(b"[%b]" % b",".join(text or b"{}" for text in texts))
        if len(found) == len(texts) and all(map(_is_complete, found)):
            return found
    except ValueError:
        pass
    return [_parse_or_log(admin, shard, *one) for one in zip(identifiers, texts, strict=True)]


def _parse_or_log(admin: Admin, shard: int, identifier: str, text: bytes | None) -> Mapping[str, str]:
    if text is None:
        return {}
    try:
        fields: Any = json.loads(text)
    except ValueError:
        fields = None
    if fields and _is_complete(fields):
        return cast("Mapping[str, str]", fields)
    admin.warn_once(
        f"intent {identifier} of shard {shard} cannot be read and is skipped; all others are delivered"
    )
    return {}


def _is_complete(fields: Any) -> bool:
    """Whether an intent has all required fields; also if it is empty, that is missing."""
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


def pack_batch(identifiers: Iterable[str]) -> str:
    """Pack identifiers into words that share prefixes with their predecessors; see :func:`unpack_batch`."""
    words, before = list[str](), ""
    for identifier in sorted(identifiers):
        for mark, shared in _SHARED.items():
            if identifier[:shared] == before[:shared]:
                words.append(mark + identifier[shared:])
                break
        before = identifier
    return " ".join(words)


def unpack_batch(text: str) -> list[str]:
    """Identifiers of a batch; the inverse of :func:`pack_batch`."""
    found, before = list[str](), ""
    for word in text.split(" "):
        before = before[: _SHARED[word[0]]] + word[1:]
        found.append(before)
    return found


async def count_members(
    store: Store, admin: Admin, names: Iterable[str], *, limit: str | int
) -> dict[tuple[int, Any], int]:
    """Count the members up to a score in sorted sets of all shards; empty sets are left out.

    On a cluster, a set whose server is down counts as one member: the next command to it raises the error,
    and the other shards go on.

    Args:
        store: has the shards.
        admin: asks them.
        names: of the sets in each shard.
        limit: the score, or ``+inf``.

    Returns:
        Counts by shard and name.

    Raises:
        StoreError: the store does not answer.
    """
    places, keys = _keys_of_shards(store.keys, tuple(names))
    return {
        places[nth]: members for nth, members in (await store.count_members(admin, keys, limit=limit)).items()
    }


@lru_cache(maxsize=64)
def _keys_of_shards(keys: Keys, names: tuple[str, ...]) -> tuple[list[tuple[int, str]], list[str]]:
    """Pairs of shard and name, and their keys; cached, because each pass of a flusher asks the same."""
    places = [(shard, name) for shard in range(keys.shards) for name in names]
    return places, [keys.shard(shard, name) for shard, name in places]


def can_resend(first_ms: int, now_ms: int) -> bool:
    """Whether Stripe certainly counts a retry under the same identifier once.

    Args:
        first_ms: instant of the first attempt; 0: Stripe certainly does not have the intent.
        now_ms: now.
    """
    return first_ms == 0 or now_ms - first_ms <= RESEND_MAX_MS


def compare_in_ms(first_ms: int, now_ms: int) -> int:
    """Time until an intent may be compared with Stripe's summaries, by its first attempt."""
    return max(0, first_ms + COMPARABLE_AFTER_MS - now_ms)
