"""``meterkit audit``: counters are rebuilt from the audit log."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

import typer

from meterkit.cli.options import CustomerOption, DryRunOption, PeriodOption
from meterkit.cli.outbox import operator
from meterkit.cli.output import print_note
from meterkit.cli.session import Session, command, started
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import SettingsError
from meterkit.insights.audit.draining import drainer_of
from meterkit.insights.audit.rebuilding import Rebuilder
from meterkit.insights.audit.rebuilt import Rebuilt
from meterkit.stripe.api import StripeApi

commands = typer.Typer(name="audit", help="Work with the audit log of recorded usage.", no_args_is_help=True)

_ENDED_EARLY: Final = (
    "it ended early: what is shown was done before. Run the same again for the rest: nothing is raised twice"
)
RARE: Final = frozenset({"delivered", "parked", "advice"})
"""Columns that are shown where they have something."""


@command(commands)
async def rebuild(
    session: Session,
    *,
    customer: CustomerOption = None,
    period: PeriodOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Raise counters that the store has lost to what the audit log has.

    Nothing is lowered, and nothing that goes to Stripe is sent by it: what Stripe may have is parked until
    that is compared. Of periods that are over it is only said what is missing. What waits for the
    database is drained first. A customer that cannot be rebuilt is named with the reason, and the
    others are. Exits 1 where something is left to be done, with --dry-run where something differs.
    """
    kit = session.make_kit()
    if kit.settings.audit_url is None:
        raise SettingsError("audit_url", "no audit log is kept: METERKIT_AUDIT_URL names its database")
    drainer = drainer_of(kit.store, kit.settings)
    async with AsyncExitStack() as stack:
        summaries = None
        if kit.settings.stripe_api_key is not None:
            summaries = StripeSummaries(StripeApi(kit.settings))
            stack.push_async_callback(summaries.close)
        await stack.enter_async_context(started(kit))
        rebuilder, found = Rebuilder(kit.store, drainer, summaries), list[Rebuilt]()
        try:
            await rebuilder.rebuild(customer, at=period, dry_run=dry_run, by=operator(), found=found)
        except BaseException:  # Ctrl-C, too.
            session.show_rows(found, row_of, rare=RARE, empty="nothing was rebuilt")
            print_note(_ENDED_EARLY)
            raise
    session.show_rows(found, row_of, rare=RARE, empty="the counters have all that the audit log has")
    if dry_run and found:
        print_note("nothing was changed: --dry-run")
    if any(dry_run or not one.is_done for one in found):
        raise typer.Exit(1)


def row_of(one: Rebuilt) -> dict[str, object]:
    """A row of the table."""
    return {
        "customer": one.customer,
        "meter": one.meter,
        "period": one.period_start,
        "recorded": one.recorded,
        "audited": one.audited,
        "raised": one.raised,
        "delivered": one.delivered,
        "parked": one.parked,
        "advice": one.advice,
    }
