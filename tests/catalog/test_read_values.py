"""Documents, numbers, rates and match lines, as a plans file has them: pure tables."""

# Internals: pure tables of texts and of what is read of them.

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from limits import parse as parse_limit
from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import compile_path

from drivers.plans import plans_text, routed
from drivers.sampled import few_examples
from meterkit.asgi.routing import Router
from meterkit.catalog import QUANTITY_MAX, Rate, loads
from meterkit.catalog.document import Fields, Items, Text, parse
from meterkit.catalog.errors import Place, Problems, RefusedError
from meterkit.catalog.match_lines import CONVERTORS, METHODS, covers, parse_match, takes_all
from meterkit.catalog.mcp_lines import parse_mcp
from meterkit.catalog.mcp_match import McpMatch
from meterkit.catalog.model_prices import has_all_of
from meterkit.catalog.notes import summary
from meterkit.catalog.notifications import MESSAGE_EVENTS
from meterkit.catalog.notify import is_public, names_private_host
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
from meterkit.errors import PlansError
from meterkit.notify.events import EVENTS

if TYPE_CHECKING:
    from starlette.types import Scope


def read(text: str | bytes) -> Fields:
    problems = Problems("plans.yaml")
    root = parse(text, problems=problems)
    assert not problems, problems.error()
    return root


def test_scalars_stay_text_and_quotes_are_remembered() -> None:
    root = read("a: 1_000\nb: on\nc: 'on'\nd: 0x10\ne: 12:30\nf: |\n  two\n  lines\n")
    found = {key: (node.text, node.quoted) for key, node in root.values.items() if isinstance(node, Text)}
    assert found == {
        "a": ("1_000", False),
        "b": ("on", False),
        "c": ("on", True),
        "d": ("0x10", False),
        "e": ("12:30", False),
        "f": ("two\nlines\n", True),
    }


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_null_is_nothing_without_quotes(text: str) -> None:
    node = read(f"a: {text}\n").values["a"]
    assert isinstance(node, Text)
    assert node.is_null


@pytest.mark.parametrize("text", ['"null"', "''", '"~"', "nul"])
def test_quoted_null_is_a_text(text: str) -> None:
    node = read(f"a: {text}\n").values["a"]
    assert isinstance(node, Text)
    assert not node.is_null


def test_values_stand_where_keys_stand_items_where_they_begin() -> None:
    root = read("plans:\n  pro:\n    rate:\n      - 5/second\n      - {limit: 6/minute}\n")
    pro = root.values["plans"]
    assert isinstance(pro, Fields)
    rates = pro.values["pro"]
    assert isinstance(rates, Fields)
    items = rates.values["rate"]
    assert isinstance(items, Items)
    assert items.place == Place(3, 5, "plans.pro.rate")
    assert [item.place for item in items.items] == [
        Place(4, 9, "plans.pro.rate[0]"),
        Place(5, 9, "plans.pro.rate[1]"),
    ]


def test_columns_count_characters() -> None:
    root = read('{"é—無": 1, b: 2}')
    assert root.places["b"] == Place(1, 12, "b")


def test_an_alias_is_the_value_of_its_anchor() -> None:
    root = read("a: &here {b: 1}\nc: *here\n")
    assert root.values["c"] is root.values["a"]
    assert root.places["c"] == Place(2, 1, "c")


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
    place = Place(1, 1, "a")
    problems.refuse(place, "first")
    problems.refuse(place, "last", settles=True)
    problems.refuse(place, "never said")
    problems.refuse(Place(1, 1, "b"), "elsewhere")
    assert [problem.message for problem in problems.error().problems] == ["first", "last", "elsewhere"]


@pytest.mark.parametrize(
    ("match", "method", "path"),
    [
        ("*", None, None),
        ("/", None, "/"),
        ("/v1/{path:path}", None, "/v1/{path:path}"),
        ("POST /v1/chat", "POST", "/v1/chat"),
        ("  GET   /a ", "GET", "/a"),
        ("WS /live", "WS", "/live"),
        ("GET /v1/models/{name}:predict", "GET", "/v1/models/{name}:predict"),
        ("GET /größe/{id:uuid}/x.{ext}", "GET", "/größe/{id:uuid}/x.{ext}"),
    ],
)
def test_a_match_is_a_method_and_a_path(match: str, method: str | None, path: str | None) -> None:
    assert (method, path) == parse_match(match)


def test_the_convertors_are_starlettes() -> None:
    assert set(CONVERTORS) <= set(CONVERTOR_TYPES)


@few_examples(30)
@given(
    st.sampled_from([*METHODS, ""]),
    st.lists(
        st.sampled_from(
            ["a", "{id}", "{id:int}", "{path:path}", "{", "}", "{x:bad}", ":id", "*", "<a>", "é", ""]
        )
    ),
)
def test_what_is_accepted_compiles_in_starlette(method: str, segments: list[str]) -> None:
    try:
        _, path = parse_match(f"{method} /{'/'.join(segments)}")
    except RefusedError:
        return
    assert path is not None
    compile_path(path)


@pytest.mark.parametrize(
    ("written", "path", "match"),
    [
        ("MCP *", "/mcp", McpMatch("*")),
        ("MCP tools/call search*", "/mcp", McpMatch("tools/call", "search*")),
        ("MCP prompts/get a", "/mcp", McpMatch("prompts/get", "a")),
        ("MCP /api/{team}/mcp tools/*", "/api/{team}/mcp", McpMatch("tools/*")),
        ("POST /mcp", None, None),
        ("*", None, None),
    ],
)
def test_lines_of_mcp_name_messages(written: str, path: str | None, match: McpMatch | None) -> None:
    assert parse_mcp(written) == (None if match is None else (path, match))
    if path is not None:
        assert parse_match(written) == ("POST", path)


