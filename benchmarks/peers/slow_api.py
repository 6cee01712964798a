"""slowapi: its ASGI middleware with a default limit, as its documentation recommends.

Its storage is the synchronous redis client; there is no asynchronous one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.middleware import SlowAPIASGIMiddleware

from peers.bare import CUSTOMER_HEADER, LIMIT_PER_HOUR, starlette_app

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp


def customer(request: Request) -> str:
    return request.headers[CUSTOMER_HEADER.decode()]


def build(redis_url: str) -> ASGIApp:
    app = starlette_app()
    app.state.limiter = Limiter(
        key_func=customer, default_limits=[f"{LIMIT_PER_HOUR}/hour"], storage_uri=redis_url
    )
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    app.add_middleware(SlowAPIASGIMiddleware)
    return app
