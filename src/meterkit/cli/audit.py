"""``meterkit audit``: verify the audit log, and rebuild counters from it."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from meterkit.cli.help_pages import command_group
from meterkit.cli.options import CustomerOption, DryRunOption, PeriodOption, WrongUsageError, note_unknown
from meterkit.cli.outbox import operator
from meterkit.cli.output import pick, print_note
from meterkit.cli.session import Session, command, started
from meterkit.customers.customers import read_customers
from meterkit.customers.history import known_subscriptions
from meterkit.customers.states import CustomerStates, list_customer_pages
from meterkit.decisions.periods import to_ms
from meterkit.delivery.audit_root import is_final_renewal, read_root
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import SettingsError, StripeError
from meterkit.insights.audit.draining import open_drainer
from meterkit.insights.audit.entries import RecordedRoot
from meterkit.insights.audit.rebuild_results import RebuildResult
from meterkit.insights.audit.rebuilding import CounterRebuilder
from meterkit.outbox.meters_or_lines import subscription_of
from meterkit.store.unreadable_data import read_each, skip_unreadable
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.stripe_objects import is_missing_customer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from meterkit import MeterKit
    from meterkit.insights.audit.chain_verifier import ChainVerdict

commands = command_group("audit", "Verify the audit log, and rebuild counters from it.")

_ENDED_EARLY: Final = (
    "interrupted: the rows above are done. Run the command again for the rest; nothing is raised twice"
)
RARE: Final = frozenset({"delivered", "parked", "advice"})
"""Columns that are hidden while empty."""
_NAMED: Final = 5
_LISTED_AT_ONCE: Final = 100
VERIFIED_RARE: Final = frozenset({"unchained", "roots", "place", "problem"})
"""Columns of verified chains that are hidden while empty."""


@command(commands)
async def rebuild(
    session: Session,
    *,
    customer: CustomerOption = None,
    period: PeriodOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Raise lost counters of the store to the audit log's values.

    It lowers nothing and sends nothing to Stripe: usage that Stripe may have is parked until it is compared.
    For ended periods it only prints what is missing. It first writes waiting entries to the database. If a
    customer cannot be rebuilt, it prints the reason and goes on. Exits 1 if something is left to do, or with
    --dry-run if something differs.
    """
    kit = session.make_kit()
    _check_audited(kit)
    drainer = open_drainer(kit.store, kit.settings)
    async with AsyncExitStack() as stack:
        summaries = None
        if kit.settings.stripe_api_key is not None:
            summaries = StripeSummaries(StripeApi(kit.settings))
            stack.push_async_callback(summaries.close)
        await stack.enter_async_context(started(kit))
        rebuilder, found = CounterRebuilder(kit.store, drainer, summaries), list[RebuildResult]()
        try:
            await rebuilder.rebuild(customer, at=period, dry_run=dry_run, by=operator(), found=found)
        except BaseException:  # Ctrl-C, too.
            session.show_rows(found, row_of, rare=RARE, empty="nothing was rebuilt")
            print_note(_ENDED_EARLY)
            raise
        if customer is not None and not found:
            await note_unknown(kit, customer, shown="")
    session.show_rows(found, row_of, rare=RARE, empty="the counters agree with the audit log")
    if dry_run and found:
        print_note("nothing was changed: --dry-run")
    if any(dry_run or not one.is_done for one in found):
        raise typer.Exit(1)


def _check_audited(kit: MeterKit) -> None:
    if kit.settings.audit_url is None:
        raise SettingsError("audit_url", "there is no audit log; set METERKIT_AUDIT_URL to its database")


