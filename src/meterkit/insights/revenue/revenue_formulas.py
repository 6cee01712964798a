"""Formulas of recurring revenue: movements, retention, churn, lifetime value, forecast. Pure.

Amounts are in millionths of the currency's smallest unit (micro-cents), each currency by itself. A share is
None if its base is 0.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date

MOVES: Final = ("new", "expansion", "reactivation", "contraction", "churn")
"""Change of the revenue that a customer brings."""

CHURN_MONTHS: Final = 6
"""Calendar months whose churn counts for the lifetime value."""

_CHANGE_MONTHS: Final = 3
_ERROR_MONTHS: Final = 6
FORECAST_MONTHS: Final = _ERROR_MONTHS + _CHANGE_MONTHS + 1
"""Months whose revenue a forecast needs, with its error."""


class CustomerPayment(NamedTuple):
    """Monthly recurring revenue of a customer on a day; absent if 0.

    Attributes:
        mrr: in a month (micro-cents); above 0.
    """

    customer: str
    plan: str
    currency: str
    mrr: int


class OverageAmount(NamedTuple):
    """Overage of a customer in the periods that ended on a day.

    Attributes:
        amount: what that costs (micro-cents); above 0.
    """

    customer: str
    currency: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DayFigures:
    """Revenue of all customers at the end of a day in a currency, and the day's movements.

    ``new + expansion + reactivation - contraction - churn`` is the change of ``mrr``, exactly.

    Attributes:
        mrr: of all customers (micro-cents).
        new: of those who never brought anything before, in this currency.
        expansion: of those who bring more than the day before.
        reactivation: of those who brought something once, and nothing the day before.
        contraction: what others bring less.
        churn: what those brought who bring nothing now.
        customers: how many bring something.
        new_customers, churned_customers: of ``new`` and of ``churn``.
    """

    mrr: int = 0
    new: int = 0
    expansion: int = 0
    reactivation: int = 0
    contraction: int = 0
    churn: int = 0
    customers: int = 0
    new_customers: int = 0
    churned_customers: int = 0


class RetentionShares(NamedTuple):
    """Retention: the share of the revenue at the beginning of a span that remains at its end.

    Attributes:
        net: of those customers' revenue, what they bring at its end (NRR).
        gross: the same, each customer counted with at most their revenue at the beginning (GRR).
    """

    net: float | None
    gross: float | None


class RetainedSums(NamedTuple):
    """Revenue of the customers of a day (micro-cents).

    Attributes:
        start: on that day; above 0.
        end: of the same customers, on a later day.
        capped: the same, of each customer at most its revenue of the first day.
    """

    start: int
    end: int
    capped: int


def retention_of(sums: RetainedSums) -> RetentionShares:
    """Net and gross retention. Who came later, or came back, is no part of it."""
    return RetentionShares(_share(sums.end, sums.start), _share(sums.capped, sums.start))


class MonthlyChurn(NamedTuple):
    """The customers of a month in one currency.

    Attributes:
        customers: who brought something when it began.
        churned: of all days of the month.
    """

    customers: int
    churned: int


def lifetime_value(mrr: int, customers: int, months: Sequence[MonthlyChurn]) -> int | None:
    """Lifetime value (micro-cents): revenue per customer, divided by the monthly churn.

    The share is the mean of several months, as at ChartMogul
    (https://help.chartmogul.com/hc/en-us/articles/203359061-Chart-Customer-Lifetime-Value-LTV). None: no
    customer pays, or none has left.
    """
    shares = [Fraction(month.churned, month.customers) for month in months if month.customers]
    churn = sum(shares, Fraction(0)) / len(shares) if shares else Fraction(0)
    return round(Fraction(mrr, customers) / churn) if customers and churn else None


class ChurnShares(NamedTuple):
    """Shares lost in a span.

    Attributes:
        customers: of the customers at its beginning, those who left.
        gross: of the revenue at its beginning, what was lost by churn and contraction.
        net: the same, less what was won by expansion and reactivation; below 0 where that is more.
    """

    customers: float | None
    gross: float | None
    net: float | None


def churn_of(start: DayFigures | None, moved: DayFigures | None) -> ChurnShares:
    """The shares that were lost, as at ChartMogul.

    By its standard formula: https://help.chartmogul.com/hc/en-us/articles/203359341-Metric-MRR-Churn-Rate

    Args:
        start: the day before the span; None: no customer brought anything.
        moved: what moved in the span.
    """
    start, moved = start or DayFigures(), moved or DayFigures()
    lost = moved.churn + moved.contraction
    return ChurnShares(
        _share(moved.churned_customers, start.customers),
        _share(lost, start.mrr),
        _share(lost - moved.expansion - moved.reactivation, start.mrr),
    )


class RevenueForecast(NamedTuple):
    """The revenue expected a month later.

    Attributes:
        mrr: in micro-cents.
        error: how far such a forecast was off in the last six months, on average, as a share of what came;
            None: there was none.
    """

    mrr: int
    error: float | None


def forecast_revenue(mrr: Sequence[int]) -> RevenueForecast | None:
    """Expect that revenue changes as it did in the last three months, on average; None: of one month alone.

    Args:
        mrr: month after month (micro-cents), the last one last.
    """
    if len(mrr) <= 1:
        return None
    tried = range(max(2, len(mrr) - _ERROR_MONTHS), len(mrr))
    off = [abs(_expected(mrr[:nth]) - mrr[nth]) / mrr[nth] for nth in tried if mrr[nth]]
    return RevenueForecast(_expected(mrr), sum(off) / len(off) if off else None)


def _expected(mrr: Sequence[int]) -> int:
    known = mrr[-_CHANGE_MONTHS - 1 :]
    return max(0, round(mrr[-1] + Fraction(known[-1] - known[0], len(known) - 1)))


def sum_days(days: Iterable[Mapping[str, DayFigures]]) -> dict[str, DayFigures]:
    """The movements of several days, one after the other; ``mrr`` and ``customers`` are those of the last."""
    found: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for day in days:
        for of in found.values():
            of.update(mrr=0, customers=0)
        for currency, figures in day.items():
            of = found[currency]
            for name, amount in asdict(figures).items():
                of[name] = amount if name in {"mrr", "customers"} else of[name] + amount
    return {currency: DayFigures(**of) for currency, of in sorted(found.items())}


def months_before(day: date, count: int) -> date:
    """Day of the month some months earlier, at most that month's last."""
    last = day
    for _ in range(count):
        last = last.replace(day=1) - timedelta(days=1)
    return last.replace(day=min(day.day, last.day))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
