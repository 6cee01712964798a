"""What is copied from the audit log, what it adds up to, and who may have gone beyond what."""
# Internals: pure tables of sums and refusals.

from __future__ import annotations

import re
import sys
from contextlib import closing
from datetime import timedelta
from fractions import Fraction
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.audit_database import Row
from drivers.subscribed_customer import NOW
from meterkit.catalog.models import Rate
from meterkit.insights.audit.database import Database
from meterkit.insights.simulation.log import Event, Sums, UsageLog
from meterkit.insights.simulation.refusals import refuse_beyond
from meterkit.insights.simulation.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NOW_MS: Final = int(NOW.timestamp() * 1000)
START_MS: Final = NOW_MS - timedelta(days=9) // timedelta(milliseconds=1)
LAST_MS: Final = START_MS - timedelta(days=30) // timedelta(milliseconds=1)
NAMES: Final = ("ada", 'b"o,b', "\u00e9 'x'")


def row(nth: int, quantity: int, **given: Any) -> Row:
    base = Row(f"0/p/{nth}", "calls", "recorded", "ada", START_MS, START_MS + nth * 1_000, quantity)
    return base._replace(**{"included": quantity, **given})


def terms(
    ceilings: Mapping[str, int], *, rates: Mapping[str, tuple[Rate, ...]] | None = None, whole: bool = True
) -> Terms:
    return Terms(
        plan="free",
        fixed_cents=Fraction(0),
        included=ceilings,
        caps={},
        ceilings=ceilings,
        labels={},
        rates=rates or {},
        subjects={},
        consumed=frozenset({"calls"} if whole else ()),
        has_grants=False,
        has_budget=False,
        is_by_model=False,
        grants_outlive=False,
        sources=frozenset(),
        lines=(),
    )


def log_of(url: str, directory: Path, rows: list[Row], customer: str | None = None) -> Iterator[UsageLog]:
    database = Database(url)
    database.insert(rows)
    with closing(UsageLog(directory)) as log:
        log.copy(database, NOW_MS, customer)
        yield log


def test_each_ones_last_period_is_added_up(audit_url: str, tmp_path: Path) -> None:
    rows = [
        row(1, 5, overage=2, included=3),
        row(1, 7, meter="words", granted=4, credited=3, included=0, model="m", provider="p"),
        row(2, -2, kind="corrected"),
        row(3, 9, period_start_ms=LAST_MS),
        row(4, 4, kind="dropped"),
        *(row(10 + nth, nth + 1, customer=name) for nth, name in enumerate(NAMES[1:])),
        row(20, 8, customer="late", period_start_ms=LAST_MS, kind="summed"),
        row(30, 6, customer="next", period_start_ms=NOW_MS + 1),
        row(40, 6, customer="gone"),
        row(41, 0, customer="gone", kind="deleted", meter="", period_start_ms=None),
        row(42, 1, customer="gone"),
        row(50, 6, customer="went"),
        row(51, 0, customer="went", kind="deleted", meter="", period_start_ms=None),
    ]
    for log in log_of(audit_url, tmp_path, rows):
        found = log.sums()
        assert list(found) == sorted({*NAMES, "late", "gone"})
        assert found["ada"] == Sums(
            start_ms=START_MS,
            units={"calls": 3, "words": 7},
            overage={"calls": 2, "words": 0},
            is_prepaid=True,
            is_summed=False,
            is_corrected=True,
        )
        assert (found["late"].start_ms, found["late"].is_summed) == (LAST_MS, True)
        assert [found[name].units for name in (*NAMES[1:], "gone")] == [{"calls": n} for n in (1, 2, 1)]
    # A log of its own for one customer.
    (tmp_path / "alone").mkdir()
    for log in log_of(audit_url, tmp_path / "alone", [], customer="late"):
        assert list(log.sums()) == ["late"]


def test_who_goes_beyond_a_ceiling_and_when(tmp_path: Path) -> None:
    rows = [row(nth, 3) for nth in range(1, 5)]
    url = f"sqlite:///{tmp_path}/audit.db"
    for log in log_of(url, tmp_path, rows):
        events = dict(log.events(["ada"], {}))
        assert events == {}
        # Asked for by their quantity, the fourth does not fit into ten; else one of them is left.
        for most, whole, first in (
            (12, True, None),
            (11, True, 4),
            (10, True, 4),
            (8, True, 3),
            (10, False, None),
        ):
            log.try_terms({"ada": terms({"calls": most}, whole=whole)})
            assert log.beyond() == ({} if first is None else {"ada": START_MS + first * 1_000}), (most, whole)
        log.try_terms({"ada": terms({"calls": 9}, whole=False)})
        assert log.beyond() == {"ada": START_MS + 4_000}
        log.try_terms({"bob": terms({"calls": 1})})
        assert log.beyond() == {}


def test_who_may_have_been_faster_than_a_rate(tmp_path: Path) -> None:
    minute = 60_000
    begins = -(-START_MS // minute) * minute
    rows = [
        row(nth, 1, recorded_at_ms=begins + at_s * 1_000)
        for nth, at_s in enumerate((50, 59, 61, 200, 201, 330), start=1)
    ]
    url = f"sqlite:///{tmp_path}/audit.db"
    for log in log_of(url, tmp_path, rows):
        for limit, is_faster in ((2, True), (3, False)):
            rate = Rate(limit=limit, window_ms=minute, algorithm="sliding-window", burst=limit, window="1m")
            log.try_terms({"ada": terms({}, rates={"calls": (rate,)})})
            assert log.faster() == ({"ada"} if is_faster else set())
        # A bucket of two that is full again after twenty seconds.
        rate = Rate(limit=6, window_ms=minute, algorithm="token-bucket", burst=2, window="1m")
        log.try_terms({"ada": terms({}, rates={"calls": (rate,)})})
        assert log.faster() == {"ada"}
        rate = Rate(limit=6, window_ms=minute, algorithm="token-bucket", burst=3, window="1m")
        log.try_terms({"ada": terms({}, rates={"calls": (rate,)})})
        assert log.faster() == set()


def test_refused_usage_counts_nowhere_and_corrections_free_room() -> None:
    used: list[dict[str, int]] = [
        {"calls": 6},
        {"calls": 5, "words": 9},
        {"calls": 4, "words": 1},
        {"calls": 1},
        {"calls": -3},
        {"calls": 3},
        {"calls": 1},
    ]
    events = [Event(nth, quantities, None, None) for nth, quantities in enumerate(used)]
    tried = refuse_beyond(terms({"calls": 10}), events)
    assert tried == ({"calls": 0}, {"calls": 7, "words": 9}, 1)


def test_without_duckdb_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "meterkit.insights.simulation.log")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'meterkit[simulate]'")):
        import_module("meterkit.insights.simulation.log")
