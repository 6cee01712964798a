"""The figures of the operator page: sections of named figures, each with the list that it opens. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from meterkit.pages.listing import Column, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.insights.overview.rows import CustomerTotals

__all__ = ["FIGURE_COLUMNS", "Figure", "Section", "customer_sections", "figure_rows", "figures_json"]

FIGURE_COLUMNS: Final = tuple(Column(name, name) for name in ("section", "figure", "value", "currency"))


class Figure(NamedTuple):
    """One figure.

    Attributes:
        name: in JSON and CSV.
        label: on the page.
        value: None: not known.
        kind: how the page shows it; ``micro``: millionths of the smallest unit of ``currency``; ``share``: a
            number that is 1 for the whole.
        opens: name of the list behind it; empty: there is none.
        of: what that list is asked for, such as a plan.
        currency: of an amount.
    """

    name: str
    label: str
    value: float | None
    kind: Literal["number", "micro", "share"] = "number"
    opens: str = ""
    of: str = ""
    currency: str = ""


class Section(NamedTuple):
    """Figures that belong together.

    Attributes:
        name: in JSON, CSV and as the anchor on the page.
        title: its heading.
        figures: in the order of the page.
        note: what the page says besides, such as why there are no figures.
    """

    name: str
    title: str
    figures: Sequence[Figure]
    note: str = ""


def customer_sections(totals: CustomerTotals, catalog: Catalog) -> Sequence[Section]:
    """What a snapshot says of customers and plans."""
    statuses, accesses = totals["statuses"], totals["accesses"]
    customers = [
        Figure("customers", "Customers", totals["customers"], opens="all"),
        Figure("near", "Near a limit (80 % or more)", totals["near"], opens="near"),
        Figure("past_due", "Past due", statuses.get("past_due", 0), opens="past_due"),
        Figure("unlinked", "Usage waits for a link to Stripe", totals["unlinked"], opens="unlinked"),
        *(
            Figure(f"access_{access}", f"Access {access}", accesses.get(access, 0), opens="access", of=access)
            for access in ("grace", "restricted", "suspended")
        ),
    ]
    names = {key: plan.name for key, plan in catalog.plans.items()}
    plans = [
        Figure(key, names.get(key, key), totals["plans"].get(key, 0), opens="plan", of=key)
        for key in (*names, *(key for key in totals["plans"] if key not in names))
    ]
    return [Section("customers", "Customers", customers), Section("plans", "Customers by plan", plans)]


def figures_json(sections: Iterable[Section]) -> Mapping[str, Mapping[str, object]]:
    """The figures by section and name; amounts of several currencies by currency."""
    found: dict[str, dict[str, object]] = {}
    for section in sections:
        named = found.setdefault(section.name, {})
        for figure in section.figures:
            if figure.currency:
                by_currency = named.setdefault(figure.name, {})
                if isinstance(by_currency, dict):
                    by_currency[figure.currency] = figure.value
            else:
                named[figure.name] = figure.value
    return found


def figure_rows(sections: Iterable[Section]) -> list[Row]:
    """The figures for CSV, one in each row."""
    return [
        {"section": section.name, "figure": figure.name, "value": figure.value, "currency": figure.currency}
        for section in sections
        for figure in section.figures
    ]
