"""What a call costs by its provider's list prices, to the last digit as ``genai-prices`` has it."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from random import Random
from typing import Any, Final

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot

from meterkit import CallUsage, usage_of
from meterkit.catalog.units import UNITS
from meterkit.tokens.genai_table import unit_dimensions
from meterkit.tokens.provider_prices import list_prices

NOW: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
MICRO: Final = 1_000_000


def call(model: str | None = "gpt-4o-mini", provider: str | None = "openai", **figures: int) -> CallUsage:
    known: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0, **figures}
    return CallUsage(model=model, provider=provider, source="reported", **known)


def expected(found: CallUsage, at: datetime) -> Fraction:
    usage = Usage(
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        cache_read_tokens=found.cached_input_tokens,
        cache_write_tokens=found.cache_write_tokens,
        output_reasoning_tokens=found.reasoning_tokens,
    )
    with localcontext(prec=100):
        price: Decimal = calc_price(
            usage, str(found.model), provider_id=found.provider, genai_request_timestamp=at
        ).total_price
    return Fraction(price) * MICRO


def drawn(chance: Random, model: str, provider: str) -> CallUsage:
    entered, left = chance.randint(0, 10 ** chance.randint(1, 6)), chance.randint(0, 10_000)
    read = chance.randint(0, entered)
    written = chance.randint(0, entered - read)
    return call(
        model,
        provider,
        input_tokens=entered,
        output_tokens=left,
        cached_input_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=chance.randint(0, left),
    )


@pytest.mark.parametrize(
    "at", [NOW, datetime(2026, 1, 1, 18, 31, tzinfo=UTC), datetime(2025, 2, 3, tzinfo=UTC)]
)
def test_each_model_costs_what_the_table_says(at: datetime) -> None:
    chance = Random(7)  # noqa: S311 - a failure must be repeatable, nothing is secret
    calls = [
        drawn(chance, model.id, provider.id)
        for provider in get_snapshot().providers
        for model in provider.models
        if provider.find_model(model.id) is not None  # Some match longer names only.
    ]
    assert len(calls) > 2000
    assert [(one, expected(one, at)) for one in calls if one.cost(at) != expected(one, at)] == []


def test_tokens_cost_less_than_a_micro_unit_and_nothing_is_rounded() -> None:
    assert call(input_tokens=1, output_tokens=1).cost(NOW) == Fraction(15, 100) + Fraction(60, 100)


def test_one_token_more_may_change_the_price_of_all() -> None:
    below = call("gemini-2.5-pro", "gcp.gemini", input_tokens=200_000)
    above = call("gemini-2.5-pro", "gcp.gemini", input_tokens=200_001)
    assert below.cost(NOW) == 250_000
    assert above.cost(NOW) == 200_001 * Fraction(5, 2)


@pytest.mark.parametrize(
    ("model", "provider", "other"),
    [
        ("anthropic.claude-3-haiku-20240307-v1:0", "aws.bedrock", "aws"),
        ("gpt-4o", "azure.ai.openai", "azure"),
        ("gemini-2.5-flash", "gcp.gemini", "google"),
        ("mistral-large-latest", "mistral_ai", "mistral"),
        ("gpt-4o", None, "openai"),
    ],
)
def test_providers_are_found_by_the_names_that_answers_have(
    model: str, provider: str | None, other: str
) -> None:
    figures = {"input_tokens": 1000, "output_tokens": 100}
    found = call(model, provider, **figures).cost(NOW)
    assert found == expected(call(model, other, **figures), NOW)
    assert found


@pytest.mark.parametrize(
    "unknown",
    [
        call(None, input_tokens=1),
        call("llama3", "ollama", input_tokens=1),
        call("gpt-unheard-of", input_tokens=1),
        call("x\n" * 5000, input_tokens=1),
        CallUsage(input_tokens=1, model="gpt-4o", provider="openai", source="partial"),
        CallUsage(model="gpt-4o", provider="openai", source="missing"),
    ],
)
def test_what_is_not_known_has_no_cost(unknown: CallUsage) -> None:
    assert unknown.cost(NOW) is None


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


@pytest.mark.parametrize(
    "context", [(), (("service_tier", "priority"),), (("processing", "batch"),), (("speed", "fast"),)]
)
def test_f_212_every_unit_of_every_model_costs_what_the_table_says(
    context: tuple[tuple[str, str], ...],
) -> None:
    """Parts within wholes: sound that was read from a cache costs that, and is no other sound nor input."""
    compared = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            if provider.find_model(model.id) is None or model.id.startswith("whisper-large"):
                continue  # Groq bills ten seconds at least.
            found = list_prices(provider.id, model.id, NOW, context)
            assert found is not None
            with localcontext(prec=100):
                table = calc_price(
                    Usage(**MEASURED),
                    model.id,
                    provider_id=provider.id,
                    genai_request_timestamp=NOW,
                    price_context=dict(context) or None,
                )
            assert found.cost(MEASURED) == Fraction(table.total_price) * MICRO, (provider.id, model.id)
            assert sum(found.costs(MEASURED).values()) == found.cost(MEASURED)
            compared += 1
    assert compared > 2000


def test_f_218_parts_that_are_more_than_their_whole_cost_no_more_than_it() -> None:
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


def test_what_the_provider_bills_is_what_costs() -> None:
    """Cohere's billed units, https://docs.cohere.com/docs/how-does-cohere-pricing-work."""
    billed = CallUsage(
        input_tokens=500,
        output_tokens=20,
        billed_input_tokens=10,
        billed_output_tokens=20,
        model="command-r",
        provider="cohere",
        source="reported",
    )
    assert billed.cost(NOW) == call("command-r", "cohere", input_tokens=10, output_tokens=20).cost(NOW)


def test_an_answer_of_a_provider_knows_its_cost() -> None:
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 1000,
            "completion_tokens": 100,
            "total_tokens": 1100,
            "prompt_tokens_details": {"cached_tokens": 200},
        },
    }
    found = usage_of(answer)
    assert found is not None
    assert found.cost(NOW) == 800 * Fraction(15, 100) + 200 * Fraction(75, 1000) + 100 * Fraction(60, 100)


def test_without_the_package_it_is_said_what_to_install() -> None:
    program = """
import sys
from datetime import UTC, datetime
sys.modules["genai_prices"] = None
from meterkit import CallUsage, MeterkitError
try:
    CallUsage(input_tokens=1, output_tokens=1, model="m", source="reported").cost(datetime.now(UTC))
except MeterkitError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "providers' prices need genai-prices; install it with: pip install 'meterkit[prices]'"
    )
