"""Users and teams of a customer at the edge: what is refused, told, counted and given back."""

from __future__ import annotations

import json
from enum import Enum
from types import SimpleNamespace
from typing import Any, Final, Literal

import httpx
import pytest
from starlette.types import Receive, Scope, Send

import meterkit
from asgi.test_llm_model_prices import answering as answering_with_tokens
from asgi.test_llm_model_prices import ask
from asgi.test_websockets import closed, echo, looked, opened
from drivers.app import SentMessages, Served, hello, http_scope, no_more, served
from faults.refusals import eventually, settled
from meterkit import Caller, MeterkitError, identify

pytestmark = pytest.mark.anyio


PLANS: Final = """
default_plan: pro
anonymous: {plan: pro, by: ip}
billing: {idempotency_header: Idempotency-Key}
meters: {requests: {unit: request}, images: {unit: image, stripe: {event_name: images}},
  seats: {unit: seat, kind: gauge},
  messages: {unit: message}, output_tokens: {unit: token, stripe: {event_name: out}}}
routes:
  - {match: "/images", consume: {images: 1}}
  - {match: "/shadow", consume: {requests: 1}, enforcement: shadow}
  - {match: "WS /live", per_message: {messages: 1}}
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
  - {match: "*", consume: {requests: 1}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    meters: {requests: {rate: 100/hour, included: 50, overage: deny},
      images: {included: 0, overage: {bill: {per: 1, amount_cents: 300}}},
      output_tokens: {included: 50_000, overage: {bill: {per: 1000, amount_cents: 3}}}}
    subjects:
      user:
        requests: {rate: 5/hour, included: 3}
        messages: {included: 2}
        output_tokens: {included: 1000}
        budget: {amount_cents: 1000}
      team:
        requests: {included: 4}
"""
USER: Final = {"x-user-id": "u_7"}
RED: Final = {**USER, "x-team-id": "red"}
WHO: Final = identify.header("x-customer-id", subjects={"user": "x-user-id", "team": "x-team-id"})


async def counted(
    at: Served, kind: Literal["user", "team"] = "user", meter: str = "requests"
) -> dict[str, tuple[int, int]]:
    await settled(at.kit)
    rows = {one.subject: one.meters.get(meter) for one in await at.kit.usage("acme", by=kind)}
    return {subject: (row.recorded, row.held) for subject, row in rows.items() if row}


async def customer(at: Served, meter: str = "requests") -> tuple[int, int]:
    await settled(at.kit)
    return await at.counted(meter=meter)


class Tenant(str, Enum):  # noqa: UP042 - a StrEnum is formatted by its value
    """Customers or teams of an app that has few; `f"{Tenant.ACME}"` is `Tenant.ACME`."""

    ACME, RED = "acme", "red"


def of_members(_: Scope) -> Caller:
    return Caller(Tenant.ACME, {"team": Tenant.RED})


def of_user(_: Scope) -> Caller:
    return Caller(identify.user()({"user": SimpleNamespace(identity=Tenant.ACME)}), {"team": "red"})


@pytest.mark.parametrize("who", [of_members, of_user])
async def test_a_member_of_an_enumeration_is_its_value(who: Any) -> None:
    """It was counted under its name: on no invoice, and by no plan of the customer's."""
    async with served(hello, plans=PLANS, who=who) as at:
        assert await at.statuses("/v1/x") == [200]
        await at.kit.record(Tenant.ACME, "requests", 2, subjects={"team": Tenant.RED})
        assert await at.counted() == (3, 0)
        assert await counted(at, "team") == {"red": (3, 0)}
        await at.kit.customers.set_plan(Tenant.ACME, "pro")
        await at.kit.gauges.set(Tenant.ACME, "seats", 3)
        assert (await at.kit.customers.get("acme")).plan == "pro"
        await at.kit.customers.delete(Tenant.ACME)
        assert await at.counted() == (0, 0)
        assert (await at.kit.gauges.get("acme", "seats"), await counted(at, "team")) == (0, {})
        await at.kit.notify.preferences("red", {"period.summary": False})
        assert await at.kit.customers.known(Tenant.RED)


class Name(str, Enum):  # noqa: UP042 - as above
    """Meters and kinds of an app that names each once."""

    REQUESTS, TEAM = "requests", "team"


async def test_meters_and_kinds_may_be_members_of_an_enumeration() -> None:
    """What a request recorded so was on no invoice, and no team's."""
    team: Any = {Name.TEAM: "red"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meterkit.record(Name.REQUESTS, 4)
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, who=lambda _: Caller("acme", team)) as at:
        assert await at.statuses("/v1/x") == [200]
        await at.kit.record("acme", Name.REQUESTS, 2, subjects=team)
        assert await at.counted() == (7, 0)
        assert await counted(at, "team") == {"red": (7, 0)}
        assert await at.kit.usage("acme", by=Name.TEAM) == await at.kit.usage("acme", by="team")


