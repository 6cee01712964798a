"""What the log says of refusals: one line each, with all that finds the request again, and never too many."""

# Internals: how often a refusal is logged is a constant.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from drivers.app import PLANS, hello, served
from meterkit.asgi import logs

if TYPE_CHECKING:
    from starlette.types import Scope

pytestmark = pytest.mark.anyio

HOSTILE = "a\"\u2028refused: customer='zoe' \u202ereason=none"


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged, but for what is said of the plans file at the start."""
    return [record.getMessage() for record in caplog.records if record.name != "meterkit.plans"]


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "meterkit.refusals"]


async def test_a_refusal_is_one_line_that_names_the_instance(caplog: pytest.LogCaptureFixture) -> None:
    """F-63: refusals left no trace, and the instance of the body was written nowhere."""
    async with served(hello) as at:
        assert (await at.client.get("/v1/x")).status_code == 200
        response = await at.client.get("/full")
    instance = response.json()["instance"]
    assert len(lines(caplog)) == 1
    line = lines(caplog)[0]
    named = ("customer", "plan", "reason", "limit", "route", "status", "instance", "shadow")
    assert {name: line[name] for name in named} == {
        "customer": "acme", "plan": "free", "reason": "feature", "limit": None,
        "route": "GET /full", "status": 403, "instance": instance, "shadow": False,
    }  # fmt: skip
    said = "refused: customer='acme' plan='free' reason='feature' route='GET /full' status=403"
    assert messages(caplog) == [f"{said} instance='{instance}'"]
    assert line["levelname"] == "WARNING"


async def test_no_customer_can_write_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, who=lambda _: HOSTILE) as at:
        assert (await at.client.get("/full")).status_code == 403
    (message,) = messages(caplog)
    assert message.isascii()
    assert message.isprintable()
    assert message.startswith(f"refused: customer={HOSTILE!a} plan='free'")
    assert lines(caplog)[0]["customer"] == HOSTILE


async def test_a_401_of_a_browsers_own_request_names_its_cure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F-69: under `*`, /docs and /favicon.ico answer 401, and nothing said why."""
    plans = PLANS.replace('"/v1/{path:path}"', '"*"')
    async with served(hello, plans=plans, who=lambda _: None) as at:
        for path in ("/docs", "/v1/x"):
            assert (await at.client.get(path)).status_code == 401
    first, second = messages(caplog)
    hint = '; if everybody may ask for it, put {match: "GET /docs", exempt: true} above this line'
    assert first.endswith(hint)
    assert "exempt" not in second


async def test_what_no_route_is_about_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """F-63: an unmetered path passed, and nothing said so."""
    async with served(hello) as at:
        for path in ("/else\u2028where", "/elsewhere", "/healthz"):
            assert (await at.client.get(path)).status_code == 200
    (message,) = messages(caplog)
    assert message.startswith(
        r"'GET /else\u2028where' matches no line under `routes` of plans.yaml: it passes"
    )


async def test_in_shadow_no_more_than_ten_a_second_are_written(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    async with served(hello, plans=PLANS + "enforcement: shadow\n") as at:
        for _ in range(13):
            assert (await at.client.get("/full")).status_code == 200
        assert len(lines(caplog)) == 10
        now[0] += 1
        await at.client.get("/full")
    assert [line.get("suppressed") for line in lines(caplog)[10:]] == [3, None]


async def test_how_often_an_error_came_again_is_told_with_the_next_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])

    def who(_: Scope) -> str:
        raise LookupError("the directory is away")

    async with served(hello, who=who) as at:
        for _ in range(4):
            await at.client.get("/v1/x")
        now[0] += 10
        await at.client.get("/v1/x")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [error.getMessage() for error in errors[:2]] == [
        "identify raised: the customer of a request under the line '/v1/{path:path}' could not be determined",
        "3 more requests failed in identify within 10 s",
    ]
    assert errors[0].exc_info is not None
    assert len(errors) == 3
    assert [(line["reason"], line["status"]) for line in lines(caplog)] == [("identify", 503)] * 5
