"""``meterkit import``: take over what another system has already."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.cli.links import read_links
from meterkit.cli.output import print_note, print_records
from meterkit.cli.progress import shown_steps
from meterkit.cli.session import Session, command
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.subscriptions.service.importing import Imported, ImportProgress

__all__ = ["commands"]

_DOING: Final[Mapping[str, str]] = {
    "customers": "reading customers",
    "subscriptions": "reading subscriptions",
    "links": "linking customers",
}

commands = typer.Typer(name="import", no_args_is_help=True)


@commands.callback()
def importing() -> None:
    """Take over customers and subscriptions that exist already."""


@command(commands)
async def stripe(
    session: Session,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be linked, and change nothing.")
    ] = False,
    id_from: Annotated[
        str,
        typer.Option(
            "--id-from",
            metavar="PLACE",
            help="Where Stripe has your own ids of customers: `email`, or `metadata.KEY` of a customer or of"
            " its subscription.",
        ),
    ] = "metadata.meterkit_customer",
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Your own ids, a line `customer,stripe_customer` for each; they win over what Stripe has."
            " - reads stdin.",
        ),
    ] = None,
) -> None:
    """Link the customers of a Stripe account.

    Each is on the plan of its subscription at once. Lists who does not fit and why, and exits 1 then. Run it
    again at any time: what is done is not done again.
    """
    ids = _by_stripe_customer(csv)
    async with session.kit(reads=dry_run) as kit:
        with shown_steps() as steps:

            def progress(now: ImportProgress) -> None:
                steps.update(_DOING[now.step], now.done, now.total)

            done = await kit.subscriptions.import_from_stripe(
                id_from=id_from, ids=ids, dry_run=dry_run, progress=progress
            )
    session.show(asdict(done), lambda: _tell(done))
    raise typer.Exit(int(bool(done.misfits)))


def _by_stripe_customer(csv: str | None) -> dict[str, str]:
    """The ids of a file, by Stripe customer.

    Raises:
        MeterkitError: the file cannot be read, or has a Stripe customer twice.
    """
    ids: dict[str, str] = {}
    for where, customer, linked in [] if csv is None else read_links(csv):
        if ids.setdefault(linked, customer) != customer:
            raise MeterkitError(
                f"{where}: {linked!r:.80} is given to {ids[linked]!r:.80} and {customer!r:.80}"
            )
    return ids


def _tell(done: Imported) -> None:
    rows = [
        {
            "Stripe customer": misfit.stripe_customer,
            "customer": misfit.customer or "",
            "subscription": misfit.subscription or "",
            "linked": "yes" if misfit.linked else "no",
            "why": misfit.message,
        }
        for misfit in done.misfits
    ]
    if rows:
        print_records(rows)
    doing = "would be linked" if done.dry_run else "linked"
    print_note(
        f"{doing}: {done.linked:,}; linked before: {done.known:,}; without a subscription or an id:"
        f" {done.skipped:,}; do not fit: {len(rows):,}"
    )
