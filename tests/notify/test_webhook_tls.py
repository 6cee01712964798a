"""A webhook goes to the address that its name was looked up as, and the certificate must be the name's."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.messages import NOW, kit_of, pass_over, receiving_server
from meterkit.testing import Clock
from servers.certificates import Authority

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

pytestmark = pytest.mark.anyio


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
