"""Bad values of the keys of money, subjects and MCP: refused at their place, and by the JSON schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from drivers.plans import json_of
from meterkit.catalog import json_schema, loads
from meterkit.errors import PlansError

GOOD: Final = (Path(__file__).parent / "good" / "money.yaml").read_text("utf-8")
LONG: Final = "m" * 257

SEEN: Final = (
    # In place of a text another one, and the key or item that is named.
    ("{default: 4 per 1000", "{default: -4 per 1000", "default"),
    ("0.5 per 1000", "0.5 eur per 1000", '"gpt-*-mini"'),
    ('"gpt-*-mini": 0.5', '"": 0.5', '""'),
    ("markup: -100%", "markup: a lot", "markup"),
    ("output_tokens: 0,", "output_tokens: -0.1,", "output_tokens"),
    ("requests: 0.01}", "words: 0.01}", "words"),
    ("unit: money", "unit: coins", "unit"),
    ("packs: [1000, 5000]", "packs: [1000, 10.5]", "10.5"),
    ("at_most: 3 per month", "at_most: 3 per day", "at_most"),
    ("price: prices.output, cap", "price: output, cap", "price"),
    ("allotment: 250ms", "allotment: 1s", "allotment"),
    ("budget: {amount_cents: 5000", "budget: {amount_cents: -1", "amount_cents"),
    ("per: period, warn_at", "per: month, warn_at", "per"),
    ("warn_at: [50, 80]", "warn_at: [50, 0]", "0]"),
    ("at_limit: notify", "at_limit: stop", "at_limit"),
    ("included: 50_000}", "included: many}", "included"),
    ("concurrency: 2", "overage: deny", "overage"),
    ('match: "MCP *"', 'match: "MCP"', "match"),
)
FOUND: Final = (
    # The schema cannot see these.
    ("1_000_000_000}}", "1_000_000_001}}", '"dall-e-?"'),
    ("markup: -100%", "markup: -101%", "markup"),
    ("currency: usd", "currency: eur", "unit: money"),
    ("images: prices.picture}", "images: prices.pictures}", "images"),
    ("rate: 10/minute, concurrency", "rate: 10/fortnight, concurrency", "rate"),
    ("session: {requests", "session: {request", "request:"),
    ('"dall-e-?"', '"dall\\u0007"', '"dall'),
    ('"our-*"', f'"{LONG}"', f'"{LONG}"'),
    ('match: "MCP *"', 'match: "MCP prompts/set a*"', "match"),
    ('match: "POST /v1', 'match: "POST /v1\\u001b', "match"),
)


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def is_valid(text: str) -> bool:
    document: Any = json_of(text)
    validator: Any = jsonschema.Draft202012Validator(json_schema())
    return bool(validator.is_valid(document))


@pytest.mark.parametrize(("old", "new", "at"), [*SEEN, *FOUND])
def test_a_bad_value_is_refused_where_it_is_written(old: str, new: str, at: str) -> None:
    text = changed(old, new)
    begin = text.index(new)
    where = text.index(at, text.rindex("\n", 0, begin) if at in {'"gpt-*-mini"', '"dall-e-?"'} else begin)
    line, column = text.count("\n", 0, where) + 1, where - text.rfind("\n", 0, where)
    with pytest.raises(PlansError) as caught:
        loads(text)
    assert (line, column) in [(one.line, one.column) for one in caught.value.problems], str(caught.value)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", str(caught.value))
    assert all(len(line) < 1_000 for line in str(caught.value).splitlines())
    if (old, new, at) in SEEN:
        assert not is_valid(text)


ALONE: Final = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
credits:
  usd: {unit: money, costs: {tokens: provider_prices}}
routes:
  - {match: "POST /chat", usage: auto}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""


@pytest.mark.parametrize("meters", ["{requests: {unit: request}}", "{}"])
def test_a_money_balance_takes_usage_without_token_meters(meters: str) -> None:
    catalog = loads(ALONE.replace("{requests: {unit: request}}", meters))
    assert catalog.routes[0].usage == "auto"


def test_credits_that_are_no_money_take_no_usage() -> None:
    other = "{costs: {requests: 1}}"
    text = ALONE.replace("{unit: money, costs: {tokens: provider_prices}}", other)
    with pytest.raises(PlansError, match="or a credit with `unit: money`"):
        loads(text)
    assert loads(text.replace("{requests:", "{web_searches: {unit: search}, requests:", 1)).routes


@pytest.mark.parametrize(("name", "is_priced"), [("web_searches", True), ("words", False)])
def test_a_provider_may_stand_beside_records_of_any_unit(name: str, is_priced: bool) -> None:
    written = f"records: [{name}], provider: openai"
    text = ALONE.replace("usage: auto", written).replace("{requests:", f"{{{name}: {{unit: unit}}, requests:")
    if is_priced:
        assert loads(text).routes[0].provider == "openai"
    else:
        with pytest.raises(PlansError, match="`provider` says whose prices"):
            loads(text)
