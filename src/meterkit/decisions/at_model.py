"""What a decision knows of the model: what a unit costs, and under which price it is held. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from meterkit.catalog import Entitlement
    from meterkit.decisions.asked import Demand
    from meterkit.decisions.grants import Prepaid

_NO_ROWS: Final[dict[str, str]] = {}


class AtModel(NamedTuple):
    """What follows from the model of a request.

    Attributes:
        costs: what a unit costs of the meters whose cost depends on the model; None: the most.
        rows: of the meters whose overage has prices by model, where a plan has a budget or subjects and the
            model is known: to the meter that counts the price.
    """

    costs: Mapping[str, int] | None = None
    rows: Mapping[str, str] = _NO_ROWS

    @classmethod
    def of(
        cls,
        costs: Mapping[str, int] | None,
        meters: Iterable[str],
        model: str | None,
        entitlements: Mapping[str, Entitlement],
        *,
        holds_rows: bool,
    ) -> AtModel:
        """What follows for some meters; what is held of no known model may come to cost the highest price."""
        if not model or not holds_rows:
            return cls(costs)
        found = {name: entitlements[name].overage.rows for name in meters}
        return cls(costs, {name: rows.of(model) for name, rows in found.items() if rows is not None})

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells it from others."""
        return (*(self.costs or {}).items(), *self.rows.items())

    def held(self, quantities: Mapping[str, int]) -> dict[str, int]:
        """Quantities to hold, with as much of the meters that count their prices."""
        return {**quantities, **{row: quantities[name] for name, row in self.rows.items()}}

    def asked(self, demands: Mapping[str, Demand]) -> dict[str, Demand]:
        """The same of demands."""
        return {**demands, **{row: demands[name] for name, row in self.rows.items()}}


UNKNOWN_MODEL: Final = AtModel()


def held_at(
    models: Sequence[str | None],
    prepaid: Prepaid | None,
    meters: Iterable[str],
    entitlements: Mapping[str, Entitlement],
    *,
    holds_rows: bool,
) -> AtModel:
    """What quantities of some meters are held at; without a model, or with several, it is the most."""
    model = models[0] if len(models) == 1 else None
    costs = None if prepaid is None else prepaid.held_costs(model)
    return AtModel.of(costs, meters, model, entitlements, holds_rows=holds_rows)
