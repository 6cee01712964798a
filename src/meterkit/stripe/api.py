"""Stripe's API through its SDK, for everything except meter events. One client per event loop."""

from __future__ import annotations

import asyncio
import sys
from functools import cache
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast
from weakref import WeakKeyDictionary

from meterkit.errors import SettingsError, StripeError
from meterkit.redis.daemon_thread import in_thread
from meterkit.stripe.idempotency_keys import KeyAttempts, unique_key
from meterkit.stripe.request import API_BASE, redact_address

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from meterkit.settings import Settings
    from meterkit.stripe.http import HttpClient
    from meterkit.stripe.idempotency_keys import IdempotencyKey
    from meterkit.stripe.request import Parameter
    from meterkit.stripe.sdk import SdkClient

_TIMEOUT_S: Final = 10.0
_PAGE: Final = 100
_ATTEMPTS_MOST: Final = 32

_Method = Literal["GET", "POST", "DELETE"]

Objects: TypeAlias = "list[dict[str, Any]]"
"""Objects of Stripe, as its JSON tells them."""


class StripeApi:
    """Asks Stripe, below its limits. Serves any number of event loops, each by connections of its own.

    A request that got no answer, 429, 409 or a 5xx is sent again, three times in all, under the same
    idempotency key, so that what it changes is changed once. If Stripe repeats an error of an earlier request
    instead, it is sent under the key of the next attempt. Each method raises
    :class:`~meterkit.errors.StripeError` where Stripe refuses, and
    :class:`~meterkit.errors.StripeUnavailableError` where it does not answer.

    Args:
        settings: the key and the address.
        timeout_s: for one request, from the connection to the last byte of the answer.

    Attributes:
        server_time_s: Stripe's clock at its last answer, in Unix seconds; None: it has told none yet.

    Raises:
        ImportError: the ``stripe`` extra is not installed.
        SettingsError: no Stripe key is set.
    """

    def __init__(self, settings: Settings, *, timeout_s: float = _TIMEOUT_S) -> None:
        if settings.stripe_api_key is None:
            message = "stripe_api_key: no Stripe key is set; set METERKIT_STRIPE_API_KEY"
            raise SettingsError("stripe_api_key", message)
        for package in ("stripe", "aiohttp"):
            if find_spec(package) is None:
                raise ImportError(f"asking Stripe needs {package}: pip install 'meterkit[stripe]'")
        self._base = (settings.reveal(settings.stripe_api_base) or API_BASE).rstrip("/")
        self._key = settings.stripe_api_key.get_secret_value()
        self._timeout_s = timeout_s
        self.server_time_s: int | None = None
        self._is_sandbox = not settings.live and settings.stripe_api_base is None
        self._attempts = KeyAttempts()
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, SdkClient] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"StripeApi(api_base={redact_address(self._base)!r})"

    async def get(self, path: str, params: Mapping[str, Parameter] | None = None) -> dict[str, Any]:
        """An object: ``await api.get("/v1/customers/cus_1")``."""
        return await self._ask("GET", path, params or {})

    async def find(self, path: str, params: Mapping[str, Parameter] | None = None) -> dict[str, Any] | None:
        """Read an object; None: Stripe does not have it."""
        try:
            return await self.get(path, params)
        except StripeError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def has_customer(self, stripe_customer: str) -> bool:
        """Whether a Stripe customer exists, and is not deleted."""
        found = await self.find(f"/v1/customers/{stripe_customer}")
        return found is not None and not found.get("deleted")

    async def post(
        self,
        path: str,
        params: Mapping[str, Parameter] | None = None,
        *,
        idempotency_key: IdempotencyKey | None = None,
        find: Callable[[], Awaitable[dict[str, Any] | None]] | None = None,
    ) -> dict[str, Any]:
        """Make or change an object; the answer.

        Args:
            path: of what is changed.
            params: what it is to be.
            idempotency_key: the same one does the same once, within 24 hours; default: one for this call
                alone.
            find: looks for what an earlier attempt has made although Stripe answered it with an error, before
                the next one; None: Stripe does not have it. Needed where nothing but the key prevents that
                the same is made twice.
        """
        key = idempotency_key or unique_key()
        for left in reversed(range(_ATTEMPTS_MOST)):
            sent = self._attempts.sent_key(key)
            answer = await self._send_request("POST", path, params or {}, sent)
            if not isinstance(answer, StripeError):
                return answer
            self._attempts.end(key)
            if find is not None and (found := await find()) is not None:
                return found
            if not left:
                raise answer
        raise AssertionError

    async def delete(
        self,
        path: str,
        params: Mapping[str, Parameter] | None = None,
        *,
        idempotency_key: IdempotencyKey | None = None,
    ) -> dict[str, Any]:
        """Delete or end an object, such as a subscription; the answer.

        Stripe ignores the idempotency key here, which is sent for readers of its log: if the first
        answer was lost, the second one may be that there is no such object any more.
        """
        return await self._ask("DELETE", path, params or {}, idempotency_key)

    async def pages(
        self, path: str, params: Mapping[str, Parameter] | None = None
    ) -> AsyncGenerator[Objects]:
        """The pages of a list, of a hundred objects each, as Stripe orders them, to the last one."""
        asked: dict[str, Parameter] = {"limit": _PAGE, **(params or {})}
        while True:
            body = await self.get(path, asked)
            page = cast("Objects", body.get("data") or [])
            yield page
            if not (page and body.get("has_more")):
                return
            last = str(page[-1]["id"])
            if last == asked.get("starting_after"):
                raise StripeError(
                    f"Stripe answers GET {path} with the same page again and again, after {last}"
                )
            asked["starting_after"] = last

    async def list(self, path: str, params: Mapping[str, Parameter] | None = None) -> Objects:
        """All objects of a list, page after page."""
        return [found async for page in self.pages(path, params) for found in page]

    async def close(self) -> None:
        """Close the connections of the running event loop; the next request opens new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _ask(
        self, method: _Method, path: str, params: Mapping[str, Parameter], key: str | None = None
    ) -> dict[str, Any]:
        """Send a request that Stripe does not answer by its idempotency key."""
        answer = await self._send_request(method, path, params, key)
        if isinstance(answer, StripeError):
            raise answer
        return answer

    async def _send_request(
        self, method: _Method, path: str, params: Mapping[str, Parameter], key: str | None
    ) -> dict[str, Any] | StripeError:
        client = await self._client()
        try:
            return await client.request(method, path, params, key)
        finally:
            self.server_time_s = client.server_time_s

    async def _client(self) -> SdkClient:
        loop = asyncio.get_running_loop()
        sdk = _sdk() if _sdk.cache_info().currsize else await in_thread(_sdk)
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = sdk.SdkClient(
                self._key, self._base, timeout_s=self._timeout_s, is_sandbox=self._is_sandbox
            )
        return client


def open_client(base: str, *, timeout_s: float) -> HttpClient:
    """Make an HTTP client for the running event loop; close it in the same loop."""
    # Imported late: TLS and HTTP cost an app without a Stripe key nothing.
    module: Any = import_module("meterkit.stripe.http")
    return cast("HttpClient", module.HttpClient(base, timeout_s=timeout_s))


@cache
def _sdk() -> Any:
    """Stripe's SDK, imported when Stripe is first asked: it costs 160 ms of CPU.

    Its telemetry writes a file into the home directory. It stays off unless the app uses the SDK itself.
    """
    is_the_apps = "stripe" in sys.modules
    module = import_module("meterkit.stripe.sdk")
    if not is_the_apps:
        stripe: Any = sys.modules["stripe"]
        stripe.enable_telemetry = False
    return module
