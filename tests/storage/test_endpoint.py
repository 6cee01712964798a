"""``storage_events``: posts of MinIO, EventBridge and SNS count, and what is not theirs is refused."""

# Internals: which addresses of certificates are fetched, and how much of them.

from __future__ import annotations

import json
import re
import sys
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Final

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_curve_key
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from drivers.delivery import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import MeterkitError
from meterkit.starlette import storage_events
from meterkit.storage import sns_certificates
from meterkit.storage.sns_certificates import BYTES_MAX, fetch
from meterkit.testing import Clock
from storage.objects import Happened
from storage.test_histories import PLANS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from servers.stores import Server

pytestmark = pytest.mark.anyio

SECRET: Final = "a secret of MinIO"
TOPIC: Final = "arn:aws:sns:eu-west-1:1:uploads"
CERTIFICATE: Final = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem"
BEARER: Final = {"authorization": f"Bearer {SECRET}"}
PUT: Final = Happened("ObjectCreated:Put", "ada/images/a b", 900, None, 1_939_000_000_000, 5, 5)


@pytest.fixture
async def kit() -> AsyncIterator[MeterKit]:
    async with MeterKit(loads(PLANS), clock=Clock(NOW), redis_url="memory://", flush=False) as kit:
        yield kit


@pytest.fixture
async def client(kit: MeterKit) -> AsyncIterator[httpx.AsyncClient]:
    app = storage_events(kit, secret=SECRET, topics=[TOPIC])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        yield client


