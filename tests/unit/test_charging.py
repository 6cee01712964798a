"""What calls cost, by the prices of providers and those of the plans file: pure tables."""

# Internals: pure tables of amounts.

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import localcontext
from fractions import Fraction
from itertools import product
from typing import Any, Final

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from costs.edge_instructions import counted
from drivers.sampled import few_examples, whole
from llm_usage import CallUsage, list_prices
from llm_usage.listed_models import dearest_prices, providers_of, varying_contexts
from llm_usage.price_table import unit_dimensions
from llm_usage.unit_prices import UnitPrices, highest_prices
from llm_usage.units import UNITS
from meterkit.catalog.model_prices import ProviderPrices
from meterkit.decisions.call_costs import CallCosts
from meterkit.decisions.model_charges import ChargeRemainders, ModelCharges, price_call

# What calls are charged: prices of their providers or the seller's own, a markup, and whole units of it.


AT: Final = datetime(2026, 11, 24, tzinfo=UTC)
OWN: Final = (
    ("own-small*", {"input_tokens": Fraction(1, 10), "output_tokens": Fraction(1, 2)}),
    ("own-*", {"input_tokens": Fraction(2), "output_tokens": Fraction(6), "requests": Fraction(50)}),
    ("own-small-never", {"output_tokens": Fraction(10**6)}),
)
TOKENS: Final = st.integers(0, 10**6)


def call(model: str | None = "gpt-4o-mini", provider: str | None = "openai", **figures: Any) -> CallUsage:
    return CallUsage(model=model, provider=provider, source="reported", **figures)


def table_price(
    model: str, provider: str | None, at: datetime, context: Any = None, **units: int | None
) -> Fraction:
    """In micro-dollars, by genai-prices itself."""
    of: Any = {"provider_id": provider, "genai_request_timestamp": at, "price_context": context}
    with localcontext(prec=100):
        return Fraction(calc_price(Usage(**units), model, **of).total_price) * 10**6


def charged(said: CallUsage, *, markup: int = 0) -> Fraction:
    return ModelCharges(ProviderPrices(markup_percent=markup, models=OWN)).of(said, AT)


def test_a_call_is_charged_by_the_tokens_of_each_kind() -> None:
    thousand = call(input_tokens=1000, output_tokens=100)
    for said, markup, amount in (
        (call(input_tokens=1000, output_tokens=100, cached_input_tokens=600), 0, 165),  # 0.15, 0.60 and 0.075
        (thousand, 30, 273),
        (thousand, -100, 0),
        (call(model="own-small-never", output_tokens=4), 0, 2),  # The first entry that matches counts.
        (call(model="own-70b", provider=None, input_tokens=10, output_tokens=4), 0, 94),
    ):
        assert charged(said, markup=markup) == amount, said


def test_f_210_the_model_decides_the_price_and_not_the_format() -> None:
    for model, provider, listed in (
        ("grok-4-0709", "openai", "grok-4-0709"),  # In OpenAI's format.
        ("gpt-4o-mini", None, "gpt-4o-mini"),
        ("GPT-4o-Mini", "openai", "gpt-4o-mini"),
        ("sonar-pro", "perplexity", "sonar-pro"),
    ):
        found = charged(call(model, provider, input_tokens=1000, output_tokens=100))
        of = "perplexity" if provider == "perplexity" else None
        assert found == table_price(listed, of, AT, input_tokens=1000, output_tokens=100) > 0, model


def test_f_210_a_model_without_a_price_is_charged_nothing() -> None:
    # A server of one's own, or a gateway.
    for model in ("meta-llama/llama-3.3-70b-instruct", "x" * 10_000, None):
        assert charged(call(model, input_tokens=1000, output_tokens=7)) == 0
        given: dict[str, Any] = {"input_tokens": 10, "output_tokens": 10, "at": AT}
        assert model is None or ModelCharges(ProviderPrices()).held([model], "openai", **given) == 0


def test_f_210_an_amount_a_gateway_reports_counts_if_it_is_one() -> None:
    for provider, amount in (("openrouter", 12_300), ("openai", 0)):
        said = call("vendor/model", provider, input_tokens=1000, reported_cost_micros=Fraction(12_300))
        own = call("own-70b", provider, input_tokens=10, output_tokens=4, reported_cost_micros=Fraction(1))
        assert [charged(said), charged(own)] == [amount, 94]


