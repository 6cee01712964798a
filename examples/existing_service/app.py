"""The same service, metered: who is asking is known already, so that is who is limited and billed."""

import os
from pathlib import Path

from service import add_note, create_database, create_service
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from meterkit import MeterKit, MeterMiddleware, identify, record

PLANS = Path(__file__).with_name("plans.yaml")


async def add_metered_note(request: Request) -> Response:
    record("characters", len((await request.json())["text"]))
    return await add_note(request)


def create_app(kit: MeterKit | None = None, engine: Engine | None = None) -> Starlette:
    meter = Middleware(MeterMiddleware, kit=kit or MeterKit(PLANS), identify=identify.user())
    engine = engine or create_database(os.environ.get("DATABASE_URL", "sqlite:///notes.db"))
    return create_service(engine, add=add_metered_note, inner=(meter,))
