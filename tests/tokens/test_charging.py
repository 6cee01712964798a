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

from costs.edge_instructions import counted
from meterkit.catalog.model_prices import ProviderPrices
from meterkit.tokens.call_usage import CallUsage
from meterkit.tokens.charging import Charges, Remainders
from meterkit.tokens.costing import CallCosts
from meterkit.tokens.unit_prices import UnitPrices

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


def test_i3_a_request_without_a_model_is_held_at_the_files_own_prices_too() -> None:
    own = (("own-*", {"input_tokens": Fraction(10**5), "output_tokens": Fraction(10**6)}),)
    charges = Charges(ProviderPrices(models=own, factors={"own-*": {"service_tier": {"priority": 200}}}))
    for asked, factor in (([], 1), ([("service_tier", "priority")], 2)):
        context = tuple(asked)
        said = call("own-7b", None, input_tokens=100, output_tokens=10, context=context)
        held = charges.held([], "openai", entered=100, left=10, at=AT, context=asked)
        assert held >= charges.of(said, AT) == factor * 2 * 10**7


def test_f_216_a_request_without_a_model_is_held_at_the_factors_that_its_provider_publishes() -> None:
    standard, local = (
        Charges(ProviderPrices()).held(
            [], "anthropic", entered=1000, left=100, at=AT, has_media=False, context=asked
        )
        for asked in ([], [("inference_geo", "us")])
    )
    assert local == standard * Fraction(11, 10)


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


FACTORED: Final = ProviderPrices(
    models=(
        ("claude-opus-*", {}),
        ("gpt-5-mini", {"input_tokens": Fraction(7)}),
        ("own-*", {"input_tokens": Fraction(2), "output_tokens": Fraction(6), "web_searches": Fraction(9)}),
    ),
    factors={
        "claude-opus-*": {"inference_geo": {"us": 110}, "speed": {"fast": 200}},
        "gpt-5-mini": {"service_tier": {"flex": 30}},
        "own-*": {"service_tier": {"priority": 200, "flex": 50}, "processing": {"batch": 50}},
    },
)


@pytest.mark.parametrize(
    ("model", "context", "amount"),
    [
        ("own-7b", (), 1000 * 2 + 100 * 6 + 3 * 9),
        ("OWN-7B", (), 1000 * 2 + 100 * 6 + 3 * 9),
        ("own-7b", (("service_tier", "priority"),), 2 * 2627),
        ("own-7b", (("processing", "batch"), ("service_tier", "flex")), Fraction(2627, 4)),
        ("own-7b", (("service_tier", "standard"), ("speed", "fast")), 2627),
        # The file's factor is on the standard price, also where the table has a price of that way.
        (
            "claude-opus-4-8",
            (("inference_geo", "us"),),
            Fraction(11, 10) * (1000 * 5 + 100 * 25 + 3 * 10_000),
        ),
        ("claude-opus-4-8", (("speed", "fast"),), 2 * 37_500),
        # Without a factor of its own it is the table's: half for a batch.
        ("claude-opus-4-8", (("processing", "batch"),), (1000 * 5 + 100 * 25) / 2 + 3 * 10_000),
        # The table has no price of a place: what the provider publishes counts, for tokens.
        ("claude-sonnet-4-6", (("inference_geo", "us"),), Fraction(11, 10) * 4500 + 3 * 10_000),
        ("claude-sonnet-4-6", (("inference_geo", "global"),), 4500 + 3 * 10_000),
        # A price of the file, and the table's for what the file leaves out.
        ("gpt-5-mini", (), 1000 * 7 + 100 * 2),
        ("gpt-5-mini", (("service_tier", "flex"),), Fraction(30, 100) * (1000 * 7 + 100 * 2)),
    ],
)
def test_f_216_a_factor_is_on_all_prices_of_its_entry(
    model: str, context: tuple[tuple[str, str], ...], amount: Fraction
) -> None:
    details = {} if model == "gpt-5-mini" else {"web_searches": 3}
    said = call(model, None, input_tokens=1000, output_tokens=100, details=details, context=context)
    assert Charges(FACTORED).of(said, AT) == amount


@pytest.mark.parametrize(
    ("model", "asked", "factor"),
    [
        ("own-7b", [], 1),
        ("own-7b", [("service_tier", "priority")], 2),
        ("own-7b", [("service_tier", "flex")], 1),  # The provider may process it as standard.
        ("own-7b", [("service_tier", "flex"), ("service_tier", "priority")], 2),
        ("own-7b", [("service_tier", f"t{n}") for n in range(16)] + [("service_tier", "priority")], 2),
        ("own-7b", [("service_tier", "unknown"), ("speed", "fast")], 1),
    ],
)
def test_f_216_a_hold_is_at_the_dearest_way_that_the_request_asks_for(
    model: str, asked: list[tuple[str, str]], factor: int
) -> None:
    held = Charges(FACTORED).held([model], "openai", entered=1000, left=100, at=AT, context=asked)
    assert held == factor * (1000 * 2 + 100 * 6)


def test_f_216_a_request_without_a_model_is_held_at_the_dearest_tier_that_it_asks_for() -> None:
    charges = Charges(ProviderPrices())
    standard, fast = (
        charges.held([], "anthropic", entered=1000, left=100, at=AT, has_media=False, context=asked)
        for asked in ([], [("speed", "fast")])
    )
    assert fast > standard


def test_a_price_of_one_direction_alone_is_logged_where_no_table_has_the_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    charges = Charges(ProviderPrices(models=(("gpt-4o*", {"input_tokens": Fraction(7)}),)))
    for _ in range(2):
        assert charges.of(call("gpt-4o-mini", input_tokens=1000, output_tokens=100), AT) == 7060
        assert charges.of(call("gpt-4o~ours", "vllm", input_tokens=1000, output_tokens=100), AT) == 7000
    (message,) = caplog.messages
    assert message == (
        "nothing is charged for output_tokens of model 'gpt-4o~ours': no price of it is known; write"
        " `output_tokens` in the entry 'gpt-4o*' of `models` in the plans file as well"
    )


def test_tiers_in_any_order_count_by_their_start() -> None:
    prices = UnitPrices({"input_tokens": ((-1, Fraction(1)), (10, Fraction(2)), (20, Fraction(3)))})
    assert [prices.cost({"input_tokens": n}) for n in (10, 11, 21)] == [10, 22, 63]


def test_a_call_is_priced_in_few_steps() -> None:
    charges = Charges(ProviderPrices(markup_percent=30, models=OWN))
    costs = CallCosts(charges, "usd_charged", {"input_tokens", "output_tokens"}, "plans/1")
    said = call(
        "gpt-4o",
        input_tokens=12_000,
        output_tokens=800,
        cached_input_tokens=4_000,
        reasoning_tokens=100,
        details={"input_audio_tokens": 10, "output_audio_tokens": 4},
    )
    for price, most in ((charges.of, 530), (costs.of, 780)):
        price(said, AT)  # Found once for each model.
        with counted() as instructions:
            price(said, AT)
        assert sum(instructions.values()) < most, instructions
