"""The allowance of a billing period whose plan changed, or whose earlier grants still live. Pure data."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

GrantLine = tuple[str, str, int, int, int]
"""A recurring grant: name without the period, target, quantity (units, or micro-credits), priority, life (ms;
0: until the period ends; -1: what is left then lives on)."""


class RollRule(NamedTuple):
    """Terms on which grants live on into a period.

    Attributes:
        room: the most that all that is left of it comes to: units of a meter, or micro-credits.
        periods: the number of further periods that a grant lives on for; 0: none.
    """

    room: int
    periods: int


class Rolls(NamedTuple):
    """Terms on which grants live on into the latest periods.

    Attributes:
        starts: first instants of the latest periods, the oldest first; then the end of this one.
        rules: name of a grant without its period, to a rule for each of these periods: the terms of the plan
            in force when it began.
        keeps_ms: how long such grants are to be known longer than others.
    """

    starts: tuple[int, ...]
    rules: tuple[tuple[str, tuple[RollRule, ...]], ...]
    keeps_ms: int

    @property
    def start_ms(self) -> int:
        """First instant of this period."""
        return self.starts[-2]

    def lives_until_now(self, name: str, end_ms: int) -> bool:
        """Whether a grant may live on from the end of its period into this one."""
        rules = dict(self.rules).get(name, ())[bisect_left(self.starts, end_ms) :]
        return bool(rules) and all(age <= rule.periods for age, rule in enumerate(rules, 1))

    def packed(self) -> list[object]:
        """Terms of the scripts; see ``include/roll_over.lua``."""
        return [self.starts, dict(self.rules), self.keeps_ms]


class OnceGrant(NamedTuple):
    """A grant that is given once in a customer's life.

    Attributes:
        line: its terms.
        start_ms: first instant of the period in which it is given; None: of this one.
        end_ms: the first instant after that.
    """

    line: GrantLine
    start_ms: int | None = None
    end_ms: int | None = None

    def packed(self) -> list[object]:
        """Terms of the scripts; see ``include/add_once.lua``."""
        return [*self.line, *(() if self.start_ms is None else (self.start_ms, self.end_ms))]


class PeriodGrants(NamedTuple):
    """The recurring grants of a period that is not the plan's ordinary one.

    Attributes:
        lines: grants of the plans, in the order in which they are used up.
        limits: target to the most that the period gives of it, if its plan changed; otherwise empty.
    """

    lines: tuple[GrantLine, ...]
    limits: tuple[tuple[str, int], ...] = ()


class EarlierPeriod(NamedTuple):
    """A period that is over, and whose recurring grants may still live.

    Attributes:
        start_ms: its first instant.
        end_ms: the first instant after it.
        grants: those that live longer than their period, or may live on.
        is_certain: whether the customer was on the plan then; else only an older grant proves it.
    """

    start_ms: int
    end_ms: int
    grants: PeriodGrants
    is_certain: bool

    def packed(self) -> list[object]:
        """Terms of the scripts; see ``include/grant_balance.lua``."""
        lines, limits = self.grants
        return [self.start_ms, self.end_ms, lines, dict(limits), int(self.is_certain)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The part of a customer's plan that differs from the plans file in one billing period.

    Attributes:
        included: meter to the quantity that is included in this period.
        added: meter to the part of it that add-ons give; an override replaces the rest.
        grants: the recurring grants of this period; None: those of the plan.
        earlier: earlier periods, the latest first.
        rolls: what of their grants lives on; None: nothing.
        once: what is given once in the customer's life; None: what the plan says, in this period.
        history: names the plans and cuts that limits follow from, whatever the plans file says of them.
    """

    included: tuple[tuple[str, int], ...] = ()
    added: tuple[tuple[str, int], ...] = ()
    grants: PeriodGrants | None = None
    earlier: tuple[EarlierPeriod, ...] = ()
    rolls: Rolls | None = None
    once: tuple[OnceGrant, ...] | None = None
    history: str = ""
