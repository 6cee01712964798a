"""The suites of FastAPI and sse-starlette do not notice that every app is wrapped (promise I8)."""

from __future__ import annotations

from typing import Final

import pytest

from drivers.foreign_suites import Fetched, Suite, differences

NEEDED: Final = """
anyio[trio] a2wsgi dirty-equals email-validator flask inline-snapshot itsdangerous jinja2 orjson
pwdlib[argon2] pydantic-extra-types pyjwt python-multipart sqlmodel strawberry-graphql ujson
opentelemetry-instrumentation-fastapi opentelemetry-sdk
"""
FASTAPI: Final = Suite(project="fastapi", needed=tuple(NEEDED.split()))
LEFT_OUT: Final = ("tests/test_tutorial", "tests/benchmarks", "tests/test_fastapi_cli.py")
SSE: Final = Suite(
    project="sse-starlette",
    release="3.7.0",
    needed=("sse-starlette==3.7.0", "asgi-lifespan", "portend", "psutil", "pytest-asyncio", "tenacity"),
    # Its source distribution lacks two modules of its tests; what they see between them begins anew.
    additions=(
        (
            "tests/anyio_compat.py",
            """
from contextlib import contextmanager

@contextmanager
def collapse_excgroups():
    try:
        yield
    except BaseException as error:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error
""",
        ),
        (
            "tests/conftest.py",
            """
import threading

import pytest
from sse_starlette import sse

@pytest.fixture(autouse=True)
def begin_anew(monkeypatch):
    for name in ("should_exit", "enable_automatic_graceful_drain", "original_handler"):
        monkeypatch.setattr(sse.AppStatus, name, getattr(sse.AppStatus, name))
    monkeypatch.setattr(sse, "_thread_state", threading.local())
""",
        ),
    ),
)

AGAIN: Final = 2
"""So often those that end otherwise are run once more: some wait too short a time on a busy machine."""
WRAPPERS: Final = ("wrappers:metered", "wrappers:metered_with_fields")


def compare(suite: Fetched, *arguments: str, at_least: int) -> None:
    plain = suite.outcomes("", *arguments)
    assert list(plain.values()).count("passed") >= at_least
    for wrapper in WRAPPERS:
        found = differences(plain, suite.outcomes(wrapper, *arguments))
        for _ in range(AGAIN):
            if found:
                found = differences(suite.outcomes("", *found), suite.outcomes(wrapper, *found))
        assert found == {}


@pytest.mark.whole
@pytest.mark.dear("three runs of a suite of 1,000 tests")
def test_i8_fastapis_own_suite_does_not_notice() -> None:
    compare(FASTAPI.fetch(), "tests", *(f"--ignore={path}" for path in LEFT_OUT), at_least=1_000)


@pytest.mark.whole
@pytest.mark.dear("three runs of a suite of 130 tests")
def test_i8_sse_starlettes_own_suite_does_not_notice() -> None:
    # Another of its modules tests an example, which the source distribution lacks.
    compare(SSE.fetch(), "tests", "--ignore=tests/test_broadcasting_example.py", at_least=130)
