"""Definitions of plans: as plain JSON they come back as they were in their file."""

# Internals: each field of each plan, of which no app sees all.
from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

import pytest

from drivers.plans import plans_text
from meterkit.catalog import Catalog, loads
from meterkit.catalog.former_plans import Definition, list_definitions, with_former_plans

FILES: Final = ("addon_shop", "overage_by_model", "subjects", "two_currencies", "usage_command", "one_bill")


@pytest.mark.parametrize("name", FILES)
def test_a_definition_is_read_as_it_was_in_its_file(name: str) -> None:
    whole = loads(plans_text(name))
    stored = json.loads(json.dumps(list_definitions(whole)))
    known = [Definition(*one) for one in stored]

    def without(one: str) -> Catalog:
        catalog = whole.in_currency(one)
        return replace(catalog, plans={}, addons={}, other_currencies={})

    others = {code: without(code) for code in whole.other_currencies}
    found = with_former_plans(replace(whole, plans={}, addons={}, other_currencies=others), known)
    for code in whole.currencies:
        then, now = whole.in_currency(code), found.in_currency(code)
        assert (now.former_plans, now.former_addons) == (then.plans, then.addons)
    assert list_definitions(found) == known
