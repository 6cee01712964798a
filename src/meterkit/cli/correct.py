"""``meterkit correct``: reduce recorded usage."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from meterkit.catalog.meters import check_quantities
from meterkit.catalog.value_parsers import money
from meterkit.cli.options import CustomerArgument, WrongUsageError, check_known, parse_quantities
from meterkit.cli.outbox import operator
from meterkit.cli.output import echo, print_note
from meterkit.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit import Corrected, CustomerUsage

commands = typer.Typer()
_BY_HAND: Final = ("by_hand", "by_hand_cents", "by_hand_lines")


@command(commands)
async def correct(
    session: Session,
    customer: CustomerArgument,
    quantities: Annotated[
        list[str],
        typer.Argument(
            metavar="METER=QUANTITY",
            help="A meter of the plans file, and the units to take back: tokens=1_200.",
        ),
    ],
    *,
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            metavar="TEXT",
            help="Required: the reason, for the customer's history.",
            show_default=False,
        ),
    ] = "",
    correction_id: Annotated[
        str,
        typer.Option(
            "--id",
            metavar="ID",
            help="Required: your own id of this correction, such as a ticket number. A repeated id corrects"
            " once.",
            show_default=False,
        ),
    ] = "",
    credit: Annotated[
        bool,
        typer.Option("--credit", help="Issue credit notes at Stripe for units that are already billed."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be corrected, and change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask for confirmation of a large correction.")
    ] = False,
) -> None:
    """Take back recorded usage.

    Corrects units of this billing period and of bills of the last 35 days. On a terminal it asks before it
    takes back over half of them. Exits 1 if you must credit units by hand, or some were never recorded.
    """
    if not dry_run and not (reason and correction_id):
        raise WrongUsageError("give --reason TEXT, for the history, and --id ID: an id corrects once")
    given = parse_quantities(quantities)
    async with session.kit(customer) as kit:
        await check_known(kit, customer)
        check_quantities(given, kit.catalog.meters)
        currency = (usage := await kit.usage(customer))["currency"]
        correct_units = partial(kit.correct, customer, given, by=operator(), reason=reason or "dry run")
        asks = not yes and sys.stdin.isatty() and _is_large(given, usage)
        print_planned = partial(_print_planned, correction_id=correction_id, currency=currency)
        try_units = partial(correct_units, correction_id=correction_id or token_hex(), dry_run=True)
        tried = await try_units() if dry_run or asks else ()
        planned = [_CorrectionPlan.of(one, usage) for one in tried]
        if dry_run:
            session.show([one.to_json() for one in planned], lambda: print_planned(planned))
            raise typer.Exit(int(any(one.beyond or one.by_hand for one in tried)))
        if asks and not any(one.is_repeated for one in tried):
            print_planned(planned, err=session.json)
            typer.confirm("Correct this much?", abort=True, err=True)
        found = await correct_units(correction_id=correction_id, credit=credit)
    session.show([_to_json(one) for one in found], lambda: _print_corrections(found, correction_id, currency))
    if any(one.left_by_hand or one.beyond for one in found):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CorrectionPlan:
    """A correction of one meter that was tried, and the units of the meter in this period.

    Attributes:
        recorded: all of them.
        over_cap: those of them beyond the cap, which go first.
        overage: those of them that are overage, which goes next.
        tried: the result that the correction would have.
    """

    recorded: int
    over_cap: int
    overage: int
    tried: Corrected

    @classmethod
    def of(cls, tried: Corrected, usage: CustomerUsage) -> _CorrectionPlan:
        """Put a result beside the usage of its customer."""
        counts = usage["meters"][tried.meter]
        return cls(
            recorded=counts["recorded"], over_cap=counts["over_cap"], overage=counts["overage"], tried=tried
        )

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints; units by hand where there are any, and a repeated id."""
        by_hand = {name: value for name, value in _to_json(self.tried).items() if name in _BY_HAND}
        return {
            "meter": self.tried.meter,
            "asked": self.tried.asked,
            "recorded": self.recorded,
            "over_cap": self.over_cap,
            "overage": self.overage,
            "beyond": self.tried.beyond,
            **(by_hand if self.tried.by_hand else {}),
            **({"is_repeated": True} if self.tried.is_repeated else {}),
        }


