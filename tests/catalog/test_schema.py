from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivers.plans import json_of
from meterkit.catalog import json_schema

jsonschema = pytest.importorskip("jsonschema")

HERE = Path(__file__).parent
GOOD = sorted((HERE / "good").glob("*.yaml"))
# What the schema can see are spellings, words and keys; not names that must exist, nor what must fit.
SEEN = (
    "anonymous_map", "anonymous_proxies", "anonymous_proxy_text", "anonymous_words", "billing",
    "concurrency_zero", "currencies_none", "currency_upper", "derived_dimension",
    "entitlement_keys", "event_name_long", "event_name_missing", "everything_missing",
    "included_numbers", "list_where_map", "match_paths", "meter_names", "meter_needs_unit",
    "meter_unknown_keys", "overage_price", "overage_words", "plan_keys", "price_words", "rate_map",
    "rate_number", "rate_words", "report_word", "route_overrides", "route_quantities", "schema_two",
    "trial", "unknown_top_key", "warn_at", "words_of_the_top",
)  # fmt: skip


def is_valid(path: Path) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema()).is_valid(json_of(path.read_bytes())))


def test_it_is_a_schema() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema == json.loads(json.dumps(schema))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_files_are_valid(path: Path) -> None:
    assert is_valid(path)


@pytest.mark.parametrize("name", SEEN)
def test_bad_spellings_are_not(name: str) -> None:
    assert not is_valid(HERE / "bad" / f"{name}.yaml")
