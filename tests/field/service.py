"""The app of the field tests, as servers are told to import it.

Three ways to deploy it: ``app``, where the lifespan reaches the middleware; ``app_without_lifespan``; and,
with ``FIELD_DEPLOYMENT=mounted``, an ``app`` that stands before it and hands no lifespan on.
"""

from __future__ import annotations

import os
import time

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from field.endpoints import PLANS, routes
from meterkit import MeterKit, MeterMiddleware, identify


class ShiftedClock:
    """The host's clock, ``FIELD_CLOCK_AHEAD`` seconds ahead, so that no test depends on today's date."""

    def __init__(self) -> None:
        self._ahead_s = float(os.environ["FIELD_CLOCK_AHEAD"])

    def __call__(self) -> float:
        return time.time() + self._ahead_s


def service(prefix: str) -> Starlette:
    made = Starlette(routes=routes(prefix))
    kit = MeterKit(PLANS, clock=ShiftedClock())
    made.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    return made


async def app_without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """As behind servers and adapters that know no lifespan."""
    if scope["type"] == "lifespan":
        raise RuntimeError("there is no lifespan here")
    await app(scope, receive, send)


# Made once for each process, as apps are.
if os.environ["FIELD_DEPLOYMENT"] == "mounted":
    app = Starlette(routes=[Mount("/api", app=service(""))])
else:
    app = service("/api")