def _is_large(quantities: Mapping[str, int], usage: CustomerUsage) -> bool:
    """Whether a quantity exceeds half of the recorded units, as a mistyped one often does."""
    return any(2 * asked > usage["meters"][name]["recorded"] for name, asked in quantities.items())


def _print_planned(
    planned: Sequence[_CorrectionPlan], *, correction_id: str, currency: str, err: bool = False
) -> None:
    for one in planned:
        meter, tried = one.tried.meter, one.tried
        if tried.is_repeated:
            print_note(f"{correction_id} was applied before; no further units would be corrected")
            for line in _lines(tried, currency):
                echo(f"{meter}: {line}", err=err)
            continue
        recorded = f"{one.recorded:,} are recorded in this period, {one.overage:,} of them as overage"
        recorded += f", {one.over_cap:,} over the cap" if one.over_cap else ""
        echo(f"{meter}: {tried.asked:,} to be corrected; {recorded}", err=err)
        for line in _billed_lines(tried, currency):
            echo(f"{meter}: {line}", err=err)
        if tried.beyond:
            echo(f"{meter}: {tried.beyond:,} exceed the recorded units and are ignored", err=err)


def _to_json(one: Corrected) -> dict[str, Any]:
    """Convert a result to JSON, with its invoice lines and credit notes as objects."""
    lines = [line._asdict() for line in one.by_hand_lines]
    notes = [note._asdict() for note in one.credits]
    return {**asdict(one), "by_hand_lines": lines, "credits": notes}


def _print_corrections(found: Sequence[Corrected], correction_id: str, currency: str) -> None:
    for one in found:
        if one.is_repeated:
            print_note(f"{correction_id} was applied before; nothing changed")
        for line in _lines(one, currency):
            echo(f"{one.meter}: {line}")


def _lines(one: Corrected, currency: str) -> Iterator[str]:
    classes = {"over the cap": one.over_cap}
    classes |= {name: getattr(one, name) for name in ("overage", "credited", "granted", "included")}
    parts = ", ".join(f"{units:,} {name}" for name, units in classes.items() if units)
    yield f"{one.taken_back:,} of {one.asked:,} corrected" + (f": {parts}" if parts else "")
    if one.sent_back:
        yield f"{one.sent_back:,} of them are at Stripe: a negative meter event will be sent"
    if one.granted_next:
        yield f"{one.granted_next:,} were sent to Stripe: a grant compensates for them from the"
        " next period on"
    yield from _billed_lines(one, currency)
    if one.never_billed:
        yield f"{one.never_billed:,} stay recorded at no cost: Stripe did not accept them, or they"
        " are included"
    if one.beyond:
        yield f"{one.beyond:,} were not recorded in this period, or are already corrected"


def _billed_lines(one: Corrected, currency: str) -> Iterator[str]:
    """Describe units to credit: by invoice line, then those on no known line."""
    notes = {note.line: note.id for note in one.credits}
    for line in one.by_hand_lines:
        where = f"on invoice {line.invoice}" if line.invoice else "on no invoice yet"
        if not line.invoice and line.line:
            where += f", by item {line.line}"
        action = (
            f"credited by credit note {notes[line.line]}" if line.line in notes else "credit them by hand"
        )
        yield f"{line.units:,} are billed {where}, {money(line.cents, currency)}: {action}"
    units = one.by_hand - sum(line.units for line in one.by_hand_lines)
    if units:
        cents = one.by_hand_cents
        known = None if cents is None else cents - sum(line.cents for line in one.by_hand_lines)
        sum_of = "" if known is None else f", {money(known, currency)} as overage"
        yield f"{units:,} were sent to Stripe: credit them by hand{sum_of}"
    if one.not_credited:
        yield f"no credit note for {one.not_credited}"
