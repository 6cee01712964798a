"""Delivery by Stripe's meter events v1: one event per call, answered synchronously."""

from __future__ import annotations

import asyncio
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from meterkit.delivery.outcomes import Outcome, Result, classify

if TYPE_CHECKING:
    from meterkit.delivery.stripe_sdk import StripeSession
    from meterkit.delivery.transport import Intent

__all__ = ["StripeV1Transport"]

SDK: Final = "meterkit.delivery.stripe_sdk"
EXTRA: Final = ("stripe", "httpx")


class StripeV1Transport:
    """Delivers intents by the official SDK. Never tries twice by itself and writes no file.

    The SDK is imported, and the connection pool made, by the first :meth:`send`, in a thread and in the
    running loop respectively; from then on the transport belongs to that loop.

    Args:
        api_key: secret or restricted; is in no message, log or ``repr``.
        api_base: another address for the API, such as an emulator's; None: Stripe's. With an ``http://``
            address the proxies of the environment are not used.
        timeout_s: for a whole call. What has not been answered by then is unknown.

    Attributes:
        timeout_s: as given.

    Raises:
        ImportError: if the ``stripe`` extra is not installed.
    """

    def __init__(self, api_key: str, *, api_base: str | None = None, timeout_s: float = 10.0) -> None:
        missing = [name for name in EXTRA if find_spec(name) is None]
        if missing:
            raise ImportError(
                f"delivery to Stripe needs {' and '.join(missing)}: pip install 'meterkit[stripe]'"
            )
        self.timeout_s = timeout_s
        self._api_key = api_key
        self._api_base = api_base
        self._opening = asyncio.Lock()
        self._session: StripeSession | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"StripeV1Transport(api_base={self._api_base!r}, timeout_s={self.timeout_s})"

    async def send(self, intent: Intent) -> Outcome:
        """Try once to deliver ``intent``. Raises nothing but cancellation."""
        session = self._session or await self._open()
        if session is None:
            return classify(Result(failure="not_sent", message="the transport is closed"))
        return classify(await session.create_meter_event(intent))

    async def close(self) -> None:
        """Close all connections. Closing twice is harmless; what is sent afterwards is not done."""
        self._closed = True
        async with self._opening:
            session, self._session = self._session, None
            if session is not None:
                await session.close()

    async def _open(self) -> StripeSession | None:
        async with self._opening:
            if self._session is None and not self._closed:
                sdk = await asyncio.to_thread(import_module, SDK)
                self._session = sdk.StripeSession(
                    self._api_key, api_base=self._api_base, timeout_s=self.timeout_s
                )
            return self._session
