"""Prices at which a request holds quantities: of its model, or the highest if that is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from meterkit.catalog import Entitlement
    from meterkit.decisions.grants import Prepaid

_T = TypeVar("_T")
_NO_ROWS: Final[dict[str, str]] = {}


class ModelPricing(NamedTuple):
    """Costs and prices by the model of a request.

    Attributes:
        costs: cost of a unit, by meter whose cost depends on the model; None: the highest ones.
        rows: meter with prices by model, to the meter that counts the model's price; empty if the model is
            not known, or the plan has neither a budget nor subjects.
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
    ) -> ModelPricing:
        """Pricing of some meters; without a known model, holds are at the highest price."""
        if not model or not holds_rows:
            return cls(costs)
        found = {name: entitlements[name].overage.rows for name in meters}
        return cls(costs, {name: rows.of(model) for name, rows in found.items() if rows is not None})

    @property
    def key(self) -> tuple[Hashable, ...]:
        """Cache key."""
        return (*(self.costs or {}).items(), *self.rows.items())

    def add_price_rows(self, by_meter: Mapping[str, _T]) -> dict[str, _T]:
        """Quantities or demands by meter, with the same ones of the meters that count their prices."""
        return {**by_meter, **{row: by_meter[name] for name, row in self.rows.items()}}


UNKNOWN_MODEL: Final = ModelPricing()


def model_terms_to_hold(
    models: Sequence[str | None],
    prepaid: Prepaid | None,
    meters: Iterable[str],
    entitlements: Mapping[str, Entitlement],
    *,
    holds_rows: bool,
) -> ModelPricing:
    """Pricing at which quantities are held; without a model, or with several, the highest."""
    model = models[0] if len(models) == 1 else None
    costs = None if prepaid is None else prepaid.held_costs(model)
    return ModelPricing.of(costs, meters, model, entitlements, holds_rows=holds_rows)
