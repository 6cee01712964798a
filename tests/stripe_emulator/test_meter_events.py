"""The emulator refuses and accepts as Stripe does, seen through the official SDK over HTTP."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import stripe

from drivers.emulated_account import account
from drivers.emulated_shop import refused, subscribe
from drivers.emulated_times import NOW, SECOND
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio


async def send(
    client: Any, identifier: str, value: str = "1", *, at: int = SECOND, key: str | None = None
) -> Any:
    return await client.billing.meter_events.create(
        event_name="tokens",
        identifier=identifier,
        payload={"stripe_customer_id": "cus_1", "value": value},
        timestamp=at,
        options={"idempotency_key": key} if key else None,
    )


async def test_customers_live_and_die(client: Any) -> None:
    customers = client.customers
    made = await customers.create(name="Acme", email="a@acme.test", metadata={"app": "7"})
    assert made.id.startswith("cus_")
    assert (made.name, made.metadata["app"], made.livemode) == ("Acme", "7", False)
    changed = await customers.update(made.id, name="Acme Ltd", metadata={"app": ""})
    assert (changed.name, changed.metadata.to_dict()) == ("Acme Ltd", {})
    assert (await customers.retrieve(made.id)).email == "a@acme.test"
    assert (await customers.delete(made.id)).deleted
    assert (await customers.retrieve(made.id)).deleted
    error = await refused(customers.update(made.id, name="x"), f"No such customer: '{made.id}'")
    assert (error.http_status, error.code) == (404, "resource_missing")


async def test_lists_have_pages() -> None:
    async with account(StripeEmulator()) as client:
        made = [(await client.customers.create(email=f"{n % 2}@x")).id for n in range(5)]
        newest_first = made[::-1]
        page = await client.customers.list(limit=2)
        assert [c.id for c in page.data] == newest_first[:2]
        assert (page.has_more, page.url) == (True, "/v1/customers")
        assert newest_first == [c.id async for c in page.auto_paging_iter()]
        back = await client.customers.list(limit=2, ending_before=made[0])
        assert (made[2:0:-1], True) == ([c.id for c in back.data], back.has_more)
        odd = await client.customers.list(email="1@x")
        assert [made[3], made[1]] == [c.id for c in odd.data]
        await refused(client.customers.list(limit=101), "Invalid limit: 101")
        await refused(client.customers.list(starting_after="cus_none"), "No such object: 'cus_none'")


async def test_meters_live_and_rest(client: Any, emulator: StripeEmulator) -> None:
    meters = client.billing.meters
    calls: Any = {"event_name": "calls", "default_aggregation": {"formula": "sum"}}
    made = await meters.create(display_name="Calls", **calls)
    assert (made.status, made.default_aggregation.formula) == ("active", "sum")
    assert made.value_settings.event_payload_key == "value"
    await refused(meters.create(display_name="Again", **calls), "already uses the event name calls")
    assert (await meters.update(made.id, display_name="API calls")).display_name == "API calls"
    await refused(meters.reactivate(made.id), "already active")
    resting = await meters.deactivate(made.id)
    assert (resting.status, resting.status_transitions.deactivated_at) == ("inactive", SECOND)
    await refused(meters.deactivate(made.id), "already inactive")
    assert [made.id] == [m.id for m in (await meters.list(status="inactive")).data]
    assert made.id not in {m.id for m in (await meters.list(status="active")).data}
    other = emulator.add_meter("calls")
    await refused(meters.reactivate(made.id), "already uses the event name")
    await meters.deactivate(other)
    assert (await meters.reactivate(made.id)).status == "active"
    assert (await meters.retrieve(made.id)).display_name == "API calls"
    assert (await meters.update(made.id)).display_name == "API calls"
    await refused(meters.retrieve("mtr_none"), "No such meter: 'mtr_none'")


@pytest.mark.parametrize(
    ("params", "message", "param"),
    [
        ({"display_name": "x", "event_name": "y"}, "Missing required param", "default_aggregation[formula]"),
        ({"event_name": "x", "default_aggregation": {"formula": "sum"}}, "Missing", "display_name"),
        ({"event_name": "x" * 101, "default_aggregation": {"formula": "sum"}}, "at most 100", "event_name"),
        ({"colour": "red"}, "Received unknown parameter: colour", "colour"),
    ],
)
async def test_meters_need_what_they_need(client: Any, params: Any, message: str, param: str) -> None:
    assert (await refused(client.billing.meters.create(**params), message)).param == param


async def test_identifier_is_unique(client: Any, emulator: StripeEmulator) -> None:
    await send(client, "i1", "3")
    await refused(send(client, "i" * 101), "at most 100 characters")
    error = await refused(send(client, "i1", "4"))
    assert error.user_message == "An event already exists with identifier i1."
    assert (error.http_status, error.code, error.headers["stripe-should-retry"]) == (400, None, "false")
    assert emulator.accepted("cus_1", "tokens") == 3


async def test_a_key_is_for_a_call_and_answer(client: Any, emulator: StripeEmulator, clock: Clock) -> None:
    first = await send(client, "i1", "3", key="k")
    clock.advance(timedelta(minutes=1))
    second = await send(client, "i1", "3", key="k")
    assert first.to_dict() == second.to_dict()
    assert second.last_response.headers["idempotent-replayed"] == "true"
    assert first.last_response.headers["request-id"] == second.last_response.headers["original-request"]
    assert [request.replayed for request in emulator.requests] == [False, True]
    assert len(emulator.events) == 1
    with pytest.raises(stripe.IdempotencyError) as caught:
        await send(client, "i1", "4", key="k")
    assert caught.value.http_status == 400
    await refused(send(client, "i2", key="k" * 256), "at most 255 characters")
    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        await client.customers.create(options={"idempotency_key": "k"})


@pytest.mark.parametrize("opened", [{"rate_limit_per_s": 1}], indirect=True)
async def test_what_was_refused_before_it_began_is_not_stored(client: Any) -> None:
    await send(client, "i1", key="k1")
    for value in ("1", "2"):  # The key is still free for other parameters.
        with pytest.raises(stripe.RateLimitError):
            await send(client, "i2", value, key="k2")


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (timedelta(days=-35), None),
        (timedelta(days=-35, seconds=-1), "The event timestamp cannot be more than 35 days in past."),
        (timedelta(minutes=5), None),
        (timedelta(minutes=5, seconds=1), "The event timestamp cannot be more than 5 minutes in the future."),
    ],
)
async def test_timestamp_has_bounds(
    client: Any, emulator: StripeEmulator, offset: timedelta, message: str | None
) -> None:
    at = int((NOW + offset).timestamp())
    if message is None:
        assert (await send(client, "i1", at=at)).timestamp == at
    else:
        assert (await refused(send(client, "i1", at=at), message)).http_status == 400
    assert len(emulator.events) == (message is None)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("999999999999999", True),
        ("1000000000000000", False),
        ("0.00000000000001", True),
        ("1.123456789012345", False),
        ("000000000000000000007", True),
    ],
)
async def test_a_value_is_bounded(client: Any, emulator: StripeEmulator, value: str, accepted: bool) -> None:
    if accepted:
        await send(client, "i1", value)
        assert Decimal(value) == emulator.accepted("cus_1", "tokens")
    else:
        text = rf"The value in the event payload can have at most 15 digits\. Received {value}\."
        await refused(send(client, "i1", value), text)


@pytest.mark.parametrize("value", ["", "1e16", "NaN", "٣"])
async def test_value_must_be_a_number(client: Any, emulator: StripeEmulator, value: str) -> None:
    assert ((await refused(send(client, "i1", value))).http_status, emulator.events) == (400, ())


@pytest.mark.parametrize("key", ["", "sk_test_2"])
async def test_only_accepted_keys_are_accepted(key: str) -> None:
    emulator = StripeEmulator(api_keys=["sk_test_1"])
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url) as client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = await client.get("/v1/customers", headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "invalid_request_error")
        assert (await client.get("/v1/customers", headers={"authorization": "Basic ?"})).status_code == 401
        assert (await client.get("/v1/customers", auth=("sk_test_1", ""))).status_code == 200


async def test_unknown_address_is_answered_in_stripes_form() -> None:
    async with StripeEmulator().serve() as url, httpx.AsyncClient(base_url=url) as client:
        for method, path in (("GET", "/v1/nothing"), ("DELETE", "/v1/billing/meters")):
            answer = await client.request(method, path)
            text = f"Unrecognized request URL ({method}: {path})."
            assert (404, text) == (answer.status_code, answer.json()["error"]["message"])


async def test_odd_parameters_are_refused_and_do_no_harm(emulator: StripeEmulator) -> None:
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url, auth=("sk_test_1", "")) as client:
        for body in (
            b"payload=1&payload[value]=2",
            b"[value]=2",
            b"a]b=2",
            b"event_name[x]=1",
            b"event_name=tokens&payload=1",
            b"event_name=tokens&payload[value][x]=1",
            b"event_name=tokens&payload[value]=1&timestamp=soon",
            b"event_name=tokens",
            b"payload[value]=1",
            b"\xff\xfe=1",
            b"",
        ):
            answer = await client.post("/v1/billing/meter_events", content=body)
            assert (answer.status_code, bool(answer.json()["error"]["message"])) == (400, True), body
    assert emulator.events == ()


def test_meters_and_customers_are_not_made_twice(emulator: StripeEmulator) -> None:
    with pytest.raises(ValueError, match="already a customer cus_1"):
        emulator.add_customer("cus_1")
    with pytest.raises(ValueError, match="already an active meter with the event name tokens"):
        emulator.add_meter("tokens")
    emulator.reset()
    assert emulator.add_customer("cus_1", name="Acme") == "cus_1"


async def test_what_stripe_takes_and_refuses(emulator: StripeEmulator) -> None:
    """F-59: what the emulator refused though Stripe takes it, and took though Stripe refuses it."""
    emulator.add_meter("counts", formula="count")
    key = {"authorization": "Bearer sk_test_1"}
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url, headers=key) as http:
        address = {"address[city]": "Ulm", "address[line1]": "Münster 1"}
        made = (await http.post("/v1/customers", data=address)).json()
        assert (made["address"]["city"], made["address"]["state"]) == ("Ulm", None)
        assert (await http.post("/v1/customers", data={"address[planet]": "x"})).status_code == 400
        now = made["created"]
        for query, found in {f"created={now}": 2, f"created[gt]={now}": 0, f"created[lte]={now}": 2}.items():
            assert len((await http.get(f"/v1/customers?{query}")).json()["data"]) == found
        assert (await http.get("/v1/customers?created[at]=1")).status_code == 400
        assert (await http.get("/v1/customers/cus_1?expand[0]=subscriptions")).status_code == 200
        assert (await http.get("/v1/customers/cus_1?expand[0]=nonsense")).status_code == 400

        async def event(headers: dict[str, str] | None = None, /, **form: str) -> httpx.Response:
            sent = {"event_name": "tokens", "payload[stripe_customer_id]": "cus_1", "payload[value]": "1"}
            return await http.post("/v1/billing/meter_events", data=sent | form, headers=headers)

        assert (await event(identifier="")).status_code == 400
        assert (await event(None, **{"expand[0]": "customer"})).status_code == 400
        assert (await event(None, event_name="counts", **{"payload[value]": "abc"})).status_code == 400
        assert (await event(event_name="counts")).status_code == 200
        emulator.fail_next("error", status=409)
        assert (await event()).json()["error"]["code"] == "idempotency_key_in_use"
        again = {"idempotency-key": "k1"}
        assert (await event(again, identifier="a")).status_code == 200
        # Another order, the same parameters.
        turned = "payload%5Bvalue%5D=1&identifier=a&payload[stripe_customer_id]=cus_1&event_name=tokens"
        form = {**again, "content-type": "application/x-www-form-urlencoded"}
        answer = await http.post("/v1/billing/meter_events", content=turned, headers=form)
        assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true")
        assert (await event(again, identifier="b")).json()["error"]["type"] == "idempotency_error"


async def test_two_cursors_are_refused(client: Any) -> None:
    """https://github.com/stripe/stripe-python/issues/585."""
    error = await refused(client.customers.list(starting_after="cus_1", ending_before="cus_1"))
    both = "Received both starting_after and ending_before parameters. Please pass in only one."
    assert error.user_message == both
    assert (await client.customers.list(starting_after="cus_1")).data == []


