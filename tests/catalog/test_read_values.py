"""Documents, numbers, rates and match lines, as a plans file has them: pure tables."""

# Internals: pure tables of texts and of what is read of them.

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItem, parse_many
from limits.limits import GRANULARITIES, Granularity
from starlette.routing import compile_path

from drivers.sampled import few_examples
from meterkit.catalog import QUANTITY_MAX
from meterkit.catalog.errors import FilePlace, Problems, RefusedError
from meterkit.catalog.match_lines import METHODS, covers_line, parse_match
from meterkit.catalog.notify import is_public, names_private_host
from meterkit.catalog.rates import WINDOW_MAX_MS, parse_rate, parse_rates, rate_text
from meterkit.catalog.value_parsers import (
    DURATION_MAX_MS,
    parse_credit_cost,
    parse_duration,
    parse_flag,
    parse_integer,
    parse_quantity,
)
from meterkit.catalog.yaml_reader import parse
from meterkit.catalog.yaml_tree import Fields, Text
from meterkit.errors import PlansError


def read(text: str | bytes) -> Fields:
    problems = Problems("plans.yaml")
    root = parse(text, problems=problems)
    assert not problems, problems.error()
    return root


def test_an_alias_inside_its_own_anchor_is_refused() -> None:
    problems = Problems("plans.yaml")
    parse("a: &a [*a]\n", problems=problems)
    assert "no anchor has that name" in str(problems.error())


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(PlansError, match=r"plans.yaml:1:4: found the character U\+D800"):
        parse("a: \ud800", problems=Problems("plans.yaml"))


def test_reading_goes_on_after_a_duplicate_key() -> None:
    problems = Problems("plans.yaml")
    root = parse("a: 1\na: 2\nb: 3\nb: 4\n", problems=problems)
    assert [node.text for node in root.values.values() if isinstance(node, Text)] == ["1", "3"]
    assert [problem.path for problem in problems.error().problems] == ["a", "b"]


def test_without_libyaml_the_same_is_read_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = "a: [1, {b: 'c'}]\nd: &x *y\n", "a: {b: c\n"
    fast = Problems("plans.yaml")
    tree = read("a: [1, {b: 'c'}]\n")
    with pytest.raises(PlansError) as with_libyaml:
        parse(bad, problems=fast)
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert tree == read("a: [1, {b: 'c'}]\n")
    with pytest.raises(PlansError) as without:
        parse(bad, problems=Problems("plans.yaml"))
    assert str(with_libyaml.value) == str(without.value)
    with pytest.raises(PlansError):
        parse(good, problems=Problems("plans.yaml"))


def test_a_problem_that_settles_is_the_last_word_on_its_place() -> None:
    problems = Problems("plans.yaml")
    place = FilePlace(1, 1, "a")
    problems.refuse(place, "first")
    problems.refuse(place, "last", settles=True)
    problems.refuse(place, "never said")
    problems.refuse(FilePlace(1, 1, "b"), "elsewhere")
    assert [problem.message for problem in problems.error().problems] == ["first", "last", "elsewhere"]


SEGMENTS = ["a", "{id}", "{id:int}", "{path:path}", "{", "}", "{x:bad}", ":id", "*", "<a>", "é", ""]


@few_examples(30)
@given(st.sampled_from([*METHODS, ""]), st.lists(st.sampled_from(SEGMENTS)))
def test_what_is_accepted_compiles_in_starlette(method: str, segments: list[str]) -> None:
    try:
        _, path = parse_match(f"{method} /{'/'.join(segments)}")
    except RefusedError:
        return
    assert path is not None
    compile_path(path)


@pytest.mark.parametrize(
    ("earlier", "later", "taken"),
    [
        ("MCP *", "MCP tools/call", True),
        ("MCP tools/call", "MCP tools/call a", True),
        ("MCP tools/call a*", "MCP tools/call ab", True),
        ("MCP tools/call a", "MCP tools/call", False),
        ("MCP tools/call a", "MCP tools/call b", False),
        ("MCP /a *", "MCP /b *", False),
        ("POST /mcp", "MCP tools/call", True),
        ("GET /mcp", "MCP *", False),
        ("MCP *", "*", False),
        ("*", "MCP *", True),
    ],
)
def test_lines_that_take_all_messages_of_later_ones_are_known(earlier: str, later: str, taken: bool) -> None:
    assert taken == covers_line(earlier, later)


