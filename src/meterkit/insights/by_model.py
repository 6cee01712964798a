"""Usage of a customer by model: recorded units, cost and revenue from the audit log."""

from __future__ import annotations

from asyncio import to_thread
from fractions import Fraction
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.usage_meters import USAGE_METERS
from meterkit.decisions.periods import to_ms
from meterkit.insights.audit.async_database import open_database

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.insights.audit.database import ModelSum
    from meterkit.settings import Settings
    from meterkit.store.customer_usage import PeriodUsage
    from meterkit.store.store import Store

_COMPARED: Final = BALANCE_CURRENCY


class EarnedAmounts(TypedDict):
    """Cost and revenue in micro-units (10^-6 of the currency), each rounded once, half to even.

    ``cost_micros`` is the price of the providers, in US dollars; None: a model has no known price, so that
    ``margin_micros`` is None, too. ``revenue_micros`` is overage at its price and what a credit in money was
    charged. In another currency than US dollars ``margin_micros`` is None, and charges are left out of the
    revenue: they are in US dollars.
    """

    cost_micros: int | None
    revenue_micros: int
    margin_micros: int | None


class EarnedByMeter(EarnedAmounts):
    """Cost and revenue of one meter, with the recorded units."""

    recorded: int


class EarnedByModel(EarnedAmounts):
    """Cost and revenue of one model, and the ``units`` of its calls by the price table's names."""

    units: dict[str, int]
    meters: dict[str, EarnedByMeter]


class ModelUsage(EarnedAmounts):
    """Usage of a customer in a period by model; the model ``""`` stands for usage of no known model."""

    customer: str
    period: PeriodUsage
    currency: str
    models: dict[str, EarnedByModel]


class _MeterSum(NamedTuple):
    recorded: int = 0
    cost: int = 0
    revenue: Fraction = Fraction(0)

    def plus(self, more: _MeterSum) -> _MeterSum:
        return _MeterSum(self.recorded + more.recorded, self.cost + more.cost, self.revenue + more.revenue)

    def earned(self, currency: str, *, is_cost_known: bool) -> EarnedAmounts:
        has_margin = is_cost_known and currency == _COMPARED
        return {
            "cost_micros": self.cost if is_cost_known else None,
            "revenue_micros": round(self.revenue),
            "margin_micros": round(self.revenue - self.cost) if has_margin else None,
        }


async def usage_by_model(store: Store, settings: Settings, customer: str, at_ms: int | None) -> ModelUsage:
    """Usage of a customer in a period by model; see :meth:`meterkit.MeterKit.usage`.

    Raises:
        SettingsError: there is no audit log, or its database cannot be used.
        ImportError: SQLAlchemy is not installed.
        StoreError: the store does not answer.
        MeterkitError: the database does not answer.
    """
    database = open_database(settings, "usage by model is")
    usage = await store.usage(customer, at_ms=at_ms)
    period, currency = usage["period"], usage["currency"]
    read: Any = import_module("meterkit.insights.audit.database")  # SQLAlchemy is an extra.
    meters = store.catalog.meters
    spends = {name for name, meter in meters.items() if meter.is_spend}  # It is revenue already.
    start_ms = to_ms(period["start"])
    asked = await to_thread(read.model_sums, database, customer, start_ms)
    charges = {name for name, meter in meters.items() if meter.charges is not None}
    left_out = spends if currency == _COMPARED else spends | charges
    sums = [one for one in asked if one.meter not in left_out]
    units = await to_thread(read.unit_sums, database, customer, start_ms)
    return sum_by_model(customer, period, sums, currency, units)


def sum_by_model(
    customer: str,
    period: PeriodUsage,
    sums: Iterable[ModelSum],
    currency: str,
    units: Mapping[str, dict[str, int]],
) -> ModelUsage:
    """Build the usage by model from the log's sums. Pure."""
    found, costed, used = dict[str, dict[str, _MeterSum]](), set[str](), {*units}
    for one in sums:
        if one.cost_micros is not None:
            costed.add(one.model)
        if one.meter in USAGE_METERS and one.recorded:
            used.add(one.model)
        revenue = Fraction(one.priced * one.price_micros, one.price_per)
        meters = found.setdefault(one.model, {})
        # What a table prices by model is counted once more by price: the same units.
        meter, _, price = one.meter.partition(":")
        recorded = 0 if price else one.recorded
        meters[meter] = meters.get(meter, _MeterSum()).plus(
            _MeterSum(recorded, one.cost_micros or 0, revenue)
        )
    unknown = used - costed  # Other usage, such as requests, costs nothing at a provider.
    of_models = {model: _add_up(meters) for model, meters in found.items()}
    return {
        "customer": customer,
        "period": period,
        "currency": currency,
        **_add_up(of_models).earned(currency, is_cost_known=unknown.isdisjoint(found)),
        "models": {
            model: {
                **of_models[model].earned(currency, is_cost_known=model not in unknown),
                "units": units.get(model, {}),
                "meters": {
                    meter: {
                        "recorded": one.recorded,
                        **one.earned(currency, is_cost_known=model not in unknown),
                    }
                    for meter, one in meters.items()
                },
            }
            for model, meters in found.items()
        },
    }


def _add_up(sums: dict[str, _MeterSum]) -> _MeterSum:
    total = _MeterSum()
    for one in sums.values():
        total = total.plus(one)
    return total