async def test_a_users_rest_is_told_and_its_refusal_names_policies(any_store_url: str) -> None:
    seen: list[dict[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(meterkit.current().subjects))
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, who=WHO, redis_url=any_store_url) as at:
        for left in (2, 1, 0):
            answer = await at.client.get("/v1/x", headers=USER)
            assert answer.status_code == 200
            for policy in ('"user:requests-1h";q=5;w=3600', '"user:requests-period";q=3'):
                assert policy in answer.headers["ratelimit-policy"]
            assert answer.headers["ratelimit"].startswith(f'"user:requests-period";r={left};t=')
        answer = await at.client.get("/v1/x", headers=USER)
        assert (answer.status_code, answer.json()["violated-policies"]) == (429, ["user:requests-period"])
        assert answer.headers["ratelimit"].startswith('"user:requests-period";r=0;t=')
        # Another user of the customer has limits of its own, and so has the customer.
        assert (
            await at.statuses("/v1/x", headers={"x-user-id": " u_8\t"}) == await at.statuses("/v1/x") == [200]
        )
        assert (await counted(at), await customer(at)) == ({"u_7": (3, 0), "u_8": (1, 0)}, (5, 0))
    assert seen == [{"user": "u_7"}] * 3 + [{"user": "u_8"}, {}]


async def test_a_request_is_charged_to_all_or_to_none() -> None:
    plans = PLANS.replace("included: 50,", "included: 6,")
    one, two = RED, {"x-user-id": "u_8", "x-team-id": "red"}
    three = {"x-user-id": "u_9", "x-team-id": "blue"}
    async with served(hello, plans=plans, who=WHO) as at:

        async def violated(headers: Any) -> Any:
            return (await at.client.get("/v1/x", headers=headers)).json()["violated-policies"]

        for headers in (one, two):
            assert await at.statuses("/v1/x", "/v1/x", headers=headers) == [200, 200]
        # The team is at its end, the users and the customer are not: none of them is charged.
        for headers in (one, two):
            assert await violated(headers) == ["team:requests-period"]
        assert await counted(at) == {"u_7": (2, 0), "u_8": (2, 0)}
        assert (await counted(at, "team"), await customer(at)) == ({"red": (4, 0)}, (4, 0))
        # The customer is at its end, this team and this user are not.
        assert await at.statuses("/v1/x", "/v1/x", headers=three) == [200, 200]
        assert (await violated(three), (await counted(at))["u_9"]) == (["requests-period"], (2, 0))
        assert await counted(at, "team") == {"blue": (2, 0), "red": (4, 0)}
        assert await customer(at) == (6, 0)
        # All of them at once are named together.
        await at.kit.record("acme", "requests", 2, subjects={"user": "u_9", "team": "blue"})
        assert await violated(three) == [f"{of}requests-period" for of in ("", "user:", "team:")]


async def test_a_budget_of_a_user_is_refused_with_402() -> None:
    plans = PLANS.replace("amount_cents: 1000}", "amount_cents: 1000, per: day}")
    async with served(hello, plans=plans, who=WHO) as at:
        for left in (700, 400, 100):
            answer = await at.client.get("/images", headers=USER)
            assert answer.status_code == 200
            assert answer.headers["ratelimit"].startswith(f'"user:spend-1d";r={left};t=')
            assert '"user:spend-1d";q=1000;qu="cents";w=86400' in answer.headers["ratelimit-policy"]
        answer = await at.client.get("/images", headers=USER)
        body = answer.json()
        assert (answer.status_code, body["type"]) == (402, "urn:meterkit:problem:spend-limit-reached")
        assert body["violated-policies"] == ["user:spend-1d"]
        assert (body["limit_cents"], body["spent_cents"], body["currency"]) == (1000, 900, "usd")
        assert "This user may spend $10.00 per day; $9.00 is" in body["detail"]
        assert answer.headers["x-should-retry"] == "false"
        # The refusal counts nothing, and other users go on.
        assert await customer(at, "images") == (3, 0)
        assert await at.statuses("/images", headers={"x-user-id": "u_8"}) == [200]
        (one, two) = await at.kit.usage("acme", by="user")
        assert (one.spent_micros, two.spent_micros) == (9_000_000, 3_000_000)
        assert (one.limit_cents, one.per) == (1000, "1d")


