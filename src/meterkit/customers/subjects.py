"""Subject of a customer, such as a user: its overrides and its usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from meterkit.catalog.subjects import override_subject
from meterkit.decisions.customer_overrides import with_subject_override
from meterkit.decisions.policies import rate_numbers
from meterkit.decisions.subjects import subject_member
from meterkit.errors import MeterkitError
from meterkit.store.input_checks import (
    check_customer,
    check_end_ms,
    check_overrides,
    check_subjects,
    to_json_value,
)
from meterkit.store.subject_usage import usage_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_overrides import Stored
    from meterkit.store.store import Store
    from meterkit.store.subject_usage import SubjectUsage

    Change = Callable[[Stored], dict[str, dict[str, object]]]

_Record = TypeVar("_Record")


class CustomerSubject(Generic[_Record]):
    """A user, a team or another subject of a customer; ``kit.customers.subject(customer, user="u_7")``.

    Args:
        customer: the customer's id.
        subject: the kind to the id.
        catalog: gives the active catalog.
        clock_ms: asks for the clock of the server that has a customer.
        change: replaces the overrides of the customer, and returns the customer's record.

    Raises:
        CustomerError: an id is not allowed.
        MeterkitError: it is not one subject of a kind that a plan declares.
    """

    def __init__(
        self,
        customer: str,
        subject: Mapping[str, str],
        *,
        catalog: Callable[[], Catalog],
        clock_ms: Callable[[str], Awaitable[int]],
        change: Callable[[str, Change], Awaitable[_Record]],
    ) -> None:
        self._customer = check_customer(customer)
        given = check_subjects(subject)
        if len(given) != 1:
            raise MeterkitError(
                f"subject: found {len(given)} subjects; name one, as in subject({customer!r:.80}, user='u_7')"
            )
        self._kind, self._id = given[0]
        self._catalog, self._clock_ms, self._change = catalog, clock_ms, change
        check_kind(self._kind, catalog())

    async def override(
        self, limits: Mapping[str, Mapping[str, object]] | None, until: datetime | None = None
    ) -> _Record:
        """Give the subject something else than the plan does; binds the very next decision of every process.

        ``{"requests": {"rate": "50/minute"}}`` leaves all else as the plan has it, and replaces earlier
        overrides of this subject. A budget is replaced as a whole: without ``per`` it is of the period.

        Args:
            limits: meter to its limits, and ``budget``, in the notation of the plans file; empty or None:
                its overrides are taken back.
            until: an aware instant at which what is given here ends; None: it does not.

        Returns:
            The customer's record.

        Raises:
            MeterkitError: ``until`` is naive or not in the future, or 500 subjects of the customer have
                overrides, which is the most.
            PlansError: an override cannot be read; with all that is wrong.
            StoreError: the store does not answer.
        """
        given = check_overrides(limits or {})
        now_ms = await self._clock_ms(self._customer)
        until_ms = None if until is None else check_end_ms(until, now_ms)
        catalog, member = self._catalog(), subject_member(self._kind, self._id)
        for plan in catalog.plans.values():
            if self._kind in plan.subjects:
                found = override_subject(catalog, plan.subjects[self._kind], given, strict=True)
                for entitlement in found.limits.values():
                    for rate in entitlement.rates:
                        rate_numbers(rate, entitlement.meter)
        kept: dict[str, object] = {meter: to_json_value(value, meter) for meter, value in given.items()}

        def change(stored: Stored) -> dict[str, dict[str, object]]:
            return with_subject_override(stored, member, kept, until_ms=until_ms, now_ms=now_ms)

        return await self._change(self._customer, change)


def check_kind(kind: str, catalog: Catalog) -> None:
    """Refuse a kind of subject that no plan declares. Raises MeterkitError."""
    known = sorted({name for plan in catalog.plans.values() for name in plan.subjects})
    if kind not in known:
        declared = f"declared are {', '.join(known)}" if known else "no plan declares any"
        raise MeterkitError(
            f"subject: found the kind {kind!r:.80}; {declared}; write `subjects: {{{kind:.80}: {{…}}}}` in a"
            " plan"
        )


async def usage_of_kind(store: Store, customer: str, kind: str) -> Sequence[SubjectUsage]:
    """Usage of each subject of a kind in this period; see :meth:`meterkit.MeterKit.usage`.

    Raises:
        MeterkitError: no plan declares subjects of this kind.
        StoreError: the store does not answer.
    """
    check_kind(kind, store.catalog)
    return await usage_by(store, customer, kind)
