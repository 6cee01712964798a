"""Idempotency marks of the app's event ids: quantities by meter; see ``compare_event.lua``. Pure.

A job may record several meters under one id, so a mark has each meter with its quantity. Another quantity
under the same id is an error of the caller, not a repeat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

from meterkit.decisions.keys import meter_token
from meterkit.decisions.packed import compact_json, unpack_field

if TYPE_CHECKING:
    from collections.abc import Mapping

UNCOMPARED: Final = -1
"""Placeholder for a quantity that may differ in a repeat: a charge depends on the prices of its day."""

_NO_QUANTITIES: Final[dict[str, int]] = {}


class EventMark(NamedTuple):
    """An event id, and the quantities that are given with it.

    Attributes:
        key: the Redis key of its mark.
        event_id: the app's id, empty if it gave none; a provider's job counts by an id of meterkit's own.
        quantities: by meter; empty: the id counts once, with any quantities.
    """

    key: str
    event_id: str = ""
    quantities: Mapping[str, int] = _NO_QUANTITIES

    @property
    def name(self) -> str:
        """The app's id, without the number that ``record_usage`` adds for further models."""
        return self.event_id.partition("\0")[0]

    def terms(self) -> str:
        """Further terms of a settlement, as JSON."""
        given = [
            part for meter, quantity in self.quantities.items() for part in (meter_token(meter), quantity)
        ]
        return compact_json({"event": given})

    def uncounted(self, kept: bytes) -> Self:
        """Mark reduced to the meters that the stored mark lacks."""
        counted = read_mark(kept)
        left = {
            meter: quantity
            for meter, quantity in self.quantities.items()
            if meter_token(meter) not in counted
        }
        return self._replace(quantities=left)

    def refusal(self, customer: str, kept: bytes) -> str:
        """Error message for a quantity that differs from the recorded one."""
        counted = read_mark(kept)
        differing = (
            f"{counted[meter_token(meter)]} of {meter} were recorded under it before,"
            f" now {quantity} are given"
            for meter, quantity in self.quantities.items()
            if counted.get(meter_token(meter), UNCOMPARED) not in {UNCOMPARED, quantity}
            and quantity != UNCOMPARED
        )
        return (
            f"event_id {self.name!r} of customer {customer!r}: {'; '.join(differing)}; nothing of this"
            " call is recorded: give other usage an event_id of its own, and repeat a call with"
            " the same quantities"
        )


def read_mark(kept: bytes) -> dict[str, int]:
    """Quantities that an event id has counted, by the token of their meter."""
    fields = iter(unpack_field(kept))
    return {
        token.decode(): quantity
        for token, quantity in zip(fields, fields, strict=True)
        if isinstance(token, bytes) and isinstance(quantity, int)
    }


def read_gauge_mark(kept: bytes, gauge: str) -> str:
    """Change of a gauge that an event id has made: ``set 9`` or ``adjust -2``."""
    fields = iter(unpack_field(kept))
    changes = dict(zip(fields, fields, strict=True))
    change = changes[meter_token(gauge).encode()]
    return change.decode() if isinstance(change, bytes) else str(change)
