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
from meterkit.insights.simulation.log import UsageLog
from meterkit.insights.simulation.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NOW_MS: Final = int(NOW.timestamp() * 1000)
START_MS: Final = NOW_MS - timedelta(days=9) // timedelta(milliseconds=1)


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


def test_without_duckdb_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "meterkit.insights.simulation.log")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'meterkit[simulate]'")):
        import_module("meterkit.insights.simulation.log")
