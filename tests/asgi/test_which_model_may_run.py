"""A route says whose word chooses the model: what is held covers each model that may run."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from random import Random
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from asgi.test_llm_model_prices import NOT_PRICED, answering, ask, give, post
from drivers.delivery import until
from drivers.llm_apps import metered
from drivers.plans import completed
from llm_payloads.recordings import compact
from meterkit.catalog import loads
from meterkit.errors import PlansError

pytestmark = pytest.mark.anyio

RESERVE: Final = "reserve: {output_tokens: {from: max_tokens, default: 1_000, ceiling: 1_000_000}}"
PRICES: Final = {"tiny-1": 1, "mid-1": 20, "mid-2": 30, "dear-1": 400}
"""Micro-dollars for a token that comes out."""
PLANS: Final = f"""
meters: {{output_tokens: {{unit: token}}}}
credits:
  usd:
    unit: money
    costs: {{tokens: provider_prices}}
    models:
      tiny-1: {{input_tokens: 0, output_tokens: 1 per 1_000_000}}
      mid-1: {{input_tokens: 0, output_tokens: 20 per 1_000_000}}
      mid-2: {{input_tokens: 0, output_tokens: 30 per 1_000_000}}
      dear-1: {{input_tokens: 0, output_tokens: 400 per 1_000_000}}
      "gift-*": {{input_tokens: 0, output_tokens: 0}}
routes:
  - {{match: "POST /ask", usage: openai, model: tiny-1, {RESERVE}}}
  - {{match: "POST /either", usage: openai, model: [tiny-1, "mid-*"], {RESERVE}}}
  - {{match: "POST /gift", usage: openai, model: gift-1, {RESERVE}}}
  - {{match: "POST /proxy", usage: openai, model: request, {RESERVE}}}
  - {{match: "POST /proxy/{{rest:path}}", usage: openai, model: request, {RESERVE}}}
  - {{match: "POST /unsaid", usage: openai}}
