"""``meterkit reconcile`` and ``meterkit recover``: compare the books with Stripe, repair a restored store."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.catalog.value_parsers import date_and_time
from meterkit.cli.audit import RARE as RARE_OF_AUDIT
from meterkit.cli.audit import row_of as row_of_audit
from meterkit.cli.options import CustomerOption, DryRunOption, PeriodOption, instant, note_unknown
from meterkit.cli.outbox import operator
from meterkit.cli.output import JsonArray, pick, print_note, print_records, shown_steps
from meterkit.cli.session import Session, command, started
from meterkit.delivery.reconciler import Reconciler
from meterkit.delivery.restore_recovery import RecoveredMeter, RestoreRecoverer
from meterkit.delivery.summaries import StripeSummaries
from meterkit.insights.audit.async_database import open_audit_database
from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.audit.rebuilding import CounterRebuilder
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit import MeterKit, Reconciled
    from meterkit.cli.output import Steps
    from meterkit.insights.audit.rebuild_results import RebuildResult

commands = typer.Typer()

_ROWS_AT_ONCE: Final = 1_000

RARE: Final = frozenset(
    {"waiting", "parked", "taking_back", "invoiced", "mispriced", "late", "by_item", "dead", "advice"}
)


@command(commands)
async def reconcile(
    session: Session,
    customer: Annotated[
        str | None, typer.Argument(metavar="CUSTOMER", help="Your own id of the customer. Default: all.")
    ] = None,
    *,
    period: PeriodOption = None,
    show_all: Annotated[bool, typer.Option("--all", help="Also print rows that agree.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Resolve differences that have only one explanation.")
    ] = False,
) -> None:
    """Compare deliveries with Stripe's counts and invoices.

    Compares to the unit, for each customer and meter. After a period's end this is its close report. Prints
    the differences, or all rows of one CUSTOMER. Exits 1 if there is a difference or parked usage.
    """
    is_complete = show_all or customer is not None
    differing = compared = unknown = 0
    skipped = list[str]()
    async with session.kit(reads=not repair) as kit, AsyncExitStack() as stack:
        if customer is not None:
            await note_unknown(kit, customer, shown="")
        api = StripeApi(kit.settings)
        stack.push_async_callback(api.close)
        reconciler = Reconciler(kit.store, lambda: api, open_audit_database(kit.settings))
        steps = stack.enter_context(shown_steps())
        printed = _RowPrinter(steps, as_json=session.json)
        progress = steps.of("comparing customers")
        pages = reconciler.pages(customer, at=period, repair=repair, progress=progress, skipped=skipped)
        async for page in await stack.enter_async_context(aclosing(pages)):
            for one in page:
                compared, differing = compared + 1, differing + (not one.agrees)
                unknown += one.agrees and one.difference is None
                if session.json or is_complete or not one.agrees:
                    printed.add(one)
    printed.end()
    if not session.json and (compared or not skipped):
        print_note(_summarize_comparison(differing, unknown, compared))
    raise typer.Exit(int(bool(differing or skipped)))


class _RowPrinter:
    """Prints a table for each thousand rows, or one JSON array: there may be more than fit into memory."""

    def __init__(self, steps: Steps, *, as_json: bool) -> None:
        self._steps = steps
        self._array = JsonArray() if as_json else None
        self._rows: list[dict[str, object]] = []

    def add(self, one: Reconciled) -> None:
        """Print a comparison, or keep its row until there are a thousand."""
        if self._array is not None:
            self._end_bars()
            self._array.add({**asdict(one), "agrees": one.agrees})
            return
        self._rows.append(row_of(one))
        if len(self._rows) == _ROWS_AT_ONCE:
            self._end_bars()
            self._flush()

    def end(self) -> None:
        """Print the rest."""
        if self._array is not None:
            self._array.end()
        self._flush()

    def _end_bars(self) -> None:
        if sys.stdout.isatty():
            self._steps.end()

    def _flush(self) -> None:
        if self._rows:
            print_records(self._rows, rare=RARE)
        self._rows = []


def _summarize_comparison(differing: int, unknown: int, compared: int) -> str:
    if not compared:
        return "no usage of this period goes to Stripe"
    if differing:
        found = f"{differing:,} of {compared:,} do not agree with Stripe"
    elif unknown:
        found = f"{compared - unknown:,} of {compared:,} agree with Stripe"
    else:
        found = f"all {compared:,} agree with Stripe"
    if not unknown:
        return found
    return (
        f"{found}; {unknown:,} cannot be compared, as Stripe has counted nothing of them: --all shows which;"
        " `meterkit customers link` links a customer without a Stripe customer"
    )


def row_of(one: Reconciled) -> dict[str, object]:
    """Make a row of the table."""
    return {
        **pick(one, "customer", "meter"),
        "period": f"{date_and_time(one.period_start)}{'' if one.is_closed else ', open'}",
        **pick(one, "recorded", "waiting", "parked", "taking_back", "delivered"),
        "confirmed": "unknown" if one.confirmed is None else one.confirmed,
        "difference": "unknown" if one.difference is None else one.difference,
        # A column of rare values is left out where all are 0.
        "invoiced": 0 if not one.invoice else "unknown" if one.invoiced is None else one.invoiced,
        **pick(one, "mispriced", "late", "by_item", "dead", "advice"),
    }


_RARE: Final = frozenset({"lost", "advice"})
_WAIT: Final = (
    "{} shards are not compared with Stripe yet: a process that delivers does so two minutes after"
    " it finds that the store has started; then run this command again"
)


@command(commands)
async def recover(
    session: Session,
    *,
    customer: CustomerOption = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            parser=instant,
            metavar="INSTANT",
            help="First compare all waiting usage with Stripe. Use it if you restored a backup of this"
            " instant and meterkit did not notice. Such as 2027-01-01T00:00:00Z.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Settle usage that a restored store has parked or lost.

    Shows for each customer and meter the units that are parked, and the units at Stripe that the store does
    not know. That many parked units count as billed; the rest is sent. With an audit database, lost counters
    are then raised, as by `audit rebuild`. On a terminal it shows this and asks for confirmation. Exits 1 if
    something is left to do.
    """
    kit = session.make_kit()
    async with AsyncExitStack() as stack:
        summaries = StripeSummaries(StripeApi(kit.settings))
        stack.push_async_callback(summaries.close)
        await stack.enter_async_context(started(kit))
        recoverer = RestoreRecoverer(kit.store, summaries, open_audit_database(kit.settings))
        if since is not None and not dry_run:
            await recoverer.doubt(since)
        left = await recoverer.not_compared()
        is_asked = sys.stdin.isatty() and not (yes or session.json)
        if dry_run or is_asked:
            shown = await _recover_and_rebuild(kit, recoverer, summaries, customer, dry_run=True)
            _show_recovery(session, *shown)
            if dry_run or not any(shown):
                if dry_run:
                    print_note("nothing was changed: --dry-run")
                # Each command may start an embedded server, which is then not compared yet.
                is_usual = dry_run and kit.store.address.kind == "embedded"
                _exit_if_incomplete(left, *shown, is_done=not any(shown), may_wait=is_usual)
                return
            typer.confirm("Do this?", abort=True, err=True)
        done = await _recover_and_rebuild(kit, recoverer, summaries, customer, dry_run=False)
    _show_recovery(session, *done)
    _exit_if_incomplete(left, *done, is_done=True)