@pytest.mark.parametrize(
    ("metadata", "said", "param"),
    [
        ({"k" * 41: "v"}, "Metadata keys can have up to 40 characters, but you passed in a key", "metadata"),
        ({"k": "v" * 501}, "Metadata values can have up to 500 characters, but you", "metadata[k]"),
        ({f"k{n}": "v" for n in range(51)}, "Metadata can have up to 50 keys, but you've set 51", "metadata"),
    ],
)
async def test_metadata_has_limits(client: Any, metadata: dict[str, str], said: str, param: str) -> None:
    """https://docs.stripe.com/metadata."""
    error = await refused(client.subscriptions.update((await subscribe(client)).id, metadata=metadata))
    assert error.user_message.startswith(said)
    assert (error.http_status, error.param) == (400, param)
    await refused(client.customers.update("cus_1", name="Other", metadata=metadata), "Metadata")
    assert (await client.customers.retrieve("cus_1")).name == "Acme"


@pytest.mark.parametrize("version", ["2025-09-30.acacia", "2026-10-28", ""])
async def test_versions_that_stripe_does_not_have_are_refused(client: Any, version: str) -> None:
    """https://github.com/beam-community/stripity-stripe/issues/606."""
    error = await refused(client.customers.list(options={"headers": {"Stripe-Version": version}}))
    assert error.user_message == f"Invalid Stripe API version: {version}"


@pytest.mark.parametrize("version", ["2020-08-27", "2025-02-24.acacia"])
async def test_versions_with_other_shapes_are_not_emulated(client: Any, version: str) -> None:
    with pytest.raises(stripe.InvalidRequestError, match=r"older than 2025-03-31\.basil and not emulated"):
        await client.customers.list(options={"stripe_version": version})
