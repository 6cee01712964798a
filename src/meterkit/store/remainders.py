"""Remainders: units left under a customer's ceilings by the store's latest replies, for the fallback.

A reply says what is left of each ceiling of its request; see ``decide.lua``. Decisions of one customer about
the same ceilings share the latest reply. It is kept as the store sent it, and read when the store is down.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from meterkit.decisions.limit_policies import CEILING, GAUGE
from meterkit.decisions.subjects import is_of_subject
from meterkit.store.replies import REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.decisions.compiled_decision import Program

Ceilings: TypeAlias = "tuple[tuple[int, str], ...]"
"""Place of each ceiling's remainder in a reply, and name of its policy; see :class:`Program`."""

_REPLIES_MAX: Final = 32
_BACKED_SHIFT: Final = 8


class LatestReply:
    """Latest reply of the store about some ceilings of a customer.

    Attributes:
        ceilings: what it is about.
        subjects: subjects of its requests; None: none.
        packed: the reply; empty: none yet.
        other: the next one of the linked list.
    """

    __slots__ = ("ceilings", "other", "packed", "subjects")

    def __init__(self, ceilings: Ceilings, subjects: object, other: LatestReply | None) -> None:
        self.ceilings = ceilings
        self.subjects = subjects
        self.packed = b""
        self.other = other


def replies_of(first: LatestReply | None) -> Iterator[LatestReply]:
    """Iterate over a linked list of replies."""
    known = first
    while known is not None:
        yield known
        known = known.other


def add_reply(first: LatestReply | None, ceilings: Ceilings, subjects: object) -> LatestReply:
    """Put an empty reply before the others; the oldest of many is dropped."""
    added = LatestReply(ceilings, subjects, first)
    for place, last in enumerate(replies_of(added), start=1):
        if place == _REPLIES_MAX:
            last.other = None
    return added


class StoredRemainder(NamedTuple):
    """Units left under a ceiling by a reply of the store.

    Attributes:
        quantity: units left, those held for requests in flight excluded.
        at_ms: time of the reply.
        is_backed: whether a refusal said that grants or credits backed it.
    """

    quantity: int
    at_ms: int
    is_backed: bool


def read_remainders(first: LatestReply | None, subjects: object) -> dict[str, StoredRemainder]:
    """Units left under the ceilings of a customer, and of these subjects, by policy."""
    found: dict[str, StoredRemainder] = {}
    for known in replies_of(first):
        packed = known.packed
        numbers = struct.unpack(f"<{len(packed) // 8}q", packed)
        for nth, (place, policy) in enumerate(known.ceilings if len(packed) > len(NOTHING_SAID) else ()):
            if is_of_subject(policy) and known.subjects != subjects:
                continue
            before = found.get(policy)
            if before is None or numbers[1] > before.at_ms:
                is_backed = bool(numbers[0] >> (_BACKED_SHIFT + nth) & 1)
                found[policy] = StoredRemainder(numbers[place], numbers[1], is_backed)
    return found


def pack_reply(numbers: Sequence[int], rests: Sequence[int]) -> bytes:
    """Pack the first numbers of a reply, and what is left of its policies, as ``decide.lua`` does."""
    return struct.pack(f"<{len(numbers) + len(rests)}q", *numbers, *rests)


def pack_refusal(program: Program, reply: Sequence[int]) -> bytes:
    """Pack what a refusal says is left, ``{1, now, ends, x, y, z, …}``; its code says what was backed."""
    rests: list[int] = []
    backed = iter(reply[3 * len(program.measures) + 3 :])
    backed_bits, bit = 0, 1 << _BACKED_SHIFT
    ceilings = {policy for _, policy in program.ceilings}
    for nth, measure in enumerate(program.measures):
        x, y, z = reply[3 * nth + 3 : 3 * nth + 6]
        if measure.kind == CEILING:
            is_backed = next(backed, 0)
            if measure.policy.name in ceilings:
                backed_bits |= bit if is_backed else 0
                bit <<= 1
        if nth >= len(program.rate_terms) and measure.kind != GAUGE:
            rests.append(x - y - z)
    return pack_reply((REFUSED | backed_bits, reply[1], 0, 0, 0), rests)


NOTHING_SAID: Final = pack_reply((REFUSED, 0, 0, 0, 0), ())
"""In place of a reply that says nothing about ceilings, such as a refusal by the customer's state."""