async def _recover_and_rebuild(
    kit: MeterKit,
    recoverer: RestoreRecoverer,
    summaries: StripeSummaries,
    customer: str | None,
    *,
    dry_run: bool,
) -> tuple[Sequence[RecoveredMeter], Sequence[RebuildResult]]:
    with shown_steps() as steps:
        progress = steps.of("comparing with Stripe")
        recovered = await recoverer.recover(customer, dry_run=dry_run, by=operator(), progress=progress)
        rebuilt: Sequence[RebuildResult] = ()
        if kit.settings.audit_url is not None:
            steps.update("comparing with the audit log")
            rebuilder = CounterRebuilder(kit.store, open_drainer(kit.store, kit.settings), summaries)
            rebuilt = await rebuilder.rebuild(customer, dry_run=dry_run, by=operator())
    if customer is not None and not (recovered or rebuilt):
        await note_unknown(kit, customer, shown="")
    return recovered, rebuilt


def _show_recovery(
    session: Session, recovered: Sequence[RecoveredMeter], rebuilt: Sequence[RebuildResult]
) -> None:
    def print_recovery() -> None:
        print_records([_row(one) for one in recovered], rare=_RARE, empty="nothing is parked after a restore")
        if rebuilt:
            print_records([row_of_audit(one) for one in rebuilt], rare=RARE_OF_AUDIT, empty="")

    session.show(
        {"recovered": [asdict(one) for one in recovered], "rebuilt": [asdict(one) for one in rebuilt]},
        print_recovery,
    )


def _row(one: RecoveredMeter) -> dict[str, object]:
    return {
        **pick(one, "customer", "meter", "parked"),
        "unknown": "?" if one.unknown is None else one.unknown,
        **pick(one, "billed", "sent", "lost", "advice"),
    }


def _exit_if_incomplete(
    not_compared: int,
    recovered: Sequence[RecoveredMeter],
    rebuilt: Sequence[RebuildResult],
    *,
    is_done: bool,
    may_wait: bool = False,
) -> None:
    """Exit 1 if something is left to do; ``may_wait``: the comparison of shards is not counted."""
    if not_compared:
        print_note(_WAIT.format(not_compared))
    is_left = any(one.advice for one in recovered) or any(not one.is_done for one in rebuilt)
    if (not_compared and not may_wait) or is_left or not is_done:
        raise typer.Exit(1)
