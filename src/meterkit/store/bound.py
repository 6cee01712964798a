"""What decisions need of a route that binds the quantities of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.decisions.program import Binding, Program
    from meterkit.decisions.subjects import AskedOfSubject


class Reserving(Protocol):
    """What binds the quantities of one request; see :mod:`meterkit.store.reserving`."""

    bound: Binding

    def ask_subjects(self, quantities: Mapping[str, int]) -> tuple[AskedOfSubject, ...]:
        """The demands on the customer's subjects, with so much reserved."""
        ...

    def pack(
        self, quantities: Mapping[str, int], mode: str, asked: tuple[AskedOfSubject, ...]
    ) -> tuple[bytes, bytes]:
        """See :meth:`meterkit.store.views.CustomerView.pack_decide`; ``asked``: of subjects."""
        ...

    def compile(self, quantities: Mapping[str, int]) -> Program:
        """The demand, to the unit, with so much reserved."""
        ...
