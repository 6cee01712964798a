"""Starlette's own tests, from its source distribution, run with every app wrapped (promise I8).

A fixed sample of its modules; all of them with ``--whole``, which ``make field`` passes.
"""

from __future__ import annotations

from typing import Final

import pytest

from drivers.foreign_suites import Fetched, Suite, differences
from drivers.sampled import whole

SUITE = Suite(
    project="starlette",
    needed=("httpx2[zstd]", "itsdangerous", "jinja2", "opentelemetry-sdk", "python-multipart", "trio"),
)
# The modules about what passes between app and server: messages, bodies, streams, exceptions, websockets.
SAMPLE: Final = tuple(
    f"tests/{name}.py" for name in (*("test_exceptions", "test_responses", "test_websockets"),)
)
TRANSPARENT = [
    whole("wrappers:metered"),
    pytest.param(
        "wrappers:metered_with_fields",
        marks=pytest.mark.dear("each run of the suite is a process of its own"),
    ),
]


@pytest.fixture(scope="module")
def suite() -> Fetched:
    return SUITE.fetch()


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return ("tests",) if request.config.getoption("--whole") else SAMPLE


@pytest.fixture(scope="module")
def plain(suite: Fetched, chosen: tuple[str, ...]) -> dict[str, str]:
    return suite.outcomes("", *chosen)


@pytest.mark.parametrize("wrapper", TRANSPARENT)
def test_i8_starlettes_own_suite_does_not_notice(
    suite: Fetched, plain: dict[str, str], chosen: tuple[str, ...], wrapper: str
) -> None:
    ended = list(plain.values())
    assert ended.count("passed") > (100 if chosen is SAMPLE else 500)
    # One test about file permissions fails for the superuser, whom containers often run as.
    assert ended.count("failed") <= 1
    assert differences(plain, suite.outcomes(wrapper, *chosen)) == {}


@pytest.mark.whole
def test_the_suite_notices_a_wrapper_that_drops_a_header(suite: Fetched, plain: dict[str, str]) -> None:
    tests = "tests/test_responses.py"
    expected = {name: outcome for name, outcome in plain.items() if name.startswith(tests)}
    wrapped = suite.outcomes("wrappers:without_last_header", tests)
    assert ("passed", "failed") in differences(expected, wrapped).values()
