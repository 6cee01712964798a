"""Notes about what clients choose of a call that money pays: its model, and how it is processed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.additions import reads_tokens
from meterkit.catalog.notes import first_of
from meterkit.catalog.price_table import is_listed
from meterkit.catalog.shapes import kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog.credit_tables import CreditTable, ModelPricesTable
    from meterkit.catalog.errors import Problems
    from meterkit.catalog.model_prices import ModelTerms
    from meterkit.catalog.models import Route
    from meterkit.catalog.routes import RouteTable

_EXAMPLES: Final = {
    "service_tier": "service_tier: {priority: 200%, flex: 50%}",
    "speed": "speed: {fast: 200%}",
    "inference_geo": "inference_geo: {us: 110%}",
}
_ASKED_BY: Final = {
    "openai": ("service_tier",),
    "anthropic": ("speed", "inference_geo"),
    "auto": ("service_tier", "speed"),
}
"""The words of ``usage:``, each with the ways of processing that clients of such an API choose at a price."""


def note_client_choices(
    routes: Iterable[tuple[Route, RouteTable]],
    credits_: Iterable[CreditTable],
    tables: Iterable[ModelPricesTable],
    problems: Problems,
) -> None:
    """Say where a client may choose a model, or a way of processing, that has no price.

    Args:
        routes: those of the file, each as it is written.
        credits_: likewise.
        tables: those of ``prices:``.
        problems: the list to add to.
    """
    calling = [(route, written) for route, written in routes if reads_tokens(route)]
    money = [credit for credit in credits_ if credit.unit == "money"]
    chosen = first_of([repr(route.match) for route, _ in calling if route.model is None])
    without_default = [table for table in tables if not table.has("default")]
    selling: list[CreditTable | ModelPricesTable] = [*money, *without_default]
    for table in selling:
        if chosen and table.unknown_model != "deny":
            message = (
                f"clients choose the model on {chosen}, and calls of a model without a price cost nothing;"
                " write `unknown_model: deny` here to refuse such requests, or `model: NAME` on the route"
            )
            problems.note(table.place("unknown_model"), "informs", message)
    for credit in money:
        terms = kept(credit.models)
        _note_ways(calling, terms, credit, problems)


def _note_ways(
    calling: Sequence[tuple[Route, RouteTable]],
    terms: Mapping[str, ModelTerms],
    credit: CreditTable,
    problems: Problems,
) -> None:
    """Say which prices of the file count for every way of processing, where clients may choose one."""
    asked = {way for route, _ in calling for way in _ASKED_BY.get(route.usage, ())}
    for pattern, one in terms.items():
        missing = [way for way in _EXAMPLES if way in asked and way not in one.factors]
        if missing and one.prices and is_listed(pattern):
            write = " and ".join(f"`{_EXAMPLES[way]}`" for way in missing)
            message = (
                f"these prices count whichever {' or '.join(missing)} a client asks for; write {write} with"
                " them if your app hands that on"
            )
            problems.note(credit.places("models")[pattern], "informs", message)
