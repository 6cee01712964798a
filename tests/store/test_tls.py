"""The store over TLS: what passes, what is made again when it is cut, and which servers are refused."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from drivers.delivery import desk
from faults.proxy import TcpProxy
from faults.refusals import PLANS, ask, eventually, kit_at, lane_of, loop_clock, open_sockets, settled, used
from meterkit import MeterKit, SettingsError
from meterkit.catalog import loads
from meterkit.errors import StoreError
from servers.certificates import Authority
from servers.stores import Server

pytestmark = pytest.mark.anyio

SECRET = "S3CRET"


@pytest.fixture
async def proxy(valkey: Server, authority: Authority) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(valkey.port, tls=authority.serving()) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: TcpProxy, authority: Authority) -> str:
    return secured(proxy.port, authority)


def secured(port: int, authority: Authority, **parameters: str) -> str:
    more = "".join(f"&{name}={value}" for name, value in parameters.items())
    return f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.file}{more}"


async def trouble(kit: MeterKit) -> str:
    """Why the first attempts to connect have failed."""
    await eventually(lambda: "has not ended yet" not in str(lane_of(kit).connection_error))
    return str(lane_of(kit).connection_error)


# What passes.


async def test_usage_is_decided_settled_sealed_and_delivered(url: str, proxy: TcpProxy) -> None:
    async with desk(url) as at:
        await at.link("acme")
        assert {await ask(at.kit, "acme") for _ in range(5)} == {200}
        await at.kit.record("acme", "requests", 7)
        assert (await at.kit.usage("acme"))["meters"]["requests"]["used"] == 12
        report = await at.flush(everything=True)
        assert at.accepted("acme") == 12
        assert report.delivered
        # One for requests, one for administration, and one for delivery at least.
        assert proxy.accepted >= 3


async def test_a_redis_url_may_turn_verification_off(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # F-22a: as on Heroku, whose certificates are self-signed.
    query = "ssl_cert_reqs=CERT_NONE&socket_timeout=5&health_check_interval=30"
    monkeypatch.setenv("REDIS_URL", f"rediss://localhost:{proxy.port}/0?{query}")
    async with MeterKit(loads(PLANS), store_timeout=10.0) as kit:
        assert (await kit.consume("acme", "requests")).allowed
        assert (await kit.usage("acme"))["meters"]["requests"]["used"] == 1
    assert "REDIS_URL turns verification off" in caplog.text


@pytest.mark.parametrize("mode", ["reset", "drop_reply"])
async def test_i1_usage_whose_settlement_was_lost_counts_once(url: str, proxy: TcpProxy, mode: Any) -> None:
    async with kit_at(url, store_timeout=0.5, shards=1) as kit:
        for _ in range(3):
            assert await ask(kit, "acme") == 200
            await proxy.set(mode)
            await asyncio.sleep(0.02)
            await proxy.set("reset")
            await proxy.set("pass")
            await eventually(lambda: lane_of(kit).connected)
        await settled(kit)
        assert await used(kit, "acme") == (3, 0)


# Which servers are refused, and that they are tried on.


@pytest.mark.parametrize("wrong", ["expired", "of another host", "of another authority"])
async def test_a_wrong_certificate_is_refused_until_it_is_replaced(
    valkey: Server, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    if wrong == "expired":
        ago = [datetime.now(UTC) - timedelta(days=days) for days in (9, 1)]
        tls = authority.serving(not_before=ago[0], not_after=ago[1])
        why = "certificate has expired; the server needs a new one"
    elif wrong == "of another host":
        tls = authority.serving("redis.test")
        why = "IP address mismatch, certificate is not valid for '127.0.0.1'; the URL is to name a host"
        why += " that the certificate names"
    else:
        tls = Authority(tmp_path).serving()
        why = "unable to get local issuer certificate; ssl_ca_certs names the file of the authorities that"
        why += f" vouch for it ({authority.file} is read)"
    words = f"its certificate is refused: {why}"
    async with TcpProxy(valkey.port, tls=tls) as proxy:
        url = secured(proxy.port, authority).replace("//", f"//user:{SECRET}@")
        said = f"the store at rediss://127.0.0.1:{proxy.port}/0 cannot be reached: {words}"
        valkey.command("ACL", "SETUSER", "user", "on", f">{SECRET}", "~*", "+@all")
        valkey.command("ACL", "LOG", "RESET")  # Emptying a server leaves what tests before have in it.
        async with kit_at(url, start_timeout=0.3, store_timeout=5.0) as kit:
            assert await trouble(kit) == said
            loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
            assert loud == [f"{said}; trying again until it can"]
            with pytest.raises(StoreError) as caught:
                await kit.usage("acme")
            assert str(caught.value) == f"the store at rediss://127.0.0.1:{proxy.port}/0 failed: {words}"
            assert valkey.command("ACL", "LOG") == []
            authority.certify(tls)
            await eventually(lambda: lane_of(kit).connected)
            assert await ask(kit, "acme", "/deny") == 200
        valkey.command("ACL", "DELUSER", "user")
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_certificate_of_an_unknown_authority_is_refused(proxy: TcpProxy) -> None:
    async with kit_at(f"rediss://127.0.0.1:{proxy.port}", start_timeout=0.1, store_timeout=5.0) as kit:
        assert re.search(r"unable to get local issuer .* \(the system's are asked\)", await trouble(kit))


async def test_a_server_without_tls_is_refused(valkey: Server, authority: Authority) -> None:
    async with kit_at(secured(valkey.port, authority), start_timeout=0, store_timeout=0.5) as kit:
        assert await trouble(kit) == (
            f"the store at rediss://127.0.0.1:{valkey.port}/0 cannot be reached: no answer within 0.5 s;"
            " where it does not speak TLS, the URL begins with redis://"
        )
        with pytest.raises(StoreError, match="failed: Timeout connecting to server"):
            await kit.usage("acme")


async def test_the_alert_of_a_server_with_tls_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(11)
        writer.write(b"\x15\x03\x01\x00\x02\x02\x46")  # As OpenSSL does: fatal, of no known version.
        await reader.read()
        writer.close()

    async with await asyncio.start_server(alert, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with kit_at(f"redis://127.0.0.1:{port}", start_timeout=0, store_timeout=5.0) as kit:
            assert await trouble(kit) == (
                f"the store at redis://127.0.0.1:{port}/0 cannot be reached: it answers in TLS; where it"
                " expects TLS, the URL begins with rediss://"
            )
    assert "Traceback" not in caplog.text


async def test_a_server_gets_the_certificate_it_wants(valkey: Server, authority: Authority) -> None:
    tls = authority.serving()
    authority.vouch(tls)
    certfile, keyfile = authority.client()
    async with TcpProxy(valkey.port, tls=tls) as proxy:
        async with kit_at(secured(proxy.port, authority), start_timeout=0, store_timeout=5.0) as kit:
            words = "the URL names one by ssl_certfile and ssl_keyfile"
            assert (await trouble(kit)).endswith(words)
        url = secured(proxy.port, authority, ssl_certfile=certfile, ssl_keyfile=keyfile)
        async with kit_at(url) as kit:
            await kit.record("acme", "requests", 3)
            assert await used(kit, "acme") == (3, 0)


# Files, and what is left behind.


async def test_stopping_does_not_wait_for_a_server_that_hangs(proxy: TcpProxy, authority: Authority) -> None:
    # Not even the end of TLS is answered.
    async with TcpProxy(proxy.port) as wire:
        before = open_sockets()
        kit = kit_at(secured(wire.port, authority), store_timeout=2.0)
        await kit.start()
        await asyncio.gather(*(kit.usage("acme") for _ in range(8)))
        await wire.set("blackhole")
        async with loop_clock() as passed_s:
            await kit.stop()
            assert passed_s() < 5.0
        await wire.set("reset")
        await eventually(lambda: open_sockets() == before)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("ssl_ca_certs={}/none.pem", "none.pem cannot be used: No such file or directory"),
        ("ssl_ca_certs={}/text.pem", "text.pem cannot be used: it is not what it should be (NO_CER"),
        ("ssl_certfile={cert}&ssl_keyfile={}/other.key", "cannot be used: it is not what it should be (KEY_"),
        ("ssl_certfile={cert}&ssl_keyfile={}/encrypted.key", "key is encrypted, and no passphrase can be"),
    ],
)
def test_a_certificate_file_that_cannot_be_used_is_named(
    authority: Authority, tmp_path: Path, parameters: str, words: str
) -> None:
    (tmp_path / "text.pem").write_text("certainly")
    (tmp_path / "other").mkdir()
    shutil.copy(Authority(tmp_path / "other").client()[1], tmp_path / "other.key")
    cert, key = authority.client()
    encrypted = load_pem_private_key(Path(key).read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
    )
    (tmp_path / "encrypted.key").write_bytes(encrypted)
    with pytest.raises(SettingsError) as caught:
        kit_at(f"rediss://user:{SECRET}@host?{parameters.format(tmp_path, cert=cert)}")
    assert caught.value.name == "redis_url"
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
