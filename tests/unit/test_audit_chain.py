"""The hash chain of audit rows: any single tampering is found, and no other."""

# Internals: properties of a hash chain; a database shows one tampering at a time.

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from drivers.sampled import few_examples
from meterkit.insights.audit.entries import AuditRow, RecordedRoot
from meterkit.insights.audit.hash_chain import (
    ChainCheck,
    ChainHead,
    chain_rows,
    link_hash,
)

TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
NUMBERS: Final = st.integers(-(2**62), 2**62)
ROWS: Final = st.lists(
    st.builds(
        AuditRow,
        event=TEXTS,
        meter=TEXTS,
        kind=st.sampled_from(["recorded", "corrected"]),
        customer=st.just("acme"),
        period_start_ms=st.none() | NUMBERS,
        recorded_at_ms=NUMBERS,
        quantity=NUMBERS,
        model=st.none() | TEXTS,
    ),
    min_size=2,
    max_size=8,
)


@dataclass
class Kept:
    """What stands in the database of one customer."""

    rows: list[dict[str, Any]]
    head: ChainHead | None
    outside: int = 0

    @classmethod
    def of(cls, rows: list[AuditRow], unchained: int = 0) -> Kept:
        records, heads = chain_rows(rows, {"acme": ChainHead.empty("acme", unchained)})
        return cls(records, heads["acme"], unchained)

    def fault(self, *roots: RecordedRoot) -> tuple[int, str] | None:
        """Where the chain is broken, and how."""
        check = ChainCheck("acme", self.head, {root.place: [root] for root in roots})
        check.walk(sorted(self.rows, key=lambda row: row["place"]))
        fault = check.finish(self.outside)
        return fault and (fault.place, fault.problem)

    def root(self) -> RecordedRoot:
        return RecordedRoot("in_1", self.rows[-1]["place"], self.rows[-1]["hash"])


def test_the_format_is_as_documented() -> None:
    row = AuditRow("0/p/1", "tokens", "recorded", "acme", 0, 5, 3, model="é")
    text = (
        '{"credited":0,"customer":"acme","event":"0/p/1","granted":0,"included":0,"kind":"recorded","late":0'
        ',"meter":"tokens","model":"\\u00e9","over_cap":0,"overage":0,"period_start_ms":0,"place":1,"quantity":3'
        ',"recorded_at_ms":5,"reported":0}'
    )
    begun = "1:" + sha256(b'["meterkit audit chain", "acme", 2]').hexdigest()
    hashed = "1:" + sha256(f"{begun}\n{text}".encode()).hexdigest()
    (record,), heads = chain_rows([row], {"acme": ChainHead.empty("acme", 2)})
    assert (record["place"], record["hash"], heads["acme"]) == (1, hashed, ChainHead(1, hashed, 2))


def test_a_column_without_a_value_changes_no_hash() -> None:
    assert link_hash("1:0", {"a": 1, "later": None}) == link_hash("1:0", {"a": 1})
    assert link_hash("1:0", {"a": 1, "later": 0}) != link_hash("1:0", {"a": 1})


@few_examples(12)
@given(rows=ROWS, data=st.data())
def test_any_changed_value_is_found_at_its_place(rows: list[AuditRow], data: st.DataObject) -> None:
    kept = Kept.of(rows)
    nth = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from([*AuditRow._fields, "hash"]))
    before = kept.rows[nth][name]
    is_number = name.endswith("_ms") or name in {"quantity", "included", "overage", "late", "reported"}
    value = data.draw((NUMBERS if is_number else TEXTS).filter(lambda value: value != before))
    kept.rows[nth][name] = value
    assert kept.fault() == (nth + 1, "changed")


@few_examples(12)
@given(rows=ROWS, data=st.data())
def test_a_deleted_row_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    kept = Kept.of(rows)
    nth = data.draw(st.integers(0, len(rows) - 1))
    del kept.rows[nth]
    assert kept.fault() == (nth + 1, "missing")


@few_examples(12)
@given(rows=ROWS, data=st.data())
def test_an_inserted_row_is_found(rows: list[AuditRow], data: st.DataObject) -> None:
    """As a second row of a place, with all behind it moved, at the end, or without a place."""
    kept = Kept.of(rows)
    nth = data.draw(st.integers(0, len(rows)))
    made: dict[str, Any] = {**kept.rows[0], "event": "put in", "place": nth + 1}
    before = kept.rows[nth - 1]["hash"] if nth else ChainHead.empty("acme", 0).hash
    made["hash"] = link_hash(before, made)
    how = data.draw(st.sampled_from(["moved", "second", "outside"]))
    if how == "outside":
        kept.outside += 1
    else:
        for row in kept.rows:
            row["place"] += how == "moved" and row["place"] > nth
        kept.rows.append(made)
    place, problem = kept.fault() or (-1, "")
    assert (problem == "unchained") == (how == "outside")
    assert place in {0, nth + 1, nth + 2}


@few_examples(12)
@given(rows=ROWS)
def test_a_chain_that_was_written_anew_is_found_by_an_invoice(rows: list[AuditRow]) -> None:
    root = Kept.of(rows).root()
    kept = Kept.of([rows[0]._replace(details="of another"), *rows[1:]])
    assert kept.fault() is None
    assert kept.fault(root) == (len(rows), "root")


def test_a_changed_head_is_found() -> None:
    for head, problem in (
        (None, "head"),
        (ChainHead(1, "1:0", 0), "inserted"),
        (ChainHead(2, "1:0", 0), "head"),
        (ChainHead(2, "", 1), "changed"),
    ):
        kept = Kept.of([AuditRow(event, "m", "recorded", "acme", 0, 1) for event in "12"])
        kept.head = head
        assert (kept.fault() or (0, ""))[1] == problem, head