"""
DENYING: Final = PLANS.replace("unit: money", "unit: money\n    unknown_model: deny")


@pytest.mark.parametrize("path", ["/ask", "/either", "/gift", "/unsaid"])
async def test_f_320_no_name_opens_an_empty_balance_or_a_debt(path: str, store_url: str) -> None:
    """F-320: `?model=omni-moderation-latest` served a customer without a balance, without end."""
    for plans in (PLANS, DENYING):
        async with metered(answering(), store_url, plans=plans) as at:
            for _ in range(2):
                for name in ("gift-1", "omni-moderation-latest", "tiny-1", None):
                    assert await ask(at, 5, model=name, said="tiny-1", path=path) == 402, name
                    query = "" if name is None else f"?model={name}"
                    assert await ask(at, 5, said="tiny-1", path=path + query) == 402, name
                await give(at, 1, "usd")
                await at.kit.record("acme", "usd_charged", 2_000_000)


async def test_f_320_a_free_model_runs_where_the_client_chooses(store_url: str) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        assert await ask(at, 5, model="gift-1", said="gift-1", path="/proxy") == 200
        for body in (
            {"model": "gift-1", "fallbacks": ["tiny-1"]},
            {"model": "gift-1", "metadata": {"fallback_model": "tiny-1"}},
        ):
            assert await ask(at, 5, body=compact(body), said="tiny-1", path="/proxy") == 402


@pytest.mark.parametrize(("path", "dearest"), [("/ask", "tiny-1"), ("/either", "mid-2")])
async def test_f_321_a_hold_is_of_the_models_that_the_route_lists(
    path: str, dearest: str, store_url: str
) -> None:
    """F-321: a call of $0.0017 held $1.88, as its request names no model."""
    most = 1_000_000 // PRICES[dearest]
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 1, "usd")
        for name in (None, "dear-1", "gift-1"):
            assert await ask(at, 0, at_most=most, model=name, said="tiny-1", path=path) == 200
            if most < 1_000_000:
                assert await ask(at, 0, at_most=most + 1, model=name, said="tiny-1", path=path) == 402


async def test_f_321_a_refusal_names_what_is_needed_and_what_is_left(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with metered(answering(), store_url, plans=PLANS) as at:
        status, empty = await post(at, "/unsaid", {})
        assert (status, empty["detail"]) == (402, "Your balance is empty. Top up to continue.")
        assert (empty.get("needed"), empty["left"]) == (None, "$0.00")
        status, problem = await post(at, "/either", {"max_tokens": 12_345})
        assert (status, problem["detail"]) == (402, "Your balance is empty. Top up to continue.")
        assert (problem["needed"], problem["left"]) == ("$0.37035", "$0.00")
        await give(at, 1, "usd")
        await at.kit.record("acme", "usd_charged", 999_950)
        status, problem = await post(at, "/ask", {"max_tokens": 51})
        said = "This request may cost up to $0.000051, and $0.00005 of your balance is left."
        assert (status, problem["detail"]) == (402, f"{said} Top up to continue.")
        assert (problem["needed"], problem["left"]) == ("$0.000051", "$0.00005")
        assert "micro" not in "".join(map(str, (empty, problem)))
    assert "needed='$0.000051' left='$0.00005'" in caplog.messages[-1]
    plans = HELD_BY_ROWS.replace("MODEL", "[small-1, mid-1]")
    async with metered(answering(), store_url, plans=plans) as at:
        assert await ask(at, 400_000, said="mid-1") == 200
        status, problem = await post(at, "/chat", {"max_tokens": 200_001})
        assert (status, problem["needed"], problem["left"]) == (402, "$4.00002", "$2.00")
        assert "$8.00 is spent or reserved by requests in progress." in problem["detail"]
        assert "This request may cost up to $4.00002. More can be spent in" in problem["detail"]
        status, problem = await post(at, "/chat", {"max_tokens": 2_000_000})
        assert problem["detail"].endswith("This request may cost up to $40.00. Ask for less.")


MORE: Final[tuple[Callable[[list[str]], Any], ...]] = (
    lambda names: {"fallbacks": names},
    lambda names: {"fallbacks": [{"other": names}]},
    lambda names: {"context_window_fallbacks": [{"other": names}], "x": 1},
    lambda names: {"content_policy_fallbacks": {"other": names}},
    lambda names: {"models": names},
    lambda names: {"Fallbacks": [{"model": name, "max_tokens": 3} for name in names]},
    lambda names: {"fallbacks": [{"model": "gift-1", "fallbacks": [{"model": names}]}]},
    lambda names: {"fallbacks": [{name: ["gift-1"]} for name in names]},
    lambda names: {"fallbacks": [{"other": names, "model": "gift-1"}]},
    lambda names: {"providerOptions": {"gateway": {"models": names}}},
    lambda names: {"orq": {"fallbacks": [{"model": name} for name in names]}},
    lambda names: {"extra_body": {"models": names}},
    lambda names: {"extra_body": {"model": names[0], "router": {"fallback": names[1:]}}},
    lambda names: {"fallback_model": names[0], "modelIds": names[1:]},
    lambda names: {"tools": [{"type": "image_generation", "model": name} for name in names]},
)
ONLY_HELD: Final = {7, 8, 13}
"""Forms of `MORE` with names in places where few requests name a model: they raise the hold alone."""
FORM: Final = "multipart/form-data; boundary=B"
ENCODED: Final = "application/x-www-form-urlencoded"


def draw_request(chance: Random) -> tuple[str, bytes, str, list[str]]:
    """A request that names models anywhere: its address, body and content type, and their names."""
    names = chance.sample([*PRICES, "gift-1"], chance.randint(1, 4))
    kind, in_path, in_query = chance.choice(("json", "json", "form", "encoded")), "/v1", "x=1"
    within = list(names)
    if chance.random() < 0.3:
        in_path = f"/models/{within.pop()}:generate"
    if within and chance.random() < 0.3:
        in_query = f"{chance.choice(('model', 'm%6fdel', 'Model'))}={within.pop()}"
    address = f"/proxy{in_path}?{in_query}"
    if kind == "form":
        part = '--B\r\ncontent-disposition: form-data; name="model"\r\n\r\n{}\r\n'
        return address, ("".join(map(part.format, within)) + "--B--\r\n").encode(), FORM, names
    if kind == "encoded":
        return address, urlencode([("model", name) for name in within]).encode(), ENCODED, names
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello."}]}
    if within and chance.random() < 0.7:
        asked[chance.choice(("model", "Model", "MODEL"))] = within.pop()
    return (
        address,
        compact(asked | (chance.choice(MORE)(within) if within else {})),
        "application/json",
        names,
    )


@pytest.mark.parametrize("seed", range(4))
async def test_i3_a_hold_covers_each_model_that_a_request_names(seed: int) -> None:
    """I3: what is held covers the dearest model that a request names; a balance of 0 admits nothing."""
    chance, held = Random(seed), list[int]()  # noqa: S311 - repeatable

    async def look() -> None:
        held.append((await at.kit.usage("acme"))["meters"]["usd_charged"]["held"])

    async with metered(answering(look), "memory://", plans=PLANS) as at:
        await give(at, 1_000_000, "usd")
        for _ in range(25):
            address, body, kind, names = draw_request(chance)
            dearest = max(names, key=lambda name: PRICES.get(name, 0))
            headers = {"content-type": kind, "x-tokens": "1000", "x-model": dearest}
            poor = {**headers, "x-customer-id": "poor"}
            is_free = names == ["gift-1"]
            assert (await at.client.post(address, content=body, headers=poor)).is_success == is_free, body
            held.clear()
            assert (await at.client.post(address, content=body, headers=headers)).is_success
            assert held[0] >= 1000 * PRICES.get(dearest, 0), (address, body)
            await until(lambda: not any(lane.unsettled for lane in at.kit.store.lanes.values()))


LISTED: Final = {"/ask": ["tiny-1"], "/either": ["tiny-1", "mid-1", "mid-2"], "/gift": ["gift-1"]}


@pytest.mark.parametrize("seed", range(2))
async def test_i3_a_hold_covers_each_model_that_a_route_lists(seed: int) -> None:
    """I3: what is held covers each listed model, whatever is named; a balance of 0 admits nothing."""
    chance, held = Random(seed), list[int]()  # noqa: S311 - repeatable

    async def look() -> None:
        held.append((await at.kit.usage("acme"))["meters"]["usd_charged"]["held"])

    async with metered(answering(look), "memory://", plans=PLANS) as at:
        await give(at, 1_000_000, "usd")
        for _ in range(25):
            address, body, kind, _ = draw_request(chance)
            path = chance.choice([*LISTED])
            address, runs = f"{path}?{address.partition('?')[2]}", chance.choice(LISTED[path])
            headers = {"content-type": kind, "x-tokens": "1000", "x-model": runs}
            poor = {**headers, "x-customer-id": "poor"}
            assert (await at.client.post(address, content=body, headers=poor)).status_code == 402, body
            held.clear()
            assert (await at.client.post(address, content=body, headers=headers)).is_success
            dearest = max(PRICES.get(name, 0) for name in LISTED[path])
            assert held[0] >= 1000 * dearest >= 1000 * PRICES.get(runs, 0), (address, body)
            await until(lambda: not any(lane.unsettled for lane in at.kit.store.lanes.values()))


def form_field(name: str, value: bytes) -> bytes:
    return b'--B\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


async def test_f_325_a_form_read_in_part_is_held_at_the_dearest(store_url: str) -> None:
    """F-325: a form that named a cheap model before a large file was held at its price."""
    cheap, dear = form_field("model", b"tiny-1"), form_field("model", b"dear-1")
    file = form_field("file", b"x" * (1 << 20))
    async with metered(answering(), store_url, plans=PLANS) as at:
        await give(at, 1, "usd")
        for form, expected in ((cheap, 200), (cheap + file + dear, 402), (cheap + file, 402)):
            headers = {"content-type": FORM, "x-tokens": "0", "x-model": "tiny-1"}
            answer = await at.client.post("/proxy", content=form + b"--B--\r\n", headers=headers)
            assert answer.status_code == expected


def unread_bodies() -> dict[str, tuple[dict[str, str], bytes]]:
    large = b"x" * (1 << 20)
    file, model = form_field("file", large), form_field("model", b"gpt-99") + b"--B--\r\n"
    names = [f"my-{nth}" for nth in range(40)]
    lists: list[Any] = [[]] * 20_000
    objects: list[Any] = [{}] * 5_000
    return {
        "form": ({"content-type": FORM}, file + model),
        "form of two": ({"content-type": FORM}, form_field("model", b"tiny-1") + file + model),
        "json": ({}, b'{"model": "tiny-1", "pad": "' + large + b'"}'),
        "coded": ({"content-encoding": "br"}, b'{"model": "tiny-1"}'),
        "gzip": (
            {"content-encoding": "gzip"},
            gzip.compress(b'{"model": "tiny-1", "pad": "' + large + b'"}'),
        ),
        "dense": ({}, compact({"model": "tiny-1", "pad": lists})),
        "broken": ({}, b'{"model": "tiny-1"'),
        "names": ({}, compact({"model": "tiny-1", "models": names})),
        "deep": ({}, compact({"model": "tiny-1", "pad": objects, "x": {"models": ["gpt-99"]}})),
    }


@pytest.mark.parametrize("case", unread_bodies())
async def test_f_325_deny_refuses_what_cannot_be_read_to_its_end(case: str) -> None:
    headers, body = unread_bodies()[case]
    async with metered(answering(), "memory://", plans=DENYING) as at:
        await give(at, 1_000, "usd")
        for path in ("/proxy", "/unsaid"):
            answer = await at.client.post(path, content=body, headers={"x-tokens": "5", **headers})
            assert (answer.status_code, answer.json()["type"]) == (400, NOT_PRICED)
            assert "could not be read to its end" in answer.json()["detail"]
        # A line that lists its models reads none off the request, and a path names it for certain.
        for path in ("/ask", "/proxy/models/tiny-1:generate"):
            answer = await at.client.post(path, content=body, headers={"x-tokens": "5", **headers})
            assert answer.status_code == 200


@pytest.mark.parametrize("form", range(len(MORE)))
async def test_f_324_deny_refuses_fallbacks_without_a_price(form: int) -> None:
    """F-324: `fallbacks: [{"cheap": ["dear"]}]` and its like passed."""
    body = {"model": "tiny-1", **MORE[form](["tiny-1", "gpt-99"])}
    is_mentioned = form in ONLY_HELD
    async with metered(answering(), "memory://", plans=DENYING) as at:
        await give(at, 1, "usd")
        status, problem = await post(at, "/proxy", body)
        assert (status, problem.get("model")) == ((200, None) if is_mentioned else (400, "gpt-99"))


HELD_BY_ROWS: Final = """
meters: {output_tokens: {unit: token, stripe: {event_name: out}}}
prices: {out: {default: 3 per 1000, models: {"small*": 1 per 1000, "mid*": 2 per 1000, "large*": 5 per 1000}}}
routes:
  - match: "POST /chat"
    usage: openai
    model: MODEL
    reserve: {output_tokens: {from: max_tokens, default: 100, ceiling: 2_000_000}}
