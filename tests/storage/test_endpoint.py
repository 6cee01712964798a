"""Events of object stores: posts of MinIO, EventBridge and SNS are read and count, all others are refused."""
# Internals: a pure table of records, and which addresses of certificates are fetched, and how much of them.

from __future__ import annotations

import json
import re
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, ClassVar, Final

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
from meterkit.catalog import ObjectPattern, Storage, loads
from meterkit.errors import MeterkitError
from meterkit.starlette import storage_events
from meterkit.storage import sns_signatures
from meterkit.storage.object_events import (
    ObjectEvent,
    UnreadableEventError,
    read_events,
    unwrap_queue_message,
)
from meterkit.storage.object_owners import ObjectOwner, find_owner
from meterkit.storage.sns_signatures import BYTES_MAX, fetch
from servers.stores import Server
from storage.objects import Happened
from storage.test_histories import PLANS

pytestmark = pytest.mark.anyio

SECRET: Final = "a secret of MinIO"
TOPIC: Final = "arn:aws:sns:eu-west-1:1:uploads"
HOST: Final = "https://sns.eu-west-1.amazonaws.com"
CERTIFICATE: Final = f"{HOST}/SimpleNotificationService-1.pem"
BEARER: Final = {"authorization": f"Bearer {SECRET}"}


def put(key: str = "ada/images/a b", size: int = 900) -> Happened:
    return Happened.put(key, size, 1_939_000_000_000)


def client_of(kit: MeterKit) -> httpx.AsyncClient:
    app = storage_events(kit, secret=SECRET, topics=[TOPIC])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")


@pytest.fixture
async def client(kit: MeterKit) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(kit) as client:
        yield client


async def post(client: httpx.AsyncClient, body: Any, **headers: str) -> httpx.Response:
    """What is posted by MinIO with its secret, or by SNS without one."""
    content = json.dumps(body) if isinstance(body, dict) else body
    return await client.post("/", content=content, headers=headers)


async def stored(kit: MeterKit) -> int:
    return await kit.gauges.get("ada", "storage")