@few_examples(30)
@given(
    entered=TOKENS,
    left=TOKENS,
    part=st.integers(0, 100),
    model=st.sampled_from(["gpt-4o-mini", "gpt-4o", "o3", "claude-sonnet-4-5", "gemini-2.5-pro", "own-70b"]),
)
def test_i3_no_call_is_charged_more_than_was_set_aside_for_it(
    entered: int, left: int, part: int, model: str
) -> None:
    charges = ModelCharges(ProviderPrices(markup_percent=30, models=OWN))
    held = charges.held([model], "auto", input_tokens=entered, output_tokens=left, at=AT)
    some = entered * part // 100
    reasoning = {"reasoning_tokens": left * part // 100}
    for kinds in ({}, {"cached_input_tokens": some}, {"cache_write_tokens": some}, reasoning):
        said = call(model, None, input_tokens=entered, output_tokens=left, **kinds)
        assert charges.of(said, AT) <= held


def test_i3_of_several_models_the_highest_price_is_held() -> None:
    charges = ModelCharges(ProviderPrices())
    hundred: dict[str, Any] = {"input_tokens": 100, "output_tokens": 100, "at": AT}
    dear = charges.held(["o1-pro"], "openai", **hundred)
    for models in ([], ["gpt-4o-mini", "o1-pro"], ["o1-pro", "gpt-99"]):
        assert charges.held(models, "openai", **hundred) >= dear > 0
    assert charges.held([], "auto", **hundred) >= dear
    assert charges.held([], "openai", provider="mistral", **hundred) < dear


def test_i3_without_a_model_the_files_own_prices_hold_too() -> None:
    own = (("own-*", {"input_tokens": Fraction(10**5), "output_tokens": Fraction(10**6)}),)
    charges = ModelCharges(ProviderPrices(models=own, factors={"own-*": {"service_tier": {"priority": 200}}}))
    for asked, factor in (([], 1), ([("service_tier", "priority")], 2)):
        context = tuple(asked)
        said = call("own-7b", None, input_tokens=100, output_tokens=10, context=context)
        held = charges.held([], "openai", input_tokens=100, output_tokens=10, at=AT, context=asked)
        assert held >= charges.of(said, AT) == factor * 2 * 10**7


def test_f_216_without_a_model_the_dearest_published_way_is_held() -> None:
    given: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 100, "at": AT, "has_media": False}
    standard, local, fast = (
        ModelCharges(ProviderPrices()).held([], "anthropic", context=asked, **given)
        for asked in ([], [("inference_geo", "us")], [("speed", "fast")])
    )
    assert fast > standard == local / Fraction(11, 10)


@few_examples(30)
@given(amounts=st.lists(st.tuples(st.sampled_from("ab"), st.fractions(0, 50, max_denominator=1000))))
def test_no_part_of_a_unit_is_lost_nor_charged_to_another(amounts: list[tuple[str, Fraction]]) -> None:
    remainders, units = ChargeRemainders(), dict.fromkeys("ab", 0)
    for customer, amount in amounts:
        units[customer] += remainders.count_units(customer, "usd_charged", amount)
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


def test_f_216_a_factor_is_on_all_prices_of_its_entry() -> None:
    opus, sonnet, mini = "claude-opus-4-8", "claude-sonnet-4-6", "gpt-5-mini"
    cases: tuple[tuple[str, tuple[tuple[str, str], ...], Fraction | float], ...] = (
        ("own-7b", (), 1000 * 2 + 100 * 6 + 3 * 9),
        ("own-7b", (("service_tier", "priority"),), 2 * 2627),
        ("own-7b", (("processing", "batch"), ("service_tier", "flex")), Fraction(2627, 4)),
        ("own-7b", (("service_tier", "standard"), ("speed", "fast")), 2627),
        # The file's factor is on the standard price, also where the table has a price of that way.
        (opus, (("inference_geo", "us"),), Fraction(11, 10) * 37_500),
        (opus, (("speed", "fast"),), 2 * 37_500),
        # Without a factor of its own it is the table's: half for a batch.
        (opus, (("processing", "batch"),), (1000 * 5 + 100 * 25) / 2 + 3 * 10_000),
        # The table has no price of a place: what the provider publishes counts, for tokens.
        (sonnet, (("inference_geo", "us"),), Fraction(11, 10) * 4500 + 3 * 10_000),
        (sonnet, (("inference_geo", "global"),), 4500 + 3 * 10_000),
        # A price of the file, and the table's for what the file leaves out.
        (mini, (), 1000 * 7 + 100 * 2),
        (mini, (("service_tier", "flex"),), Fraction(30, 100) * (1000 * 7 + 100 * 2)),
    )
    for model, context, amount in cases:
        details = {} if model == mini else {"web_searches": 3}
        said = call(model, None, input_tokens=1000, output_tokens=100, details=details, context=context)
        assert ModelCharges(FACTORED).of(said, AT) == amount, (model, context)


