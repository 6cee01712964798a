"""Who calls: a customer, and the user, team or other subjects of it that a request is of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meterkit.store.arguments import check_subject_kinds, fault_of, is_customer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.subjects import Given


@dataclass(frozen=True, slots=True)
class Caller:
    """The answer of ``identify`` for a request of a user, a team or the like of a customer.

    Attributes:
        customer: the customer's id; None: the request has no customer, and its subjects are ignored.
        subjects: kind to id, at most three; their limits are ``subjects:`` of the customer's plan.

    Raises:
        MeterkitError: ``subjects`` is no mapping of texts, or has more than three.
    """

    customer: str | None
    subjects: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        check_subject_kinds(self.subjects)


def parted(found: object) -> tuple[object, Given | None]:
    """What ``identify`` found as a customer, and the subjects; None where an id of theirs is not allowed."""
    if not isinstance(found, Caller):
        return found, ()
    given = tuple(found.subjects.items())
    return found.customer, given if all(is_customer(subject) for _, subject in given) else None


def fault_in(found: object) -> str:
    """Which of the ids that ``identify`` found is not allowed, and what was found; the id is not shown."""
    ids: list[tuple[str, object]] = [("customer", found.customer if isinstance(found, Caller) else found)]
    ids += found.subjects.items() if isinstance(found, Caller) else ()
    return next(f"found {fault} as the id of the {of:.80}" for of, one in ids if (fault := fault_of(one)))
