"""The requests of the demonstration's three customers, and why each refusal was right."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from meterkit.catalog import Catalog, Plan

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


_UNITS: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


def evidence(refusal: Refusal, tally: Tally, catalog: Catalog) -> str:
    """Why a refusal is right, by the plans file and by what this customer had been served."""
    plan = catalog.plans[tally.customer.plan]
    if refusal.feature:
        having = " and ".join(
            key for key, other in catalog.plans.items() if refusal.feature in other.features
        )
        return f"the {plan.key} plan does not include the feature {refusal.feature!r}; {having} do"
    if refusal.policies:
        return "; ".join(_limit(policy, plan, tally) for policy in refusal.policies)
    return "the request named no customer, and the plans file says `anonymous: deny`"


def _limit(policy: str, plan: Plan, tally: Tally) -> str:
    meter, _, window = policy.rpartition("-")
    entitlement, served = plan.entitlements[meter], tally.served[meter]
    for rate in entitlement.rates:
        if rate.window == window:
            admitted = served + tally.failed
            allowed = f"{rate.limit:,} {meter} {_per(window)}"
            return f"the {plan.key} plan allows {allowed}, and {admitted:,} were let in"
    ceiling = (entitlement.included or 0) + (entitlement.overage.cap or 0)
    beyond = "; usage that is recorded after the work was done is never refused" if served > ceiling else ""
    return f"the {plan.key} plan allows {ceiling:,} {meter} per month, and {served:,} were served{beyond}"


def _per(window: str) -> str:
    """A window, such as ``1d``, in words."""
    number, unit = int(window[:-1]), _UNITS[window[-1]]
    return f"per {unit}" if number == 1 else f"in {number} {unit}s"
