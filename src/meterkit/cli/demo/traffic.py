"""What the demonstration's three customers ask for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from meterkit.cli.demo.refusals import Refusal, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

__all__ = ["CUSTOMERS", "Ask", "Shopper", "drive"]

_AT_ONCE: Final = 4
_OK: Final = 200
_PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request; ``tokens`` is what the service is asked to generate, 0 where it is not."""

    method: str
    path: str
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shopper:
    """A customer of the demonstration and the number of requests of each kind it sends."""

    customer: str
    plan: str
    generate: int
    reports: int
    broken: int

    def asks(self) -> Sequence[Ask]:
        """The requests, mixed, and the same in every run."""
        found = [
            *(Ask(method="POST", path="/v1/generate", tokens=_tokens(nth)) for nth in range(self.generate)),
            *(Ask(method="GET", path=f"/v1/reports/{nth}") for nth in range(self.reports)),
            *(Ask(method="GET", path="/v1/broken") for _ in range(self.broken)),
        ]
        order = sorted(range(len(found)), key=lambda nth: crc32(f"{self.customer} {nth}".encode()))
        return [found[nth] for nth in order]


def _tokens(nth: int) -> int:
    """From 20 to 180, each as likely as the others."""
    return 20 + nth * 37 % 161


CUSTOMERS: Final = (
    Shopper(customer="ada", plan="free", generate=50, reports=5, broken=3),
    Shopper(customer="bell", plan="pro", generate=150, reports=10, broken=0),
    Shopper(customer="curie", plan="scale", generate=280, reports=40, broken=10),
)


async def drive(client: httpx.AsyncClient, shopper: Shopper, advance: Callable[[], None]) -> Tally:
    """Send a customer's requests, a few at a time, and keep count of the answers."""
    tally, asks = Tally(), iter(shopper.asks())

    async def one_after_another() -> None:
        for ask in asks:
            response = await client.request(
                ask.method,
                ask.path,
                headers={"x-customer-id": shopper.customer},
                json={"tokens": ask.tokens} if ask.tokens else None,
            )
            _count(tally, ask, response)
            advance()

    await asyncio.gather(*(one_after_another() for _ in range(_AT_ONCE)))
    return tally


def _count(tally: Tally, ask: Ask, response: httpx.Response) -> None:
    tally.sent += 1
    if response.headers.get("content-type") == _PROBLEM:
        told: dict[str, Any] = response.json()
        refusal = Refusal(
            status=response.status_code,
            policies=tuple(told.get("violated-policies", ())),
            feature=told.get("feature", ""),
        )
        tally.refusals[refusal] += 1
    elif response.status_code == _OK:
        tally.served["requests"] += 1
        tally.served["tokens"] += response.json()["tokens"] if ask.tokens else 0
    else:
        tally.failed += 1
