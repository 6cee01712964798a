"""The demonstration's service: an API that never mentions money."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from meterkit import MeterMiddleware, identify, record
from meterkit.pages import operator_pages, usage_page

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import Scope

    from meterkit import MeterKit

PROMPT_TOKENS: Final = 10
"""What ``POST /v1/generate`` consumes at admission, by the plans file."""


async def _generate(request: Request) -> JSONResponse:
    tokens = int((await request.json())["tokens"])
    record(tokens=tokens)
    return JSONResponse({"tokens": PROMPT_TOKENS + tokens})


async def _report(request: Request) -> JSONResponse:
    return JSONResponse({"report": request.path_params["name"]})


async def _broken(_: Request) -> JSONResponse:
    return JSONResponse({"error": "this one always fails"}, status_code=500)


def _in_path(scope: Scope) -> str:
    """The customer's id in the address; a real app takes it from its session."""
    return str(scope["path_params"]["customer"])


def _demo_operator(_: Scope) -> str:
    """The operator's name; a real app takes it from its session, too."""
    return "demo"


def build(kit: MeterKit, *, pages: bool) -> Starlette:
    """The service, metered.

    Args:
        kit: counts it.
        pages: whether it has the usage page of each customer and the operator pages, open to every client.
    """
    routes: list[BaseRoute] = [
        Route("/v1/generate", _generate, methods=["POST"]),
        Route("/v1/reports/{name}", _report),
        Route("/v1/broken", _broken),
    ]
    if pages:
        usage = usage_page(kit, customer=_in_path, origins=["http://127.0.0.1"])
        operator = operator_pages(kit, allowed=_demo_operator)
        routes += [Mount("/usage/{customer}", app=usage), Mount("/operator", app=operator)]
    service = Starlette(routes=routes)
    service.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    return service
