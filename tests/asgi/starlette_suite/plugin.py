"""A pytest plugin for Starlette's own suite: wraps every app that a test client gets, writes the outcomes.

Runs in a process of its own. ``SUITE_WRAPPER`` names a factory ``(app) -> app`` as ``module:name``, or is
empty; ``SUITE_OUTCOMES`` names the file that gets a JSON object of test id to outcome.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette import testclient

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from starlette.types import ASGIApp

outcomes: dict[str, str] = {}


def pytest_configure() -> None:
    name = os.environ["SUITE_WRAPPER"]
    if name:
        module, _, attribute = name.partition(":")
        wrap_clients(getattr(importlib.import_module(module), attribute))


def wrap_clients(factory: Callable[[ASGIApp], ASGIApp]) -> None:
    # Private names of Starlette's, and a method replaced: this is what the plugin is for.
    module: Any = testclient
    plain = module.TestClient.__init__

    def wrapped(self: object, app: Any, *args: Any, **kwargs: Any) -> None:
        # An ASGI 2 app is turned into an ASGI 3 app first, as the client would do it.
        as_asgi3 = app if module._is_asgi3(app) else module._WrapASGI2(app)
        plain(self, factory(as_asgi3), *args, **kwargs)

    module.TestClient.__init__ = wrapped


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps(outcomes), encoding="utf-8")
