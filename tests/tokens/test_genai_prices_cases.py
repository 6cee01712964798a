"""genai-prices' own test cases, and a grid of usage over all of its models, cost the same by our rating.

The cases are those of ``tests/dataset/usages.json`` of https://github.com/pydantic/genai-prices (MIT licence)
at commit 47df840a, reduced to one for each provider, model and set of kinds of tokens: provider, model,
tokens of the input, of the output, read from a cache, written to one, of reasoning; micro-units.

``METERKIT_ALL_PRICES=1 pytest tests/tokens/test_genai_prices_cases.py`` compares the whole grid.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from genai_prices import Usage
from genai_prices import calc_price as price_of
from genai_prices.data_snapshot import get_snapshot

from meterkit import CallUsage
from meterkit.tokens.provider_prices import list_prices

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES: Final[list[list[Any]]] = json.loads(Path(__file__).with_name("genai_prices_cases.json").read_text())
CASES_AT: Final = datetime(2026, 11, 24, tzinfo=UTC)
STEP: Final = (
    1 if "METERKIT_ALL_PRICES" in os.environ else 101
)  # A prime: a model gets other usage than the next one.
DATES: Final = (datetime(2025, 2, 3, tzinfo=UTC), datetime(2026, 1, 1, 18, 31, tzinfo=UTC), CASES_AT)
ENTERED: Final = (0, 1, 128_000, 200_000, 200_001, 272_001, 1_000_000)
SHARES: Final = ((0, 0), (12, 0), (0, 12), (4, 3))
"""Twelfths of the input: read from a cache, written to one."""
LEFT: Final = ((0, 0), (777, 0), (777, 500), (64_000, 64_000))
"""Tokens of the output, and those of them that were reasoning."""


def expected(case: CallUsage, at: datetime) -> Fraction:
    usage = Usage(
        input_tokens=case.input_tokens,
        output_tokens=case.output_tokens,
        cache_read_tokens=case.cached_input_tokens,
        cache_write_tokens=case.cache_write_tokens,
        output_reasoning_tokens=case.reasoning_tokens,
    )
    with localcontext(prec=100):
        total: Decimal = price_of(
            usage, str(case.model), provider_id=case.provider, genai_request_timestamp=at
        ).total_price
    return Fraction(total) * 10**6


def call(provider: str, model: str, *tokens: int) -> CallUsage:
    entered, left, read, written, reasoning = tokens
    return CallUsage(
        source="reported",
        provider=provider,
        model=model,
        input_tokens=entered,
        output_tokens=left,
        cached_input_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
    )


def test_its_own_cases_cost_the_same() -> None:
    newer: set[str] = set()
    for provider, model, *tokens, micros in CASES:
        case = call(provider, model, *tokens)
        table = expected(case, CASES_AT)
        assert case.cost(CASES_AT) == table, case
        if table != Fraction(micros):
            newer.add(model)  # The cases are of another version of the table than the one installed.
    assert len(CASES) > 290
    assert len(newer) < 20, newer


def grid() -> Iterator[tuple[CallUsage, datetime]]:
    models = [
        (provider.id, model.id)
        for provider in get_snapshot().providers
        for model in provider.models
        if provider.find_model(model.id) is not None  # Some match longer names only.
    ]
    assert len(models) > 2000
    rest = product(models, ENTERED, SHARES, LEFT, DATES)
    for nth, ((provider, model), entered, (read, written), (left, reasoning), at) in enumerate(rest):
        if nth % STEP == 0:
            tokens = entered, left, entered * read // 12, entered * written // 12, reasoning
            yield call(provider, model, *tokens), at


def test_each_model_costs_the_same_over_a_grid_of_usage() -> None:
    compared, wrong = 0, list[tuple[CallUsage, datetime]]()
    models = set[tuple[str | None, str | None]]()
    for case, at in grid():
        compared += 1
        models.add((case.provider, case.model))
        if case.cost(at) != expected(case, at):
            wrong.append((case, at))
    assert wrong == []
    assert compared > 7_000
    assert len(models) > 2000


def test_no_hold_is_less_than_what_a_case_costs() -> None:
    for provider, model, entered, left, *_ in CASES:
        prices = list_prices(provider, model, CASES_AT)
        assert prices is not None
        held = prices.most(entered=entered, left=left, has_media=False)
        assert held >= prices.cost({"input_tokens": entered, "output_tokens": left})
