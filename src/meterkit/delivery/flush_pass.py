"""The state of one flush: its report, what it has tried, and what it sends last."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meterkit.delivery.report import REPORTED, FlushReport, Unsealed

if TYPE_CHECKING:
    from meterkit.outbox.intents import Move
    from meterkit.outbox.outbox import Outbox
    from meterkit.outbox.sealing import Sealing

_logger = logging.getLogger("meterkit.delivery")


@dataclass(slots=True, kw_only=True)
class FlushPass:
    """One flush.

    Attributes:
        retries: whether what waits for a retry is sent now.
        tried: the intents that it has sent in this round.
        unseen: customers that could not be synced: their waiting usage is not sent.
        is_young: whether an intent was not on disk for long enough.
        withdrawn: intents whose usage is pending again.
        put_off: shards whose suspect lines are sent last, each with whether only repeats may be sent of it.
        are_suspects_next: whether suspect lines are being sent.
    """

    outbox: Outbox
    retries: bool
    tried: set[str] = field(default_factory=set[str])
    unseen: set[str] = field(default_factory=set[str])
    is_young: bool = False
    withdrawn: int = 0
    put_off: dict[int, bool] = field(default_factory=dict[int, bool])
    are_suspects_next: bool = False
    report: FlushReport = field(default_factory=FlushReport)

    @property
    def progress(self) -> tuple[int, ...]:
        """Changes where anything was done that need not be repeated."""
        report = self.report
        return (report.sealed, report.delivered, report.dead, report.parked, len(report.late), self.withdrawn)

    async def settle(self, shard: int, moves: list[Move]) -> None:
        """Put what was sent into its next state, and leave none of it in the list."""
        sent, report = moves.copy(), self.report
        moves.clear()
        for move in await self.outbox.settle(shard, sent):
            if move.state in {"delivered", "parked", "dead"}:
                setattr(report, move.state, getattr(report, move.state) + 1)
            elif move.why:
                report.retried += 1
                report.why = move.why

    def report_unsealed(self, sealing: Sealing, aside: set[tuple[str, str]]) -> None:
        """Report usage that could not be sealed, and log it for each customer and meter once, until it could.

        Args:
            sealing: what was sealed, and what was not.
            aside: customers and meters that were logged; they are brought up to date.
        """
        aside.difference_update((customer, "") for customer in sealing.fine)
        unsealed = [
            Unsealed(customer=customer, meter="", quantity=None, why=why)
            for customer, why in sealing.aside.items()
        ]
        unsealed += [
            Unsealed(
                customer=nameless.customer,
                meter=nameless.meter_token,
                quantity=nameless.quantity,
                why="its meter is not in the plans file, and the store knows no event name of it",
            )
            for nameless in sealing.nameless
        ]
        self.report.unsealed += unsealed
        for one in unsealed:
            if (one.customer, one.meter) not in aside:
                aside.add((one.customer, one.meter))
                what = "usage" if one.quantity is None else f"{one.quantity} units of {one.meter}"
                _logger.error(
                    "%s of customer %r cannot be sealed; all else is delivered: %s",
                    *(what, one.customer, one.why),
                    extra=REPORTED,
                )
