"""What calls are charged: prices of their providers or the seller's own, a markup, and whole units of it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import localcontext
from fractions import Fraction
from typing import Any, Final

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given
from hypothesis import strategies as st

from meterkit.catalog.model_prices import ProviderPrices
from meterkit.tokens.call_usage import CallUsage
from meterkit.tokens.charging import Charges, Remainders

AT: Final = datetime(2026, 11, 24, tzinfo=UTC)
OWN: Final = (
    ("own-small*", {"input_tokens": Fraction(1, 10), "output_tokens": Fraction(1, 2)}),
    ("own-*", {"input_tokens": Fraction(2), "output_tokens": Fraction(6), "requests": Fraction(50)}),
    ("own-small-never", {"output_tokens": Fraction(10**6)}),
)
TOKENS: Final = st.integers(0, 10**6)


def call(model: str | None = "gpt-4o-mini", provider: str | None = "openai", **figures: Any) -> CallUsage:
    return CallUsage(model=model, provider=provider, source="reported", **figures)


def charged(said: CallUsage, *, markup: int = 0) -> Fraction:
    return Charges(ProviderPrices(markup_percent=markup, models=OWN)).of(said, AT)


@pytest.mark.parametrize(
    ("said", "amount"),
    [
        (call(input_tokens=1000, output_tokens=100), Fraction(210)),  # 0.15 and 0.60 dollars a million
        (call(input_tokens=1000, output_tokens=100, cached_input_tokens=600), Fraction(165)),  # 0.075
        (call(model="text-embedding-3-small", input_tokens=1000), Fraction(20)),  # It has no output.
        (call(model="own-small-7b", input_tokens=10, output_tokens=4), Fraction(3)),
        (call(model="own-small-never", output_tokens=4), Fraction(2)),
        (call(model="own-70b", provider=None, input_tokens=10, output_tokens=4), Fraction(94)),
        (call(), Fraction(0)),
    ],
)
def test_a_call_is_charged_by_the_tokens_of_each_kind(said: CallUsage, amount: Fraction) -> None:
    assert charged(said) == amount


@pytest.mark.parametrize(("markup", "amount"), [(-100, 0), (-50, 105), (0, 210), (30, 273), (1000, 2310)])
def test_a_markup_comes_on_top(markup: int, amount: int) -> None:
    assert charged(call(input_tokens=1000, output_tokens=100), markup=markup) == amount


@pytest.mark.parametrize(
    ("model", "provider", "listed"),
    [
        ("grok-4-0709", "openai", "grok-4-0709"),  # In OpenAI's format.
        ("mistral-large-latest", "openai", "mistral-large-latest"),
        ("gemini-2.5-flash", "openai", "gemini-2.5-flash"),
        ("claude-sonnet-4-5", "openai", "claude-sonnet-4-5"),
        ("gpt-4o-mini", None, "gpt-4o-mini"),
        ("GPT-4o-Mini", "openai", "gpt-4o-mini"),
        ("sonar-pro", "perplexity", "sonar-pro"),
    ],
)
def test_f_210_the_model_decides_the_price_and_not_the_format(
    model: str, provider: str | None, listed: str
) -> None:
    found = charged(call(model, provider, input_tokens=1000, output_tokens=100))
    with localcontext(prec=60):
        table = calc_price(
            Usage(input_tokens=1000, output_tokens=100),
            listed,
            provider_id="perplexity" if provider == "perplexity" else None,
            genai_request_timestamp=AT,
        )
    assert found == Fraction(table.total_price) * 10**6 > 0


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-99", "openai"),
        ("meta-llama/llama-3.3-70b-instruct", "openai"),  # A server of one's own, or a gateway.
        ("deepseek-r1:8b", "ollama"),
        ("x" * 10_000, "openai"),
        ("gpt-4o\x00", None),
        (None, "openai"),
    ],
)
def test_f_210_a_model_without_a_price_is_charged_nothing(model: str | None, provider: str | None) -> None:
    assert charged(call(model, provider, input_tokens=1000, output_tokens=7)) == 0
    models = [] if model is None else [model]
    if models:
        assert Charges(ProviderPrices()).held(models, provider or "openai", entered=10, left=10, at=AT) == 0


@pytest.mark.parametrize(
    ("provider", "amount"), [("openrouter", 12_300), ("litellm", 12_300), ("openai", 0), (None, 0)]
)
def test_f_210_the_amount_that_a_gateway_reports_counts_where_it_is_one(
    provider: str | None, amount: int
) -> None:
    said = call("vendor/model", provider, input_tokens=1000, reported_cost_micros=Fraction(12_300))
    assert charged(said) == amount
    own = call("own-70b", provider, input_tokens=10, output_tokens=4, reported_cost_micros=Fraction(1))
    assert charged(own) == 94


def test_what_has_no_known_provider_is_charged_nothing_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    charges = Charges(ProviderPrices(models=OWN))
    for _ in range(3):
        assert charges.of(call(model="mine", provider=None, output_tokens=5), AT) == 0
    assert caplog.messages == [
        (
            "nothing is charged for calls of model 'mine': no price of it is known; give its prices in the"
            " plans file, under `models` of the credit, or name the `provider` of the route"
        )
    ]


@given(
    entered=TOKENS,
    left=TOKENS,
    part=st.integers(0, 100),
    model=st.sampled_from(["gpt-4o-mini", "gpt-4o", "o3", "claude-sonnet-4-5", "gemini-2.5-pro", "own-70b"]),
)
def test_i3_no_call_is_charged_more_than_was_set_aside_for_it(
    entered: int, left: int, part: int, model: str
) -> None:
    charges = Charges(ProviderPrices(markup_percent=30, models=OWN))
    held = charges.held([model], "auto", entered=entered, left=left, at=AT)
    some = entered * part // 100
    for kinds in (
        {},
        {"cached_input_tokens": some},
        {"cache_write_tokens": some},
        {"reasoning_tokens": left * part // 100},
    ):
        said = call(model, None, input_tokens=entered, output_tokens=left, **kinds)
        assert charges.of(said, AT) <= held


@pytest.mark.parametrize("models", [[], ["gpt-4o-mini", "o1-pro"], ["o1-pro", "gpt-99"]])
def test_i3_where_several_models_may_answer_the_highest_price_is_set_aside(models: list[str]) -> None:
    charges = Charges(ProviderPrices())
    dear = charges.held(["o1-pro"], "openai", entered=100, left=100, at=AT)
    assert charges.held(models, "openai", entered=100, left=100, at=AT) >= dear > 0
    assert charges.held([], "auto", entered=100, left=100, at=AT) >= dear
    assert charges.held([], "openai", provider="mistral", entered=100, left=100, at=AT) < dear


def test_f_21a_what_an_own_price_leaves_out_has_the_tables() -> None:
    own = (("gpt-4o*", {"input_tokens": Fraction(1)}),)
    charges = Charges(ProviderPrices(models=own))
    # gpt-4o: 10 dollars a million of output, 1.25 of cached input.
    said = call("gpt-4o", input_tokens=1000, output_tokens=100, cached_input_tokens=400)
    assert charges.of(said, AT) == 600 + 100 * 10 + 400 * Fraction(5, 4)


@given(amounts=st.lists(st.tuples(st.sampled_from("ab"), st.fractions(0, 50, max_denominator=1000))))
def test_no_part_of_a_unit_is_lost_nor_charged_to_another(amounts: list[tuple[str, Fraction]]) -> None:
    remainders, units = Remainders(), dict.fromkeys("ab", 0)
    for customer, amount in amounts:
        units[customer] += remainders.whole(customer, "usd_charged", amount)
    for customer in "ab":
        total = sum((amount for name, amount in amounts if name == customer), Fraction(0))
        assert units[customer] == total // 1
