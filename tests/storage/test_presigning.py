"""``kit.storage.presign``: asks the limit, and holds the bytes until the event of the object arrives."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import pytest

from drivers.delivery import NOW
from meterkit import MeterKit, QuantityError, UploadRefusedError
from meterkit.catalog import loads
from meterkit.errors import MeterkitError
from meterkit.testing import Clock
from storage.objects import Happened
from storage.test_histories import NOW_MS, PLANS

pytestmark = pytest.mark.anyio

KEY: Final = "ada/images/a b"
"""Keys of hers. What follows on ``w:`` is random, and may begin so."""
MOST: Final = 5_000_000


@pytest.fixture(autouse=True)
def signing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def put(size: int, *, number: int = 5, after_ms: int = 1000) -> str:
    return Happened.put(KEY, size, NOW_MS + after_ms, number).as_body("s3", "uploads").decode()


async def figures(kit: MeterKit) -> tuple[int, int, int | str]:
    usage = (await kit.usage("ada"))["meters"]["storage"]
    assert usage["used"] == usage["recorded"] + usage["held"]
    return usage["recorded"], usage["held"], usage["remaining"]


async def test_an_address_is_of_one_key_and_of_its_length(kit: MeterKit) -> None:
    address = urlsplit(await kit.storage.presign("ada", KEY, 700))
    assert address.path == "/uploads/ada/images/a%20b"
    asked = parse_qs(address.query)
    assert (asked["X-Amz-SignedHeaders"], asked["X-Amz-Expires"]) == (["content-length;host"], ["2700"])
    assert await figures(kit) == (0, 700, MOST - 700)


async def test_the_limit_is_asked_of_all_that_is_held(kit: MeterKit) -> None:
    await kit.gauges.set("ada", "storage", 1_000_000)
    await kit.storage.presign("ada", KEY, 3_999_999)
    figures_of = r"refused \(storage\): 2 requested, 4999999 of 5000000 used"
    with pytest.raises(UploadRefusedError, match=figures_of) as refused:
        await kit.storage.presign("ada", KEY, 2)
    assert refused.value.decision.reason == "storage"
    assert not (await kit.check("ada", "storage", 2)).allowed
    await kit.storage.presign("ada", KEY, 1)
    assert await figures(kit) == (1_000_000, 4_000_000, 0)
    with pytest.raises(QuantityError):
        await kit.storage.presign("ada", KEY, -1)


@pytest.mark.parametrize(
    "key",
    [
        "bob/images/a",
        "ada/../bob/a",
        "ada/images/%2F",
        "ada",
        "ada/\ud800",
        None,
        f"ada/images/{'k' * 1_014}",
    ],
)
async def test_a_key_of_somebody_else_or_of_no_object_is_refused(kit: MeterKit, key: Any) -> None:
    with pytest.raises(MeterkitError, match="allowed is a key of customer 'ada'"):
        await kit.storage.presign("ada", key, 1)
    assert await figures(kit) == (0, 0, MOST)


async def test_the_event_settles_a_hold_once(kit: MeterKit) -> None:
    for _ in range(2):
        await kit.storage.presign("ada", KEY, 700)
    for _ in range(3):
        await kit.storage.count(put(700))
        assert await figures(kit) == (700, 700, MOST - 1400)
    await kit.storage.count(put(700, number=6, after_ms=2000))
    assert await figures(kit) == (700, 0, MOST - 700)
    await kit.storage.presign("ada", KEY, 50)
    await kit.storage.count(put(700, number=6, after_ms=2000))
    assert await figures(kit) == (700, 50, MOST - 750)


async def test_an_upload_that_never_comes_is_held_for_an_hour_at_most(kit: MeterKit, clock: Clock) -> None:
    await kit.storage.presign("ada", KEY, 700)
    clock.advance(timedelta(minutes=54, seconds=59))
    assert (await figures(kit))[1] == 700
    assert not (await kit.check("ada", "storage", MOST - 699)).allowed
    clock.advance(timedelta(minutes=5, seconds=1))
    assert await figures(kit) == (0, 0, MOST)
    assert (await kit.check("ada", "storage", MOST)).allowed
    await kit.storage.presign("ada", KEY, 30)
    later_ms = 60 * 60_000
    await kit.storage.count(put(700, after_ms=later_ms))  # The first hold is over: it settles the second one.
    assert await figures(kit) == (700, 0, MOST - 700)


async def test_a_key_is_presigned_a_hundred_times_an_hour(kit: MeterKit) -> None:
    for _ in range(100):
        await kit.storage.presign("ada", KEY, 1)
    with pytest.raises(MeterkitError, match="a hundred times"):
        await kit.storage.presign("ada", KEY, 1)
    assert (await figures(kit))[1] == 100
    await kit.storage.presign("ada", "ada/images/b", 1)


async def test_without_credentials_nothing_is_held(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # It remembers those of other tests.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(MeterkitError, match="cannot be presigned"):
        await kit.storage.presign("ada", KEY, 700)
    assert await figures(kit) == (0, 0, MOST)


@pytest.mark.parametrize("enforcement", ["shadow", "off"])
async def test_where_no_upload_is_refused_what_fits_is_held(
    enforcement: Literal["shadow", "off"],
) -> None:
    async with MeterKit(
        loads(PLANS), clock=Clock(NOW), redis_url="memory://", flush=False, enforcement=enforcement
    ) as lenient:
        await lenient.storage.presign("ada", KEY, 700)
        assert "ada/images" in await lenient.storage.presign("ada", KEY, MOST)
        assert (await figures(lenient))[1] == (700 if enforcement == "shadow" else 0)
