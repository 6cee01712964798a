"""Remainders: units left under a customer's ceilings by the store's latest replies, for the fallback.

A reply says what is left of each ceiling of its request; see ``decide.lua``. Decisions of one customer about
the same ceilings share the latest reply, with any subjects: all use the same units. Each subject has a reply
of its own for its own ceilings. The bytes are those that the store sent; they are read when it is down.
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

_BACKED_SHIFT: Final = 8


class LatestReply:
    """Latest reply of the store about some ceilings of a customer.

    Attributes:
        ceilings: what it is about.
        packed: the reply; empty: none yet.
        other: the next one of the linked list.
    """

    __slots__ = ("ceilings", "other", "packed")

    def __init__(self, ceilings: Ceilings, other: LatestReply | None) -> None:
        self.ceilings = ceilings
        self.packed = b""
        self.other = other


class SubjectReply(LatestReply):
    """Latest reply about some ceilings of a customer and of its subjects: the customer's latest, too.

    Attributes:
        shared: the latest one of all subjects.
    """

    __slots__ = ("_own", "shared")

    def __init__(self, shared: LatestReply, other: LatestReply | None) -> None:
        self._own = b""
        self.shared = shared
        self.ceilings = shared.ceilings
        self.other = other

    @property
    def packed(self) -> bytes:
        """The reply; empty: none yet."""
        return self._own

    @packed.setter
    def packed(self, reply: bytes) -> None:
        self._own = self.shared.packed = reply


def replies_of(first: LatestReply | None) -> Iterator[LatestReply]:
    """Iterate over a linked list of replies."""
    known = first
    while known is not None:
        yield known
        known = known.other


def add_reply(first: LatestReply | None, ceilings: Ceilings) -> tuple[LatestReply, LatestReply]:
    """Find or add the reply about some ceilings; the first one of the list, and this one."""
    for known in replies_of(first):
        if first is not None and known.ceilings == ceilings:
            return first, known
    added = LatestReply(ceilings, first)
    return added, added


def add_subject_reply(first: LatestReply | None, shared: LatestReply) -> tuple[LatestReply, LatestReply]:
    """Likewise, the reply about some subjects beside the one that all of them share."""
    for known in replies_of(first):
        if first is not None and isinstance(known, SubjectReply) and known.shared is shared:
            return first, known
    added = SubjectReply(shared, first)
    return added, added


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


def read_remainders(shared: LatestReply | None, own: LatestReply | None) -> dict[str, StoredRemainder]:
    """Units left under the ceilings of a customer, and of the subjects of some requests, by policy.

    Args:
        shared: the first reply about the customer, with any subjects.
        own: the first one about these subjects; None: there are none.
    """
    found: dict[str, StoredRemainder] = {}
    for known in (*replies_of(shared), *replies_of(own)):
        packed = known.packed
        numbers = struct.unpack(f"<{len(packed) // 8}q", packed)
        for nth, (place, policy) in enumerate(known.ceilings if len(packed) > len(NOTHING_SAID) else ()):
            if is_of_subject(policy) and not isinstance(known, SubjectReply):
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
