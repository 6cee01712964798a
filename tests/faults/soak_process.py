"""Forked processes of a soak: an app under uvicorn, and a flusher, until they are killed or told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Final, TypedDict

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from drivers.delivery import kit_for
from meterkit import MeterMiddleware, StoreError, identify
from meterkit.catalog import loads
from meterkit.delivery import restarts
from meterkit.store import store

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from meterkit import MeterKit

PLANS: Final = """
schema: 1
currency: usd
default_plan: pro
meters:
  calls:  {unit: call, stripe: {event_name: api_requests, report: usage}}
  events: {unit: event, stripe: {event_name: ai_tokens, report: usage}}
  bursts: {unit: call}
routes:
  - {match: "GET /calls", consume: {calls: 1}}
  - {match: "GET /bursts", consume: {bursts: 1}, allotment: 250ms, on_store_failure: deny}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      calls:  {included: 1_000, overage: bill}
      events: {included: 1_000, overage: bill}
      bursts: {included: 500, overage: deny}
"""
SHARDS: Final = 4
# Stripe's summaries take two minutes; the emulator's do not.
_LAG_MS: Final = 500
# A disk that hangs for longer than a second has `record` return before anything is written, which it logs: a
# kill would lose that. Here the verdict is not to depend on the disk.
_SPOOL_S: Final = 60.0


class Place(TypedDict):
    """Where a process finds what it needs, and how far its clock is ahead."""

    store: str
    stripe: str
    spools: str
    ahead_s: float


def kit_of(place: Place, clock: Callable[[], float] | None = None) -> MeterKit:
    """A kit of these plans."""
    return kit_for(
        place["store"],
        place["stripe"],
        clock=clock or (lambda: time() + place["ahead_s"]),
        catalog=loads(PLANS),
        shards=SHARDS,
        store_timeout=0.25,
        start_timeout=0.5,
        flush_interval=0.05,
        spool_dir=Path(place["spools"]),
    )


def serve(place: Place, port: int) -> None:
    """Be an app: it meters ``/calls`` and ``/bursts``; ``/events`` records under the id of each, once."""
    logging.disable(logging.CRITICAL)
    setattr(store, "_SPOOL_S", _SPOOL_S)  # noqa: B010 - as below
    kit = kit_of(place)

    async def calls(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def events(request: Request) -> Response:
        asked = request.query_params
        try:
            await kit.record(asked["customer"], "events", int(asked["quantity"]), event_id=asked["id"])
        except StoreError:
            return PlainTextResponse("not recorded", 503)
        return PlainTextResponse("recorded")

    app = Starlette(routes=[Route("/calls", calls), Route("/bursts", calls), Route("/events", events)])
    metered: Any = MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))
    uvicorn.run(metered, host="127.0.0.1", port=port, log_config=None, ws="none", timeout_graceful_shutdown=5)


def deliver(place: Place) -> None:
    """Be a flusher."""
    logging.disable(logging.CRITICAL)
    setattr(restarts, "_LAG_MS", _LAG_MS)  # noqa: B010 - it is another one here, knowingly
    asyncio.run(_deliver(place))


async def _deliver(place: Place) -> None:
    async with kit_of(place) as kit, kit.flusher() as flusher:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, flusher.stop)
        await flusher.run(every_s=0.2)
