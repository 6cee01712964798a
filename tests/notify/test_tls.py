"""Certificates of SMTP servers and webhooks must be the name's, and no password goes without TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult

from drivers.messages import NOW, Mailbox, kit_of, pass_over, receiving_server
from meterkit.testing import Clock
from servers.certificates import Authority

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def server(box: Mailbox, *, tls: ssl.SSLContext | None, **options: Any) -> AsyncGenerator[int]:
    loop = asyncio.get_running_loop()
    made = await loop.create_server(lambda: SMTP(box, loop=loop, **options), "127.0.0.1", 0, ssl=tls)
    async with made:
        yield made.sockets[0].getsockname()[1]


async def test_a_mail_certificate_must_be_that_of_its_name(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, clock, box = Authority(tmp_path), Clock(NOW), Mailbox()
    monkeypatch.setenv("SSL_CERT_FILE", authority.file)
    tls = authority.serving("mail.example")
    async with (
        server(box, tls=tls) as port,
        kit_of(store_url, clock, smtp_url=f"smtps://127.0.0.1:{port}") as kit,
    ):
        await kit.record("acme", "requests", 5)
        await pass_over(kit, "email")
        (kept,) = (await kit.notify.list())["email"]
        assert (kept.why, box.mails) == ("the SMTP server does not accept it: SMTPConnectError", [])
        authority.certify(tls, "127.0.0.1")
        clock.advance(timedelta(minutes=1))
        await pass_over(kit, "email")
        assert 1 == len(box.mails)


async def test_no_password_is_sent_without_tls(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, box, seen = asyncio.get_running_loop(), Mailbox(), list[object]()
    look_up = loop.getaddrinfo

    async def local(host: str, *args: Any, **kwargs: Any) -> Any:
        return await look_up("127.0.0.1" if host == "mail.example" else host, *args, **kwargs)

    def authenticate(
        _server: object, _session: object, _envelope: object, _how: str, data: object
    ) -> AuthResult:
        seen.append(data)
        return AuthResult(success=True)

    monkeypatch.setattr(loop, "getaddrinfo", local)
    options: dict[str, Any] = {"authenticator": authenticate, "auth_require_tls": False}
    async with server(box, tls=None, **options) as port:
        for host, sent in (("mail.example", 0), ("127.0.0.1", 1)):
            async with kit_of(store_url, Clock(NOW), smtp_url=f"smtp://ada:secret-word@{host}:{port}") as kit:
                await kit.record(host, "requests", 5)
                await pass_over(kit, "email")
                waiting = (await kit.notify.list())["email"]
            assert (sent, sent) == (len(seen), len(box.mails))
            assert ["the SMTP server does not accept it: SMTPException"] * (1 - sent) == [
                one.why for one in waiting if f"{host}" in one.text and one.attempts
            ]


async def test_a_webhook_certificate_must_be_that_of_its_name(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, looked_up, served = asyncio.get_running_loop(), list[str](), list[str | None]()
    look_up = loop.getaddrinfo

    async def noted(host: str, *args: Any, **kwargs: Any) -> Any:
        looked_up.append(host)
        return await look_up("127.0.0.1" if host == "localhost" else host, *args, **kwargs)

    def note_name(_connection: object, name: str | None, _context: ssl.SSLContext) -> None:
        served.append(name)

    authority, clock = Authority(tmp_path), Clock(NOW)
    monkeypatch.setattr(loop, "getaddrinfo", noted)
    monkeypatch.setenv("SSL_CERT_FILE", authority.file)
    tls = authority.serving("ops.example")
    tls.sni_callback = note_name
    async with receiving_server(tls=tls) as hook, kit_of(store_url, clock, url=hook.url) as kit:
        await kit.record("acme", "requests", 5)
        await pass_over(kit, "webhook")
        (kept,) = (await kit.notify.list())["webhook"]
        assert "the receiver does not answer" in kept.why
        assert "certificate is not valid for 'localhost'" in kept.why
        assert [] == hook.posts
        # From the next connection on it is the name's.
        authority.certify(tls, "localhost")
        clock.advance(timedelta(minutes=1))
        looked_up.clear()
        await pass_over(kit, "webhook")
        ((headers, _),) = hook.posts
        assert headers["host"] == hook.url.split("/")[2]
        assert ["localhost"] == [host for host in looked_up if not host[0].isdigit()]
        assert {"localhost"} == set(served)
