"""``python -m stripe_emulator``: serve an emulated Stripe account until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from stripe_emulator.clock import Clock
from stripe_emulator.emulator import LOOPBACK, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PORT: Final = 12_111
PORT_MAX: Final = 65_535
STOPPING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the account that the options describe; the first line printed is its address."""
    options = _options().parse_args(arguments)
    emulator = StripeEmulator() if options.clock is None else StripeEmulator(clock=Clock(options.clock))
    try:
        for event_name in options.meter:
            emulator.add_meter(event_name)
        for customer in options.customer:
            emulator.add_customer(customer)
        asyncio.run(
            _serve_account(emulator, host=options.host, port=options.port, forward_to=options.forward_to)
        )
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        sys.exit(f"cannot listen on {options.host}:{options.port}: {why}; --port 0 takes a free port")


async def _serve_account(emulator: StripeEmulator, *, host: str, port: int, forward_to: str | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in STOPPING_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    async with emulator.serve(host=host, port=port) as url:
        print(f"STRIPE_API_BASE={url}", flush=True)  # noqa: T201
        if forward_to is not None:
            secret = emulator.add_endpoint(forward_to, has_real_time=True)
            print(f"STRIPE_WEBHOOK_SECRET={secret}", flush=True)  # noqa: T201
        await stop.wait()


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stripe_emulator",
        description="Serve an emulated Stripe account in memory until Ctrl-C. It accepts any secret key,"
        " such as sk_test_1.",
    )
    parser.add_argument("--host", default=LOOPBACK, help=f"the address to listen on; default: {LOOPBACK}")
    parser.add_argument(
        "--port",
        type=_port,
        default=DEFAULT_PORT,
        metavar="N",
        help=f"the port; 0 takes a free one; default: {DEFAULT_PORT}",
    )
    parser.add_argument(
        "--meter",
        action="append",
        default=[],
        metavar="EVENT_NAME",
        help="add a meter that sums the events of this name; may be given several times",
    )
    parser.add_argument(
        "--customer",
        action="append",
        default=[],
        metavar="ID",
        help="add a customer with this id, such as cus_123; may be given several times",
    )
    parser.add_argument(
        "--clock",
        type=_instant,
        metavar="INSTANT",
        help="stop the clock at this instant, such as 2026-04-01T00:00:00Z, until POST /_emulator/clock"
        " moves it; default: it follows the machine's clock",
    )
    parser.add_argument(
        "--forward-to",
        metavar="URL",
        help="post webhooks to this URL; the second line printed is the secret that signs them",
    )
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= PORT_MAX:
        raise argparse.ArgumentTypeError(f"must be from 0 to {PORT_MAX}")
    return port


def _instant(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("has no time zone: write it like 2026-04-01T00:00:00Z")
    return moment.astimezone(UTC)


if __name__ == "__main__":
    main()