def test_f_216_a_hold_is_at_the_dearest_way_of_the_request() -> None:
    # The provider may process a flexible request as standard.
    flex, priority = ("service_tier", "flex"), ("service_tier", "priority")
    given: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 100, "at": AT}
    for asked, factor in (([], 1), ([flex], 1), ([flex, priority], 2)):
        held = ModelCharges(FACTORED).held(["own-7b"], "openai", context=asked, **given)
        assert held == factor * (1000 * 2 + 100 * 6), asked


def test_a_price_of_one_direction_alone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    charges = ModelCharges(ProviderPrices(models=(("gpt-4o*", {"input_tokens": Fraction(7)}),)))
    for _ in range(2):
        assert charges.of(call("gpt-4o-mini", input_tokens=1000, output_tokens=100), AT) == 7060
        assert charges.of(call("gpt-4o~ours", "vllm", input_tokens=1000, output_tokens=100), AT) == 7000
    (message,) = caplog.messages
    assert message == (
        "nothing is charged for output_tokens of model 'gpt-4o~ours': no price of it is known; write"
        " `output_tokens` in the entry 'gpt-4o*' of `models` in the plans file as well"
    )


@pytest.mark.parametrize("unit", ["input_audio_tokens", "web_searches", "requests"])
def test_a_price_of_no_direction_prices_no_unknown_model(unit: str, caplog: pytest.LogCaptureFixture) -> None:
    charges = ModelCharges(
        ProviderPrices(models=(("gpt-*", {unit: Fraction(7)}), ("ours", {unit: Fraction(7)})))
    )
    assert charges.has_price("gpt-4o-mini", "openai", AT)
    assert not charges.has_price("gpt-99", "openai", AT)
    assert charges.has_price("ours", "openai", AT) == (unit != "input_audio_tokens")
    assert caplog.messages == []
    _, is_unpriced = price_call({"usd_charged": charges}, call("gpt-99", input_tokens=9, output_tokens=1), AT)
    assert is_unpriced
    (message,) = caplog.messages
    assert message == (
        "nothing is charged for input_tokens and output_tokens of model 'gpt-99': no price of it is known;"
        " write `input_tokens` and `output_tokens` in the entry 'gpt-*' of `models` in the plans file as well"
    )


def test_variants_of_openrouter_are_held_at_their_models_price() -> None:
    charges = ModelCharges(ProviderPrices())
    asked: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 1000, "at": AT, "has_media": False}
    plain = charges.held(["openai/gpt-5"], "openai", provider="openrouter", **asked)
    for variant in ("nitro", "floor", "online"):
        name = f"openai/gpt-5:{variant}"
        assert charges.held([name], "openai", provider="openrouter", **asked) == plain > 0
        assert list_prices("openai", name, AT) is None
    assert list_prices("openrouter", "openai/gpt-5:free", AT) is None


def test_tiers_in_any_order_count_by_their_start() -> None:
    prices = UnitPrices({"input_tokens": ((-1, Fraction(1)), (10, Fraction(2)), (20, Fraction(3)))})
    assert [prices.cost({"input_tokens": n}) for n in (10, 11, 21)] == [10, 22, 63]


