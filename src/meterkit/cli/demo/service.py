"""The demonstration's service: an API that never mentions money."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from meterkit import MeterMiddleware, identify, record

if TYPE_CHECKING:
    from starlette.requests import Request

    from meterkit import MeterKit

__all__ = ["build"]

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


def build(kit: MeterKit) -> Starlette:
    """The service, metered."""
    service = Starlette(
        routes=[
            Route("/v1/generate", _generate, methods=["POST"]),
            Route("/v1/reports/{name}", _report),
            Route("/v1/broken", _broken),
        ]
    )
    service.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    return service