async def test_a_post_of_minio_counts_once(kit: MeterKit, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        answer = await post(client, put().as_body("minio", "uploads"), **BEARER)
        assert (answer.status_code, answer.json()) == (200, {"received": True})
    usage = (await kit.usage("ada"))["meters"]["storage"]
    assert (usage["used"], usage.get("types")) == (900, {"documents": 0, "images": 900, "other": 0})
    assert (await client.head("/")).status_code == 200  # MinIO asks so first.
    await post(client, put("bob/images/a").as_body("eventbridge", "uploads"), **BEARER)
    assert await kit.gauges.get("bob", "storage") == 900


async def test_what_nobody_has_signed_is_refused(kit: MeterKit, client: httpx.AsyncClient) -> None:
    another = {"authorization": "Bearer another"}
    twice = [*BEARER.items(), *another.items()]
    for headers in ({}, {"authorization": SECRET}, another, twice, twice[::-1]):
        answer = await client.post("/", content=put().as_body("minio", "uploads"), headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 2**19

    for body, status in ((b"{}", 400), (b" " * (2**20 + 1), 413), (pieces(), 413)):
        assert (await post(client, body, **BEARER)).status_code == status
    # Anybody can have such a body parsed: a megabyte of small values held the event loop for 0.3 s.
    for size, status in ((2**17, 400), (2**17 + 1, 413)):
        assert (await post(client, b"{},".ljust(size))).status_code == status
    assert ((await client.get("/")).status_code, await stored(kit)) == (405, 0)
    with pytest.raises(MeterkitError, match="at least 16 characters"):
        storage_events(kit, secret="short")


async def test_a_store_that_fails_has_it_sent_again(valkey: Server) -> None:
    async with (
        MeterKit(loads(PLANS), redis_url=valkey.url, flush=False, shards=1) as kit,
        client_of(kit) as client,
    ):
        valkey.ask("SET", "mk:{0}:v:ada", "no hash")
        assert (await post(client, put().as_body("minio", "uploads"), **BEARER)).status_code == 503
        valkey.ask("DEL", "mk:{0}:v:ada")


async def test_without_storage_in_the_plans_file_events_are_sent_again() -> None:
    plans = PLANS[: PLANS.index("storage:\n")] + PLANS[PLANS.index("plans:") :]
    async with MeterKit(loads(plans), redis_url="memory://", flush=False) as kit, client_of(kit) as client:
        assert (await post(client, put().as_body("minio", "uploads"), **BEARER)).status_code == 503


async def test_keys_of_nobody_are_logged_once_a_minute(
    kit: MeterKit, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("ada/images/../../bob/images/x", "ada%2Fimages/x", "elsewhere"):
        answer = await post(client, put(key).as_body("minio", "uploads"), **BEARER)
        assert answer.status_code == 200
    told = [line.getMessage() for line in caplog.records if line.name == "meterkit.storage"]
    assert told == [
        "events of some objects are not counted: no pattern of storage.objects matches their keys"
    ]
    caplog.clear()
    for size in (-1, 10**15, 10**15 + 1):
        answer = await post(client, put("ada/images/x", size).as_body("s3", "uploads"), **BEARER)
        assert answer.status_code == 200
    assert [line.name for line in caplog.records].count("meterkit.storage") == 1
    assert [await kit.gauges.get(name, "storage") for name in ("ada", "bob")] == [0, 0]


# SNS: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html

KEY: Final = generate_private_key(public_exponent=65537, key_size=2048)
START: Final = datetime(2020, 1, 1, tzinfo=UTC)


def certificate(begins: datetime = START, ends: datetime = START + timedelta(days=9999), **of: Any) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    key = of.get("key", KEY)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends)
    return built.sign(key, SHA256()).public_bytes(Encoding.PEM)


def signed(version: str = "2", **changes: str) -> dict[str, Any]:
    message = {
        "Message": put().as_body("s3", "uploads").decode(),
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
    return {**message, "Signature": b64encode(KEY.sign(text.encode(), PKCS1v15(), hashed)).decode()}


confirmation = partial(signed, "1", Type="SubscriptionConfirmation", Token="t")


def serve(kit: MeterKit, patched: pytest.MonkeyPatch, pem: bytes | Exception) -> list[str]:
    """Have AWS, which the tests do not reach, answer so; the addresses that were fetched."""
    found: list[str] = []

    async def fetch(url: str) -> bytes:
        found.append(url)
        if isinstance(pem, Exception):
            raise pem
        return pem

    patched.setattr(kit.storage, "fetch", fetch)
    return found


@pytest.fixture
def fetched(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return serve(kit, monkeypatch, certificate())


async def test_only_certificates_are_remembered(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate()
    answers = [b"<html>busy</html>", pem, b"asked for again"]

    def fetch(url: str) -> bytes:
        assert url == CERTIFICATE
        return answers.pop(0)

    monkeypatch.setattr(sns_signatures, "fetch", fetch)
    assert [await kit.storage.fetch(CERTIFICATE) for _ in range(3)] == [b"<html>busy</html>", pem, pem]


async def test_topics_without_what_checks_signatures(kit: MeterKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "meterkit.storage.sns_signatures", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    storage_events(kit, secret=SECRET)
    with pytest.raises(MeterkitError, match=re.escape("pip install 'meterkit[storage]'")):
        storage_events(kit, secret=SECRET, topics=[TOPIC])


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_message_of_sns_counts(
    kit: MeterKit, client: httpx.AsyncClient, fetched: list[str], version: str
) -> None:
    answer = await post(client, signed(version, Subject="Amazon S3 Notification"))
    assert (answer.status_code, fetched, await stored(kit)) == (200, [CERTIFICATE], 900)


async def test_a_subscription_is_confirmed(client: httpx.AsyncClient, fetched: list[str]) -> None:
    url = f"{HOST}/?Action=ConfirmSubscription&Token=t"
    answer = await post(client, confirmation(SubscribeURL=url))
    assert (answer.status_code, fetched) == (200, [CERTIFICATE, url])
    fetched.clear()
    evil = (f"{HOST}.evil.example", f"https://evil.example/{HOST}")
    for origin in (*evil, f"http{HOST[5:]}", f"{HOST}/x", f"{HOST}:8443"):
        assert (await post(client, confirmation(SubscribeURL=f"{origin}/?Token=t"))).status_code == 400
    assert set(fetched) == {CERTIFICATE}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**signed(), "Message": "{}"}, "signature is invalid"),
        ({**signed(), "Signature": "?"}, "signature is invalid"),
        ({**signed(), "SignatureVersion": "3"}, "signature is invalid"),
        (signed(TopicArn="arn:aws:sns:eu-west-1:2:mine"), "topic"),
        (signed(Timestamp=(NOW - timedelta(minutes=61)).isoformat()), "is more than an hour from now"),
        (signed(Timestamp=(NOW + timedelta(minutes=61)).isoformat()), "is more than an hour from now"),
        (signed(Timestamp="yesterday"), "Timestamp"),
        ({**signed(), "MessageId": 1}, "not an SNS message"),
    ],
)
async def test_a_message_that_sns_has_not_signed_lately_is_refused(
    kit: MeterKit, client: httpx.AsyncClient, fetched: list[str], message: dict[str, Any], reason: str
) -> None:
    answer = await post(client, message)
    assert (answer.status_code, reason in answer.json()["detail"]) == (400, True)
    assert set(fetched) <= {CERTIFICATE}
    assert await stored(kit) == 0


async def test_a_message_may_be_an_hour_old_or_ahead(client: httpx.AsyncClient, fetched: list[str]) -> None:
    for minutes in (-60, 60):
        sent = signed(Timestamp=(NOW + timedelta(minutes=minutes)).isoformat())
        assert (await post(client, sent)).status_code == 200
    assert set(fetched) == {CERTIFICATE}


NAME: Final = "SimpleNotificationService-f3ecfb7224c7233fe7bb5f59f96de52f.pem"
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


async def test_no_other_url_is_fetched(kit: MeterKit, client: httpx.AsyncClient, fetched: list[str]) -> None:
    message = signed()
    for url in ELSEWHERE:
        answer = await post(client, message | {"SigningCertURL": url})
        assert (answer.status_code, fetched) == (400, []), url
        assert "its certificate URL is not one of SNS" in answer.json()["detail"]
    assert await stored(kit) == 0
    # In the spelling of AWS, also in its other partitions, it is.
    hosts = ("sns.us-gov-west-1.amazonaws.com", "sns.cn-north-1.amazonaws.com.cn")
    urls = [f"https://{host}/{NAME}" for host in hosts]
    for url in urls:
        assert (await post(client, signed(SigningCertURL=url))).status_code == 200
    assert fetched == urls


SECOND: Final = timedelta(seconds=1)
EXPIRED: Final = "its certificate has expired, or is not valid yet"


@pytest.mark.parametrize(
    ("pem", "status", "detail"),
    [
        (certificate(NOW, NOW), 200, ""),
        (certificate(NOW - 20 * SECOND, NOW - SECOND), 400, EXPIRED),
        (certificate(NOW + SECOND, NOW + 20 * SECOND), 400, EXPIRED),
        (certificate(key=generate_curve_key(SECP256R1())), 400, "its signature is invalid"),
        (TimeoutError(), 503, ""),  # SNS sends it again.
    ],
)
async def test_a_certificate_counts_from_its_first_second_to_its_last(
    kit: MeterKit,
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    pem: bytes | Exception,
    status: int,
    detail: str,
) -> None:
    serve(kit, monkeypatch, pem)
    answer = await post(client, signed())
    assert (answer.status_code, await stored(kit)) == (status, 900 if status == 200 else 0)
    assert detail in answer.text


# One GET of an address, as certificates of SNS are fetched: without redirects, and bounded.

ANSWERS: Final = {
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


def test_an_address_is_fetched_and_any_other_answer_is_an_error(server: str) -> None:
    assert fetch(f"{server}/certificate.pem") == b"ok"
    assert fetch(f"{server}/large") == b"x" * BYTES_MAX
    for path in ("/moved", "/gone", "/cut", "/other"):
        Answering.asked.clear()
        with pytest.raises(OSError, match=r".+"):
            fetch(server + path)
        assert Answering.asked == [path]


def record(name: str = "ObjectCreated:Put", *, version: str = "2.1", **target: object) -> dict[str, Any]:
    return {
        "eventVersion": version,
        "eventTime": "1970-01-01T00:00:01.500Z",
        "eventName": name,
        "s3": {"bucket": {"name": "b"}, "object": {"key": "k", "size": 7, "sequencer": "0A", **target}},
    }


def read(*records: object) -> tuple[list[ObjectEvent], int]:
    return read_events(json.dumps({"Records": records}))


def bridged(kind: str, **detail: object) -> str:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
    top = {"source": "aws.s3", "detail-type": kind, "time": "2021-11-12T00:00:00Z"}
    return json.dumps({**top, "detail": {"bucket": {"name": "b"}, "reason": "PutObject", **detail}})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ObjectCreated:Put", "stored"),
        ("s3:ObjectCreated:PutTagging", None),
        ("ObjectRemoved:Delete", "removed"),
        ("LifecycleExpiration:DeleteMarkerCreated", "unclear"),
        ("ObjectRemoved:DeleteMarkerCreated", "unclear"),
        ("s3:ObjectRemoved:DeleteAllVersions", "unclear"),
        ("s3:ObjectRemoved:NoOP", None),
        ("s3:LifecycleDelMarkerExpiration:Delete", "unclear"),
        ("ObjectRestore:Completed", None),
    ],
)
def test_events_are_read_by_what_becomes_of_bytes(name: str, change: str | None) -> None:
    events, unread = read(record(name))
    assert unread == 0
    assert [event.change for event in events] == ([] if change is None else [change])


def test_a_marker_frees_only_what_it_replaces() -> None:
    assert read(record("ObjectRemoved:DeleteMarkerCreated", versionId="m1")) == ([], 0)
    events, _ = read(record("ObjectRemoved:DeleteMarkerCreated", versionId="null"))
    assert [(event.change, event.version, event.size) for event in events] == [("removed", "null", 0)]


def test_keys_are_decoded_once() -> None:
    found, _ = read(*(record(key=key) for key in ("ada%2Fa+b%2B", "ada/%252e", "ada%252Fb")))
    assert [event.key for event in found] == ["ada/a b+", "ada/%2e", "ada%2Fb"]
    put = {"key": "a+b/é", "size": 5, "version-id": "IYV3p45", "sequencer": "617f08299329d189"}
    [event], _ = read_events(bridged("Object Created", object=put))
    assert (event.key, event.size, event.version, event.sequencer) == tuple(put.values())


def test_events_of_eventbridge() -> None:
    deleted = {"object": {"key": "k", "version-id": "mtB0", "sequencer": "617b398000000000"}}
    marker = bridged("Object Deleted", **deleted, **{"deletion-type": "Delete Marker Created"})
    assert read_events(marker) == ([], 0)
    gone = bridged("Object Deleted", **deleted, **{"deletion-type": "Permanently Deleted"})
    [event], _ = read_events(gone)
    assert (event.change, event.version, event.size) == ("removed", "mtB0", 0)
    assert read_events(bridged("Object Tags Added", object={"key": "k", "size": 5})) == ([], 0)


@pytest.mark.parametrize(
    "wrong",
    [
        record(size=-1),
        record(size=10**15),
        record(size=True),
        record(key=7),
        record(key="%ff"),
        record(version="3.0"),
        {**record(), "eventTime": "yesterday"},
        {"eventVersion": "2.1"},
        "text",
    ],
)
def test_an_unreadable_record_counts_nothing_and_is_skipped(wrong: object) -> None:
    events, unread = read(wrong, record())
    assert ([event.size for event in events], unread) == ([7], 1)


def test_messages_of_a_queue_are_read_or_refused() -> None:
    for body in ("[]", "[" * 100_000, '{"Records": 1}', b"\xff"):
        with pytest.raises(UnreadableEventError):
            read_events(body)
    assert read_events('{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}') == ([], 0)
    inner = json.dumps({"Records": [record()]})
    assert unwrap_queue_message(json.dumps({"Type": "Notification", "Message": inner})) == inner
    assert (unwrap_queue_message(inner), unwrap_queue_message("text")) == (inner, "text")
    # A sequencer that is none is left out.
    events, _ = read(record(sequencer="xyz"), record(sequencer=None), record(sequencer="AF"))
    assert [event.sequencer for event in events] == ["", "", "af"]


STORAGE: Final = Storage(
    gauge="storage",
    objects=(
        ObjectPattern(bucket="b", key="public/{customer}/x"),
        ObjectPattern(bucket="b", key="{customer}/{type}/{path:path}"),
        ObjectPattern(bucket="c", key="u-{customer}.bin"),
    ),
    types=("images",),
)


@pytest.mark.parametrize(
    ("bucket", "key", "owner"),
    [
        ("b", "ada/images/a/b c", ObjectOwner("ada", "images")),
        ("b", "ada/films/a", ObjectOwner("ada", "other")),
        ("b", "public/ada/x", ObjectOwner("ada", "other")),
        ("b", "public/ada/y", ObjectOwner("public", "other")),
        ("c", "u-ada.bin", ObjectOwner("ada", "other")),
        ("c", "u-adaxbin", None),
        ("b", "ada/images/", None),
        ("b", "/images/a", None),
        ("d", "ada/images/a", None),
        ("b", "ada/images/../../bob/images/a", None),
        ("b", "ada/images/..%2fbob", None),
        ("b", "ada/images/%2F", None),
        ("b", "a\nda/images/x", None),
    ],
)
def test_a_key_says_whose_an_object_is(bucket: str, key: str, owner: ObjectOwner | None) -> None:
    assert find_owner(STORAGE, bucket, key) == owner
