"""Report of a flush: its results, and the usage that it left undelivered."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from meterkit.outbox.invoice_item_queue import InvoiceItemQueue
from meterkit.outbox.outbox import Outbox
from meterkit.outbox.sealer import LateUsage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.outbox.intents import Undelivered
    from meterkit.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """Usage of a linked customer that could not be sealed, and the reason.

    Attributes:
        meter: its token in the store; empty: all meters.
        quantity: in the meter's unit; None: not readable.
    """

    customer: str
    meter: str
    quantity: int | None
    why: str


@dataclass(slots=True, kw_only=True)
class FlushReport:
    """Results of a flush, and the usage that it left undelivered.

    Attributes:
        sealed: intents, and queued invoice lines, made from pending usage.
        delivered: intents that Stripe has accepted, now or earlier.
        retried: tries that will be repeated.
        parked: intents that were parked for an operator or a comparison.
        dead: intents that Stripe will never accept.
        left: linked customers with pending usage, plus queued intents, at the end.
        why: outcome of the last try that will be repeated; empty: there was none.
        blocked: Stripe's response, to the number of queued intents that wait for an operator because of it;
            most of them are not sent.
        unlinked: customers whose usage waits for a link to Stripe.
        undelivered: all parked or dead intents, those of earlier flushes included.
        unsealed: usage that could not be sealed.
        late: usage whose invoice was final, or whose price had ended at Stripe, as found by this flush, its
            syncs and its comparisons; ``billing.late_usage`` decides how it is billed.
        items: invoice items made for late usage, at its recorded price.
        lines: invoice lines written for usage of ended periods, where there are no meters at Stripe.
        spooled: settlements replayed from spools of ended processes, by a flush of everything.
        spools_left: such spools that could not be replayed, and why.
    """

    sealed: int = 0
    delivered: int = 0
    retried: int = 0
    parked: int = 0
    dead: int = 0
    left: int = 0
    why: str = ""
    blocked: dict[str, int] = field(default_factory=dict[str, int])
    unlinked: list[str] = field(default_factory=list[str])
    undelivered: list[Undelivered] = field(default_factory=list["Undelivered"])
    unsealed: list[Unsealed] = field(default_factory=list[Unsealed])
    late: list[LateUsage] = field(default_factory=list[LateUsage])
    items: int = 0
    lines: int = 0
    spooled: int = 0
    spools_left: list[str] = field(default_factory=list[str])

    @property
    def is_complete(self) -> bool:
        """Whether Stripe has all usage of linked customers."""
        return not (self.left or self.undelivered or self.unsealed or self.spools_left)

    def as_json(self) -> dict[str, Any]:
        """Serialize it for the command line; ``items``, ``lines`` and ``blocked`` only if there are any."""
        found = asdict(self)
        for name in ("items", "lines", "blocked"):
            if not found[name]:
                del found[name]
        found["spools"] = {"sent": found.pop("spooled"), "refused": found.pop("spools_left")}
        return found


async def count_refused(outbox: Outbox, refusals: Mapping[str, str]) -> dict[str, int]:
    """Count the queued intents behind each refusal, also those that were not sent because of it.

    Args:
        outbox: has the intents.
        refusals: Stripe's responses by event name; empty name: for the account, so for all intents.

    Raises:
        StoreError: the store does not answer.
    """
    if not refusals:
        return {}
    found = Counter[str]()
    for item in await outbox.work(due_ms=None):
        if "" in refusals:
            found[refusals[""]] += item.outbox
        else:
            for event_name, queued in (await outbox.count_queued(item.shard)).items():
                if event_name in refusals:
                    found[refusals[event_name]] += queued
    return {why: count for why, count in found.items() if count}


async def replay_spools(store: Store) -> FlushReport:
    """Replay spools, and count undelivered usage; Stripe is not asked.

    Raises:
        StoreError: the store does not answer.
    """
    sent = await store.send_spools()
    return await count_undelivered(store, FlushReport(spooled=sent.sent, spools_left=list(sent.refused)))


async def count_undelivered(store: Store, report: FlushReport) -> FlushReport:
    """Add the undelivered usage of now to a report.

    Raises:
        StoreError: the store does not answer.
    """
    outbox = Outbox(store, await store.admin())
    report.left = sum(item.dirty + item.outbox for item in await outbox.work(due_ms=None, is_flush=True))
    report.left += await InvoiceItemQueue(store, await store.admin()).count()
    report.unlinked = await outbox.unlinked()
    report.undelivered = await outbox.undelivered()
    return report
