"""The lists of the operator pages, by name: whom and what each figure counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.pages.listing import Asked, Column, Listing, Row, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.insights.overview.overview import Overview
    from meterkit.insights.overview.rows import CustomerRow

__all__ = ["customer_lists"]

_CUSTOMERS: Final = (
    Column("customer", "Customer", opens="ledger"),
    Column("plan", "Plan"),
    Column("status", "Status"),
    Column("access", "Access"),
    Column("meter", "Nearest limit"),
    Column("used", "Used", "number"),
    Column("ceiling", "Limit", "number"),
    Column("per_mille", "Share", "per_mille"),
    Column("unlinked", "Waiting for a link", "number"),
)
_LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "all": ("Customers", "There are no customers."),
    "near": ("Customers near a limit", "No customer has used 80 % of a limit."),
    "past_due": ("Customers past due", "No customer is past due."),
    "unlinked": ("Customers whose usage waits for a link to Stripe", "No usage waits for a link."),
    "plan": ("Customers on the plan {of}", "No customer is on this plan."),
    "status": ("Customers whose subscription is {of}", "There are no such customers."),
    "access": ("Customers whose access is {of}", "There are no such customers."),
}


def customer_lists(overview: Overview) -> Mapping[str, Listing]:
    """The lists of customers that the last snapshot has."""

    def listing(name: str, title: str, empty: str) -> Listing:
        async def read(asked: Asked) -> Rows:
            made = await overview.last()
            if made is None:
                return Rows([])
            after = asked.after.split(" ", 1) if asked.after else ()
            found = await overview.customers(made, name, asked.of, after=after, most=asked.most)
            place = f"{found[-1].per_mille} {found[-1].customer}" if len(found) == asked.most else ""
            return Rows([_row(row) for row in found], place)

        needs_of = name in {"plan", "status", "access"}
        return Listing(name=name, title=title, columns=_CUSTOMERS, read=read, empty=empty, needs_of=needs_of)

    return {name: listing(name, *words) for name, words in _LISTS.items()}


def _row(found: CustomerRow) -> Row:
    return dict(found._asdict())
