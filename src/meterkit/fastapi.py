"""Integration with FastAPI: dependencies, OpenAPI descriptions of refusals, the billing router.

Needs the extra ``fastapi``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from meterkit.asgi import admitted
from meterkit.asgi.context import EXEMPT, current, require_exchange
from meterkit.asgi.problems import REFUSAL_TYPES, REQUEST_PROBLEM_TYPES, problem_type_of
from meterkit.errors import MeterkitError
from meterkit.starlette import check_customer_of, respond, webhook_route
from meterkit.subscriptions.billing_answers import BillingResponder
from meterkit.subscriptions.billing_routes import ENDPOINTS
from meterkit.subscriptions.problem_documents import KINDS, schema_of

try:
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response, params
    from fastapi.requests import HTTPConnection
except ImportError as error:
    raise ImportError("meterkit.fastapi needs FastAPI: pip install 'meterkit[fastapi]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.answers import ProblemType
    from meterkit.decisions.decision import Reason
    from meterkit.subscriptions.billing_routes import BillingEndpoint, BillingKit

__all__ = ["Current", "billing_router", "requires", "responses"]

Requirement = Callable[[HTTPConnection], Awaitable[None]]


def requires(feature: str, /) -> Requirement:
    """A dependency that refuses customers whose plan lacks a feature: ``Depends(requires("export"))``.

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
            about = problem_type_of(refusal)
            raise HTTPException(about.status, about.title)

    return requirement


def _dependencies_of(app: FastAPI) -> Sequence[params.Depends]:
    """The dependencies of a whole app."""
    return app.router.dependencies


async def _current() -> admitted.Current:
    return current()


Current: TypeAlias = Annotated[admitted.Current, Depends(_current)]
"""Argument of an endpoint that gets the result of :func:`meterkit.current`: ``caller: Current``."""


_TEXT: Final = {"type": "string"}
_URI: Final = {"type": "string", "format": "uri"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_QUANTITY: Final = {"type": "integer", "minimum": 0}
_OFFER: Final = {
    "type": "object",
    "properties": {
        "credit": _TEXT,
        "top_up_url": _URI,
        "amounts_cents": {"type": "array", "items": _QUANTITY},
        "currency": _TEXT,
    },
    "required": ["credit", "top_up_url", "amounts_cents", "currency"],
}
_MEMBERS: Final[Mapping[str, Mapping[str, Any]]] = {
    REFUSAL_TYPES["rate"].problem.uri: {"violated-policies": _TEXTS, "offer": _OFFER},
    REFUSAL_TYPES["suspended"].problem.uri: {"reason": _TEXT, "portal_url": _URI, "offer": _OFFER},
    REFUSAL_TYPES["spend"].problem.uri: {
        "limit_cents": _QUANTITY,
        "spent_cents": _QUANTITY,
        "currency": _TEXT,
        "reset_after_s": _QUANTITY,
    },
    REFUSAL_TYPES["feature"].problem.uri: {"feature": _TEXT, "plan": _TEXT, "available_in": _TEXTS},
    REFUSAL_TYPES["seats"].problem.uri: {"limit": _QUANTITY, "used": _QUANTITY},
    REFUSAL_TYPES["storage"].problem.uri: {"limit": _QUANTITY, "used": _QUANTITY, "requested": _QUANTITY},
}
_OPTIONAL: Final = frozenset({"offer", "portal_url", "reset_after_s"})
_SECONDS: Final = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
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
    kinds: dict[str, tuple[ProblemType, list[Reason]]] = {}
    for reason, (about, _) in REFUSAL_TYPES.items():
        kinds.setdefault(about.uri, (about, []))[1].append(reason)
    kinds |= {about.uri: (about, []) for about in REQUEST_PROBLEM_TYPES.values()}
    by_status: dict[int, list[dict[str, Any]]] = {}
    for about, reasons in kinds.values():
        by_status.setdefault(about.status, []).append(_document(about, reasons))
    for status, documents in sorted(by_status.items()):
        answer: dict[str, Any] = {
            "description": " or ".join(document["title"] for document in documents),
            "content": {
                "application/problem+json": {
                    "schema": documents[0] if len(documents) == 1 else {"oneOf": documents}
                }
            },
        }
        if status in _FIELDS:
            answer["headers"] = dict(_FIELDS[status])
        yield status, answer


def _document(about: ProblemType, reasons: list[Reason]) -> dict[str, Any]:
    """The schema of the problem documents of one type (RFC 9457)."""
    members = {**_MEMBERS.get(about.uri, {}), **about.members}
    if "reason" in members:
        members["reason"] = {"enum": reasons}
    properties: dict[str, Any] = {
        "type": {"const": about.uri},
        "title": {"const": about.title},
        "status": {"const": about.status},
        "detail": _TEXT,
        "instance": _URI,
    }
    properties |= members
    required = [name for name in properties if name not in _OPTIONAL]
    return {"title": about.title, "type": "object", "properties": properties, "required": required}


responses: Final[dict[int | str, dict[str, Any]]] = dict(_answers())
"""Responses to refused requests, by status: ``FastAPI(responses=responses)``, or a router's."""


def billing_router(
    kit: BillingKit, *, customer: Callable[..., Any], origins: Iterable[str], **options: Any
) -> APIRouter:
    """A router by which customers see and change their own subscriptions, and what they used.

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
        options: of FastAPI's ``APIRouter``, such as ``prefix``, ``tags`` and ``dependencies``.

    Raises:
        MeterkitError: ``customer`` is missing, or an origin is invalid.
    """
    check_customer_of(customer, "a dependency that gives the customer's id")
    billing = BillingResponder(kit, origins)
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
    if endpoint.takes is not None:
        content = {"application/json": {"schema": endpoint.takes.model_json_schema()}}
        extra["requestBody"] = {
            "content": content,
            "required": bool(endpoint.takes.model_json_schema().get("required")),
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
        response_model=endpoint.gives,
        responses=_problems(endpoint),
        openapi_extra=extra,
    )


def _problems(endpoint: BillingEndpoint) -> dict[int | str, dict[str, Any]]:
    """Describe the problems of a billing route in OpenAPI, by status."""
    by_status: dict[int, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(endpoint.kinds):
        by_status.setdefault(KINDS[name].status, []).append(schema_of(KINDS[name]))
    return {
        status: {
            "description": " or ".join(schema["title"] for schema in schemas),
            "content": {
                "application/problem+json": {
                    "schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
                }
            },
            **({"headers": {"Retry-After": _SECONDS}} if status in {502, 503} else {}),
        }
        for status, schemas in by_status.items()
    }
