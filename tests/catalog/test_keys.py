"""Keys of money, models, subjects, MCP, storage and messages: what is refused, and where, and what is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from drivers.plans import free_plan, json_of
from meterkit.catalog import ObjectPattern, Storage, json_schema, loads
from meterkit.errors import PlansError


def refusal(text: str) -> str:
    with pytest.raises(PlansError) as caught:
        loads(text)
    return str(caught.value)


# Bad values are refused at their place, and by the JSON schema.


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


ALONE: Final = free_plan(
    "{requests: {unit: request}}",
    top="""credits: {usd: {unit: money, costs: {tokens: provider_prices}}}
routes: [{match: "POST /chat", usage: auto}]""",
)


@pytest.mark.parametrize("meters", ["{requests: {unit: request}}", "{}"])
def test_a_money_balance_takes_usage_without_token_meters(meters: str) -> None:
    assert loads(ALONE.replace("{requests: {unit: request}}", meters)).routes[0].usage == "auto"


def test_credits_that_are_no_money_take_no_usage() -> None:
    text = ALONE.replace("{unit: money, costs: {tokens: provider_prices}}", "{costs: {requests: 1}}")
    assert "or a credit with `unit: money`" in refusal(text)
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


# Prices of models by unit, factors, and what happens to unknown models.


MODELS: Final = """\
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
  - {match: "POST /chat", usage: USAGE, model: request, reserve: {output_tokens: {default: 9}}}
plans:
  payg: {price: {amount_cents: 0, interval: month}}
"""


def written(models: str, usage: str = "openai") -> str:
    return MODELS.replace("MODELS", models).replace("USAGE", usage)


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
    return [(note.line, note.path, note.message) for note in loads(text).notes if note.kind != "no_rate"]


def test_models_a_client_chooses_for_free_are_named() -> None:
    ((line, path, message),) = notes(written('"gpt-4o": {requests: 1, service_tier: {flex: 50%}}'))
    assert (line, path) == (7, "credits.usd")
    assert message == (
        "clients choose the model on 'POST /chat', and calls of a model without a price cost nothing; write"
        " `unknown_model: deny` here to refuse such requests, or `model: NAME` on the route"
    )
    free = """prices: {output: {unknown_model: free, models: {"gpt-*": 1}}}
