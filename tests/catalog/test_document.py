from __future__ import annotations

import pytest
import yaml

from meterkit.catalog.document import Fields, Items, Text, parse
from meterkit.catalog.errors import Place, Problems
from meterkit.errors import PlansError


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


def test_values_stand_where_their_keys_stand_and_items_where_they_begin() -> None:
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
