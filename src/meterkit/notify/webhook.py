"""The channel ``webhook``: posts signed by Standard Webhooks.

A private address must stand in the plans file itself: a name can be pointed at the internal network later.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from meterkit.catalog.notify import is_public, names_private_host
from meterkit.notify.courier import SendError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from pydantic import SecretStr

    from meterkit.notify.courier import Message
    from meterkit.store.message_queue import Channel
    from meterkit.store.store import Store

_TIMEOUT_S: Final = 20.0
_RETRY_AFTER_MOST_S: Final = 86_400
_GONE: Final = 410


class _Signer(Protocol):
    def sign(self, msg_id: str, timestamp: datetime, data: str) -> str: ...


def sign_message(signers: Sequence[_Signer], message: Message, at_s: int) -> str:
    """Return the header ``webhook-signature``: one signature per secret, so that secrets can rotate."""
    at = datetime.fromtimestamp(at_s, UTC)
    body = message.body()
    return " ".join(signer.sign(message.id, at, body) for signer in signers)


def parse_retry_after(header: str | None) -> int:
    """Parse a receiver's ``Retry-After`` in seconds, at most a day; 0: none."""
    if header is None or not header.strip().isdecimal():
        return 0
    return min(int(header.strip()[:9]), _RETRY_AFTER_MOST_S) * 1000


class WebhookSender:
    """Posts messages to the address of the plans file.

    Args:
        store: its catalog has the URL; its clock stamps attempts.
        secrets: each signs every message.
    """

    def __init__(self, store: Store, secrets: Sequence[SecretStr]) -> None:
        self._store = store
        self._secrets = secrets

    @property
    def channel(self) -> Channel:
        """Name of the channel."""
        return "webhook"

    @property
    def events(self) -> tuple[str, ...]:
        """Events that are posted."""
        channel = self._store.catalog.notify.webhook
        return () if channel is None else channel.events

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Callable[[Message], Awaitable[None]]]:
        """Yield a function that posts one message or raises SendError; connections are kept until the end."""
        httpx: Any = import_module("httpx")
        webhooks: Any = import_module("standardwebhooks")
        signers: list[_Signer] = [webhooks.Webhook(secret.get_secret_value()) for secret in self._secrets]
        options: dict[str, Any] = {
            "timeout": _TIMEOUT_S,
            "follow_redirects": False,
            # A proxy would resolve the name again, perhaps to another address.
            "trust_env": False,
            # Honours SSL_CERT_FILE and SSL_CERT_DIR.
            "verify": httpx.create_ssl_context(),
        }
        async with httpx.AsyncClient(**options) as client:

            async def send(message: Message) -> None:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        await self._post_message(client, signers, message)
                except (httpx.HTTPError, OSError) as error:
                    raise SendError(f"the receiver does not answer: {error!r}") from error

            yield send

    async def _post_message(self, client: Any, signers: Sequence[_Signer], message: Message) -> None:
        channel = self._store.catalog.notify.webhook
        if channel is None:
            raise SendError("the plans file has no notify.webhook")
        address, host = await _resolve_host(channel.url)
        at_s = self._store.now_ms() // 1000
        headers = {
            "content-type": "application/json",
            "host": urlsplit(channel.url).netloc,
            "webhook-id": message.id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": sign_message(signers, message, at_s),
        }
        body = message.body().encode()
        extensions = {"sni_hostname": host}
        # Do not read the body: it may be endless.
        async with client.stream(
            "POST", address, content=body, headers=headers, extensions=extensions
        ) as response:
            status = int(response.status_code)
            asked_ms = parse_retry_after(response.headers.get("retry-after"))
        if not 200 <= status < 300:  # noqa: PLR2004 - as HTTP defines success
            raise SendError(
                f"the receiver answers {status}", is_final=status == _GONE, retry_after_ms=asked_ms
            )


async def _resolve_host(url: str) -> tuple[str, str]:
    """Replace the host's name in a URL by its IP address; returns the URL and the host.

    The name is resolved once: a second lookup could return a private address.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ip = str(found[0][4][0])
    if not names_private_host(host) and not all(
        is_public(str(entry[4][0]).partition("%")[0]) for entry in found
    ):
        raise SendError(
            f"{host} resolves to a private address; to use it, write the IP address in notify.webhook.url"
        )
    literal = f"[{ip}]" if ":" in ip else ip
    return parts._replace(netloc=f"{literal}:{port}").geturl(), host
