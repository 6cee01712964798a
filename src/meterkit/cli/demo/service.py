"""The demonstration's service: an API that never mentions money. Run as a process of its own."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from meterkit import MeterKit, MeterMiddleware, identify, record

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

__all__ = ["PLANS", "PROMPT_TOKENS", "build"]

PLANS: Final = Path(__file__).with_name("plans.yaml")
PROMPT_TOKENS: Final = 10
"""What ``POST /v1/generate`` consumes at admission, by the plans file."""


async def _generate(request: Request) -> JSONResponse:
    tokens = int((await request.json())["tokens"])
    record(tokens=tokens)
    return JSONResponse({"tokens": PROMPT_TOKENS + tokens})


async def _report(request: Request) -> JSONResponse:
    return JSONResponse({"report": request.path_params["name"]})


async def _broken(request: Request) -> JSONResponse:
    del request
    return JSONResponse({"error": "this one always fails"}, status_code=500)


async def _healthz(request: Request) -> JSONResponse:
    del request
    return JSONResponse({"ok": True})


def build() -> ASGIApp:
    """The service, metered. The store is named by ``METERKIT_REDIS_URL``."""
    service = Starlette(
        routes=[
            Route("/healthz", _healthz),
            Route("/v1/generate", _generate, methods=["POST"]),
            Route("/v1/reports/{name}", _report),
            Route("/v1/broken", _broken),
        ]
    )
    service.add_middleware(MeterMiddleware, kit=MeterKit(PLANS), identify=identify.header("x-customer-id"))
    return service


def main() -> None:
    """Serve on the listening socket whose descriptor is the first argument."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(build(), log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
