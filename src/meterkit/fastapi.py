"""Integration with FastAPI: dependencies, OpenAPI descriptions of refusals, the billing router.

Needs the extra ``fastapi``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, get_args

from meterkit.asgi import admitted_request
from meterkit.asgi.context import EXEMPT, current, require_exchange
from meterkit.asgi.refusal_responses import REFUSAL_TYPES, problem_type_of
from meterkit.decisions.decision import ProblemCode
from meterkit.errors import MeterkitError
from meterkit.problem_types import PROBLEM_JSON, PROBLEM_TYPES
from meterkit.starlette import check_customer_of, respond, webhook_route
from meterkit.subscriptions.billing_requests import BillingResponder
from meterkit.subscriptions.billing_routes import ENDPOINTS

try:
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response, params
    from fastapi.requests import HTTPConnection
except ImportError as error:
    raise ImportError("meterkit.fastapi needs FastAPI: pip install 'meterkit[fastapi]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.decisions.decision import Reason
    from meterkit.subscriptions.billing_routes import BillingEndpoint, BillingKit

__all__ = ["Current", "billing_router", "requires", "responses"]

Requirement = Callable[[HTTPConnection], Awaitable[None]]


def requires(feature: str, /) -> Requirement:
    """Make a dependency that refuses customers whose plan lacks a feature: ``Depends(requires("export"))``.

    They are answered as by a ``feature:`` of the plans file: with the same problem document and fields, or
    by ``on_denied``. The request stays counted in its rates and is not billed. Shadow mode refuses none.
    It is the same dependency for the same feature, so that tests may override it. As a dependency of the
    whole app, ``FastAPI(dependencies=[Depends(requires("export"))])``, it passes lines that are ``exempt``.

    The dependency raises:
        MeterkitError: the request was not decided by MeterMiddleware.
        UnknownFeatureError: the feature is not in the plans file.
        HTTPException: the customer is refused; what handlers answer with its status gives way to the refusal.
    """
    return _requirement(feature)


@cache
def _requirement(feature: str) -> Requirement:
    async def requirement(connection: HTTPConnection) -> None:
        scope = connection.scope
        try:
            decided = require_exchange("requires()", scope)
        except MeterkitError:
            # At an endpoint it contradicts the line: in doubt a gate holds.
            if EXEMPT in scope and any(
                one.dependency is requirement for one in _dependencies_of(scope["app"])
            ):
                return
            raise
        refusal = decided.require(feature)
        if refusal is not None:
            problem_type = problem_type_of(refusal)
            raise HTTPException(problem_type.status, problem_type.title)

    return requirement


def _dependencies_of(app: FastAPI) -> Sequence[params.Depends]:
    """List the dependencies of a whole app."""
    return app.router.dependencies


async def _current() -> admitted_request.Current:
    return current()


Current: TypeAlias = Annotated[admitted_request.Current, Depends(_current)]
"""Argument of an endpoint that gets the result of :func:`meterkit.current`: ``caller: Current``."""


_TEXT: Final = {"type": "string"}
_SECONDS: Final = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
_RETRIED: Final = frozenset({502, 503})
_FIELDS: Final[Mapping[int, Mapping[str, Any]]] = {
    401: {"WWW-Authenticate": {"description": "How to authenticate.", "schema": _TEXT}},
    409: {"Retry-After": _SECONDS},
    429: {
        "Retry-After": _SECONDS,
        "RateLimit-Policy": {"description": "Every limit on the request.", "schema": _TEXT},
        "RateLimit": {"description": "What is left of one of them, and until when.", "schema": _TEXT},
    },
    503: {"Retry-After": _SECONDS},
}


def _answers() -> Iterator[tuple[int, dict[str, Any]]]:
    """Describe the responses to refused requests in OpenAPI, by status."""
    reasons: dict[str, list[Reason]] = {}
    schemas: dict[str, dict[str, Any]] = {}
    types = [problem_type for problem_type, _ in REFUSAL_TYPES.values()]
    for problem_type in (*types, *(PROBLEM_TYPES[code] for code in get_args(ProblemCode))):
        schemas[problem_type.uri] = problem_type.schema()
    for reason, (problem_type, _) in REFUSAL_TYPES.items():
        reasons.setdefault(problem_type.uri, []).append(reason)
        if "reason" in problem_type.members:
            schemas[problem_type.uri]["properties"]["reason"] = {"enum": reasons[problem_type.uri]}
    for status, answer in sorted(_by_status(schemas.values()).items()):
        yield status, answer | ({"headers": dict(_FIELDS[status])} if status in _FIELDS else {})


def _by_status(schemas: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Describe problem documents in OpenAPI, by the status of their schemas."""
    found: dict[int, list[dict[str, Any]]] = {}
    for schema in schemas:
        found.setdefault(schema["properties"]["status"]["const"], []).append(schema)
    return {
        status: {
            "description": " or ".join(one["title"] for one in several),
            "content": {PROBLEM_JSON: {"schema": several[0] if len(several) == 1 else {"oneOf": several}}},
        }
        for status, several in found.items()
    }