@command(commands)
async def verify(
    session: Session,
    customer: Annotated[
        str | None, typer.Argument(metavar="CUSTOMER", help="Your own id of the customer. Default: all.")
    ] = None,
    *,
    period: PeriodOption = None,
    stripe: Annotated[
        bool, typer.Option("--stripe", help="Also compare the roots in the metadata of invoices.")
    ] = False,
) -> None:
    """Check that no row of the audit log was tampered with.

    Computes each customer's hash chain again and prints the first difference. --stripe also compares the
    roots in the invoices of all periods, or of --period, and names invoices without a root. Exits 1 if a
    chain is broken, or the invoices of a customer cannot be compared.
    """
    if period is not None and not stripe:
        raise WrongUsageError("--period selects the invoices to compare; add --stripe")
    kit = session.make_kit()
    _check_audited(kit)
    verifier = import_module("meterkit.insights.audit.chain_verifier")  # SQLAlchemy is an extra.
    check_chains: Any = verifier.verify
    found: list[ChainVerdict] = []
    right = rows = compared = 0
    async with AsyncExitStack() as stack:
        roots = None
        if stripe:
            api = StripeApi(kit.settings)
            stack.push_async_callback(api.close)
            await stack.enter_async_context(started(kit, reads=True))
            roots = _InvoiceRoots(kit, api, period)
        database = open_drainer(kit.store, kit.settings).database
        checks = await stack.enter_async_context(aclosing(check_chains(database, customer, roots)))
        async for one in checks:
            right, rows, compared = right + one.is_right, rows + one.rows, compared + one.roots
            if customer is not None or not one.is_right:
                found.append(one)
    if found or session.json:
        session.show_rows(found, verified_row, rare=VERIFIED_RARE, empty="")
    broken = sum(not one.is_right for one in found)
    if not session.json:
        agree = f"; {_agreeing(compared)}" if stripe else ""
        is_unknown = customer is not None and not any(one.rows or one.unchained for one in found)
        print_note(
            f"{broken:,} of {right + broken:,} chains are broken"
            if broken
            else f"the audit log has no rows of customer {customer}"
            if is_unknown
            else f"all {right:,} chains are unbroken ({rows:,} rows){agree}"
        )
    if roots is not None:
        roots.note()
    if broken or (roots is not None and roots.skipped):
        raise typer.Exit(1)


class _InvoiceRoots:
    """Reads the roots in the metadata of invoices at Stripe.

    Args:
        kit: has the links of customers.
        api: Stripe's API.
        period: an instant of the period whose invoices are read; None: all.

    Attributes:
        lacking: ids of final renewal invoices without a root, among those read.
        skipped: customers whose invoices are not compared, with the reason.
    """

    def __init__(self, kit: MeterKit, api: StripeApi, period: datetime | None) -> None:
        self._kit = kit
        self._api = api
        self._at_s = None if period is None else to_ms(period) // 1000
        self.lacking: list[str] = []
        self.skipped: dict[str, str] = {}

    async def of(self, customer: str) -> list[RecordedRoot]:
        """Read the roots of a customer's invoices; none if the stored data, or Stripe's, cannot be read."""
        try:
            async with skip_unreadable(customer, self._note_skipped):
                return await self._read_roots(customer)
        except StripeError as error:
            if not is_missing_customer(error):
                raise
            await self._note_skipped(customer, error)
        return []

    async def _note_skipped(self, customer: str, error: Exception) -> None:
        self.skipped[customer] = str(error)

    async def _read_roots(self, customer: str) -> list[RecordedRoot]:
        linked, found = (await self._kit.customers.get(customer)).stripe_customer, list[RecordedRoot]()
        _, state = await CustomerStates(self._kit.store).read(customer)
        own = {"", *(known_subscriptions(state, await self._kit.customers.history(customer)) or ())}
        for one in [] if linked is None else await self._api.list("/v1/invoices", {"customer": linked}):
            if self._at_s is not None and not one["period_start"] <= self._at_s < one["period_end"]:
                continue
            root = read_root(one)
            if root is not None:
                found.append(RecordedRoot(*root))
            elif is_final_renewal(one) and subscription_of(one) in own:
                self.lacking.append(str(one["id"]))
        return found

    async def linked(self) -> AsyncGenerator[str]:
        """Yield the customers that may have invoices."""
        store = self._kit.store
        async with aclosing(list_customer_pages(await store.admin(), store.keys, _LISTED_AT_ONCE)) as pages:
            async for page in pages:
                for one in await read_each(page, partial(read_customers, store), self._note_skipped):
                    if one.stripe_customer is not None:
                        yield one.customer

    def note(self) -> None:
        """Print the customers and invoices that cannot be compared."""
        for customer, why in sorted(self.skipped.items()):
            print_note(f"not compared: the invoices of customer {customer!r}: {why}")
        if self.lacking:
            named, more = ", ".join(self.lacking[:_NAMED]), len(self.lacking) - _NAMED
            also = f" and {more:,} more" if more > 0 else ""
            print_note(f"not compared, because they have no audit root: invoices {named}{also}")


def _agreeing(roots: int) -> str:
    if roots == 0:
        return "no invoice has a root to compare"
    return f"{roots:,} invoice roots agree" if roots > 1 else "1 invoice root agrees"


def verified_row(one: ChainVerdict) -> dict[str, object]:
    """Make a row of the table."""
    return {
        **pick(one, "customer", "rows", "unchained", "roots", "place"),
        "problem": one.words,
    }


def row_of(one: RebuildResult) -> dict[str, object]:
    """Make a row of the table."""
    return {
        **pick(one, "customer", "meter"),
        "period": one.period_start,
        **pick(one, "recorded", "audited", "raised", "delivered", "parked", "advice"),
    }
