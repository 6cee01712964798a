"""``--json`` prints what docs/cli.md shows: the driver compares the JSON of each command that a test runs."""

from __future__ import annotations

import pytest

from drivers.documented_json import Json, check_json, documented_shapes, is_shaped
from drivers.help_pages import help_pages


def test_every_command_that_prints_json_is_on_the_page() -> None:
    printing = {path.removeprefix("meterkit ") for path, page in help_pages() if "--json" in page}
    rows = {" ".join(word for word in words if not word.startswith("--")) for words in documented_shapes()}
    assert printing == {name for name in rows if name.islower()}


@pytest.mark.parametrize(
    ("shape", "value", "fits"),
    [
        ("{a, b?}", {"a": 1}, True),
        ("{a, b?}", {"a": 1, "b": 2}, True),
        ("{a, b?}", {"a": 1, "c": 2}, False),
        ("{a, b?}", {"b": 2}, False),
        ("[{a}, {b: {c}}]", [{"a": 1}, {"b": {"c": 2}}], True),
        ("[{a}, {b: {c}}]", [{"a": 1}, {"b": {"d": 2}}], False),
        ("{CUSTOMER: [{a}]}", {"ada": [{"a": 1}], "bob": []}, True),
        ("{CUSTOMER: [{a}]}", {"ada": [{"b": 1}]}, False),
        ("[Drift]", [{"subscription": "sub_1", "kind": "price", "message": ""}], True),
        ("Drift", {"subscription": "sub_1"}, False),
    ],
)
def test_a_value_is_compared_with_a_shape(shape: str, value: Json, *, fits: bool) -> None:
    assert is_shaped(value, shape) == fits


def test_a_command_that_prints_something_else_is_noticed() -> None:
    check_json(("webhooks", "redrive", "--json"), '{"redriven": 1}')
    for command, printed in (("webhooks redrive", '{"retried": 1}'), ("rename", "{}")):
        with pytest.raises(AssertionError):
            check_json((*command.split(), "--json"), printed)
