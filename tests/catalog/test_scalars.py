from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import parse as parse_limit

from meterkit.catalog import QUANTITY_MAX, Rate
from meterkit.catalog.errors import RefusedError
from meterkit.catalog.rates import WINDOW_MAX_MS, parse_rate, parse_rates
from meterkit.catalog.value_parsers import (
    DURATION_MAX_MS,
    parse_cost,
    parse_duration,
    parse_flag,
    parse_integer,
    parse_percent,
    parse_quantity,
)

SIZES_OF_TEN = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
SIZES = SIZES_OF_TEN | {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
UNITS_MS = {"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000, "month": 2_592_000_000}


@given(st.integers(0, QUANTITY_MAX), st.sampled_from(["{}", "{:_}", "00{}"]))
def test_integers_round_trip(number: int, shape: str) -> None:
    assert number == parse_integer(shape.format(number))


@pytest.mark.parametrize("text", ["", "_1", "1_", "1__0", "+1", "-1", "1.0", "0x10", "1e3", " 1", "٣", "²"])
def test_what_is_no_integer(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^allowed: a whole number such as 1_000"):
        parse_integer(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1,000,000", "1_000_000"),
        ("1.000", "1_000"),
        ("2k", "2_000"),
        ("1.5M", "1_500_000"),
        ("1e6", "1_000_000"),
    ],
)
def test_what_was_probably_meant(text: str, meant: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_integer(text)
    assert meant == caught.value.meant


@pytest.mark.parametrize("digits", [1000, 100_000])
def test_a_number_of_any_length_is_only_too_large(digits: int) -> None:
    with pytest.raises(RefusedError, match="from 0 to 999_999_999_999_999"):
        parse_integer("9" * digits)


@given(st.integers(0, 999), st.sampled_from(sorted(SIZES)), st.sampled_from(["", " "]))
def test_sizes_round_trip(number: int, unit: str, space: str) -> None:
    total = number * SIZES[unit]
    if total > QUANTITY_MAX:
        with pytest.raises(RefusedError):
            parse_quantity(f"{number}{space}{unit}")
    else:
        assert total == parse_quantity(f"{number}{space}{unit}")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.5GB", 1_500_000_000), ("0.5KiB", 512), ("1_000 MB", 10**9), ("1.000B", 1), ("5", 5)],
)
def test_sizes_are_exact(text: str, number: int) -> None:
    assert number == parse_quantity(text)


@pytest.mark.parametrize("text", ["1.5B", "0.0001kB", "5mb", "5 MBs", "MB", "5.MB", "1.5", "5  MB", "5b"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_quantity(text)


@given(st.lists(st.integers(0, 60), min_size=5, max_size=5))
def test_durations_round_trip(counts: list[int]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in zip(counts, "wdhms", strict=True))
    units = (7 * 86_400_000, 86_400_000, 3_600_000, 60_000, 1000)
    assert sum(map(int.__mul__, counts, units)) == parse_duration(text)


@pytest.mark.parametrize("text", ["", "7", "d", "1h1d", "1.5h", "7 d", "-7d", "7D", "1d1d", "7d "])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_duration(text)


def test_durations_are_bounded() -> None:
    assert parse_duration("3660d") == DURATION_MAX_MS
    for text in ("3661d", "9" * 12 + "w", "9" * 5000 + "s"):
        with pytest.raises(RefusedError):
            parse_duration(text)


@given(
    st.integers(1, QUANTITY_MAX),
    st.sampled_from(["/", " / ", " per ", "per ", " PER "]),
    st.integers(1, 30),
    st.sampled_from(sorted(UNITS_MS)),
    st.sampled_from(["", "s"]),
)
def test_rates_round_trip(limit: int, per: str, count: int, unit: str, plural: str) -> None:
    text = f"{limit:_}{per}{count} {unit}{plural}"
    window_ms = count * UNITS_MS[unit]
    if window_ms > WINDOW_MAX_MS:
        with pytest.raises(RefusedError, match="at most 366 days"):
            parse_rate(text)
        return
    rate = parse_rate(text)
    assert (limit, window_ms, limit, "sliding-window") == (
        rate.limit,
        rate.window_ms,
        rate.burst,
        rate.algorithm,
    )
    assert rate == parse_rate(f"{rate.limit}/{count} {unit}")


@given(
    st.integers(1, 10**6),
    st.sampled_from(["/", " / ", " per ", "per"]),
    st.sampled_from(["", "1", "2", "5 ", "12 "]),
    st.sampled_from(["second", "minute", "hour", "day", "month", "SECONDS", "Hours", "days"]),
)
def test_what_limits_reads_is_read_in_the_same_way(limit: int, per: str, count: str, unit: str) -> None:
    theirs = parse_limit(f"{limit}{per}{count}{unit}")
    ours = parse_rate(f"{limit}{per}{count}{unit}")
    assert (theirs.amount, theirs.get_expiry() * 1000) == (ours.limit, ours.window_ms)


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("1/second", "1s"),
        ("1/3 seconds", "3s"),
        ("1/5 minutes", "5m"),
        ("1/60 minutes", "60m"),
        ("1/hour", "1h"),
        ("1/7days", "7d"),
        ("1/month", "1mo"),
        ("1/year", "12mo"),
    ],
)
def test_windows_are_named_as_written(text: str, window: str) -> None:
    assert window == parse_rate(text).window


def test_several_rates_in_one_text() -> None:
    read = parse_rates("1/second; 2/minute,3/hour|4/day")
    assert [(rate.limit, rate.window) for rate in read] == [(1, "1s"), (2, "1m"), (3, "1h"), (4, "1d")]


def test_a_rate_of_bytes() -> None:
    expected = Rate(limit=10**8, window_ms=1000, algorithm="sliding-window", burst=10**8, window="1s")
    assert expected == parse_rate("100MB/second")


@pytest.mark.parametrize(
    "text",
    ["", "5", "/hour", "5/", "5 hour", "5//hour", "-5/hour", "0/hour", "5/0 hours", "5.5/hour", "5/ho ur"],
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "micro_credits"),
    [
        ("1 per 1000", 1000),
        ("4 per 1_000", 4000),
        ("1", 1_000_000),
        ("3/2", 1_500_000),
        ("1 per 1_000_000", 1),
    ],
)
def test_costs_are_whole_micro_credits(text: str, micro_credits: int) -> None:
    assert micro_credits == parse_cost(text)


@pytest.mark.parametrize(
    "text",
    [
        "1 per 3",
        "1 per 2_000_000",
        "0 per 1",
        "1 per 0",
        "0.0",
        "0.0000001",
        "1000000000.5",
        "0.5 per 3",
        "one",
        "1 per",
        "",
    ],
)
def test_costs_that_are_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_cost(text)


def test_percentages() -> None:
    assert tuple(parse_percent(text, least=1, most=100) for text in ("80", "80%", "80 %")) == (80, 80, 80)
    with pytest.raises(RefusedError, match="from 1 to 100"):
        parse_percent("0%", least=1, most=100)


def test_flags() -> None:
    assert (parse_flag("true"), parse_flag("false")) == (True, False)
    for text in ("yes", "True", "1", "", "on"):
        with pytest.raises(RefusedError, match=r"^allowed: true or false"):
            parse_flag(text)
