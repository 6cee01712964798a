"""A flusher in a forked process of its own that ends, or stands still, in the middle of a named step."""

from __future__ import annotations

import asyncio
import mmap
import signal
import struct
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from drivers.delivery import aclosing_transport, kit_for
from drivers.dying import die_at
from meterkit.catalog import loads
from meterkit.delivery.flusher import Flusher
from meterkit.delivery.stripe_stream import StripeStreamTransport
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.delivery.summaries import StripeSummaries
from meterkit.outbox.outbox import Outbox
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from pathlib import Path

STEPS: Final = ("lease", "seal", "due", "attempt", "send", "settle")
"""All that a flusher does, from taking a shard to acknowledging what Stripe has."""

WHENS: Final = ("before", "during", "after")
TIMEOUT_S: Final = 0.3
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Crash(TypedDict):
    """Where a process is ended, or stopped until somebody has it go on: at which time that it gets there."""

    how: Literal["kill", "stop"]
    step: str
    when: str
    nth: int


class Life(TypedDict):
    """What a process is told: addresses, the file of the clock, and where it crashes, if anywhere."""

    store: str
    stripe: str
    plans: str
    clock: str
    transport: Literal["v1", "v2-stream"]
    shards: int
    everything: bool
    crash: Crash | None


class SharedClock:
    """A clock of several processes, in a file: it stands still until one of them moves it.

    Calling it gives Unix seconds.
    """

    def __init__(self, file: Path | str, start_s: float | None = None) -> None:
        if start_s is not None:
            with open(file, "wb") as made:  # noqa: PTH123 - a text in one process, a path in another
                made.write(struct.pack("d", start_s))
        with open(file, "r+b") as opened:  # noqa: PTH123 - as above
            self._map = mmap.mmap(opened.fileno(), 8)

    def __call__(self) -> float:
        found: float = struct.unpack_from("d", self._map)[0]
        return found

    @property
    def now_ms(self) -> int:
        """Milliseconds, rounded down."""
        return int(self() * 1000)

    def advance(self, by_s: float) -> None:
        """Move it on."""
        self._map[:] = struct.pack("d", self() + by_s)


def flush(life: Life) -> None:
    """What the process does: one flush."""
    if life["crash"] is not None:
        crash: Crash = life["crash"]
        owner: Any = Outbox
        if crash["step"] == "send":
            owner = StripeStreamTransport if life["transport"] == "v2-stream" else StripeV1Transport
        die_at(owner, crash["step"], crash["when"], nth=crash["nth"], by=_SIGNALS[crash["how"]])
    asyncio.run(_flush(life))


async def _flush(life: Life) -> None:
    clock = SharedClock(life["clock"])
    async with (
        kit_for(
            life["store"], life["stripe"], clock=clock, catalog=loads(life["plans"]), shards=life["shards"]
        ) as kit,
        aclosing_transport(
            life["stripe"], timeout_s=TIMEOUT_S, kind=life["transport"], clock=clock
        ) as transport,
    ):
        summaries = StripeSummaries(StripeApi(kit.settings))
        try:
            flusher = Flusher(kit.store, transport, timeout_s=TIMEOUT_S, summaries=summaries)
            await flusher.flush(everything=life["everything"], timeout_s=0)
        finally:
            await summaries.close()
