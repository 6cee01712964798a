"""What a plans file says of models: prices by unit, factors, and what happens to unknown ones."""

from __future__ import annotations

from typing import Final

import pytest

from meterkit.catalog import loads
from meterkit.errors import PlansError

PLANS: Final = """\
schema: 1
currency: usd
default_plan: payg
meters:
  output_tokens: {unit: token}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices}
    models: {MODELS}
routes:
  - {match: "POST /chat", usage: USAGE, reserve: {output_tokens: {from: max_tokens, default: 9, ceiling: 9}}}
plans:
  payg: {price: {amount_cents: 0, interval: month}}
"""
TABLE: Final = """\
schema: 1
currency: usd
default_plan: free
meters:
  output_tokens: {unit: token}
prices:
  output: {TERMS}
credits:
  ai: {costs: {output_tokens: prices.output}}
routes:
  - {match: "POST /chat", usage: openai}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""


def written(models: str, usage: str = "openai") -> str:
    return PLANS.replace("MODELS", models).replace("USAGE", usage)


def refusal(text: str) -> str:
    with pytest.raises(PlansError) as caught:
        loads(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("x: {}", "found an empty map; allowed: a map of prices by unit"),
        ("x: {input_token: 1}", "did you mean 'input_tokens'?"),
        ("x: {speed: {fast: 2}}", "found '2'; allowed: a whole percentage of the standard price"),
        (
            "gpt-5: {reasoning_tokens: 1, output_reasoning_tokens: 2}",
            "reasoning_tokens is the same unit; keep one of the two",
        ),
    ],
)
def test_terms_that_cannot_be_read_are_refused_at_their_place(models: str, message: str) -> None:
    found = refusal(written(models))
    assert found.startswith("plans.yaml:10:")
    assert message in found


@pytest.mark.parametrize(
    ("models", "missing"),
    [
        ('"our-*": {input_tokens: 1 per 1000}', "output_tokens"),
        ('"our-*": {output_tokens: 1 per 1000}', "input_tokens"),
        ('"gpt-99": {input_audio_tokens: 1}', "input_tokens and output_tokens"),
        ('"our-*": {speed: {fast: 200%}}', "anything"),
    ],
)
def test_f_21a_a_price_of_one_direction_alone_is_refused(models: str, missing: str) -> None:
    found = refusal(written(models))
    assert found.startswith("plans.yaml:10:14 credits.usd.models.")
    assert f"no price of {missing}, and the price table has no such model" in found
    assert "per 1_000_000`" in found


def notes(text: str) -> list[tuple[int, str, str]]:
    return [(note.line, note.path, note.message) for note in loads(text).notes]


def test_models_a_client_chooses_for_free_are_named() -> None:
    ((line, path, message),) = notes(written('"gpt-4o": {requests: 1, service_tier: {flex: 50%}}'))
    assert (line, path) == (7, "credits.usd")
    assert message == (
        "clients choose the model on 'POST /chat', and calls of a model without a price cost nothing; write"
        " `unknown_model: deny` here to refuse such requests, or `model: NAME` on the route"
    )
    free = 'unknown_model: free, models: {"gpt-*": 1}'
    assert [(line, path) for line, path, _ in notes(TABLE.replace("TERMS", free))] == [
        (7, "prices.output.unknown_model")
    ]


def test_routes_beyond_the_tenth_are_counted() -> None:
    text = written('"gpt-4o": {requests: 1, service_tier: {flex: 50%}}')
    (route,) = [line for line in text.splitlines() if "POST /chat" in line]
    routes = "\n".join(route.replace("/chat", f"/chat/{nth}") for nth in range(12))
    ((_, _, message),) = notes(text.replace(route, routes))
    assert "'POST /chat/9' and 2 more, and calls of a model without a price" in message


def test_f_216_ways_of_processing_a_client_chooses_are_named() -> None:
    models = '"gpt-4o": {input_tokens: 1 per 1000}, "our-7b": {requests: 1}'
    text = written(models, "auto").replace("unit: money", "unit: money\n    unknown_model: deny")
    (first,) = notes(text)
    assert first[:2] == (11, "credits.usd.models.gpt-4o")
    assert "these prices count whichever service_tier or speed a client asks for" in first[2]
    assert "`service_tier: {priority: 200%, flex: 50%}` and `speed: {fast: 200%}`" in first[2]
    ((_, _, message),) = notes(text.replace("gpt-4o", "claude-opus-4-8").replace("auto", "anthropic"))
    assert "`speed: {fast: 200%}` and `inference_geo: {us: 110%}`" in message
