"""``meterkit correct``: take recorded units back."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from meterkit.catalog.amount_texts import money
from meterkit.catalog.argument_checks import check_quantities
from meterkit.cli.grants import quantities_of
from meterkit.cli.options import CustomerArgument
from meterkit.cli.outbox import operator
from meterkit.cli.output import echo, print_note
from meterkit.cli.session import Session, command
from meterkit.cli.unknown_customers import check_known

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit import Corrected, CustomerUsage

commands = typer.Typer()


@command(commands)
async def correct(
    session: Session,
    customer: CustomerArgument,
    quantities: Annotated[
        list[str],
        typer.Argument(
            metavar="METER=QUANTITY", help="A meter of the plans file, and the units: tokens=1_200."
        ),
    ],
    *,
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            metavar="TEXT",
            help="Required: why, for the ledger of the customer.",
            show_default=False,
        ),
    ] = "",
    correction_id: Annotated[
        str,
        typer.Option(
            "--id",
            metavar="ID",
            help="Required: your own name of this correction, such as a ticket's. The same one corrects"
            " once.",
            show_default=False,
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be taken back, and change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before a large correction on a terminal.")
    ] = False,
) -> None:
    """Take back units that were recorded in this billing period.

    On a terminal it asks first where that is more than half of what was recorded. Exits 1 where something is
    to be credited by hand, or was never recorded.
    """
    if not dry_run and not (reason and correction_id):
        raise typer.BadParameter(
            "give --reason TEXT and --id ID: the one is entered into the customer's ledger, and with the"
            " other a command that is repeated does not correct twice"
        )
    given = quantities_of(quantities)
    async with session.kit(customer) as kit:
        await check_known(kit, customer)
        check_quantities(given, kit.catalog.meters)
        planned = _planned(given, await kit.usage(customer))
        if dry_run:
            session.show([asdict(one) for one in planned], lambda: _tell_planned(planned))
            raise typer.Exit(int(any(one.beyond for one in planned)))
        if not yes and sys.stdin.isatty() and any(one.is_large for one in planned):
            _tell_planned(planned)
            typer.confirm("Take so much back?", abort=True, err=True)
        found = await kit.correct(customer, given, reason=reason, correction_id=correction_id, by=operator())
        currency = kit.catalog.currency
    session.show([asdict(one) for one in found], lambda: _tell(found, correction_id, currency))
    if any(one.by_hand or one.beyond for one in found):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """What a correction of one meter would take back, in its unit.

    Attributes:
        asked: the units to take back.
        recorded: the units recorded in this period.
        over_cap: those of them beyond the cap, which go first.
        overage: those of them that are overage, which goes next.
        beyond: the units that exceed the recorded ones.
    """

    meter: str
    asked: int
    recorded: int
    over_cap: int
    overage: int
    beyond: int

    @property
    def is_large(self) -> bool:
        """Whether it exceeds half of the recorded units, as a mistyped quantity often does."""
        return 2 * self.asked > self.recorded


def _planned(quantities: Mapping[str, int], usage: CustomerUsage) -> Sequence[_Planned]:
    meters = usage["meters"]
    return [
        _Planned(
            meter=name,
            asked=asked,
            recorded=meters[name]["recorded"],
            over_cap=meters[name]["over_cap"],
            overage=meters[name]["overage"],
            beyond=max(0, asked - meters[name]["recorded"]),
        )
        for name, asked in quantities.items()
    ]


def _tell_planned(planned: Sequence[_Planned]) -> None:
    for one in planned:
        recorded = f"{one.recorded:,} are recorded in this period, {one.overage:,} of them as overage"
        recorded += f", {one.over_cap:,} over the cap" if one.over_cap else ""
        echo(f"{one.meter}: {one.asked:,} are to be taken back; {recorded}")
        if one.beyond:
            echo(f"{one.meter}: {one.beyond:,} more than were recorded: nothing comes of these")


def _tell(found: Sequence[Corrected], correction_id: str, currency: str) -> None:
    for one in found:
        if one.is_repeated:
            print_note(f"{correction_id} was corrected before; nothing has changed")
        for line in _lines(one, currency):
            echo(f"{one.meter}: {line}")


def _lines(one: Corrected, currency: str) -> Iterator[str]:
    classes = {"over the cap": one.over_cap}
    classes |= {name: getattr(one, name) for name in ("overage", "credited", "granted", "included")}
    parts = ", ".join(f"{units:,} {name}" for name, units in classes.items() if units)
    yield f"{one.taken_back:,} of {one.asked:,} taken back" + (f": {parts}" if parts else "")
    if one.sent_back:
        yield f"{one.sent_back:,} of them Stripe has: a meter event of so many less is on its way"
    if one.granted_next:
        yield f"{one.granted_next:,} were sent to Stripe: there is a grant for them from the next period on"
    if one.by_hand:
        cents = one.by_hand_cents
        sum_of = "" if cents is None else f", {money(cents, currency)} as overage"
        yield f"{one.by_hand:,} were sent to Stripe: credit them by hand{sum_of}"
    if one.never_billed:
        yield f"{one.never_billed:,} stay recorded and cost nothing: not accepted by Stripe, or included"
    if one.beyond:
        yield f"{one.beyond:,} were not recorded in this period, or corrected before"