default_plan: pro
plans:
  pro: {price: {amount_cents: 2000, interval: month}, budget: {amount_cents: 1000},
    meters: {output_tokens: {included: 0, overage: {bill: {price: prices.out}}}}}
"""


@pytest.mark.parametrize(
    ("model", "cents"),
    [("small-1", 1), ("[small-1, mid-1]", 2), ('[small-1, "large*"]', 5), ("other", 3), ('"*"', 5)],
)
async def test_a_budget_holds_the_dearest_of_the_listed_models(
    model: str, cents: int, store_url: str
) -> None:
    most = 1_000_000 // cents
    async with metered(answering(), store_url, plans=HELD_BY_ROWS.replace("MODEL", model)) as at:
        assert await ask(at, 0, at_most=most + 1, model="small-1", said="small-1") == 402
        assert await ask(at, 0, at_most=most, model="large-1", said="small-1") == 200


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (RESERVE, "routes[0]: this route holds what is priced by model, so it says who chooses the model"),
        (f"model: any, {RESERVE}", "found 'any'; allowed: the models that the app chooses from"),
        (f"model: [request, gpt-5], {RESERVE}", "`request` lets the client choose any model; write it alone"),
        (f"model: [], {RESERVE}", "found an empty list; allowed: a list of models, at least one"),
    ],
)
def test_a_route_that_holds_money_says_who_chooses_the_model(written: str, message: str) -> None:
    with pytest.raises(PlansError) as caught:
        loads(completed(PLANS.replace(f"model: tiny-1, {RESERVE}", written, 1)))
    assert message in str(caught.value)


def test_prices_by_model_need_a_model_and_others_do_not() -> None:
    unsaid = HELD_BY_ROWS.replace("    model: MODEL\n", "")
    with pytest.raises(PlansError, match="this route holds what is priced by model"):
        loads(completed(unsaid))
    flat = unsaid.replace("{price: prices.out}", "{per: 1000, amount_cents: 3}").replace("prices:", "# ")
    assert loads(completed(flat)).routes[0].model is None


CREDITED: Final = (
    HELD_BY_ROWS.partition("default_plan")[0]
    + """
credits: {ai: {costs: {output_tokens: prices.out}}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {output_tokens: {included: 0, overage: deny}}}
"""
)
MIXED: Final = compact({"model": "small-1", "fallbacks": ["mid-1"], "max_tokens": 1000})


@pytest.mark.parametrize("model", ["[small-1, mid-1]", '[small-1, "mid*"]', "request"])
async def test_i3_an_unnamed_answer_costs_no_more_than_is_held(model: str, store_url: str) -> None:
    """I3: it costs the dearest of the models that may run, as what is held does, not the dearest of all."""
    async with metered(answering(), store_url, plans=HELD_BY_ROWS.replace("MODEL", model)) as at:
        assert await ask(at, 1000, body=MIXED) == 200
        assert (await at.counted(meter="spend"))[0] == 1000 * 20
    async with metered(answering(), store_url, plans=CREDITED.replace("MODEL", model)) as at:
        await give(at, 2)
        assert await ask(at, 1000, body=MIXED) == 200
        assert (await at.kit.usage("acme"))["balance"]["ai"] == 0
