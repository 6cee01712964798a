"""Whether Stripe has an intent, by what its summary of the intent's minute said twice. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from meterkit.decisions.ambiguity import APART_MS, COMPARED_MS

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["Judged", "Look", "Verdict", "judge"]

# https://docs.stripe.com/api/billing/meter-event/create: "within the past 35 calendar days"; less an hour.
_PAST_MS: Final = 35 * 86_400_000 - 3_600_000
# What is pending of a closed period is sealed into several intents of one minute where no value can hold it.
_SPLIT_AT: Final = 10**15 - 1

Verdict = Literal["again", "delivered", "replace", "person"]
"""Look again; Stripe has it; Stripe does not, and it is sent under a new identifier; somebody must decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What Stripe's summary of an intent's minute came to (None: it has no such meter), and when."""

    counted: Decimal | None
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What becomes of an intent.

    Attributes:
        why: in words, for its customer's ledger or for whoever must decide.
        wait_ms: ``again``: how long until then.
        keep: ``again``: the look that the next one is compared with; None: there is none yet.
    """

    verdict: Verdict
    why: str = ""
    wait_ms: int = 0
    keep: Look | None = None


def judge(
    *,
    value: int,
    span: str = "its minute",
    minute_ms: int,
    first_attempt_ms: int,
    before: Look | None,
    now: Look,
) -> Judged:
    """Tell what becomes of an intent that Stripe may have.

    Args:
        value: its quantity, with that of all that the summary does not tell it from; below 0: it takes units
            back.
        span: what the summary is of.
        minute_ms: its timestamp.
        first_attempt_ms: when it was tried first.
        before: the look before this one; None: there was none.
        now: this look.
    """
    if now.at_ms < first_attempt_ms + COMPARED_MS:
        return Judged(verdict="again", wait_ms=first_attempt_ms + COMPARED_MS - now.at_ms)
    if value >= _SPLIT_AT:
        return Judged(
            verdict="person",
            why=f"its minute may have another intent of {value}: its summary does not tell them apart",
        )
    if now.counted is None:
        return Judged(verdict="person", why="Stripe has no meter with its event name, so no summary of it")
    if before is None:
        return Judged(verdict="again", wait_ms=APART_MS, keep=now)
    if now.at_ms < before.at_ms + APART_MS:
        return Judged(verdict="again", wait_ms=before.at_ms + APART_MS - now.at_ms, keep=before)
    return _judge_two(value, span, minute_ms, before, now)


def _judge_two(value: int, span: str, minute_ms: int, before: Look, now: Look) -> Judged:
    if before.counted != now.counted:
        why = f"Stripe's summary of {span} said {before.counted}, and {now.counted} later"
        return Judged(verdict="person", why=why)
    if now.counted == value:
        return Judged(verdict="delivered", why=f"Stripe's summary of {span} said {value}, twice")
    if now.counted != 0:
        why = f"Stripe's summary of {span} says {now.counted}, and it is {value}"
        return Judged(verdict="person", why=why)
    if value < 0:
        why = (
            "it takes units back, and Stripe's summary of its minute says 0, which it may say of less than"
            " nothing: look at the customer's meter at Stripe; if they are counted still, credit them by"
            " hand; then drop it"
        )
        return Judged(verdict="person", why=why)
    if minute_ms < now.at_ms - _PAST_MS:
        why = "Stripe does not have it, and takes nothing older than 35 days: bill it by hand"
        return Judged(verdict="person", why=why)
    return Judged(verdict="replace", why=f"Stripe's summary of {span} said 0, twice")