def test_a_call_is_priced_in_few_steps() -> None:
    charges = ModelCharges(ProviderPrices(markup_percent=30, models=OWN))
    costs = CallCosts(charges, "usd_charged", {"input_tokens", "output_tokens"}, "plans/1")
    parts: dict[str, Any] = {"cached_input_tokens": 4_000, "reasoning_tokens": 100}
    parts |= {"details": {"input_audio_tokens": 10, "output_audio_tokens": 4}}
    said = call("gpt-4o", input_tokens=12_000, output_tokens=800, **parts)
    for price, most in ((charges.of, 530), (costs.of, 780)):
        price(said, AT)  # Found once for each model.
        with counted() as instructions:
            price(said, AT)
        assert sum(instructions.values()) < most, instructions


NOW: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_what_is_not_known_has_no_cost() -> None:
    partial = CallUsage(input_tokens=1, model="gpt-4o", provider="openai", source="partial")
    unknown = (call(None, input_tokens=1), call("gpt-unheard-of", input_tokens=1), partial)
    assert [one.cost(NOW) for one in unknown] == [None] * 3


MEASURED: Final = {
    "input_tokens": 10_000,
    "cache_read_tokens": 3_000,
    "cache_write_tokens": 2_000,
    "cache_write_1h_tokens": 700,
    "input_audio_tokens": 1_500,
    "cache_audio_read_tokens": 600,
    "input_image_tokens": 1_200,
    "cache_image_read_tokens": 300,
    "output_tokens": 4_000,
    "output_audio_tokens": 900,
    "output_image_tokens": 800,
    "output_reasoning_tokens": 1_000,
    "audio_seconds": 90,
    "input_audio_seconds": 90,
    "web_searches": 3,
    "storage_searches": 2,
    "input_document_pages": 5,
}


WAYS: Final = (("service_tier", "priority"), ("processing", "batch"), ("speed", "fast"))


@pytest.mark.parametrize("context", [(), *(whole((one,)) for one in WAYS)])
def test_f_212_every_unit_of_every_model_costs_as_listed(context: tuple[tuple[str, str], ...]) -> None:
    """Parts within wholes: sound that was read from a cache costs that, and is no other sound nor input."""
    compared = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            if provider.find_model(model.id) is None or model.id.startswith("whisper-large"):
                continue  # Groq bills ten seconds at least.
            found = list_prices(provider.id, model.id, NOW, context)
            assert found is not None
            listed = table_price(model.id, provider.id, NOW, dict(context) or None, **MEASURED)
            assert found.cost(MEASURED) == listed, (provider.id, model.id)
            assert sum(found.costs(MEASURED).values()) == found.cost(MEASURED)
            compared += 1
    assert compared > 2000


def test_f_218_parts_beyond_their_whole_cost_no_more() -> None:
    prices = list_prices("openai", "gpt-4o", NOW)
    assert prices is not None
    # Ten tokens went in: eight of them from a cache at most, in doubt all.
    assert prices.cost({"input_tokens": 10, "cache_read_tokens": 10**9}) == 10 * Fraction(5, 4)
    realtime = list_prices("openai", "gpt-realtime", NOW)
    assert realtime is not None
    said = {"input_tokens": 10, "input_audio_tokens": 8, "cache_read_tokens": 8}
    assert realtime.cost(said) == 8 * Fraction(4, 10) + 2 * 32  # The dearest are not billed twice.


def test_a_models_prices_are_kept_once_whatever_clients_call_it() -> None:
    names = ("claude-3-5-haiku-20241022", "claude-3-5-haiku-next", f"claude-3-5-haiku-{'x' * 200}")
    found = {list_prices("anthropic", name, NOW) for name in names}
    assert len(found) == 1
    assert None not in found


def test_each_unit_of_the_table_may_be_a_meter() -> None:
    assert unit_dimensions().keys() - UNITS == {"requests"}


