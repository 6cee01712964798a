"""The least: one endpoint, one meter, one plan."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from meterkit import MeterKit, MeterMiddleware, identify

PLANS = Path(__file__).with_name("plans.yaml")


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello\n")


def create_app(kit: MeterKit | None = None) -> Starlette:
    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(MeterMiddleware, kit=kit or MeterKit(PLANS), identify=identify.header("x-customer-id"))
    return app
