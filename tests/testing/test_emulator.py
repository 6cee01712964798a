"""The emulator refuses and accepts as Stripe does, seen through the official SDK over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import stripe

from drivers.emulated_account import account
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = int(NOW.timestamp())


def ready(**options: Any) -> tuple[StripeEmulator, Clock]:
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock, **options)
    emulator.add_customer("cus_1")
    emulator.add_meter("api_requests")
    return emulator, clock


async def send(
    client: stripe.StripeClient,
    identifier: str,
    value: str = "1",
    *,
    customer: str = "cus_1",
    event_name: str = "api_requests",
    timestamp: int = SECOND,
    key: str | None = None,
) -> stripe.billing.MeterEvent:
    return await client.v1.billing.meter_events.create_async(
        {
            "event_name": event_name,
            "identifier": identifier,
            "payload": {"stripe_customer_id": customer, "value": value},
            "timestamp": timestamp,
        },
        {"idempotency_key": key} if key else None,
    )


async def refused(client: stripe.StripeClient, identifier: str, **event: Any) -> stripe.StripeError:
    with pytest.raises(stripe.StripeError) as caught:
        await send(client, identifier, **event)
    return caught.value


async def test_customers_live_and_die() -> None:
    async with account(StripeEmulator()) as client:
        customers = client.v1.customers
        made = await customers.create_async(
            {"name": "Acme", "email": "a@acme.test", "metadata": {"app": "7"}}
        )
        assert made.id.startswith("cus_")
        assert made.metadata is not None
        assert (made.name, made.metadata["app"], made.livemode) == ("Acme", "7", False)
        changed = await customers.update_async(made.id, {"name": "Acme Ltd", "metadata": {"app": ""}})
        assert changed.name == "Acme Ltd"
        assert changed.metadata is not None
        assert changed.metadata.to_dict() == {}
        assert (await customers.retrieve_async(made.id)).email == "a@acme.test"
        assert (await customers.delete_async(made.id)).deleted
        assert (await customers.retrieve_async(made.id)).deleted
        with pytest.raises(stripe.InvalidRequestError, match=f"No such customer: '{made.id}'") as caught:
            await customers.update_async(made.id, {"name": "x"})
        assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


async def test_lists_have_pages() -> None:
    async with account(StripeEmulator()) as client:
        made = [(await client.v1.customers.create_async({"email": f"{n % 2}@x"})).id for n in range(5)]
        newest_first = made[::-1]
        page = await client.v1.customers.list_async({"limit": 2})
        assert (newest_first[:2], True, "/v1/customers") == (
            [c.id for c in page.data],
            page.has_more,
            page.url,
        )
        assert newest_first == [c.id async for c in page.auto_paging_iter()]
        back = await client.v1.customers.list_async({"limit": 2, "ending_before": made[0]})
        assert (made[2:0:-1], True) == ([c.id for c in back.data], back.has_more)
        odd = await client.v1.customers.list_async({"email": "1@x"})
        assert [made[3], made[1]] == [c.id for c in odd.data]
        with pytest.raises(stripe.InvalidRequestError, match="Invalid limit: 101"):
            await client.v1.customers.list_async({"limit": 101})
        with pytest.raises(stripe.InvalidRequestError, match="No such object: 'cus_none'"):
            await client.v1.customers.list_async({"starting_after": "cus_none"})


async def test_meters_live_and_rest() -> None:
    async with account(StripeEmulator(clock=Clock(NOW))) as client:
        meters = client.v1.billing.meters
        made = await meters.create_async(
            {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "sum"}}
        )
        assert (
            made.status, made.default_aggregation.formula, made.value_settings.event_payload_key
        ) == ("active", "sum", "value")  # fmt: skip
        with pytest.raises(stripe.InvalidRequestError, match="already uses the event name calls"):
            await meters.create_async(
                {"display_name": "Again", "event_name": "calls", "default_aggregation": {"formula": "count"}}
            )
        assert (await meters.update_async(made.id, {"display_name": "API calls"})).display_name == "API calls"
        resting = await meters.deactivate_async(made.id)
        assert (resting.status, resting.status_transitions.deactivated_at) == ("inactive", SECOND)
        assert [made.id] == [m.id for m in (await meters.list_async({"status": "inactive"})).data]
        assert (await meters.list_async({"status": "active"})).data == []
        assert (await meters.reactivate_async(made.id)).status == "active"
        assert (await meters.retrieve_async(made.id)).display_name == "API calls"
        with pytest.raises(stripe.InvalidRequestError, match="No such meter: 'mtr_none'"):
            await meters.retrieve_async("mtr_none")


@pytest.mark.parametrize(
    ("params", "message", "param"),
    [
        ({"display_name": "x", "event_name": "y"}, "Missing required param", "default_aggregation[formula]"),
        ({"event_name": "x", "default_aggregation": {"formula": "sum"}}, "Missing", "display_name"),
        ({"event_name": "x" * 101, "default_aggregation": {"formula": "sum"}}, "at most 100", "event_name"),
        ({"colour": "red"}, "Received unknown parameter: colour", "colour"),
    ],
)  # fmt: skip
async def test_meters_need_what_they_need(params: Any, message: str, param: str) -> None:
    async with account(StripeEmulator()) as client:
        with pytest.raises(stripe.InvalidRequestError, match=message) as caught:
            await client.v1.billing.meters.create_async(params)
        assert caught.value.error is not None
        assert param == caught.value.error.to_dict()["param"]


async def test_meters_rest_and_wake_once() -> None:
    emulator, _ = ready()
    async with account(emulator) as client:
        meters = client.v1.billing.meters
        (meter,) = (await meters.list_async()).data
        with pytest.raises(stripe.InvalidRequestError, match="already active"):
            await meters.reactivate_async(meter.id)
        await meters.deactivate_async(meter.id)
        with pytest.raises(stripe.InvalidRequestError, match="already inactive"):
            await meters.deactivate_async(meter.id)
        emulator.add_meter("api_requests")
        with pytest.raises(stripe.InvalidRequestError, match="already uses the event name"):
            await meters.reactivate_async(meter.id)
        unchanged = await meters.update_async(meter.id)
        assert unchanged.display_name == "api_requests"


async def test_identifier_is_unique() -> None:
    emulator, _ = ready()
    async with account(emulator) as client:
        await send(client, "i1", "3")
        assert "at most 100 characters" in ((await refused(client, "i" * 101)).user_message or "")
        error = await refused(client, "i1", value="4")
        assert isinstance(error, stripe.InvalidRequestError)
        assert error.user_message == "An event already exists with identifier i1."
        assert (error.http_status, error.code) == (400, None)
        assert (error.headers or {})["stripe-should-retry"] == "false"
    assert emulator.accepted("cus_1", "api_requests") == 3


async def test_a_key_is_for_one_call_and_its_answer() -> None:
    emulator, clock = ready()
    async with account(emulator) as client:
        first = await send(client, "i1", "3", key="k")
        clock.advance(timedelta(minutes=1))
        second = await send(client, "i1", "3", key="k")
        assert first.to_dict() == second.to_dict()
        assert second.last_response is not None
        assert second.last_response.headers["idempotent-replayed"] == "true"
        assert first.last_response is not None
        assert first.last_response.headers["request-id"] == second.last_response.headers["original-request"]
        assert [request.replayed for request in emulator.requests] == [False, True]
        assert len(emulator.events) == 1
        error = await refused(client, "i1", value="4", key="k")
        assert isinstance(error, stripe.IdempotencyError)
        assert error.http_status == 400
        assert "at most 255 characters" in ((await refused(client, "i2", key="k" * 256)).user_message or "")
        with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
            await client.v1.customers.create_async({}, {"idempotency_key": "k"})


async def test_what_was_refused_before_it_began_is_not_stored() -> None:
    emulator, _ = ready(rate_limit_per_s=1)
    async with account(emulator) as client:
        await send(client, "i1", key="k1")
        await refused(client, "i2", key="k2")
        error = await refused(client, "i2", value="2", key="k2")
        assert error.http_status == 429, "the key is still free for other parameters"


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (timedelta(days=-35), None),
        (timedelta(days=-35, seconds=-1), "The event timestamp cannot be more than 35 days in past."),
        (timedelta(minutes=5), None),
        (timedelta(minutes=5, seconds=1), "The event timestamp cannot be more than 5 minutes in the future."),
    ],
)
async def test_timestamp_has_bounds(offset: timedelta, message: str | None) -> None:
    emulator, _ = ready()
    timestamp = int((NOW + offset).timestamp())
    async with account(emulator) as client:
        if message is None:
            assert (await send(client, "i1", timestamp=timestamp)).timestamp == timestamp
        else:
            error = await refused(client, "i1", timestamp=timestamp)
            assert (error.http_status, (error.user_message or "").startswith(message)) == (400, True)
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
async def test_value_has_at_most_15_digits(value: str, accepted: bool) -> None:
    emulator, _ = ready()
    async with account(emulator) as client:
        if accepted:
            await send(client, "i1", value)
            assert Decimal(value) == emulator.accepted("cus_1", "api_requests")
        else:
            error = await refused(client, "i1", value=value)
            text = f"The value in the event payload can have at most 15 digits. Received {value}."
            assert text == error.user_message


@pytest.mark.parametrize("value", ["", "1e16", "NaN", "٣"])
async def test_value_must_be_a_number(value: str) -> None:
    emulator, _ = ready()
    async with account(emulator) as client:
        assert (await refused(client, "i1", value=value)).http_status == 400
    assert emulator.events == ()


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


async def test_odd_parameters_are_refused_and_do_no_harm() -> None:
    emulator, _ = ready()
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url, auth=("sk_test_1", "")) as client:
        for body in (
            b"payload=1&payload[value]=2",
            b"[value]=2",
            b"a]b=2",
            b"event_name[x]=1",
            b"event_name=api_requests&payload=1",
            b"event_name=api_requests&payload[value][x]=1",
            b"event_name=api_requests&payload[value]=1&timestamp=soon",
            b"event_name=api_requests",
            b"payload[value]=1",
            b"\xff\xfe=1",
            b"",
        ):
            answer = await client.post("/v1/billing/meter_events", content=body)
            assert (answer.status_code, bool(answer.json()["error"]["message"])) == (400, True), body
    assert emulator.events == ()


def test_meters_and_customers_are_not_made_twice() -> None:
    emulator, _ = ready()
    with pytest.raises(ValueError, match="already a customer cus_1"):
        emulator.add_customer("cus_1")
    with pytest.raises(ValueError, match="already an active meter with the event name api_requests"):
        emulator.add_meter("api_requests")
    emulator.reset()
    assert emulator.add_customer("cus_1", name="Acme") == "cus_1"


async def test_what_stripe_takes_and_refuses() -> None:
    """F-59: what the emulator refused though Stripe takes it, and took though Stripe refuses it."""
    emulator = StripeEmulator(clock=Clock(datetime(2031, 6, 10, tzinfo=UTC)))
    emulator.add_customer("cus_1")
    emulator.add_meter("sums")
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
            sent = {
                "event_name": "sums",
                "payload[stripe_customer_id]": "cus_1",
                "payload[value]": "1",
            } | form
            return await http.post("/v1/billing/meter_events", data=sent, headers=headers)

        assert (await event(identifier="")).status_code == 400
        assert (await event(None, **{"expand[0]": "customer"})).status_code == 400
        assert (await event(None, event_name="counts", **{"payload[value]": "abc"})).status_code == 400
        assert (await event(event_name="counts")).status_code == 200
        emulator.fail_next("error", status=409)
        assert (await event()).json()["error"]["code"] == "idempotency_key_in_use"
        again = {"idempotency-key": "k1"}
        assert (await event(again, identifier="a")).status_code == 200
        # Another order, the same parameters.
        turned = "payload%5Bvalue%5D=1&identifier=a&payload[stripe_customer_id]=cus_1&event_name=sums"
        form = {**again, "content-type": "application/x-www-form-urlencoded"}
        answer = await http.post("/v1/billing/meter_events", content=turned, headers=form)
        assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true")
        assert (await event(again, identifier="b")).json()["error"]["type"] == "idempotency_error"
