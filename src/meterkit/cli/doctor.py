"""``meterkit doctor``: check the store, the work that waits in it, and the Stripe account."""

from __future__ import annotations

import logging
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from meterkit.catalog.route_notes import CHECK as LIMITS
from meterkit.cli.output import echo
from meterkit.cli.session import Session, command
from meterkit.health.plans_file import ALLOTMENTS

if TYPE_CHECKING:
    from meterkit.insights.health_report import Health

__all__ = ["commands"]

commands = typer.Typer()


@command(commands)
async def doctor(session: Session) -> None:
    """Check the deployment: the store, waiting work and Stripe.

    Prints each finding with its cure. Exits 1 if there is a finding.
    """
    kit = session.make_kit()
    # The store logs the same findings.
    logging.getLogger("meterkit.store").setLevel(logging.CRITICAL)
    try:
        found = await kit.health()
    finally:
        await kit.store.stop()
    session.show(asdict(found), lambda: _print_health(found))
    raise typer.Exit(int(bool(found.findings)))


def _print_health(found: Health) -> None:
    for finding in found.findings:
        echo(f"{finding.check}: {finding.problem}\n  cure: {finding.cure}")
    for why, checks in groupby(found.not_looked_at, found.not_looked_at.__getitem__):
        echo(f"not checked: {', '.join(checks)}: {why}")
    for check in (ALLOTMENTS, LIMITS):
        if check in found.looked_at:
            echo(f"{check}: {found.looked_at[check]}")
    if not found.findings:
        echo(f"no findings in {len(found.looked_at)} checks")