SIZES_OF_TEN = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
SIZES = SIZES_OF_TEN | {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
UNITS_MS = {"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000, "month": 2_592_000_000}


@few_examples(30)
@given(st.integers(0, QUANTITY_MAX), st.sampled_from(["{}", "{:_}", "00{}"]))
def test_integers_round_trip(number: int, shape: str) -> None:
    assert number == parse_integer(shape.format(number))


@pytest.mark.parametrize("text", ["", "1__0", "-1", "0x10", "1e3", "٣"])
def test_what_is_no_integer(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^allowed: a whole number such as 1_000"):
        parse_integer(text)


def test_what_was_probably_meant() -> None:
    million = "1_000_000"
    for text, meant in (("1,000,000", million), ("1.000", "1_000"), ("2k", "2_000"), ("1e6", million)):
        with pytest.raises(RefusedError) as caught:
            parse_integer(text)
        assert meant == caught.value.meant


@few_examples(30)
@given(st.integers(0, 999), st.sampled_from(sorted(SIZES)), st.sampled_from(["", " "]))
def test_sizes_round_trip(number: int, unit: str, space: str) -> None:
    total = number * SIZES[unit]
    if total > QUANTITY_MAX:
        with pytest.raises(RefusedError):
            parse_quantity(f"{number}{space}{unit}")
    else:
        assert total == parse_quantity(f"{number}{space}{unit}")


@pytest.mark.parametrize("text", ["1.5B", "0.0001kB", "5mb", "5 MBs", "5.MB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_quantity(text)


@few_examples(30)
@given(st.lists(st.integers(0, 60), min_size=5, max_size=5))
def test_durations_round_trip(counts: list[int]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in zip(counts, "wdhms", strict=True))
    units = (7 * 86_400_000, 86_400_000, 3_600_000, 60_000, 1000)
    assert sum(map(int.__mul__, counts, units)) == parse_duration(text)


def test_durations_are_bounded() -> None:
    assert parse_duration("3660d") == DURATION_MAX_MS
    for text in ("3661d", "9" * 12 + "w", "9" * 5000 + "s"):
        with pytest.raises(RefusedError):
            parse_duration(text)


@few_examples(30)
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
    assert (rate.limit, rate.window_ms, rate.burst) == (limit, window_ms, limit)
    assert rate.algorithm == "sliding-window"
    assert rate == parse_rate(f"{rate.limit}/{count} {unit}")


BLANKS = st.sampled_from(["", "", " ", "\n", "\t ", "\u2003", "\x85"])
NUMBERS = ["0", "1", "5", "007", "360", "400", "1_000", "²", str(QUANTITY_MAX)]
AMOUNTS = st.sampled_from([*NUMBERS, "9" * 5_000])
COUNTS = st.sampled_from(["", "", *NUMBERS])
PER = st.sampled_from(["/", "per", "PER", "-"])
UNITS = st.sampled_from(
    ["second", "minute", "hours", "day", "month", "year", "SECONDS", "week", "s", "\u017fecond"]
)
PARTS = st.tuples(BLANKS, AMOUNTS, BLANKS, PER, BLANKS, COUNTS, BLANKS, UNITS, BLANKS).map("".join)
SEPARATORS = st.sampled_from([",", ";", "|", ":;", ";;"])


@few_examples(200)
@given(st.lists(PARTS, min_size=1, max_size=3), SEPARATORS)
def test_what_limits_reads_means_the_same_or_is_refused(parts: list[str], separator: str) -> None:
    text = separator.join(parts)
    try:
        theirs = [(item.amount, item.get_expiry() * 1000) for item in parse_many(text)]
    except ValueError:
        return
    try:
        ours = [(rate.limit, rate.window_ms) for rate in parse_rates(text)]
    except RefusedError:
        is_out_of_bounds = any(
            not 1 <= amount <= QUANTITY_MAX or window_ms > WINDOW_MAX_MS for amount, window_ms in theirs
        )
        # `limits` takes a count of 0 for 1, and a colon before a separator.
        has_odd_spelling = ":" in text or re.search(r"(?<![0-9])0+\s*[a-z]", text, re.IGNORECASE)
        assert is_out_of_bounds or has_odd_spelling, text
    else:
        assert ours == theirs


def test_a_granularity_that_an_app_adds_to_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRANULARITIES, "fortnight", RateLimitItem)  # Taken back at the end.

    class RateLimitItemPerFortnight(RateLimitItem):
        GRANULARITY = Granularity(14 * 86_400, "fortnight")

    assert rate_text(RateLimitItemPerFortnight(1)) == "1/fortnight"
    with pytest.raises(RefusedError, match="'fortnight' is not a unit of time; allowed: second, minute"):
        parse_rate("1/fortnight")


@pytest.mark.parametrize("text", ["", "5", "5 hour", "0/hour", "5.5/hour", "5/ho ur"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_rate(text)


@pytest.mark.parametrize("text", ["1 per 3", "1 per 2_000_000", "0 per 1", "0.0000001", "0.5 per 3", "one"])
def test_costs_that_are_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_credit_cost(text)


def test_flags() -> None:
    assert (parse_flag("true"), parse_flag("false")) == (True, False)
    for text in ("yes", "True", "1", "", "on"):
        with pytest.raises(RefusedError, match=r"^allowed: true or false"):
            parse_flag(text)


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34, behind NAT64.
        ("64:ff9b::169.254.169.254", False),
        ("2002:a00:7::", False),  # 10.0.0.7, by 6to4.
        ("::ffff:10.0.0.7", False),
        ("fec0::1", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_an_address_that_leads_to_the_own_network_is_not_public(address: str, is_so: bool) -> None:
    assert (is_public(address), names_private_host(address)) == (is_so, not is_so)
