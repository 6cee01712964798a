"""Users and teams of a customer at the edge: what is refused, told, counted and given back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final, Literal

import httpx
import pytest

import meterkit
from asgi.test_llm_model_prices import answering as answering_with_tokens
from asgi.test_llm_model_prices import ask
from asgi.test_websockets import looked, opened
from drivers.app import answering, hello, http_scope, no_more, served
from faults.refusals import eventually, settled
from meterkit import Caller, MeterKit, MeterkitError, identify
from meterkit.catalog import loads

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from drivers.app import Served
    from meterkit import Current

pytestmark = pytest.mark.anyio

Kind = Literal["user", "team"]

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
anonymous: {plan: pro, by: ip}
billing: {idempotency_header: Idempotency-Key}
meters:
  requests: {unit: request}
  pages:    {unit: page}
  images:   {unit: image, stripe: {event_name: images}}
  messages: {unit: message}
  output_tokens: {unit: token, stripe: {event_name: out}}
routes:
  - {match: "/pages", consume: {pages: 1}}
  - {match: "/images", consume: {images: 1}}
  - {match: "/shadow", consume: {requests: 1}, enforcement: shadow}
  - {match: "/both", consume: {requests: 1, images: 1}}
  - {match: "WS /live", per_message: {messages: 1}}
  - match: "POST /chat"
    usage: openai
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 100_000}}
  - {match: "*", consume: {requests: 1}}
plans:
  pro:
    price: {amount_cents: 2000, interval: month}
    meters:
      requests: {rate: 100/hour, included: 50, overage: deny}
      images:   {included: 0, overage: {bill: {per: 1, amount_cents: 300}}}
      output_tokens: {included: 50_000, overage: {bill: {per: 1000, amount_cents: 3}}}
    subjects:
      user:
        requests: {rate: 5/hour, included: 3}
        pages: {concurrency: 1}
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
    """Recorded and held units by subject."""
    await settled(at.kit)
    found = await at.kit.usage("acme", by=kind)
    return {
        one.subject: (one.meters[meter].recorded, one.meters[meter].held)
        for one in found
        if meter in one.meters
    }


async def customer(at: Served, meter: str = "requests") -> tuple[int, int]:
    await settled(at.kit)
    return await at.counted(meter=meter)


async def test_a_users_rest_is_told_and_its_refusal_names_policies(any_store_url: str) -> None:
    async with served(hello, plans=PLANS, who=WHO, redis_url=any_store_url) as at:
        for left in (2, 1, 0):
            answer = await at.client.get("/v1/x", headers=USER)
            assert answer.status_code == 200
            policy = answer.headers["ratelimit-policy"]
            assert '"user:requests-1h";q=5;w=3600' in policy
            assert '"user:requests-period";q=3' in policy
            assert answer.headers["ratelimit"].startswith(f'"user:requests-period";r={left};t=')
        answer = await at.client.get("/v1/x", headers=USER)
        assert answer.status_code == 429
        assert answer.json()["violated-policies"] == ["user:requests-period"]
        assert answer.headers["ratelimit"].startswith('"user:requests-period";r=0;t=')
        # Another user of the customer has limits of its own, and so has the customer.
        assert (await at.client.get("/v1/x", headers={"x-user-id": "u_8"})).status_code == 200
        assert (await at.client.get("/v1/x")).status_code == 200
        assert await counted(at) == {"u_7": (3, 0), "u_8": (1, 0)}
        assert await customer(at) == (5, 0)


async def test_a_rate_of_a_user_is_refused_with_the_time_to_wait(store_url: str) -> None:
    plans = PLANS.replace("rate: 5/hour, included: 3", "rate: {limit: 2/hour, algorithm: fixed-window}")
    async with served(hello, plans=plans, who=WHO, redis_url=store_url) as at:
        statuses = [(await at.client.get("/v1/x", headers=USER)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        answer = await at.client.get("/v1/x", headers=USER)
        assert answer.json()["violated-policies"] == ["user:requests-1h"]
        assert 0 < int(answer.headers["retry-after"]) <= 3600
        assert (await at.client.get("/v1/x", headers={"x-user-id": "u_8"})).status_code == 200


async def test_a_request_is_charged_to_all_or_to_none(store_url: str) -> None:
    plans = PLANS.replace("included: 50,", "included: 6,")
    async with served(hello, plans=plans, who=WHO, redis_url=store_url) as at:
        one, two = RED, {"x-user-id": "u_8", "x-team-id": "red"}
        for headers in (one, one, two, two):
            assert (await at.client.get("/v1/x", headers=headers)).status_code == 200
        # The team is at its end, the users and the customer are not: none of them is charged.
        for headers in (one, two):
            answer = await at.client.get("/v1/x", headers=headers)
            assert (answer.status_code, answer.json()["violated-policies"]) == (
                429,
                ["team:requests-period"],
            )
        assert await counted(at) == {"u_7": (2, 0), "u_8": (2, 0)}
        assert await counted(at, "team") == {"red": (4, 0)}
        assert await customer(at) == (4, 0)
        # The customer is at its end, this team and this user are not.
        three = {"x-user-id": "u_9", "x-team-id": "blue"}
        assert [(await at.client.get("/v1/x", headers=three)).status_code for _ in range(3)] == [
            200,
            200,
            429,
        ]
        answer = await at.client.get("/v1/x", headers=three)
        assert answer.json()["violated-policies"] == ["requests-period"]
        assert (await counted(at))["u_9"] == (2, 0)
        assert await counted(at, "team") == {"blue": (2, 0), "red": (4, 0)}
        assert await customer(at) == (6, 0)
        # All of them at once are named together.
        await at.kit.record("acme", "requests", 2, subjects={"user": "u_9", "team": "blue"})
        answer = await at.client.get("/v1/x", headers=three)
        assert answer.json()["violated-policies"] == [
            "requests-period",
            "user:requests-period",
            "team:requests-period",
        ]


@pytest.mark.parametrize(
    ("per", "policy", "span"),
    [("period", "spend-period", "billing period"), ("day", "spend-1d", "day"), ("hour", "spend-1h", "hour")],
)
async def test_a_budget_of_a_user_is_refused_with_402(
    store_url: str, per: str, policy: str, span: str
) -> None:
    plans = PLANS.replace("amount_cents: 1000}", f"amount_cents: 1000, per: {per}}}")
    async with served(hello, plans=plans, who=WHO, redis_url=store_url) as at:
        for left in (700, 400, 100):
            answer = await at.client.get("/images", headers=USER)
            assert answer.status_code == 200
            assert answer.headers["ratelimit"].startswith(f'"user:{policy}";r={left};t=')
            assert f'"user:{policy}";q=1000;qu="cents"' in answer.headers["ratelimit-policy"]
        answer = await at.client.get("/images", headers=USER)
        body = answer.json()
        assert answer.status_code == 402
        assert body["type"] == "urn:meterkit:problem:spend-limit-reached"
        assert body["violated-policies"] == [f"user:{policy}"]
        assert (body["limit_cents"], body["spent_cents"], body["currency"]) == (1000, 900, "usd")
        assert f"This user may spend USD 10.00 per {span}, and USD 9.00 of it" in body["detail"]
        assert answer.headers["x-should-retry"] == "false"
        # The refusal counts nothing, and other users go on.
        assert await customer(at, "images") == (3, 0)
        assert (await at.client.get("/images", headers={"x-user-id": "u_8"})).status_code == 200
        (one, two) = await at.kit.usage("acme", by="user")
        assert (one.spent_micros, two.spent_micros) == (9_000_000, 3_000_000)
        assert (one.limit_cents, one.per) == (1000, policy.removeprefix("spend-"))


async def test_a_refused_budget_of_a_user_charges_no_other_meter(any_store_url: str) -> None:
    plans = PLANS.replace("amount_cents: 1000}", "amount_cents: 200}")
    async with served(hello, plans=plans, who=WHO, redis_url=any_store_url) as at:
        answer = await at.client.get("/both", headers=RED)
        assert answer.status_code == 402
        assert await customer(at) == (0, 0)
        assert await counted(at) == await counted(at, "team") == {}


@pytest.mark.parametrize(
    ("subject", "found"),
    [
        ("\x7f", "the control character U+007F at position 0"),
        ("x" * 257, "a text of 257 bytes"),
        ("a\tb", "the control character U+0009 at position 1"),
    ],
)
async def test_an_id_that_is_not_allowed_is_refused(
    store_url: str, subject: str, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(hello, plans=PLANS, who=WHO, redis_url=store_url) as at:
        answer = await at.client.get("/v1/x", headers={"x-user-id": subject})
        assert answer.status_code == 400
        assert answer.json()["detail"] == (
            f"An id of this request is not valid: found {found} as the id of the user. Allowed is a text of"
            " 1 to 256 bytes of UTF-8 without control characters."
        )
        assert subject not in answer.text
        assert f"fault='found {found} as the id of the user'" in caplog.text
        assert subject not in caplog.text
        assert await customer(at) == (0, 0)


async def test_the_log_of_refusals_names_the_subjects(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=PLANS, who=WHO) as at:
        await at.kit.record("acme", "requests", 50)
        umlaut = httpx.Headers([(b"x-user-id", "ü".encode())])
        for headers, path in ((umlaut, "/shadow"), (httpx.Headers(RED), "/v1/x"), (None, "/v1/x")):
            await at.client.get(path, headers=headers)
    logged = [record for record in caplog.records if record.name == "meterkit.refusals"]
    assert [getattr(record, "subjects", ()) for record in logged] == [
        {"user": "ü"},
        {"user": "u_7", "team": "red"},
        None,
    ]
    assert "customer='acme' subjects={'user': '\\xfc'} plan=" in logged[0].getMessage()
    assert "subjects=" not in logged[2].getMessage()


async def test_an_empty_id_that_the_app_names_is_refused() -> None:
    async with served(hello, plans=PLANS, who=lambda _: Caller("acme", {"user": ""})) as at:
        assert (await at.client.get("/v1/x")).status_code == 400


@pytest.mark.parametrize("customer", [7, ["acme"]])
async def test_a_customer_of_a_wrong_type_is_refused_with_its_subjects(
    customer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(hello, plans=PLANS, who=lambda _: Caller(customer, {"user": "u_7"})) as at:
        assert [(await at.client.get("/v1/x")).status_code for _ in range(2)] == [503, 503]
    assert f"identify returned a value of type {type(customer).__name__}; " in caplog.text


def test_four_subjects_are_too_many() -> None:
    with pytest.raises(MeterkitError, match="found 4; allowed is a mapping of at most 3"):
        Caller("acme", {"user": "a", "team": "b", "app": "c", "site": "d"})
    with pytest.raises(MeterkitError, match="found 4; allowed is a mapping of at most 3"):
        identify.header("x-c", subjects={"user": "x-a", "team": "x-b", "app": "x-d", "site": "x-e"})


@pytest.mark.parametrize("subjects", [{"user": 7}, {7: "user"}, ["user"], {"user": None}])
def test_subjects_that_are_no_texts_are_refused(subjects: Any) -> None:
    with pytest.raises(MeterkitError, match="allowed is a mapping of at most 3 kinds to ids"):
        Caller("acme", subjects)


async def test_an_undeclared_subject_is_ignored_and_logged_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def who(scope: Scope) -> Caller:
        return Caller("acme", {"app": dict(scope["headers"]).get(b"x-app", b"a").decode(), "user": "u_7"})

    async with served(hello, plans=PLANS, who=who, redis_url=store_url) as at:
        for app in ("a", "a", "b"):
            assert (await at.client.get("/v1/x", headers={"x-app": app})).status_code == 200
        assert (await at.client.get("/v1/x")).status_code == 429
        assert await counted(at) == {"u_7": (3, 0)}
        with pytest.raises(MeterkitError, match="declared are team, user"):
            await at.kit.usage("acme", by="app")
    said = [record.getMessage() for record in caplog.records if "declares no subjects" in record.getMessage()]
    assert len(said) == 1
    assert "'app'" in said[0]


async def test_a_subject_only_the_default_plan_lacks_is_silent(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    plans = PLANS.replace("default_plan: pro", "default_plan: free")
    plans += "  free: {price: {amount_cents: 0, interval: month}}\n"
    async with served(hello, plans=plans, who=WHO, redis_url=store_url) as at:
        prefix = at.kit.store.keys.prefix
        options: dict[str, Any] = {"key_prefix": prefix, "shards": 4, "flush": False, "clock": at.clock}
        async with MeterKit(loads(plans), redis_url=store_url, **options) as elsewhere:
            await elsewhere.customers.set_plan("acme", "pro")
        answer = await at.client.get("/v1/x", headers=USER)
        assert '"user:requests-period";q=3' in answer.headers["ratelimit-policy"]
        await settled(at.kit)
    assert "declares no subjects" not in caplog.text


async def test_the_app_sees_the_subjects_of_its_request(store_url: str) -> None:
    seen: list[Current] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(meterkit.current())
        await hello(scope, receive, send)

    async with served(app, plans=PLANS, who=WHO, redis_url=store_url) as at:
        for headers in (RED, USER, {}):
            await at.client.get("/v1/x", headers=headers)
    assert [dict(one.subjects) for one in seen] == [{"user": "u_7", "team": "red"}, {"user": "u_7"}, {}]
    assert {one.customer for one in seen} == {"acme"}


SEVERAL: Final = "several values"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([b""], "an empty text"),
        ([b" \t "], "an empty text"),
        ([b"", b""], SEVERAL),
        ([b"u_7", b"u_8"], SEVERAL),
        ([b"u_7", b"u_7"], SEVERAL),
        ([b"u_7", b""], SEVERAL),
        ([b"u_7,u_8"], SEVERAL),
        ([b"u_7, u_8"], SEVERAL),
        ([b","], SEVERAL),
        ([b"u_7,"], SEVERAL),
        ([b"x" * 257], "a text of 257 bytes"),
        (["ü".encode() * 129], "a text of 258 bytes"),
        ([b"u\x007"], "the control character U+0000 at position 1"),
        ([b"u\x0b"], "the control character U+000B at position 1"),
        (["u\u0085".encode()], "the control character U+0085 at position 1"),
        ([b"u\xff"], "a lone surrogate at position 1"),
    ],
)
async def test_a_subject_field_without_one_id_is_refused(
    values: list[bytes], found: str, any_store_url: str
) -> None:
    """A request of a user whose id cannot be read must not pass without the limits of a user."""
    answers: list[Message] = []

    async def keep(message: Message) -> None:
        answers.append(message)

    async with served(hello, plans=PLANS, who=WHO, redis_url=any_store_url) as at:
        fields = [(b"x-user-id", value) for value in values]
        await at.app(http_scope(headers=[(b"x-customer-id", b"acme"), *fields]), no_more, keep)
        assert answers[0]["status"] == 400
        problem = json.loads(answers[1]["body"])
        assert problem["type"] == "urn:meterkit:problem:customer-invalid"
        assert f"found {found} as the id of the user." in problem["detail"]
        assert await customer(at) == (0, 0)
        assert await counted(at) == {}


async def nowhere(message: Message) -> None:
    """A client that reads nothing."""
    del message


@pytest.mark.parametrize("value", [b"u_7", b" u_7\t"])
async def test_blanks_around_an_id_name_the_same_user(value: bytes) -> None:
    async with served(hello, plans=PLANS, who=WHO) as at:
        fields = [(b"x-customer-id", b"acme"), (b"x-user-id", value)]
        await at.app(http_scope(headers=fields), no_more, nowhere)
        assert await counted(at) == {"u_7": (1, 0)}


async def test_without_the_field_only_the_customers_limits_hold() -> None:
    async with served(hello, plans=PLANS, who=WHO) as at:
        statuses = [(await at.client.get("/v1/x")).status_code for _ in range(6)]
        assert statuses == [200] * 6
        assert (await customer(at), await counted(at)) == ((6, 0), {})


async def test_one_of_two_fields_without_an_id_is_enough_to_refuse() -> None:
    async with served(hello, plans=PLANS, who=WHO) as at:
        answer = await at.client.get("/v1/x", headers={**USER, "x-team-id": ""})
        assert (answer.status_code, "the id of the team" in answer.text) == (400, True)


async def test_in_shadow_a_field_without_an_id_is_served_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with served(hello, plans=PLANS, who=WHO) as at:
        assert (await at.client.get("/shadow", headers={"x-user-id": ""})).status_code == 200
    assert "found an empty text as the id of the user" in caplog.text


@pytest.mark.parametrize("subject", [None, 7, b"u_7", ["u_7"]])
async def test_a_subject_of_a_wrong_type_is_an_error_of_the_app(subject: Any) -> None:
    async with served(hello, plans=PLANS, who=lambda _: Caller("acme", {"user": subject})) as at:
        assert (await at.client.get("/v1/x")).status_code == 503
        assert await customer(at) == (0, 0)


async def test_a_websocket_of_a_user_without_an_id_is_refused() -> None:
    async with (
        served(chatting(), plans=PLANS, who=lambda _: Caller("acme", {"user": ""})) as at,
        opened(at) as socket,
    ):
        assert socket.sent == [{"type": "websocket.close", "code": 1008, "reason": "Customer Invalid"}]


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_owner_of_a_key_may_be_a_user(store_url: str, *, is_async: bool) -> None:
    owners: dict[str, Caller | str] = {
        "k1": Caller("acme", {"user": "u_7"}),
        "k2": Caller("acme", {"user": "u_8"}),
        "k3": "acme",
    }
    asked: list[str] = []

    def lookup(key: str) -> Caller | str | None:
        asked.append(key)
        return owners.get(key)

    async def lookup_later(key: str) -> Caller | str | None:
        return lookup(key)

    who = identify.api_key(lookup_later if is_async else lookup)
    async with served(hello, plans=PLANS, who=who, redis_url=store_url) as at:
        for key, statuses in (
            ("k1", [200, 200, 200, 429]),
            ("k2", [200] * 3),
            ("k3", [200] * 4),
        ):
            headers = {"authorization": f"Bearer {key}"}
            found = [(await at.client.get("/v1/x", headers=headers)).status_code for _ in statuses]
            assert found == statuses
        assert await counted(at) == {"u_7": (3, 0), "u_8": (3, 0)}
        assert await customer(at) == (10, 0)
    assert asked == ["k1", "k2", "k3"]


async def test_a_request_without_a_customer_has_no_subjects(store_url: str) -> None:
    async with served(
        hello, plans=PLANS, who=lambda _: Caller(None, {"user": "u_7"}), redis_url=store_url
    ) as at:
        for _ in range(5):
            answer = await at.client.get("/v1/x")
            assert answer.status_code == 200
            assert "user:" not in answer.headers["ratelimit-policy"]


async def test_in_shadow_a_user_is_counted_and_never_refused(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(hello, plans=PLANS, who=WHO, redis_url=store_url) as at:
        for _ in range(4):
            assert (await at.client.get("/shadow", headers=USER)).status_code == 200
        assert await counted(at) == {"u_7": (4, 0)}
        assert await customer(at) == (4, 0)
        assert (await at.client.get("/v1/x", headers=USER)).status_code == 429
    assert "would be refused" in caplog.text
    assert "user:requests-period" in caplog.text


class Gate:
    """An app whose requests wait for ``go``."""

    def __init__(self) -> None:
        self.running = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        await self.go.wait()
        await hello(scope, receive, send)


async def test_a_concurrency_limit_of_a_user_counts_requests_in_flight(any_store_url: str) -> None:
    gate = Gate()
    async with served(gate, plans=PLANS, who=WHO, redis_url=any_store_url) as at:
        flying = asyncio.create_task(at.client.get("/pages", headers=USER))
        await eventually(lambda: gate.running == 1)
        answer = await at.client.get("/pages", headers=USER)
        assert answer.status_code == 429
        assert answer.json()["violated-policies"] == ["user:pages-concurrency"]
        other = asyncio.create_task(at.client.get("/pages", headers={"x-user-id": "u_8"}))
        await eventually(lambda: gate.running == 2)
        gate.go.set()
        assert {(await task).status_code for task in (flying, other)} == {200}
        await settled(at.kit)
        assert (await at.client.get("/pages", headers=USER)).status_code == 200
        assert await counted(at, meter="pages") == {"u_7": (2, 0), "u_8": (1, 0)}


@pytest.mark.parametrize("tokens", [0, 10, 600, 900])
async def test_a_reservation_of_a_user_is_settled_to_the_token(store_url: str, tokens: int) -> None:
    async with served(answering_with_tokens(), plans=PLANS, who=WHO, redis_url=store_url) as at:
        at.client.headers.update(USER)
        assert await ask(at, tokens, at_most=600) == 200
        assert await counted(at, meter="output_tokens") == {"u_7": (tokens, 0)}
        assert await customer(at, "output_tokens") == (tokens, 0)
        # The user can reserve the rest of its tokens, and no token more.
        assert await ask(at, 0, at_most=1001 - tokens) == 429
        assert await ask(at, 0, at_most=1000 - tokens) == 200
        assert await counted(at, meter="output_tokens") == {"u_7": (tokens, 0)}


async def test_a_rate_of_a_user_counts_what_an_answer_came_to(store_url: str) -> None:
    plans = PLANS.replace(
        "output_tokens: {included: 1000}",
        "output_tokens: {rate: {limit: 1000/hour, algorithm: fixed-window}}",
    )
    async with served(answering_with_tokens(), plans=plans, who=WHO, redis_url=store_url) as at:
        at.client.headers.update(USER)
        assert await ask(at, 100, at_most=900) == 200
        assert await ask(at, 0, at_most=901) == 429
        # An answer may be longer than was reserved for it.
        assert await ask(at, 500, at_most=300) == 200
        assert await ask(at, 0, at_most=401) == 429
        assert await ask(at, 0, at_most=400) == 200
        assert await counted(at, meter="output_tokens") == {"u_7": (600, 0)}


async def test_what_is_reserved_is_held_of_the_user_and_of_its_budget(store_url: str) -> None:
    plans = PLANS.replace("amount_cents: 1000}", "amount_cents: 3}").replace(
        "output_tokens: {included: 1000}", "output_tokens: {included: 5000}"
    )
    plans = plans.replace("output_tokens: {included: 50_000", "output_tokens: {included: 0")
    left: list[int] = []

    async def look() -> None:
        for quantity in (400, 401):
            held = at.kit.reserve("acme", {"output_tokens": quantity}, subjects={"user": "u_7"})
            async with held:
                left.append(held.decision.allowed)

    async with served(answering_with_tokens(look), plans=plans, who=WHO, redis_url=store_url) as at:
        at.client.headers.update(USER)
        assert await ask(at, 100, at_most=600) == 200
        assert left == [True, False]
        assert await ask(at, 0, at_most=901) == 402
        assert await counted(at, meter="output_tokens") == {"u_7": (100, 0)}
        (one,) = await at.kit.usage("acme", by="user")
        assert one.spent_micros == 3000


@pytest.mark.parametrize("of_customer", ["", "budget: {amount_cents: 900}"])
async def test_a_request_holds_of_a_budget_what_its_model_costs(any_store_url: str, of_customer: str) -> None:
    plans = PLANS.replace("amount_cents: 1000}", "amount_cents: 3}").replace(
        "output_tokens: {included: 1000}", "output_tokens: {included: 9000}"
    )
    plans = plans.replace("{per: 1000, amount_cents: 3}", "{price: prices.out}").replace(
        "plans:", 'prices: {out: {default: 6 per 1000, models: {"small-*": 1 per 1000}}}\nplans:'
    )
    plans = plans.replace("    meters:\n", f"    {of_customer}\n    meters:\n")
    async with served(answering_with_tokens(), plans=plans, who=WHO, redis_url=any_store_url) as at:
        at.client.headers.update(USER)
        # A budget of three cents: 3000 tokens of the small model, and 500 of others.
        assert await ask(at, 1000, model="small-1", said="small-1", at_most=3000) == 200
        assert await ask(at, 0, model="small-1", said="small-1", at_most=2001) == 402
        assert await ask(at, 0, model="large-1", said="large-1", at_most=334) == 402
        assert await ask(at, 0, model="large-1", said="large-1", at_most=333) == 200
        assert await ask(at, 0, at_most=334) == 402  # Of a model that is not named.
        assert await ask(at, 0, model="small-1", said="small-1", at_most=2000) == 200
        await settled(at.kit)
        (one,) = await at.kit.usage("acme", by="user")
        assert one.spent_micros == 10_000


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_an_error_is_recorded_of_no_user(store_url: str, status: int) -> None:
    async with served(answering(status), plans=PLANS, who=WHO, redis_url=store_url) as at:
        for _ in range(4):
            assert (await at.client.get("/v1/x", headers=RED)).status_code == status
        assert await counted(at) == {"u_7": (0, 0)}
        assert await counted(at, "team") == {"red": (0, 0)}
        # Rates count attempts.
        assert (await at.client.get("/v1/x", headers=RED)).status_code == status
        answer = await at.client.get("/v1/x", headers=RED)
        assert (answer.status_code, answer.json()["violated-policies"]) == (429, ["user:requests-1h"])


async def test_a_repeat_is_recorded_once_of_a_user(store_url: str) -> None:
    plans = PLANS.replace("requests: {rate: 5/hour, included: 3}", "requests: {included: 1}")
    async with served(hello, plans=plans, who=WHO, redis_url=store_url) as at:
        headers = {**RED, "idempotency-key": "abc"}
        for _ in range(5):
            assert (await at.client.post("/v1/x", headers=headers)).status_code == 200
            assert await counted(at) == {"u_7": (1, 0)}
            assert await counted(at, "team") == {"red": (1, 0)}
        answer = await at.client.post("/v1/x", headers={**RED, "idempotency-key": "abd"})
        assert answer.status_code == 429
        assert await customer(at) == (1, 0)


async def test_a_repeat_is_not_spent_twice(store_url: str) -> None:
    async with served(hello, plans=PLANS, who=WHO, redis_url=store_url) as at:
        for _ in range(5):
            headers = {**USER, "idempotency-key": "abc"}
            assert (await at.client.post("/images", headers=headers)).status_code == 200
            await settled(at.kit)
        (one,) = await at.kit.usage("acme", by="user")
        assert one.spent_micros == 3_000_000


def chatting() -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    return app


async def test_messages_of_a_websocket_count_for_the_user(any_store_url: str) -> None:
    async with served(
        chatting(), plans=PLANS, who=lambda _: Caller("acme", {"user": "u_7"}), redis_url=any_store_url
    ) as at:
        async with opened(at) as socket:
            for text in ("a", "b"):
                socket.say(text)
            await eventually(lambda: socket.heard() == ["a", "b"])
            assert socket.is_open
            socket.say("c")
            await eventually(lambda: not socket.is_open)
        assert socket.heard() == ["a", "b"]
        assert await counted(at, meter="messages") == {"u_7": (2, 0)}
        assert await customer(at, "messages") == (2, 0)


@pytest.mark.parametrize(
    ("limits", "recorded", "reason"),
    [
        ("messages: {included: 2}", 1, None),
        ("messages: {included: 2}", 2, "user:messages-period"),
        ("messages: {rate: 1/hour}", 5, None),
        ("budget: {amount_cents: 3, per: day}", 2, None),
        ("budget: {amount_cents: 3, per: day}", 3, "user:spend-1d"),
    ],
)
async def test_an_open_websocket_ends_once_its_user_has_nothing_left(
    store_url: str, limits: str, recorded: int, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.asgi.websocket._LOOK_EVERY_S", 0.005)
    plans = PLANS.replace("messages: {included: 2}\n", "# no limit\n").replace(
        "budget: {amount_cents: 1000}", limits
    )
    plans = plans.replace("messages: {unit: message}", "messages: {unit: message, stripe: {event_name: m}}")
    billed = "    meters:\n      messages: {included: 0, overage: {bill: {per: 1, amount_cents: 1}}}\n"
    plans = plans.replace("    meters:\n", billed)
    who = Caller("acme", {"user": "u_7"})
    async with (
        served(chatting(), plans=plans, who=lambda _: who, redis_url=store_url) as at,
        opened(at) as socket,
    ):
        await looked(at, monkeypatch)
        assert socket.is_open
        for user, used in (("u_8", 9), ("u_7", recorded)):  # What others have used does not matter.
            await at.kit.record("acme", "messages", used, subjects={"user": user})
        if reason is None:
            await looked(at, monkeypatch)
            assert socket.is_open
        else:
            await eventually(lambda: not socket.is_open)
            assert socket.sent[-1] == {"type": "websocket.close", "code": 1008, "reason": reason}
        assert await customer(at, "messages") == (9 + recorded, 0)
