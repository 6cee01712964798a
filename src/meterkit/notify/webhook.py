"""The channel ``webhook``: posts signed as Standard Webhooks."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from meterkit.catalog.notify import is_public, names_private_host
from meterkit.notify.courier import Failure

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


def signature(signers: Sequence[_Signer], message: Message, at_s: int) -> str:
    """The header ``webhook-signature``: one signature for each secret, so that a receiver may know either."""
    at = datetime.fromtimestamp(at_s, UTC)
    body = message.body()
    return " ".join(signer.sign(message.id, at, body) for signer in signers)


def retry_after_ms(header: str | None) -> int:
    """The delay that a receiver asks for in seconds, at most a day; 0: none."""
    if header is None or not header.strip().isdecimal():
        return 0
    return min(int(header.strip()[:9]), _RETRY_AFTER_MOST_S) * 1000


class WebhookSender:
    """Posts messages to the address of the plans file.

    Args:
        store: whose catalog has the address, and whose clock stamps attempts.
        secrets: each signs.
    """

    def __init__(self, store: Store, secrets: Sequence[SecretStr]) -> None:
        self._store = store
        self._secrets = secrets

    @property
    def channel(self) -> Channel:
        """The name of the channel."""
        return "webhook"

    @property
    def events(self) -> tuple[str, ...]:
        """The events that are posted."""
        channel = self._store.catalog.notify.webhook
        return () if channel is None else channel.events

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Callable[[Message], Awaitable[None]]]:
        """A client that keeps its connections until the block ends: sends one message or raises Failure."""
        httpx: Any = import_module("httpx")
        webhooks: Any = import_module("standardwebhooks")
        signers: list[_Signer] = [webhooks.Webhook(secret.get_secret_value()) for secret in self._secrets]
        given: dict[str, Any] = {
            "timeout": _TIMEOUT_S,
            "follow_redirects": False,
            # A proxy of the environment would look the name up again, and find another address.
            "trust_env": False,
            # Its SSL_CERT_FILE and SSL_CERT_DIR count.
            "verify": httpx.create_ssl_context(),
        }
        async with httpx.AsyncClient(**given) as client:

            async def send(message: Message) -> None:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        await self._post(client, signers, message)
                except (httpx.HTTPError, OSError) as error:
                    raise Failure(f"the receiver does not answer: {error!r}") from error

            yield send

    async def _post(self, client: Any, signers: Sequence[_Signer], message: Message) -> None:
        channel = self._store.catalog.notify.webhook
        if channel is None:
            raise Failure("the plans file has no notify.webhook")
        address, host = await _resolved(channel.url)
        at_s = self._store.now_ms() // 1000
        headers = {
            "content-type": "application/json",
            "host": urlsplit(channel.url).netloc,
            "webhook-id": message.id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signature(signers, message, at_s),
        }
        body = message.body().encode()
        extensions = {"sni_hostname": host}
        # A receiver's body is of no interest, and may be endless.
        async with client.stream(
            "POST", address, content=body, headers=headers, extensions=extensions
        ) as response:
            status = int(response.status_code)
            asked_ms = retry_after_ms(response.headers.get("retry-after"))
        if not 200 <= status < 300:  # noqa: PLR2004 - as HTTP defines success
            raise Failure(f"the receiver answers {status}", is_final=status == _GONE, retry_after_ms=asked_ms)


async def _resolved(url: str) -> tuple[str, str]:
    """The address with the host's IP in place of its name, and the host.

    A name may be looked up once: between two answers it could turn into a private address.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ip = str(found[0][4][0])
    if not names_private_host(host) and not all(
        is_public(str(entry[4][0]).partition("%")[0]) for entry in found
    ):
        raise Failure(f"{host} has a private address; a private address must stand in notify.webhook.url")
    literal = f"[{ip}]" if ":" in ip else ip
    return parts._replace(netloc=f"{literal}:{port}").geturl(), host