async def test_a_post_of_minio_counts_once(kit: MeterKit, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        answer = await client.post("/", content=PUT.as_body("minio", "uploads"), headers=BEARER)
        assert (answer.status_code, answer.json()) == (200, {"received": True})
    usage = (await kit.usage("ada"))["meters"]["storage"]
    assert (usage["used"], usage.get("types")) == (900, {"documents": 0, "images": 900, "other": 0})
    assert (await client.head("/")).status_code == 200  # MinIO asks so first.


async def test_a_post_of_eventbridge_counts(kit: MeterKit, client: httpx.AsyncClient) -> None:
    await client.post("/", content=PUT.as_body("eventbridge", "uploads"), headers=BEARER)
    assert await kit.gauges.get("ada", "storage") == 900


async def test_what_nobody_has_signed_is_refused(kit: MeterKit, client: httpx.AsyncClient) -> None:
    body = PUT.as_body("minio", "uploads")
    another = {"authorization": "Bearer another"}
    twice = [*BEARER.items(), *another.items()]
    for headers in ({}, {"authorization": SECRET}, another, twice, twice[::-1]):
        answer = await client.post("/", content=body, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert (await client.post("/", content=b"{}", headers=BEARER)).status_code == 400
    assert (await client.post("/", content=b" " * (2**20 + 1), headers=BEARER)).status_code == 413
    assert (await client.get("/")).status_code == 405
    assert await kit.gauges.get("ada", "storage") == 0
    with pytest.raises(MeterkitError, match="at least 16 characters"):
        storage_events(kit, secret="short")


async def test_a_body_without_a_length_is_bounded_too(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 2**19

    assert (await client.post("/", content=pieces(), headers=BEARER)).status_code == 413


async def test_a_store_that_fails_has_it_sent_again(valkey: Server) -> None:
    async with MeterKit(loads(PLANS), redis_url=valkey.url, flush=False, shards=1) as kit:
        app = storage_events(kit, secret=SECRET)
        valkey.ask("SET", "mk:{0}:v:ada", "no hash")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            answer = await client.post("/", content=PUT.as_body("minio", "uploads"), headers=BEARER)
        assert answer.status_code == 503
        valkey.ask("DEL", "mk:{0}:v:ada")


async def test_without_storage_in_the_plans_file_events_are_sent_again() -> None:
    plans = PLANS[: PLANS.index("storage:\n")] + PLANS[PLANS.index("plans:") :]
    async with MeterKit(loads(plans), redis_url="memory://", flush=False) as kit:
        app = storage_events(kit, secret=SECRET)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            answer = await client.post("/", content=PUT.as_body("minio", "uploads"), headers=BEARER)
    assert answer.status_code == 503


async def test_keys_of_nobody_are_logged_once_a_minute(
    kit: MeterKit, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("ada/images/../../bob/images/x", "ada%2Fimages/x", "elsewhere"):
        foreign = Happened("ObjectCreated:Put", key, 9, None, 1_939_000_000_000, 5, 5)
        answer = await client.post("/", content=foreign.as_body("minio", "uploads"), headers=BEARER)
        assert answer.status_code == 200
    told = [line.getMessage() for line in caplog.records if line.name == "meterkit.storage"]
    assert told == ["events of objects are not counted: no key of storage.objects matches them"]
    assert [await kit.gauges.get(name, "storage") for name in ("ada", "bob")] == [0, 0]


async def test_sizes_out_of_bounds_count_nothing_and_are_logged(
    kit: MeterKit, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for size in (-1, 10**15, 10**15 + 1):
        wrong = Happened("ObjectCreated:Put", "ada/images/x", size, None, 1_939_000_000_000, 5, 5)
        answer = await client.post("/", content=wrong.as_body("s3", "uploads"), headers=BEARER)
        assert (answer.status_code, await kit.gauges.get("ada", "storage")) == (200, 0)
    assert [line.name for line in caplog.records].count("meterkit.storage") == 1  # Once a minute.


# SNS: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html

KEY: Final = generate_private_key(public_exponent=65537, key_size=2048)


START: Final = datetime(2020, 1, 1, tzinfo=UTC)


def certificate(begins: datetime = START, ends: datetime = START + timedelta(days=9999)) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    built = x509.CertificateBuilder(name, name, KEY.public_key(), 1, begins, ends)
    return built.sign(KEY, SHA256()).public_bytes(Encoding.PEM)


def signed(version: str = "2", **changes: str) -> dict[str, Any]:
    message = {
        "Message": PUT.as_body("s3", "uploads").decode(),
        "MessageId": "1",
        "Timestamp": NOW.isoformat().replace("+00:00", "Z"),
        "TopicArn": TOPIC,
        "Type": "Notification",
        "SigningCertURL": CERTIFICATE,
        "SignatureVersion": version,
        **changes,
    }
    names = ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
    if message["Type"] == "SubscriptionConfirmation":
        names = ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
    text = "".join(f"{name}\n{message[name]}\n" for name in names if name in message)
    hashed = SHA1() if version == "1" else SHA256()  # noqa: S303 - what topics sign with by default
    signature = KEY.sign(text.encode(), PKCS1v15(), hashed)
    return {**message, "Signature": b64encode(signature).decode()}


@pytest.fixture
def fetched(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fetched of AWS, which the tests do not reach."""
    found: list[str] = []

    async def fetch(url: str) -> bytes:
        found.append(url)
        return certificate()

    monkeypatch.setattr(kit.storage, "fetch", fetch)
    return found


async def test_a_certificate_of_another_kind_of_key_signs_nothing(
    kit: MeterKit, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, name = generate_curve_key(SECP256R1()), x509.Name([])
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, START, START + timedelta(days=9999))
    pem = built.sign(key, SHA256()).public_bytes(Encoding.PEM)

    async def fetch(url: str) -> bytes:
        assert url == CERTIFICATE
        return pem

    monkeypatch.setattr(kit.storage, "fetch", fetch)
    answer = await client.post("/", content=json.dumps(signed()))
    assert (answer.status_code, answer.json()["detail"]) == (400, "its signature is wrong")


async def test_sns_that_cannot_be_asked_has_the_message_sent_again(
    kit: MeterKit, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(url: str) -> bytes:
        raise TimeoutError(url)

    monkeypatch.setattr(kit.storage, "fetch", away)
    assert (await client.post("/", content=json.dumps(signed()))).status_code == 503
    assert await kit.gauges.get("ada", "storage") == 0


async def test_only_certificates_are_remembered(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate()
    answers = [b"<html>busy</html>", pem, b"asked for again"]

    def fetch(url: str) -> bytes:
        assert url == CERTIFICATE
        return answers.pop(0)

    monkeypatch.setattr(sns_certificates, "fetch", fetch)
    found = [await kit.storage.fetch(CERTIFICATE) for _ in range(3)]
    assert found == [b"<html>busy</html>", pem, pem]


async def test_topics_without_what_checks_signatures(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "meterkit.storage.sns_certificates", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    storage_events(kit, secret=SECRET)
    with pytest.raises(MeterkitError, match=re.escape("pip install 'meterkit[storage]'")):
        storage_events(kit, secret=SECRET, topics=[TOPIC])


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_message_of_sns_counts(
    kit: MeterKit, client: httpx.AsyncClient, fetched: list[str], version: str
) -> None:
    answer = await client.post("/", content=json.dumps(signed(version, Subject="Amazon S3 Notification")))
    assert (answer.status_code, fetched) == (200, [CERTIFICATE])
    assert await kit.gauges.get("ada", "storage") == 900


async def test_a_subscription_is_confirmed(client: httpx.AsyncClient, fetched: list[str]) -> None:
    url = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t"
    asked = {"Type": "SubscriptionConfirmation", "Token": "t"}
    answer = await client.post("/", content=json.dumps(signed("1", SubscribeURL=url, **asked)))
    assert (answer.status_code, fetched) == (200, [CERTIFICATE, url])
    elsewhere = signed("1", SubscribeURL="https://sns.eu-west-1.amazonaws.com.evil.example/", **asked)
    assert (await client.post("/", content=json.dumps(elsewhere))).status_code == 400
    assert fetched == [CERTIFICATE, url, CERTIFICATE]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**signed(), "Message": "{}"}, "signature is wrong"),
        ({**signed(), "Signature": "?"}, "signature is wrong"),
        ({**signed(), "SignatureVersion": "3"}, "signature is wrong"),
        (signed(TopicArn="arn:aws:sns:eu-west-1:2:mine"), "topic"),
        (signed(SigningCertURL="https://evil.example/a.pem"), "certificate"),
        (signed(Timestamp=(NOW - timedelta(minutes=61)).isoformat()), "older than an hour"),
        (signed(Timestamp="yesterday"), "Timestamp"),
        ({**signed(), "MessageId": 1}, "not a message of SNS"),
    ],
)
async def test_a_message_that_sns_has_not_signed_lately_is_refused(
    kit: MeterKit, client: httpx.AsyncClient, fetched: list[str], message: dict[str, Any], reason: str
) -> None:
    answer = await client.post("/", content=json.dumps(message))
    assert (answer.status_code, reason in answer.json()["detail"]) == (400, True)
    assert set(fetched) <= {CERTIFICATE}
    assert await kit.gauges.get("ada", "storage") == 0


HOST: Final = "https://sns.eu-west-1.amazonaws.com"
NAME: Final = "SimpleNotificationService-f3ecfb7224c7233fe7bb5f59f96de52f.pem"


async def test_a_certificate_in_the_spelling_of_aws_is_fetched(
    client: httpx.AsyncClient, fetched: list[str]
) -> None:
    hosts = ("sns.us-gov-west-1.amazonaws.com", "sns.cn-north-1.amazonaws.com.cn")
    urls = [f"https://{host}/{NAME}" for host in hosts]
    for url in urls:
        assert (await client.post("/", content=json.dumps(signed(SigningCertURL=url)))).status_code == 200
    assert fetched == urls


ELSEWHERE: Final[list[Any]] = [
    *(f"{HOST}/{path}" for path in ("a.pem", "", f"x/{NAME}", f"./{NAME}", f"{NAME}/")),
    *(f"{HOST}/{NAME}{end}" for end in ("?a=1", "#", ";a", "%00", "\n", ".pem")),
    *(f"{HOST}/SimpleNotificationService-{name}" for name in (".pem", "g.pem", "1.PEM", "\u0661.pem")),
    *(f"{HOST}{port}/{NAME}" for port in (":443", ":", ".")),
    f"http://sns.eu-west-1.amazonaws.com/{NAME}",
    f"https://a@sns.eu-west-1.amazonaws.com/{NAME}",
    f"https://sns.eu-west-1.amazonaws.com@evil.example/{NAME}",
    f"https://sns.eu-west-1.amazonaws.com.evil.example/{NAME}",
    f"https://evil.example/sns.eu-west-1.amazonaws.com/{NAME}",
    f"https://sns.s3-us-west-2.amazonaws.com/{NAME}",  # Of a bucket named `sns`.
    f"https://sns.amazonaws.com/{NAME}",
    f"https://xsns.eu-west-1.amazonaws.com/{NAME}",
    None,
]


async def test_no_other_address_of_a_certificate_is_fetched(
    kit: MeterKit, client: httpx.AsyncClient, fetched: list[str]
) -> None:
    message = signed()
    for url in ELSEWHERE:
        answer = await client.post("/", content=json.dumps(message | {"SigningCertURL": url}))
        assert (answer.status_code, fetched) == (400, []), url
        assert "its certificate is not at an address of SNS" in answer.json()["detail"]
    assert await kit.gauges.get("ada", "storage") == 0


async def test_no_other_address_confirms_a_subscription(
    client: httpx.AsyncClient, fetched: list[str]
) -> None:
    for origin in (f"http{HOST[5:]}", f"{HOST}.evil.example", f"{HOST}/x", f"{HOST}:8443"):
        url = f"{origin}/?Token=t"
        asked = signed("1", SubscribeURL=url, Type="SubscriptionConfirmation", Token="t")
        assert (await client.post("/", content=json.dumps(asked))).status_code == 400
    assert set(fetched) == {CERTIFICATE}


@pytest.mark.parametrize(
    ("begins_s", "ends_s", "status"),
    [(0, 0, 200), (-20, -1, 400), (1, 20, 400)],
)
async def test_a_certificate_counts_from_its_first_second_to_its_last(
    kit: MeterKit,
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    begins_s: int,
    ends_s: int,
    status: int,
) -> None:
    async def fetch(url: str) -> bytes:
        del url
        return certificate(NOW + timedelta(seconds=begins_s), NOW + timedelta(seconds=ends_s))

    monkeypatch.setattr(kit.storage, "fetch", fetch)
    answer = await client.post("/", content=json.dumps(signed()))
    assert answer.status_code == status
    if status != 200:
        assert "its certificate has expired, or is not valid yet" in answer.json()["detail"]
    assert await kit.gauges.get("ada", "storage") == (900 if status == 200 else 0)


@pytest.mark.parametrize(("minutes", "status"), [(-61, 400), (-60, 200), (60, 200), (61, 400)])
async def test_a_message_of_the_future_is_refused_as_an_old_one_is(
    kit: MeterKit, client: httpx.AsyncClient, fetched: list[str], minutes: int, status: int
) -> None:
    sent = signed(Timestamp=(NOW + timedelta(minutes=minutes)).isoformat())
    answer = await client.post("/", content=json.dumps(sent))
    assert (answer.status_code, fetched) == (status, [CERTIFICATE])
    assert await kit.gauges.get("ada", "storage") == (900 if status == 200 else 0)
    if status != 200:
        assert "it is older than an hour, or of the future" in answer.json()["detail"]


# One GET of an address, as certificates of SNS are fetched: without redirects, and bounded.


ANSWERS = {
    "/certificate.pem": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "/large": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BYTES_MAX + 1),
    "/moved": b"HTTP/1.1 302 Found\r\nlocation: /certificate.pem\r\ncontent-length: 0\r\n\r\n",
    "/gone": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    "/cut": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
    "/other": b"SMTP ready\r\n",
}


class Answering(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.wfile.write(ANSWERS[self.path])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Answering.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Answering) as served:
        Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_an_address_is_fetched(server: str) -> None:
    assert fetch(f"{server}/certificate.pem") == b"ok"
    assert fetch(f"{server}/large") == b"x" * BYTES_MAX


@pytest.mark.parametrize("path", ["/moved", "/gone", "/cut", "/other"])
def test_any_other_answer_is_an_error_of_the_network(server: str, path: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        fetch(server + path)
    assert Answering.asked == [path]