def test_without_the_package_it_is_said_what_to_install() -> None:
    program = """
import sys
from datetime import UTC, datetime
sys.modules["genai_prices"] = None
from llm_usage import LlmUsageError
from meterkit import CallUsage, MeterkitError
from meterkit.catalog.model_prices import ProviderPrices
from meterkit.decisions.model_charges import ModelCharges
try:
    CallUsage(input_tokens=1, output_tokens=1, model="m", source="reported").cost(datetime.now(UTC))
except LlmUsageError as error:
    print(error)
try:
    ModelCharges(ProviderPrices())
except MeterkitError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "prices need the package genai-prices; install it with: pip install genai-prices",
        "providers' prices need genai-prices; install it with: pip install 'meterkit[prices]'",
    ]


# A grid of usage over all models of genai-prices costs the same by our rating.

# A prime below the 336 cases of a model: each model gets one, other usage than the next one.
STEP: Final = 1 if "METERKIT_ALL_PRICES" in os.environ else 331
DATES: Final = (datetime(2025, 2, 3, tzinfo=UTC), datetime(2026, 1, 1, 18, 31, tzinfo=UTC), AT)
ENTERED: Final = (0, 1, 128_000, 200_000, 200_001, 272_001, 1_000_000)
SHARES: Final = ((0, 0), (12, 0), (0, 12), (4, 3))
"""Twelfths of the input: read from a cache, written to one."""
LEFT: Final = ((0, 0), (777, 0), (777, 500), (64_000, 64_000))
"""Tokens of the output, and those of them that were reasoning."""


def listed(case: CallUsage, at: datetime) -> Fraction:
    units = {"input_tokens": case.input_tokens, "output_tokens": case.output_tokens}
    units |= {"cache_read_tokens": case.cached_input_tokens, "cache_write_tokens": case.cache_write_tokens}
    return table_price(
        str(case.model), case.provider, at, output_reasoning_tokens=case.reasoning_tokens, **units
    )


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
            caches = {
                "cached_input_tokens": entered * read // 12,
                "cache_write_tokens": entered * written // 12,
            }
            tokens = {"input_tokens": entered, "output_tokens": left, "reasoning_tokens": reasoning}
            yield call(model, provider, **tokens, **caches), at


def test_each_model_costs_the_same_over_a_grid_of_usage() -> None:
    compared, wrong = 0, list[tuple[CallUsage, datetime]]()
    for case, at in grid():
        compared += 1
        prices = list_prices(str(case.provider), str(case.model), at)
        assert prices is not None
        entered, left = case.input_tokens or 0, case.output_tokens or 0
        plain = prices.cost({"input_tokens": entered, "output_tokens": left})
        held = prices.most(input_tokens=entered, output_tokens=left, has_media=False)
        if case.cost(at) != listed(case, at) or held < plain:
            wrong.append((case, at))
    assert wrong == []
    assert compared > 2_000


# Every name of the table has its price by the name alone, or says which providers to choose from.


def prices_by_name() -> dict[str, dict[str, UnitPrices]]:
    """Each name that has a price, with its prices by provider."""
    found: dict[str, dict[str, UnitPrices]] = {}
    for provider in get_snapshot().providers:
        for model in provider.models:
            known = list_prices(provider.id, model.id, NOW)
            if known is not None and known.prices:
                found.setdefault(model.id.lower(), {})[provider.id] = known
    return found


@pytest.mark.dear("all 1,700 names of the table, three ways")
def test_f_322_each_name_has_one_price_or_lists_its_providers() -> None:
    one_price = several = 0
    for name, known in prices_by_name().items():
        found = list_prices(None, name, NOW)
        # The name alone, and in the shape of an API whose provider does not have it.
        assert found == list_prices("cohere", name, NOW) or "cohere" in known, name
        choices = providers_of(name)
        if found is None:
            assert set(choices) == set(known), name
            several += 1
        elif len({tuple(sorted(each.prices.items())) for each in known.values()}) == 1:
            (each, *_) = known.values()
            assert each.prices.items() <= found.prices.items(), name  # The vendor may have further units.
            one_price += 1
    assert (one_price > 1_400, several > 100) == (True, True), (one_price, several)


@pytest.mark.parametrize(
    ("name", "provider", "listed"),
    [
        ("llama-3.3-70b-versatile", "groq", "llama-3.3-70b-versatile"),
        ("sonar-pro", "perplexity", "sonar-pro"),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("openai/gpt-5.4", "openrouter", "openai/gpt-5.4"),
        ("models/gemini-2.5-pro", "google", "gemini-2.5-pro"),
        ("groq/llama-3.3-70b-versatile", "groq", "llama-3.3-70b-versatile"),
        ("anthropic/claude-sonnet-4-5-20250929", "anthropic", "claude-sonnet-4-5"),
        ("vertex_ai/claude-sonnet-4-5", "google", "claude-sonnet-4-5"),
        ("bedrock/global.anthropic.claude-opus-5", "aws", "global.anthropic.claude-opus-5"),
        ("gpt-5-2025-08-07", "openai", "gpt-5"),
        ("claude-haiku-4.5", "anthropic", "claude-haiku-4-5"),
    ],
)
def test_f_322_a_name_finds_its_price_without_a_provider(name: str, provider: str, listed: str) -> None:
    for shape in ("openai", None):
        assert charged(call(name, shape, input_tokens=1000, output_tokens=100)) == table_price(
            listed, provider, AT, input_tokens=1000, output_tokens=100
        )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("qwen/qwen3-32b", "openai"),  # Seven prices.
        ("deepseek-r1-distill-llama-70b", "openai"),  # Two, and DeepSeek's own is another model.
        ("models/" * 9 + "gpt-5", "openai"),
        ("acme/gpt-5", "openai"),  # No vendor.
        ("ollama/llama3.2", "openai"),
        ("llama-3.3-70b-versatile", "ollama"),
        ("qwen3.6-27b", "llama.cpp"),
        ("google/gemini-2.5-flash:free", "openrouter"),
        ("openai/gpt-5:nitro", "openai"),
    ],
)
def test_f_322_no_price_is_guessed(name: str, shape: str) -> None:
    assert charged(call(name, shape, input_tokens=1000, output_tokens=100)) == 0
    assert not ModelCharges(ProviderPrices()).has_price(name, "openai", AT, shape)


def test_f_322_the_log_lists_the_providers_to_choose_from(caplog: pytest.LogCaptureFixture) -> None:
    charged(call("deepseek-r1-distill-llama-70b", input_tokens=1000, output_tokens=100))
    (message,) = caplog.messages
    assert message == (
        "nothing is charged for calls of model 'deepseek-r1-distill-llama-70b': its price depends on the"
        " provider, which may be: groq, ovhcloud; write the `provider` on the route, or give its prices in"
        " the plans file, under `models` of the credit"
    )
    for provider in providers_of("deepseek-r1-distill-llama-70b"):
        said = call("deepseek-r1-distill-llama-70b", provider, input_tokens=1000, output_tokens=100)
        assert charged(said) == table_price(
            str(said.model), provider, AT, input_tokens=1000, output_tokens=100
        )


@pytest.mark.parametrize("name", ["llama-3.3-70b-versatile", "nothing/of-the-kind", "x" * 256])
def test_f_322_a_name_is_found_in_few_steps(name: str) -> None:
    list_prices("openai", "vendor/any", AT)  # Reads the table.
    with counted() as instructions:
        list_prices("mistral", name, AT)
    cold = sum(instructions.values())
    with counted() as instructions:
        list_prices("mistral", name, AT)
    assert (cold < 10_000, sum(instructions.values()) < 100) == (True, True), (cold, instructions)


def test_i3_the_tables_prices_change_at_half_hours_only() -> None:
    """Holds look prices up by half hours; by hours they were below DeepSeek's peak price from 00:30 on."""
    listed = [
        constraint
        for provider in get_snapshot().providers
        for model in provider.models
        for entry in (
            *(model.price_variants or ()),
            *(model.prices if isinstance(model.prices, list) else ()),
        )
        if (constraint := entry.constraint) is not None
    ]
    named = (getattr(one, name, None) for one in listed for name in ("start_time", "end_time"))
    times = [at for at in named if at is not None]
    assert {(at.minute % 30, at.second) for at in times} == {(0, 0)}
    at = datetime(2026, 11, 24, 0, 45, tzinfo=UTC)
    peak = list_prices("deepseek", "deepseek-reasoner", at)
    assert peak is not None
    highest = dearest_prices("deepseek", at).prices
    assert max(price for _, price in highest["output_tokens"]) >= max(
        price for _, price in peak.prices["output_tokens"]
    )


def test_the_dearest_of_several_ways_is_the_dearest_of_each() -> None:
    """A request that cannot be read is held at it: each way alone took two seconds of the event loop."""
    at, ways = datetime(2026, 11, 24, tzinfo=UTC), sorted(varying_contexts())
    contexts = [(), *((way,) for way in ways), (ways[0], ways[-1])]
    for provider in (None, "anthropic", "google"):
        each = [dearest_prices(provider, at, (one,)).prices for one in contexts]
        assert dearest_prices(provider, at, contexts).prices == highest_prices(each).prices