async def test_the_log_of_refusals_names_the_subjects(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=PLANS, who=WHO) as at:
        await at.kit.record("acme", "requests", 50)
        umlaut = httpx.Headers([(b"x-user-id", "ü".encode())])
        for headers, path in ((umlaut, "/shadow"), (httpx.Headers(RED), "/v1/x"), (None, "/v1/x")):
            await at.client.get(path, headers=headers)
    logged = [record for record in caplog.records if record.name == "meterkit.refusals"]
    subjects = [{"user": "ü"}, {"user": "u_7", "team": "red"}, None]
    assert [getattr(record, "subjects", ()) for record in logged] == subjects
    assert "customer='acme' subjects={'user': '\\xfc'} plan=" in logged[0].getMessage()
    assert "subjects=" not in logged[2].getMessage()


async def test_an_undeclared_subject_is_ignored_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def who(scope: Scope) -> Caller:
        return Caller("acme", {"app": dict(scope["headers"]).get(b"x-app", b"a").decode(), "user": "u_7"})

    async with served(hello, plans=PLANS, who=who) as at:
        for app in ("a", "a", "b"):
            assert await at.statuses("/v1/x", headers={"x-app": app}) == [200]
        assert (await at.statuses("/v1/x"), await counted(at)) == ([429], {"u_7": (3, 0)})
        with pytest.raises(MeterkitError, match="declared are team, user"):
            await at.kit.usage("acme", by="app")
    (said,) = [message for message in caplog.messages if "declares no subjects" in message]
    assert "'app'" in said


SEVERAL: Final = "several values"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([b""], "an empty text"),
        ([b"u_7", b"u_7"], SEVERAL),
        ([b"u_7,u_8"], SEVERAL),
        ([b"u_7,"], SEVERAL),
        (["ü".encode() * 129], "a text of 258 bytes"),
        (["u\u0085".encode()], "the control character U+0085 at position 1"),
        ([b"u\xff"], "a lone surrogate at position 1"),
    ],
)
async def test_a_subject_field_without_one_id_is_refused(
    values: list[bytes], found: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request of a user whose id cannot be read must not pass without the limits of a user."""
    answers = SentMessages()
    async with served(hello, plans=PLANS, who=WHO) as at:
        fields = [(b"x-user-id", value) for value in values]
        await at.app(http_scope(headers=[(b"x-customer-id", b"acme"), *fields]), no_more, answers)
        assert answers[0]["status"] == 400
        problem = json.loads(answers[1]["body"])
        assert problem["type"] == "urn:meterkit:problem:customer-invalid"
        assert f"found {found} as the id of the user." in problem["detail"]
        assert f"fault='found {found} as the id of the user'" in caplog.text
        assert (await customer(at), await counted(at)) == ((0, 0), {})


async def test_a_subject_of_a_wrong_type_is_an_error_of_the_app() -> None:
    user: Any = 7
    async with served(hello, plans=PLANS, who=lambda _: Caller("acme", {"user": user})) as at:
        assert await at.statuses("/v1/x") == [503]


async def test_one_of_two_fields_without_an_id_is_enough_to_refuse(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=PLANS, who=WHO) as at:
        answer = await at.client.get("/v1/x", headers={**USER, "x-team-id": ""})
        assert (answer.status_code, "the id of the team" in answer.text) == (400, True)
        # In shadow it is served, and logged.
        assert await at.statuses("/shadow", headers={"x-user-id": ""}) == [200]
    assert "found an empty text as the id of the user" in caplog.text


@pytest.mark.parametrize("tokens", [0, 900])
async def test_a_reservation_of_a_user_is_settled_to_the_token(tokens: int) -> None:
    async with served(answering_with_tokens(), plans=PLANS, who=WHO) as at:
        at.client.headers.update(USER)
        assert await ask(at, tokens, at_most=600) == 200
        assert await counted(at, meter="output_tokens") == {"u_7": (tokens, 0)}
        assert await customer(at, "output_tokens") == (tokens, 0)
        # The user can reserve the rest of its tokens, and no token more.
        assert await ask(at, 0, at_most=1001 - tokens) == 429
        assert await ask(at, 0, at_most=1000 - tokens) == 200
        assert await counted(at, meter="output_tokens") == {"u_7": (tokens, 0)}


async def test_an_open_websocket_ends_once_its_user_has_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.asgi.websocket._CHECK_EVERY_S", 0.005)
    who = Caller("acme", {"user": "u_7"})
    async with served(echo, plans=PLANS, who=lambda _: who) as at, opened(at) as socket:
        await at.kit.record("acme", "messages", 9, subjects={"user": "u_8"})
        await looked(at, socket, len(socket.sent), monkeypatch)
        assert socket.is_open  # What others have used does not matter.
        await at.kit.record("acme", "messages", 2, subjects={"user": "u_7"})
        await eventually(lambda: not socket.is_open)
        assert socket.sent[-1] == closed("user:messages-period")
