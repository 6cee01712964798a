"""``meterkit import``: link the customers of a Stripe account."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.cli.help_pages import command_group
from meterkit.cli.link_files import read_links
from meterkit.cli.output import print_note, print_records, shown_steps
from meterkit.cli.session import Session, command
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.subscriptions.service.stripe_import import Imported, ImportProgress


_DOING: Final[Mapping[str, str]] = {
    "customers": "reading customers",
    "subscriptions": "reading subscriptions",
    "links": "linking customers",
}
commands = command_group("import", "Import existing customers and subscriptions.")


@command(commands)
async def stripe(
    session: Session,
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the customers to link and their plans, and change nothing."),
    ] = False,
    id_from: Annotated[
        str,
        typer.Option(
            "--id-from",
            metavar="PLACE",
            help="Where Stripe has your own customer ids: `email`, or `metadata.KEY` of a customer or its"
            " subscription.",
        ),
    ] = "metadata.meterkit_customer",
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="A file with your own ids, which override ids at Stripe: each line is"
            " `customer,stripe_customer`. `-` reads stdin.",
        ),
    ] = None,
) -> None:
    """Link the customers of a Stripe account.

    Each gets the plan of its subscription at once. Lists customers that do not fit, with the reason, and then
    exits 1. You may run it again: linked customers are skipped.
    """
    ids = _by_stripe_customer(csv)
    async with session.kit(reads=dry_run) as kit:
        with shown_steps() as steps:

            def progress(now: ImportProgress) -> None:
                steps.update(_DOING[now.step], now.done, now.total)

            done = await kit.subscriptions.import_from_stripe(
                id_from=id_from, ids=ids, dry_run=dry_run, progress=progress
            )
    session.show(asdict(done), lambda: _print_import(done))
    raise typer.Exit(int(bool(done.misfits)))


def _by_stripe_customer(csv: str | None) -> dict[str, str]:
    """Read the ids of a file, by Stripe customer.

    Raises:
        MeterkitError: the file cannot be read, or has a Stripe customer twice.
    """
    ids: dict[str, str] = {}
    for where, customer, linked in [] if csv is None else read_links(csv):
        if ids.setdefault(linked, customer) != customer:
            raise MeterkitError(
                f"{where}: {linked!r:.80} is linked to both {ids[linked]!r:.80} and {customer!r:.80}"
            )
    return ids


def _print_import(done: Imported) -> None:
    rows = [
        {
            "Stripe customer": misfit.stripe_customer,
            "customer": misfit.customer,
            "subscription": misfit.subscription,
            "linked": "yes" if misfit.linked else "no",
            "why": misfit.message,
        }
        for misfit in done.misfits
    ]
    if done.dry_run and done.customers:
        print_records(
            [
                {
                    "Stripe customer": one.stripe_customer,
                    "customer": one.customer,
                    "plan": one.plan,
                    "subscription": one.subscription,
                }
                for one in done.customers
            ]
        )
    if rows:
        print_records(rows)
    doing = "would be linked" if done.dry_run else "linked"
    print_note(
        f"{doing}: {done.linked:,}; linked before: {done.known:,}; without a subscription or an id:"
        f" {done.skipped:,}; do not fit: {len(rows):,}"
    )
