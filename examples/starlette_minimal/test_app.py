"""Tests of the example, with what meterkit.testing has."""

from datetime import timedelta

from app import create_app
from starlette.testclient import TestClient

from meterkit import MeterKit
from meterkit.testing import Clock


def test_five_a_minute_and_then_no_more(meterkit_kit: MeterKit, meterkit_clock: Clock) -> None:
    with TestClient(create_app(meterkit_kit), headers={"x-customer-id": "ada"}) as client:
        answers = [client.get("/") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert answers[5].json()["violated-policies"] == ["requests-1m"]
        assert client.get("/", headers={"x-customer-id": "bob"}).status_code == 200
        meterkit_clock.advance(timedelta(minutes=2))
        assert client.get("/").status_code == 200


def test_who_says_nothing_of_themselves_is_nobody(meterkit_kit: MeterKit) -> None:
    with TestClient(create_app(meterkit_kit)) as client:
        assert client.get("/").status_code == 401
