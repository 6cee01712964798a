"""Tests of the metered service, with what meterkit.testing has."""

from app import create_app
from service import create_database
from starlette.testclient import TestClient

from meterkit import MeterKit
from meterkit.testing import StripeEmulator

ORIGIN = {"origin": "https://notes.example"}


def client_of(kit: MeterKit, **headers: str) -> TestClient:
    return TestClient(create_app(kit, create_database()), headers=headers)


def test_the_services_own_users_are_the_customers(meterkit_kit: MeterKit) -> None:
    with client_of(meterkit_kit, authorization="Bearer token-of-ada") as client:
        assert client.post("/api/notes", json={"text": "x" * 150}).status_code == 201
        assert client.get("/api/notes").json() == [{"id": 1, "text": "x" * 150}]
        assert client.get("/api/notes", headers={"authorization": "Bearer token-of-bob"}).json() == []
        assert client.portal is not None
        meters = client.portal.call(meterkit_kit.usage, "account-1")["meters"]
    assert (meters["requests"]["used"], meters["characters"]["used"]) == (2, 150)


def test_nobody_is_turned_away_by_the_meter_and_health_is_left_alone(meterkit_kit: MeterKit) -> None:
    with client_of(meterkit_kit) as client:
        assert client.get("/healthz").text == "ok"
        assert client.get("/api/notes").status_code == 401


def test_a_script_of_a_browser_can_read_a_refusal(meterkit_kit: MeterKit) -> None:
    with client_of(meterkit_kit, authorization="Bearer token-of-ada", **ORIGIN) as client:
        preflight = client.options("/api/notes", headers={"access-control-request-method": "GET"})
        assert preflight.status_code == 200
        answers = [client.get("/api/notes") for _ in range(61)]
    assert (answers[59].status_code, answers[60].status_code) == (200, 429)
    assert answers[60].headers["access-control-allow-origin"] == "https://notes.example"
    assert "retry-after" in answers[60].headers


def test_answers_are_compressed_as_before(meterkit_kit: MeterKit) -> None:
    with client_of(meterkit_kit, authorization="Bearer token-of-ada") as client:
        client.post("/api/notes", json={"text": "y" * 2_000})
        answer = client.get("/api/notes")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()[0]["text"] == "y" * 2_000


def test_what_goes_beyond_a_plan_is_billed(meterkit_kit: MeterKit, stripe_emulator: StripeEmulator) -> None:
    billed = stripe_emulator.add_customer(name="Ada")
    with client_of(meterkit_kit, authorization="Bearer token-of-ada") as client:
        assert client.portal is not None
        client.portal.call(meterkit_kit.customers.set_plan, "account-1", "pro")
        client.portal.call(meterkit_kit.customers.link, "account-1", billed)
        client.post("/api/notes", json={"text": "z" * 100_007})
        client.portal.call(lambda: meterkit_kit.flush(everything=True))
    assert int(stripe_emulator.accepted(billed, "note_characters")) == 7