responses: Final[dict[int | str, dict[str, Any]]] = dict(_answers())
"""Responses to refused requests, by status: ``FastAPI(responses=responses)``, or a router's."""


def billing_router(
    kit: BillingKit,
    *,
    customer: Callable[..., Any],
    origins: Iterable[str],
    delivery_states: bool = True,
    **options: Any,
) -> APIRouter:
    """Make a router with which customers see and change their own subscriptions, and see their usage.

    ``app.include_router(billing_router(kit, customer=who, origins=["https://app.example"]))``. Only
    ``customer`` identifies a request's customer; the app authenticates and authorizes. In the plans file
    these lines want ``always``, so that a customer who owes can pay. The endpoint of
    :func:`meterkit.starlette.stripe_webhook` is among them, at ``/webhooks/stripe``; its line wants
    ``exempt``, before the others.

    Args:
        kit: the kit of these customers.
        customer: a dependency that returns the customer's id, or None: then the response is 401. The app
            handles the errors it raises.
        origins: of the app, such as ``https://app.example``: to which Stripe may redirect customers.
        delivery_states: False leaves the states of delivery to Stripe (``pending`` to ``dead``) out of usage.
        options: of FastAPI's ``APIRouter``, such as ``prefix``, ``tags`` and ``dependencies``.

    Raises:
        MeterkitError: ``customer`` is missing, or an origin is invalid.
    """
    check_customer_of(customer, "a dependency that gives the customer's id")
    billing = BillingResponder(kit, origins, delivery_states=delivery_states)
    router = APIRouter(**options)
    for endpoint in ENDPOINTS:
        _add_route(router, billing, endpoint, customer)
    # Outside of ``dependencies``: Stripe signs its requests, and does not log in.
    router.routes.append(webhook_route(kit, router.prefix))
    return router


def _add_route(
    router: APIRouter, billing: BillingResponder, endpoint: BillingEndpoint, customer: Callable[..., Any]
) -> None:
    async def run(request: Request, who: Any = Depends(customer)) -> Response:  # noqa: B008 - FastAPI reads it
        return await respond(request, billing=billing, endpoint=endpoint, customer=who)

    run.__name__ = "_".join([endpoint.method.lower(), *endpoint.path.strip("/").split("/")])
    extra: dict[str, Any] = {}
    if endpoint.body_type is not None:
        content = {"application/json": {"schema": endpoint.body_type.model_json_schema()}}
        extra["requestBody"] = {
            "content": content,
            "required": bool(endpoint.body_type.model_json_schema().get("required")),
        }
    if endpoint.query:
        extra["parameters"] = [
            {"name": name, "in": "query", "required": False, "description": text, "schema": _TEXT}
            for name, text in endpoint.query.items()
        ]
    router.add_api_route(
        endpoint.path,
        run,
        methods=[endpoint.method],
        summary=endpoint.summary,
        status_code=endpoint.status,
        response_model=endpoint.response_type,
        responses=_problems(endpoint),
        openapi_extra=extra,
    )


def _problems(endpoint: BillingEndpoint) -> dict[int | str, dict[str, Any]]:
    """Describe the problems of a billing route in OpenAPI, by status."""
    found = _by_status(problem_type.schema() for problem_type in endpoint.problem_types)
    for status in found.keys() & _RETRIED:
        found[status]["headers"] = {"Retry-After": _SECONDS}
    return dict(found.items())