@pytest.mark.parametrize(
    ("match", "method", "name", "taken"),
    [
        (McpMatch("*"), None, None, True),
        (McpMatch("*"), "ping", None, True),
        (McpMatch("tools/*"), "tools/list", None, True),
        (McpMatch("tools/*"), None, None, False),
        (McpMatch("tools/call"), "Tools/Call", "a", False),
        (McpMatch("tools/call"), "tools/call", "a", True),
        (McpMatch("tools/call", "s*"), "tools/call", "search", True),
        (McpMatch("tools/call", "s*"), "tools/call", "Search", False),
        (McpMatch("tools/call", "s*"), "tools/call", None, False),
        (McpMatch("tools/call", "s*"), "prompts/get", "search", False),
    ],
)
def test_messages_fall_under_lines(
    match: McpMatch, method: str | None, name: str | None, taken: bool
) -> None:
    assert taken == match.takes(method, name)


@pytest.mark.parametrize(
    ("earlier", "later", "taken"),
    [
        ("MCP *", "MCP tools/call", True),
        ("MCP tools/call", "MCP tools/call a", True),
        ("MCP tools/call a*", "MCP tools/call ab", True),
        ("MCP tools/call a", "MCP tools/call", False),
        ("MCP tools/call a", "MCP tools/call b", False),
        ("MCP tools/list", "MCP tools/call", False),
        ("MCP /a *", "MCP /b *", False),
        ("POST /mcp", "MCP tools/call", True),
        ("/{path:path}", "MCP *", True),
        ("GET /mcp", "MCP *", False),
        ("MCP *", "POST /mcp", False),
        ("MCP *", "*", False),
        ("*", "MCP *", True),
        ("GET /a", "GET /a", True),
    ],
)
def test_lines_that_take_all_messages_of_later_ones_are_known(earlier: str, later: str, taken: bool) -> None:
    assert taken == takes_all(earlier, later)


SIZES_OF_TEN = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
SIZES = SIZES_OF_TEN | {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
UNITS_MS = {"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000, "month": 2_592_000_000}


@few_examples(30)
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


@few_examples(30)
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


@few_examples(30)
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
    assert (limit, window_ms, limit, "sliding-window") == (
        rate.limit,
        rate.window_ms,
        rate.burst,
        rate.algorithm,
    )
    assert rate == parse_rate(f"{rate.limit}/{count} {unit}")


@few_examples(30)
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


PLANS = plans_text("notes")


def test_the_summary_is_one_line_without_what_only_informs() -> None:
    """F-60, F-26."""
    line = summary(loads(PLANS).notes)
    assert line.count("\n") == 0
    assert "billed from the first unit, as nothing is included: plans.bare (line 20)" in line
    tried = loads(PLANS + "  tried: {extends: meant, trial: 14d}\n").notes
    assert [note.kind for note in tried if "trial" in note.path] == ["informs"]
    assert summary(note for note in tried if note.kind == "informs") == ""


PIECES = {
    "/": ["/"],
    "a": ["a"],
    "7": ["7"],
    "{%s}": ["a", "7", "a7", "\n"],
    "{%s:path}": ["", "/", "a/7", "a"],
    "{%s:int}": ["7", "77"],
    "{%s:float}": ["7", "7.7"],
    "{%s:uuid}": ["12345678123412341234123456789abc"],
}


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, str]:
    """A path template, and a path that it matches."""
    pieces = draw(st.lists(st.sampled_from(sorted(PIECES)), max_size=5))
    template = "".join(piece.replace("%s", f"p{nth}") for nth, piece in enumerate(pieces))
    path = "".join(draw(st.sampled_from(PIECES[piece])) for piece in pieces)
    return f"/{template}", f"/{path}"


@few_examples(30)
@given(lines(), lines())
def test_what_is_said_to_be_covered_is_never_reached(
    earlier: tuple[str, str], later: tuple[str, str]
) -> None:
    """By Starlette's own patterns."""
    if not covers(parse_match(earlier[0]), parse_match(later[0])) or earlier[0] == later[0]:
        return
    catalog = routed(earlier[0], later[0])
    scope: Scope = {"type": "http", "method": "GET", "path": later[1], "headers": []}
    assert Router(catalog.routes).match_http(scope) is catalog.routes[0]


@few_examples(30)
@given(st.text("ab*?[", max_size=5), st.text("ab*?[]", max_size=5), st.text("ab", max_size=4))
def test_a_wider_pattern_matches_each_model_of_a_narrower(pattern: str, other: str, model: str) -> None:
    if has_all_of(pattern, other) and fnmatchcase(model, other):
        assert fnmatchcase(model, pattern)


def test_there_is_a_message_for_each_event() -> None:
    assert set(MESSAGE_EVENTS) == set(EVENTS)


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34, behind NAT64.
        ("64:ff9b::169.254.169.254", False),
        ("64:ff9b:1::10.0.0.7", False),
        ("2002:a00:7::", False),  # 10.0.0.7, by 6to4.
        ("::10.0.0.7", False),
        ("::ffff:10.0.0.7", False),
        ("fec0::1", False),
        ("224.0.0.1", False),
        ("ff0e::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_an_address_that_leads_to_the_own_network_is_not_public(address: str, is_so: bool) -> None:
    assert is_public(address) == is_so
    assert names_private_host(address) == (not is_so)
