"""Hash chain of a customer's audit rows: each hash covers its row and the hash before. Pure.

The format is on the page ``docs/audit.md``, so that others can compute the hashes, too.

One chain for all customers could not be checked without the usage of all others. Columns that are null are
left out, so that a later release can add columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.insights.audit.entries import AuditRow

FORMAT: Final = "1"
"""The version of the serialisation; each hash begins with it."""

Problem = Literal["changed", "missing", "inserted", "head", "root", "unchained"]


class ChainHead(NamedTuple):
    """The end of a customer's chain.

    Attributes:
        place: of the last row; 0: there is none.
        hash: of the last row.
        unchained: how many rows of the customer had no place when the chain began.
    """

    place: int
    hash: str
    unchained: int = 0

    @classmethod
    def empty(cls, customer: str, unchained: int) -> ChainHead:
        """The head of a chain without rows."""
        return cls(0, _hash_text(json.dumps(["meterkit audit chain", customer, unchained])), unchained)


def link_hash(before: str, facts: Mapping[str, object]) -> str:
    """The hash of a row: SHA-256 over the hash before, a line feed, and the row as canonical JSON.

    Columns without a value are left out, so that a column that is added later changes no hash.

    Args:
        before: the hash of the row before.
        facts: the columns of the row by name; ``hash`` is left out.
    """
    told = {name: value for name, value in facts.items() if value is not None and name != "hash"}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return _hash_text(f"{before}\n{text}")


def _hash_text(text: str) -> str:
    return f"{FORMAT}:{sha256(text.encode()).hexdigest()}"


def chain_rows(
    rows: Iterable[AuditRow], heads: Mapping[str, ChainHead]
) -> tuple[list[dict[str, Any]], dict[str, ChainHead]]:
    """Rows with their places and hashes, and the heads behind them.

    Args:
        rows: new ones, in order.
        heads: of all their customers.
    """
    found: list[dict[str, Any]] = []
    after: dict[str, ChainHead] = {}
    for row in rows:
        head = after.get(row.customer) or heads[row.customer]
        record: dict[str, Any] = {**row._asdict(), "place": head.place + 1}
        record["hash"] = link_hash(head.hash, record)
        after[row.customer] = head._replace(place=record["place"], hash=record["hash"])
        found.append(record)
    return found, after


class ChainFault(NamedTuple):
    """The first place at which a chain is broken.

    Attributes:
        place: of the row; 0: of none.
        problem: ``changed`` row; ``missing`` or ``inserted`` rows; ``head``: the head is that of another
            chain; ``root``: an invoice has another root; ``unchained``: rows outside the chain.
        words: what was found, for people.
    """

    place: int
    problem: Problem
    words: str


class RecordedRoot(NamedTuple):
    """The chain's root in an invoice's metadata: id of the invoice, place and hash of the last row then."""

    invoice: str
    place: int
    hash: str


@dataclass(slots=True)
class ChainCheck:
    """Walks along one customer's chain and keeps the first fault.

    Attributes:
        customer: whose chain.
        head: as it is stored; None: there is none.
        roots: of invoices, by place.
        fault: the first one; None: there is none yet.
        place, hash: of the last row that is right.
    """

    customer: str
    head: ChainHead | None
    roots: Mapping[int, Iterable[RecordedRoot]]
    fault: ChainFault | None = None
    place: int = 0
    hash: str = ""

    def __post_init__(self) -> None:
        self.hash = ChainHead.empty(self.customer, 0 if self.head is None else self.head.unchained).hash

    def walk(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Check the next rows, in the order of their places; nothing is checked behind a fault."""
        for row in rows:
            if self.fault is None:
                self._check_row(row)

    def _check_row(self, row: Mapping[str, Any]) -> None:
        wanted, place = self.place + 1, row["place"]
        if place > wanted:
            self.fault = ChainFault(wanted, "missing", _describe_missing(wanted, place - 1))
            return
        if place < wanted:
            self.fault = ChainFault(place, "inserted", f"a second row has place {place}")
            return
        expected = link_hash(self.hash, row)
        if expected != row["hash"]:
            words = f"row {place} (event {row['event']}, meter {row['meter']}) was changed, moved or inserted"
            self.fault = ChainFault(place, "changed", f"{words}: its hash is not that of its content")
            return
        self.place, self.hash = place, expected
        self._compare_roots(place)

    def _compare_roots(self, place: int) -> None:
        for root in self.roots.get(place, ()):
            if root.hash != self.hash:
                words = f"invoice {root.invoice} has root {root.hash}, and row {place} has {self.hash}"
                self.fault = ChainFault(place, "root", f"{words}: the rows up to here were written anew")
                return

    def finish(self, unchained: int) -> ChainFault | None:
        """Compare what is behind the last row; the first fault.

        Args:
            unchained: how many rows of the customer have no place.
        """
        self.fault = self.fault or self._check_end(unchained)
        return self.fault

    def _check_end(self, unchained: int) -> ChainFault | None:
        head, last = self.head, self.place
        beyond = max((place for place in self.roots if place > last), default=0)
        ends = max(beyond, 0 if head is None else head.place)
        if ends > last:
            by = f"invoice {next(iter(self.roots[beyond])).invoice}" if ends == beyond else "the head"
            return ChainFault(last + 1, "missing", f"{_describe_missing(last + 1, ends)}, by {by}")
        if head is None:
            words = f"the chain has {last} rows and no head in meterkit_audit_heads"
            return ChainFault(last, "head", words) if last else None
        if last > head.place:
            return ChainFault(
                head.place + 1, "inserted", f"the head is at row {head.place}, and there are {last}"
            )
        if head.hash != self.hash:
            return ChainFault(last, "head", f"the head has hash {head.hash}, and row {last} has {self.hash}")
        return _check_rows_outside(unchained - head.unchained)


def _describe_missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"


def _check_rows_outside(more: int) -> ChainFault | None:
    """Compare the rows outside the chain with their number at its beginning."""
    if more > 0:
        return ChainFault(0, "unchained", f"{more} rows are outside the chain: meterkit did not insert them")
    words = f"{-more} rows from before the chain began are missing"
    return ChainFault(0, "missing", words) if more else None
