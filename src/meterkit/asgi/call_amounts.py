"""Quantities that calls of language models come to on the meters of the plans file. Pure."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.periods import from_ms
from meterkit.store.hold import Used
from meterkit.tokens.charging import charged_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.store.compiled import CompiledCatalog
    from meterkit.tokens.call_usage import CallUsage

_Key: TypeAlias = tuple[str | None, str | None]
"""Model and provider; both None for usage that is counted whatever it is of."""
Amounts: TypeAlias = dict[tuple[_Key, bool, str], int | Fraction]
"""Quantities by key, whether they are billed (else rated), and meter; what is charged is exact."""

ALL_CALLS: Final[_Key] = (None, None)
_COST_OF: Final = "cost of "
"""Marks a cost: it stands before the name of the meter whose tokens cost it. No meter has such a name."""
_UNPRICED: Final = "unpriced "
"""Marks how many calls of a model have no price, likewise."""
_UNIT: Final = "unit "
"""Marks a counter of the price table, for the audit log, likewise."""


def used_by_model(calls: Iterable[CallUsage], compiled: CompiledCatalog) -> list[Used]:
    """Add up what calls have used: by model and provider where meters ask for them."""
    return used_of(amounts_of(calls, compiled), compiled)


def dimensions_of(model: str | None, provider: str | None) -> dict[str, str]:
    """Model and provider as the conditions of derived meters know them."""
    return {name: value for name, value in (("model", model), ("provider", provider)) if value is not None}


class _Parts(NamedTuple):
    recorded: dict[str, int]
    rated: dict[str, int]
    charged: dict[str, Fraction]
    costs: dict[str, Fraction]
    units: dict[str, int]
    unpriced: dict[str, int]


def used_of(amounts: Amounts, compiled: CompiledCatalog) -> list[Used]:
    """Amounts as the store records them: one part for each model and provider."""
    found: dict[_Key, _Parts] = {}
    for (key, billed, meter), quantity in amounts.items():
        recorded, rated, charged, costs, units, unpriced = found.setdefault(
            key, _Parts({}, {}, {}, {}, {}, {})
        )
        if meter.startswith(_COST_OF):
            costs[meter.removeprefix(_COST_OF)] = Fraction(quantity)
        elif meter.startswith(_UNIT):
            units[meter.removeprefix(_UNIT)] = int(quantity)
        elif meter.startswith(_UNPRICED):
            unpriced[meter.removeprefix(_UNPRICED)] = int(quantity)
        elif meter in compiled.charges:
            charged[meter] = Fraction(quantity)
        else:
            (recorded if billed else rated)[meter] = int(quantity)
    known = compiled.costs()
    version = "" if known is None else known.version
    return [
        Used(
            parts.recorded,
            parts.rated,
            dimensions_of(*key),
            charged=parts.charged,
            costs=parts.costs,
            version=version,
            units=parts.units,
            unpriced=parts.unpriced,
        )
        for key, parts in found.items()
    ]


def amounts_of(calls: Iterable[CallUsage], compiled: CompiledCatalog) -> Amounts:
    """Add up calls on the meters that are declared as plain counters, with what they cost."""
    plain, by_model, sources = compiled.counters, compiled.by_model, compiled.catalog.billing.sources
    # What no model's price is known of costs the highest: a client may have seen to that.
    unknown = "" if compiled.has_model_prices else None
    costs, at = compiled.costs(), from_ms(compiled.now_ms())
    is_audited = compiled.settle_audited is not None
    found: Amounts = {}
    for call in calls:
        key = (call.model or unknown, call.provider or None) if by_model else ALL_CALLS
        reports = (call, call.snapshot) if call.snapshot is not None else (call,)
        counted = next((report for report in reports if report.source in sources), None)
        for billed, report in ((True, counted), (False, call)):
            for meter, quantity in report.quantities().items() if report is not None else ():
                if quantity and meter in plain:
                    place = (key, billed, meter)
                    found[place] = min(found.get(place, 0) + quantity, QUANTITY_MAX)
        if counted is not None:
            charged, is_unpriced = charged_of(compiled.charges, counted, at)
            for meter, amount in charged.items():
                found[key, True, meter] = found.get((key, True, meter), 0) + amount
            if is_unpriced or compiled.lacks_price(counted):
                place = (key, True, _UNPRICED + (call.model or ""))
                found[place] = found.get(place, 0) + 1
        for unit, count in counted.units.items() if counted is not None and is_audited else ():
            place = (key, True, _UNIT + unit)
            found[place] = found.get(place, 0) + count
        for meter, cost in costs.of(counted or call, at).items() if costs is not None else ():
            place = (key, True, _COST_OF + meter)
            found[place] = found.get(place, 0) + cost
    return found


def amounts_beyond(counted: Amounts, found: Amounts) -> Amounts:
    """Usage found beyond the usage counted: by key, and never more than over all keys together."""
    left: dict[tuple[bool, str], int | Fraction] = {}
    for amounts, sign in ((found, 1), (counted, -1)):
        for (_, billed, meter), quantity in amounts.items():
            left[billed, meter] = left.get((billed, meter), 0) + sign * quantity
    more: Amounts = {}
    for (key, billed, meter), quantity in found.items():
        place = (key, billed, meter)
        added = min(quantity - counted.get(place, 0), left[billed, meter])
        if added > 0:
            more[place] = added
            left[billed, meter] -= added
    return more
