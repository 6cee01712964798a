"""What the demonstration's three customers ask for, and what they get."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

__all__ = ["CUSTOMERS", "DemoCustomer", "Refusal", "Tally", "drive"]

_AT_ONCE: Final = 4
_OK: Final = 200
_PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCustomer:
    """A customer of the demonstration and the number of requests of each kind it sends."""

    id: str
    plan: str
    generate: int
    reports: int
    broken: int

    def requests(self) -> list[tuple[str, int]]:
        """Paths and the tokens that are to be generated, 0 for none; mixed, and the same in every run."""
        # From 20 to 180 tokens, each as likely as the others.
        found = [("/v1/generate", 20 + nth * 37 % 161) for nth in range(self.generate)]
        found += [(f"/v1/reports/{nth}", 0) for nth in range(self.reports)]
        found += [("/v1/broken", 0)] * self.broken
        order = sorted(range(len(found)), key=lambda nth: crc32(f"{self.id} {nth}".encode()))
        return [found[nth] for nth in order]


CUSTOMERS: Final = (
    DemoCustomer(id="ada", plan="free", generate=50, reports=5, broken=3),
    DemoCustomer(id="bell", plan="pro", generate=150, reports=10, broken=0),
    DemoCustomer(id="curie", plan="scale", generate=280, reports=40, broken=10),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was refused, as the answer told.

    Attributes:
        status: of the answer.
        policies: the names of the limits that were used up.
        feature: the feature that the plan does not have, or an empty text.
    """

    status: int
    policies: tuple[str, ...] = ()
    feature: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one customer's client saw.

    Attributes:
        served: meter to the quantity in answers that succeeded.
        failed: answers of the service that did not succeed: they cost nothing.
        refusals: how often the customer was refused, and why.
    """

    customer: DemoCustomer
    sent: int = 0
    served: Counter[str] = field(default_factory=Counter[str])
    failed: int = 0
    refusals: Counter[Refusal] = field(default_factory=Counter[Refusal])


async def drive(client: httpx.AsyncClient, customer: DemoCustomer, advance: Callable[[], object]) -> Tally:
    """Send a customer's requests, a few at a time, and keep count of the answers."""
    tally, requests = Tally(customer=customer), iter(customer.requests())

    async def one_after_another() -> None:
        for path, tokens in requests:
            response = await client.request(
                "POST" if tokens else "GET",
                path,
                headers={"x-customer-id": customer.id},
                json={"tokens": tokens} if tokens else None,
            )
            _count(tally, response)
            advance()

    await asyncio.gather(*(one_after_another() for _ in range(_AT_ONCE)))
    return tally


def _count(tally: Tally, response: httpx.Response) -> None:
    tally.sent += 1
    told: dict[str, Any] = response.json()
    if response.headers.get("content-type") == _PROBLEM:
        policies = tuple(told.get("violated-policies", ()))
        refusal = Refusal(status=response.status_code, policies=policies, feature=told.get("feature", ""))
        tally.refusals[refusal] += 1
    elif response.status_code == _OK:
        tally.served["requests"] += 1
        tally.served["tokens"] += told.get("tokens", 0)
    else:
        tally.failed += 1
