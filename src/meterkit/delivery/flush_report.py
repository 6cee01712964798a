"""What a flush did, and what it left."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from meterkit.outbox.late_items import LateItems
from meterkit.outbox.outbox import Outbox
from meterkit.outbox.sealer import LateUsage

if TYPE_CHECKING:
    from meterkit.outbox.intents import Undelivered
    from meterkit.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """Usage of a linked customer that could not be sealed, and why.

    Attributes:
        meter: its name in an earlier plans file, or what stands for it in the store; empty: of all meters.
        quantity: in the meter's unit; None where it cannot be read.
    """

    customer: str
    meter: str
    quantity: int | None
    why: str


@dataclass(slots=True, kw_only=True)
class FlushReport:
    """What a flush did, and what it left.

    Attributes:
        sealed: intents made from pending usage.
        delivered: intents that Stripe has accepted, now or earlier.
        retried: tries that are to be repeated.
        parked: intents that were parked: they wait for a person.
        dead: intents that Stripe will never accept.
        left: customers with pending usage and intents on their way, of linked customers, at the end.
        why: what the last try that is to be repeated came to; empty where there was none.
        unlinked: customers whose usage waits for a link to Stripe.
        undelivered: all intents that are parked or dead, of earlier flushes too.
        unsealed: usage that could not be sealed.
        late: usage whose own invoice was final, or whose price had ended at Stripe, as this flush, its syncs
            and its comparisons found; ``billing.late_usage`` says what becomes of it.
        items: invoice items that were made of late usage, at the price at which it was recorded.
        spooled: settlements sent, by a flush of everything, from spools of processes that are gone.
        spools_left: such spools that were left as they are, and why.
    """

    sealed: int = 0
    delivered: int = 0
    retried: int = 0
    parked: int = 0
    dead: int = 0
    left: int = 0
    why: str = ""
    unlinked: list[str] = field(default_factory=list[str])
    undelivered: list[Undelivered] = field(default_factory=list["Undelivered"])
    unsealed: list[Unsealed] = field(default_factory=list[Unsealed])
    late: list[LateUsage] = field(default_factory=list[LateUsage])
    items: int = 0
    spooled: int = 0
    spools_left: list[str] = field(default_factory=list[str])

    @property
    def is_complete(self) -> bool:
        """Whether Stripe has all that linked customers used."""
        return not (self.left or self.undelivered or self.unsealed or self.spools_left)

    def as_json(self) -> dict[str, Any]:
        """All of it, as the command line prints it; ``items`` only if there are any."""
        found = asdict(self)
        if not self.items:
            del found["items"]
        found["spools"] = {"sent": found.pop("spooled"), "refused": found.pop("spools_left")}
        return found


async def replay_spools(store: Store) -> FlushReport:
    """Record usage that lies in spools, and count what waits for delivery; Stripe is not asked.

    Raises:
        StoreError: the store does not answer.
    """
    sent = await store.send_spools()
    return await count_undelivered(store, FlushReport(spooled=sent.sent, spools_left=list(sent.refused)))


async def count_undelivered(store: Store, report: FlushReport) -> FlushReport:
    """Add to a report what is not delivered now.

    Raises:
        StoreError: the store does not answer.
    """
    outbox = Outbox(store, await store.admin())
    report.left = sum(item.dirty + item.outbox for item in await outbox.work(due_ms=None))
    report.left += await LateItems(store, await store.admin()).count()
    report.unlinked = await outbox.unlinked()
    report.undelivered = await outbox.undelivered()
    return report
