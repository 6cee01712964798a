"""What a decision has taken, and what is to be said of it when it is settled. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.views import PreparedDecision

__all__ = ["Correction", "Held", "Mark"]

_NOTHING: Final[dict[str, int]] = {}


class Held(NamedTuple):
    """What an allowed decision holds.

    Attributes:
        quantities: by meter.
        concurrency: meters of whose concurrency it holds one.
        slot: of five minutes, that it was added to.
    """

    quantities: Mapping[str, int] = _NOTHING
    concurrency: tuple[str, ...] = ()
    slot: int = 0

    @classmethod
    def of(cls, decision: PreparedDecision, slot: int) -> Self:
        """What a decision holds, if it allowed."""
        return cls(decision.held, decision.program.concurrency, slot)


class Correction(NamedTuple):
    """What rates have counted already of quantities that were not known yet; it is corrected.

    Attributes:
        reserved: meter to the quantity that was counted.
        rates: the fields of the rates.
        at_ms: when that was.
    """

    reserved: Mapping[str, int] = _NOTHING
    rates: frozenset[str] = frozenset()
    at_ms: int = 0


class Mark(NamedTuple):
    """That a request with an idempotency key has ended.

    Attributes:
        digest: of the key.
        billed: whether it is remembered from now on.
    """

    digest: str
    billed: bool

    @classmethod
    def of(cls, decision: PreparedDecision, *, billed: bool) -> Self | None:
        """Of a request so decided; None: it has no such key, or is a repeat."""
        return cls(decision.digest, billed) if decision.digest else None
