"""Units that the balances of credits can still pay for. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog


class CreditBalance(NamedTuple):
    """The balance of a credit, in millionths of a credit.

    Attributes:
        costs: meter to its cost per unit, in the same.
    """

    micros: int
    costs: Mapping[str, int]

    def units_of(self, meter: str) -> int:
        """Count the units of a meter that it can pay for alone."""
        return max(0, self.micros) // self.costs[meter] if meter in self.costs else 0


def credit_balances(catalog: Catalog, balance_micros: Mapping[str, int]) -> Sequence[CreditBalance]:
    """List the balances of a customer, by the costs of the plans file."""
    known = catalog.credits
    return [
        CreditBalance(micros, known[name].costs) for name, micros in balance_micros.items() if name in known
    ]


def payable_units(balances: Iterable[CreditBalance], meter: str) -> int:
    """Count the units of a meter that balances can pay for, if no other meter uses them."""
    return sum(balance.units_of(meter) for balance in balances)


def pay_by_credits(balances: Iterable[CreditBalance], units: Mapping[str, int]) -> dict[str, int]:
    """Return the units that balances leave unpaid, by meter."""
    left = dict(units)
    for balance in balances:
        rest = balance
        for meter in balance.costs:
            paid = min(left.get(meter, 0), rest.units_of(meter))
            rest = rest._replace(micros=rest.micros - paid * balance.costs[meter])
            if meter in left:
                left[meter] -= paid
    return left
