"""A pytest plugin for the suites of other projects: wraps every app under test, writes the outcomes.

Runs in a process of its own. ``SUITE_WRAPPER`` names a factory ``(app) -> app`` as ``module:name``, or is
empty; ``SUITE_OUTCOMES`` names the file that gets a JSON object of test id to outcome.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

Factory = Callable[[ASGIApp], ASGIApp]

outcomes: dict[str, str] = {}


def pytest_configure() -> None:
    name = os.environ["SUITE_WRAPPER"]
    if name:
        module, _, attribute = name.partition(":")
        factory = getattr(importlib.import_module(module), attribute)
        wrap_clients(factory)
        if importlib.util.find_spec("sse_starlette"):
            wrap_event_sources(factory)


def wrap_clients(factory: Factory) -> None:
    """Wrap what Starlette's test client, which is FastAPI's too, is given."""
    # Private names of Starlette's, and a method replaced: this is what the plugin is for.
    module: Any = importlib.import_module("starlette.testclient")
    plain = module.TestClient.__init__

    def wrapped(self: object, app: Any, *args: Any, **kwargs: Any) -> None:
        # An ASGI 2 app is turned into an ASGI 3 app first, as the client would do it.
        as_asgi3 = app if module._is_asgi3(app) else module._WrapASGI2(app)
        plain(self, factory(as_asgi3), *args, **kwargs)

    module.TestClient.__init__ = wrapped


def wrap_event_sources(factory: Factory) -> None:
    """Wrap the responses of sse-starlette, which its tests call as apps of their own."""
    responses: Any = importlib.import_module("sse_starlette.sse").EventSourceResponse
    plain = responses.__call__

    async def wrapped(self: object, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("app") is not None:
            await plain(self, scope, receive, send)  # Of an app that is wrapped already.
            return

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await plain(self, scope, receive, send)

        # Those tests leave out of a scope what a response does not look at.
        whole: Scope = {"method": "GET", "path": "/", "headers": [], **scope}
        await factory(app)(whole, receive, send)

    responses.__call__ = wrapped


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps(outcomes), encoding="utf-8")
