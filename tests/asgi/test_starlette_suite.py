"""Starlette's own tests, from its source distribution, run with every app wrapped (promise I8)."""

from __future__ import annotations

import pytest

from drivers.foreign_suites import Fetched, Suite, differences

SUITE = Suite(
    project="starlette",
    needed=("httpx2[zstd]", "itsdangerous", "jinja2", "opentelemetry-sdk", "python-multipart", "trio"),
)
pytestmark = [pytest.mark.whole, pytest.mark.dear("each run of the suite is a process of its own")]


@pytest.fixture(scope="module")
def suite() -> Fetched:
    return SUITE.fetch()


@pytest.fixture(scope="module")
def plain(suite: Fetched) -> dict[str, str]:
    return suite.outcomes("", "tests")


@pytest.mark.parametrize("wrapper", ["wrappers:metered", "wrappers:metered_with_fields"])
def test_i8_starlettes_own_suite_does_not_notice(suite: Fetched, plain: dict[str, str], wrapper: str) -> None:
    ended = list(plain.values())
    assert ended.count("passed") > 500
    # One test about file permissions fails for the superuser, whom containers often run as.
    assert ended.count("failed") <= 1
    assert differences(plain, suite.outcomes(wrapper, "tests")) == {}


def test_the_suite_notices_a_wrapper_that_drops_a_header(suite: Fetched, plain: dict[str, str]) -> None:
    tests = "tests/test_responses.py"
    expected = {name: outcome for name, outcome in plain.items() if name.startswith(tests)}
    wrapped = suite.outcomes("wrappers:without_last_header", tests)
    assert ("passed", "failed") in differences(expected, wrapped).values()
