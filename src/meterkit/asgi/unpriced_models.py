"""Refuse requests for models without a price, on routes that ask for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.buffered_body import head_of
from meterkit.decisions.decision import RequestProblem
from meterkit.decisions.periods import from_ms
from meterkit.tokens.requested_model import models_in_text, requested_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.store.views import CustomerView

_SHOWN_MAX: Final = 256


def unpriced_problem(
    view: CustomerView, route: Route, models: Sequence[str], unparsed: bytes = b""
) -> RequestProblem | None:
    """Find a model without a price that a request names, on a route that refuses those.

    None: the route refuses none, all models have a price, or none is named.

    Args:
        view: the customer, whose plan says which prices count.
        route: the route.
        models: that the request's head and body name.
        unparsed: a body that cannot be parsed; it is searched for names of models.
    """
    if not route.refuses_unpriced:
        return None
    models = (*models, *models_in_text(unparsed)) if unparsed else models
    unpriced = (model for model in models if not _has_price(view, route, model))
    found = next(unpriced, None)
    return None if found is None else not_priced(found)


def socket_problem(view: CustomerView, route: Route, scope: Scope) -> RequestProblem | None:
    """Find a model without a price in the URL of a websocket."""
    return unpriced_problem(view, route, route.models(requested_models(head_of(scope), ())))


def _has_price(view: CustomerView, route: Route, model: str) -> bool:
    compiled = view.cache
    for meter in route.refuses_unpriced:
        charges = compiled.charges.get(meter)
        if charges is not None:
            at = from_ms(compiled.now_ms())
            if not charges.has_price(model, route.usage, at, route.provider):
                return False
            continue
        rows = view.entitlements[meter].overage.rows
        table = None if view.prepaid is None else view.prepaid.by_model.get(meter)
        if any(one is not None and one.refuses_others and not one.has_price(model) for one in (rows, table)):
            return False
    return True


def not_priced(model: str) -> RequestProblem:
    """Word the problem of a request that names a model without a price."""
    shown = model if len(model) <= _SHOWN_MAX else f"{model[:_SHOWN_MAX]}…"
    return RequestProblem(
        code="model-not-priced",
        detail=f"The model {shown!r} is not sold here, because it has no price. Name another model.",
        members={"model": shown},
    )