credits: {ai: {costs: {output_tokens: prices.output}}}
routes: [{match: "POST /chat", usage: openai}]"""
    ((line, path, _),) = notes(free_plan("{output_tokens: {unit: token}}", top=free))
    assert (line, path) == (10, "prices.output.unknown_model")


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
    assert "these prices apply to every service_tier and speed of a request" in first[2]
    assert "`service_tier: {priority: 200%, flex: 50%}` and `speed: {fast: 200%}`" in first[2]
    ((_, _, message),) = notes(text.replace("gpt-4o", "claude-opus-4-8").replace("auto", "anthropic"))
    assert "`speed: {fast: 200%}` and `inference_geo: {us: 110%}`" in message
    for word, model in (("gemini", "gemini-2.5-pro"), ("bedrock", "claude-opus-4-8")):
        ((_, _, message),) = notes(text.replace("gpt-4o", model).replace("auto", word))
        assert "these prices apply to every service_tier of a request" in message


# Where objects are, and where messages go.


def with_key(name: str, value: str) -> str:
    meters = (
        "{requests: {unit: request}, storage: {unit: byte, kind: gauge}, seats: {unit: seat, kind: gauge}}"
    )
    return free_plan(meters, top=f"{name}: {value}")


def test_storage_has_one_pattern_or_several() -> None:
    one = '{gauge: storage, objects: {bucket: b, key: "{customer}/{type}/{path:path}"}, types: [images]}'
    pattern = ObjectPattern(bucket="b", key="{customer}/{type}/{path:path}")
    storage = Storage(gauge="storage", objects=(pattern,), types=("images",))
    assert loads(with_key("storage", one)).storage == storage
    objects = '[{bucket: b, key: "{customer}"}, {bucket: c, key: "x/{customer}/y"}]'
    several = loads(with_key("storage", f"{{gauge: storage, objects: {objects}}}")).storage
    assert several is not None
    assert [pattern.key for pattern in several.objects] == ["{customer}", "x/{customer}/y"]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ('{gauge: storge, objects: {bucket: b, key: "{customer}"}}', "gauge: there is no meter 'storge'"),
        ('{gauge: seats, objects: {bucket: b, key: "{customer}"}}', "must be a gauge of bytes"),
        ("{gauge: storage}", "storage.objects: storage needs this key"),
        ("{gauge: storage, objects: []}", "at least one"),
        ('{gauge: storage, objects: {bucket: b, key: "{tenant}/{path:path}"}}', "unknown field {tenant}"),
        ('{gauge: storage, objects: {bucket: b, key: "a/{path:path}"}}', "a key has {customer} once"),
        ('{gauge: storage, objects: {bucket: b, key: "{customer}/{customer}"}}', "a key has {customer} once"),
        ('{gauge: storage, objects: {bucket: b, key: "{path:path}/{customer}"}}', "at the end"),
        ('{gauge: storage, objects: {bucket: b, key: "{customer}{type}"}}', "separate fields by /"),
        ('{gauge: storage, objects: {bucket: b, key: "{customer}-{path:path}"}}', "separate fields by /"),
        ('{gauge: storage, objects: {bucket: b, key: "{type}.d-{customer}/x"}}', "separate fields by /"),
        ('{gauge: storage, objects: {bucket: b, key: "{customer}"}, types: [other]}', "leave it out"),
    ],
)
def test_a_bad_storage_is_refused(storage: str, message: str) -> None:
    assert message in refusal(with_key("storage", storage))


def test_each_documented_event_may_be_sent_by_each_channel() -> None:
    events = (
        "usage.threshold, usage.spike, storage.over, period.summary, credits.low, subscription.changed,"
        " access.changed, dunning.reminder, trial.ending, payment.failed, payment.succeeded, top_up.failed,"
        " top_up.refunded"
    )
    webhook = f"{{url: 'https://a.example', events: [{events}]}}"
    email = f"{{from: ada@a.example, events: [{events}]}}"
    notify = loads(with_key("notify", f"{{webhook: {webhook}, email: {email}}}")).notify
    assert notify.webhook is not None
    assert notify.email is not None
    assert notify.webhook.events == notify.email.events == tuple(events.split(", "))


@pytest.mark.parametrize("host", ["10.0.0.7", "[::1]", "localhost:8000"])
def test_webhooks_may_have_a_private_address(host: str) -> None:
    notify = f"{{webhook: {{url: 'http://{host}/hook', events: [credits.low]}}}}"
    webhook = loads(with_key("notify", notify)).notify.webhook
    assert webhook is not None
    assert webhook.url == f"http://{host}/hook"


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        ("{webhook: {url: 'https://a.example', events: [usage.treshold]}}", "mean 'usage.threshold'?"),
        ("{webhook: {url: 'https://a.example', events: []}}", "at least one"),
        ("{webhook: {events: [credits.low]}}", "notify.webhook.url: webhook needs this key"),
        ("{webhook: {url: 'http://8.8.8.8', events: [credits.low]}}", "starts with https://"),
        ("{webhook: {url: 'https://u:p@a.example', events: [credits.low]}}", "without a user"),
        ("{webhook: {url: 'https://a.example:x', events: [credits.low]}}", "starts with https://"),
        ("{email: {events: [credits.low]}}", "notify.email.from: email needs this key"),
        ('{email: {events: [credits.low], from: "a@b\\nBcc: c@d"}}', "such as billing@example.com"),
        ("{sms: {}}", "unknown key 'sms'; allowed in notify: webhook, email"),
    ],
)
def test_a_bad_notify_is_refused(notify: str, message: str) -> None:
    assert message in refusal(with_key("notify", notify))
