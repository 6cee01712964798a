"""Packing of script calls about a customer: keys, rev, and the customer's numbers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.customer_state import NO_STATE
from meterkit.redis.connection import pack_each, pack_numbers
from meterkit.store.request_subjects import NOTHING_PACKED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.decisions.compiled_decision import Program
    from meterkit.decisions.customer_state import EffectivePlan
    from meterkit.decisions.keys import CustomerKeys
    from meterkit.store.request_subjects import PackedSubjects

_QUARTER_HOUR_MS: Final = 900_000
_CUSTOMER_BYTES: Final = 4 * 8
_FOUR_HUNDRED_DAYS_MS: Final = 34_560_000_000  # As totals: see docs/design/store.md


def pack_head(
    program: Program, keys: CustomerKeys, *, sha: str, rev: str, others: PackedSubjects = NOTHING_PACKED
) -> bytes:
    """Pack a decision's request up to the terms; ``others``: its subjects."""
    names: list[str] = [keys.counters, keys.state, keys.totals]
    if program.extra_terms:
        names += (keys.grants, keys.ledger, *((keys.levels,) if program.gauges else ()))
    names += others.keys
    head: tuple[str | int, ...] = ("EVALSHA", sha, len(names), *names, rev)
    # Behind these: terms, what follows them, words and terms of subjects, clock.
    count = len(head) + 2 + len(program.trailing_arguments("d")) + others.width
    return b"*%d\r\n%b" % (count, pack_each(head))


def pack_terms(effective: EffectivePlan, rev: str, numbers: Iterable[int]) -> bytes:
    """Pack the numbers of a script: the customer's, how long counters outlive a period, the rest."""
    return pack_customer_terms(effective) + pack_numbers((_outlive_ms(rev), *numbers))


def pack_customer_terms(effective: EffectivePlan) -> bytes:
    """Pack the customer's numbers: end of the view's validity, and the bounds of both periods."""
    bounds = effective.bounds
    until_ms = min(effective.valid_until_ms, bounds.next_end_ms)
    return pack_numbers((until_ms, bounds.start_ms, bounds.end_ms, bounds.next_end_ms))


def pack_tail(program: Program, mode: str, rev: str) -> tuple[bytes, bytes]:
    """Pack a decision's request before and behind the customer's numbers."""
    rest = pack_numbers((_outlive_ms(rev), program.keep_ms, *program.numbers))
    return b"$%d\r\n" % (_CUSTOMER_BYTES + len(rest)), b"%b\r\n%b" % (
        rest,
        pack_each(program.trailing_arguments(mode)),
    )


def _outlive_ms(rev: str) -> int:
    return _QUARTER_HOUR_MS if rev == NO_STATE else _FOUR_HUNDRED_DAYS_MS
