"""Refusals of a request for what it asks, whatever its customer has left: their types and their words."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.answers import URN, ProblemType
from meterkit.decisions.decision import RequestProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.decisions.decision import ProblemCode
    from meterkit.tokens.request import NamedLimit


_SHOWN_MAX: Final = 256


def _problem_type(code: ProblemCode, title: str, members: Mapping[str, str]) -> ProblemType:
    schemas = {name: {"type": kind} for name, kind in members.items()}
    return ProblemType(HTTPStatus.BAD_REQUEST.value, f"{URN}{code}", title, schemas)


REQUEST_PROBLEM_TYPES: Final[Mapping[ProblemCode, ProblemType]] = {
    "request-above-ceiling": _problem_type(
        "request-above-ceiling",
        "Request Above Ceiling",
        {"field": "string", "asked": "integer", "ceiling": "integer"},
    ),
    "model-not-priced": _problem_type("model-not-priced", "Model Not Priced", {"model": "string"}),
}
"""Each with the JSON types of its members."""


def above_ceiling(named: NamedLimit, asked: int, ceiling: int) -> RequestProblem:
    """The problem of a request that names more than a line of ``reserve:`` allows.

    Args:
        named: the field and its figure.
        asked: for all answers together.
        ceiling: of the line.
    """
    times = "" if asked == named.quantity else f" ({named.quantity} for each answer)"
    return RequestProblem(
        code="request-above-ceiling",
        detail=(
            f"{named.field} asks for {asked}{times}; one request may ask for {ceiling} at most, all its"
            " answers together. Ask for less."
        ),
        members={"field": named.field, "asked": asked, "ceiling": ceiling},
    )


def not_priced(model: str) -> RequestProblem:
    """The problem of a request that names a model for which this service has no price."""
    shown = model if len(model) <= _SHOWN_MAX else f"{model[:_SHOWN_MAX]}…"
    return RequestProblem(
        code="model-not-priced",
        detail=f"The model {shown!r} is not sold here, because it has no price. Name another model.",
        members={"model": shown},
    )
