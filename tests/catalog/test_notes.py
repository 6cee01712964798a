"""What a plans file allows and may surprise is named, with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from drivers.plans import free_plan, plans_text, routed
from meterkit import MeterKit
from meterkit.catalog import Catalog, loads

PLANS = plans_text("notes")


def told(catalog: Catalog) -> list[tuple[int, str, str]]:
    return [(note.line, note.path, note.kind) for note in catalog.notes if note.kind != "no_rate"]


def unreached(catalog: Catalog) -> list[tuple[int, str]]:
    return [(note.line, note.message) for note in catalog.notes if note.kind == "never_reached"]


def test_each_meter_billed_from_the_first_unit_is_named() -> None:
    """F-26, F-108: a note for each amount and name said that they have no effect."""
    assert told(loads(PLANS)) == [
        (20, "plans.bare", "billed_from_first_unit"),
        (26, "plans.rated.meters.requests", "billed_from_first_unit"),
    ]


def test_the_message_says_what_a_missing_meter_comes_to() -> None:
    found = [note for note in loads(PLANS).notes if note.path == "plans.bare"]
    assert "".join(map(str, found)) == (
        "plans.yaml:20:3 plans.bare: requests is left out: unlimited, and billed from the first unit as 'r';"
        " write `requests: {included: N}` to include a quantity and refuse more, or"
        " `requests: {included: 0, overage: bill}` if you want that"
    )


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("/v1/a", "GET /v1/a"),
        ("GET /v1/a", "HEAD /v1/a"),
        ("GET /v1/{a}", "GET /v1/{b:int}"),
        ("/v1/{rest:path}", "POST /v1/chat/{b}/c"),
        ("/{a}/{b:path}", "GET /v1/a/b"),
        ("/v{n:float}", "/v{a:float}{b:int}"),
        ("WS /live/{a:path}", "WS /live/b"),
    ],
)
def test_a_line_that_is_never_reached_is_named(earlier: str, later: str) -> None:
    ((line, message),) = unreached(routed("GET /first", earlier, later))
    assert (line, "the route in line 4 matches all of it" in message) == (5, True)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("GET /v1/a", "/v1/a"),
        ("/v1/a", "WS /v1/a"),
        ("GET /v1/{a}", "GET /v1/{b:path}"),
        ("/v1/{rest:path}", "/v1"),
        ("/v{n:float}", "/v{a:float}{b:float}"),
    ],
)
def test_a_line_that_can_be_reached_is_not(earlier: str, later: str) -> None:
    assert unreached(routed(earlier, later)) == []


SOLD = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro:  {price: {amount_cents: 0, interval: month, stripe_price: price_pro}}
"""


def test_missing_lines_of_billing_routes_are_named() -> None:
    (note,) = loads(SOLD).notes
    assert (note.line, note.path, note.kind) == (5, "routes", "informs")
    for line in ("POST /billing/webhooks/stripe", "exempt: true", "/billing/{path:path}", "always: true"):
        assert line in note.message
    webhook = '{match: "POST /pay/webhooks/stripe", exempt: true}'
    lines = f'{webhook}\n  - {{match: "/pay/{{path:path}}", always: true}}\n  - {{match: "*"'
    assert loads(SOLD.replace('{match: "*"', lines)).notes == ()
    assert loads(SOLD.replace("stripe_price: price_pro", "stripe_price: null")).notes == ()
    assert loads(SOLD.replace('routes:\n  - {match: "*", consume: {requests: 1}}\n', "")).notes == ()


def of_webhooks(
    *routes: str, price: str = "{amount_cents: 900, interval: month}", anonymous: str = "deny"
) -> list[tuple[int, str]]:
    lines = "".join(f"  - {{{route}}}\n" for route in routes)
    top = f"  pro: {{price: {price}}}\nroutes:\n{lines}anonymous: {anonymous}\n"
    text = free_plan("{requests: {unit: request}}", top=top)
    return [(note.line, note.message) for note in loads(text).notes if "webhooks" in note.message]


WEBHOOK: Final = 'match: "POST /pay/webhooks/stripe"'
BILLING: Final = 'match: "/pay/{path:path}", always: true'


@pytest.mark.parametrize(
    ("routes", "nth", "mount"),
    [
        ([f"{WEBHOOK}, consume: {{requests: 1}}"], 0, ""),
        ([f"{WEBHOOK}, consume: {{requests: 1}}", BILLING], 0, ""),
        ([BILLING], 0, "/pay"),
        (['match: "GET /pay/plans"', BILLING], 1, "/pay"),
        (['match: "/pay/webhooks/{path:path}", rate: 5/minute', BILLING], 0, "/pay"),
        (['match: "/{path:path}", always: true'], 0, "/"),
    ],
)
def test_webhooks_of_stripe_that_are_refused_are_named(routes: list[str], nth: int, mount: str) -> None:
    ((line, message),) = of_webhooks(*routes)
    path = f"{'/pay' if mount != '/' else ''}/webhooks/stripe"
    assert line == 12 + nth
    assert message == (
        "this route takes Stripe's webhooks"
        + (mount and f", if the billing routes are mounted at {mount}")
        + ", and Stripe is no customer, so they are refused like all requests without one; write before it"
        f' `{{match: "POST {path}", exempt: true}}`'
    )


@pytest.mark.parametrize(
    "route", [f"{WEBHOOK}, consume: {{requests: 1}}", f"{BILLING}, rate: 5/minute", WEBHOOK]
)
def test_webhooks_that_an_anonymous_plan_limits_are_named(route: str) -> None:
    ((line, message),) = of_webhooks(route, anonymous="{plan: free, by: ip}")
    assert line == 12
    assert message.endswith(
        ", and Stripe is no customer, so they are limited by address, as anonymous requests on the plan"
        " 'free'; write before it `{match: \"POST /pay/webhooks/stripe\", exempt: true}`"
    )


def test_always_routes_serve_anonymous_webhooks() -> None:
    assert of_webhooks(BILLING, anonymous="{plan: free, by: ip}") == []


@pytest.mark.parametrize(
    "routes",
    [
        [f"{WEBHOOK}, exempt: true", BILLING],
        ['match: "/usage/{path:path}", always: true', f"{WEBHOOK}, exempt: true", BILLING],
        ['match: "/pay/webhooks/{path:path}", exempt: true', BILLING],
        ['match: "GET /pay/webhooks/stripe"', 'match: "GET /usage/{path:path}", always: true'],
        ['match: "/pay/{path:path}"', 'match: "*"'],
    ],
)
def test_webhooks_that_are_exempt_or_elsewhere_are_not(routes: list[str]) -> None:
    assert of_webhooks(*routes) == []


def test_always_routes_that_sell_nothing_take_no_webhooks() -> None:
    assert of_webhooks(BILLING, price="{amount_cents: 0, interval: month}") == []


PRICED = """
credits: {ai: {costs: {tokens: prices.by_model}}}
prices:
  by_model:
    default: 1 per 1000
    models:
      "gpt-5*": 2 per 1000
      "gpt-*-mini": 1 per 1000
      "gpt-5-pro": 20 per 1000
      "[ab]-*": 1 per 1000
      "a-*": 2 per 1000
      "gpt-5-nano": 1 per 1000"""


def test_prices_behind_one_that_has_all_their_models_are_named() -> None:
    found = unreached(loads(free_plan("{tokens: {unit: token}}", top=PRICED)))
    message = "never reached: 'gpt-5*' in line 16 matches all of it; move this one up"
    assert found == [(18, message), (21, message)]


def unasked(*routes: str, meters: str = "words: {included: 1_000}", more: str = "") -> list[str]:
    written = "".join(f"  - {{{route}}}\n" for route in routes)
    text = f"""\
schema: 1
currency: usd
default_plan: free
meters:
  requests: {{unit: request}}
  words: {{unit: word, stripe: {{event_name: w}}}}
  input_tokens: {{unit: token}}
  output_tokens: {{unit: token}}
  large_output: {{unit: token, from: output_tokens, where: {{model: "*-large*"}}}}
  seats: {{unit: seat, kind: gauge}}
  space: {{unit: byte, kind: gauge}}
  newest_output: {{unit: token, from: large_output, where: {{model: "*-large-9"}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters: {{{meters}}}
{more}routes:
{written}"""
    return [str(note) for note in loads(text).notes if note.kind == "never_asked"]


ALL = 'match: "*", consume: {requests: 1}'


@pytest.mark.parametrize(
    ("limit", "cure"),
    [
        ("words: {included: 1_000}", "`records: [words]` on the routes in which the app records it"),
        ("words: {concurrency: 2, included: unlimited}", "`records: [words]` on the routes in which"),
        ("output_tokens: {included: 5}", "`usage: auto` on the routes that call a model, or `records: ["),
        ("newest_output: {included: 5}", "or `records: [output_tokens]`"),
        ("seats: {included: 3}", "`grow: {seats: 1}` on the routes that raise it"),
        ("space: {included: 3MB}", "`storage: content-length` on the routes that raise it"),
    ],
)
def test_a_limit_that_no_route_asks_for_is_named(limit: str, cure: str) -> None:
    (note,) = unasked(ALL, meters=limit)
    meter = limit.partition(":")[0]
    assert note.startswith(f"plans.yaml:16:14 plans.free.meters.{meter}: no route asks for {meter}, so no")
    assert cure in note
    asks = "the app asks kit.check()" if meter in {"seats", "space"} else "only calls such as kit.consume()"
    assert f"leave it as it is if {asks}" in note


@pytest.mark.parametrize(
    ("limit", "route"),
    [
        ("words: {included: 1_000}", 'match: "WS /a", per_message: {words: 1}'),
        ("words: {included: 1_000}", 'match: "/a", usage_fields: {words: used}'),
        ("large_output: {included: 5}", 'match: "POST /a", usage: openai'),
        ("newest_output: {included: 5}", 'match: "POST /a", usage: openai'),
        ("space: {included: 3MB}", 'match: "/a", storage: content-length'),
    ],
)
def test_a_limit_that_a_route_asks_for_is_not_named(limit: str, route: str) -> None:
    assert unasked(route, ALL, meters=limit) == []


def test_limits_of_users_budgets_and_credits_are_named_too() -> None:
    (of_user,) = unasked(ALL, meters="", more="    subjects: {user: {words: {included: 5}}}\n")
    assert of_user.startswith("plans.yaml:17:23 plans.free.subjects.user.words: no route asks for words")
    priced = "words: {included: 1_000, overage: {bill: {per: 100, amount_cents: 10}}}"
    assert unasked(ALL, meters=priced) == []
    (of_user,) = unasked(ALL, meters=priced, more="    subjects: {user: {budget: {amount_cents: 30}}}\n")
    assert of_user.startswith("plans.yaml:16:14 plans.free.meters.words: no route asks for words")
    credits_ = "credits: {usd: {unit: money, costs: {tokens: provider_prices}}}\n"
    (of_credit,) = unasked(ALL, meters="", more=credits_)
    assert "credits.usd: no route reads the token usage that it pays" in of_credit


PAID = """\
schema: 1
currency: usd
meters:
  requests: {unit: request, stripe: {event_name: r}}
  silent: {unit: call, stripe: {event_name: s, report: none}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 5}}}
  plain: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 9}}, rank: 1}
  pro:
    price: {amount_cents: 49_000, interval: year}
    meters: {requests: {included: 5}}
  seats: {extends: free, seat_price: {amount_cents: 900}}
  metered: {extends: free, meters: {requests: {included: 5, overage: bill}}}
  atstripe: {extends: free, price: {amount_cents: 0, interval: month, stripe_price: price_1}}
default_plan: """
_FOLLOWS = (
    "customers never seen before and customers whose subscription has ended are on this plan without a"
    " subscription, so no invoice bills "
)


def of_the_default(text: str) -> list[str]:
    return [str(note) for note in loads(text).notes if note.path == "default_plan"]


@pytest.mark.parametrize(
    ("plan", "unpaid"),
    [
        ("pro", "its price of $490.00 a year"),
        ("seats", "its seats"),
        ("metered", "its overage of requests"),
        ("atstripe", "its price of $0.00 a month"),
    ],
)
def test_a_default_plan_that_costs_is_named_with_the_cure(plan: str, unpaid: str) -> None:
    """F-20g: everybody unseen, and everybody whose subscription had ended, had the paid plan."""
    (note,) = of_the_default(PAID + plan)
    assert note == (
        f"plans.yaml:15:1 default_plan: {_FOLLOWS}{unpaid}; write `default_plan: free`, and give {plan!r} by"
        " a subscription or by `set_plan`"
    )


def test_a_default_plan_that_costs_nothing_is_not_named() -> None:
    assert [of_the_default(PAID + plan) for plan in ("free", "plain")] == [[], []]


@pytest.mark.parametrize(
    ("plan", "unpaid"),
    [
        ("pro", "its price of $490.00 a year"),
        ("metered", "its overage of requests"),
    ],
)
def test_a_plan_of_anonymous_customers_that_costs_is_named(plan: str, unpaid: str) -> None:
    """F-20g: everybody without a customer had the paid plan."""
    found = loads(f"anonymous: {{plan: {plan}, by: ip}}\n{PAID}free").notes
    (note,) = [str(note) for note in found if note.path.startswith("anonymous")]
    assert note == (
        "plans.yaml:1:13 anonymous.plan: each address that sends requests without a customer is on this plan,"
        f" so no invoice bills {unpaid}; write `plan: free`"
    )


def test_a_free_plan_of_anonymous_customers_is_not_named() -> None:
    found = loads(f"anonymous: {{plan: plain, by: ip}}\n{PAID}free").notes
    assert [note for note in found if note.path.startswith("anonymous")] == []


def test_a_default_plan_that_costs_in_one_currency_is_named() -> None:
    """F-20g: notes were those of the first currency alone."""
    (note,) = of_the_default("""
schema: 1
currency: [usd, eur, gbp]
meters: {requests: {unit: request}}
plans: {free: {price: {amount_cents: {usd: 0, eur: 900, gbp: 800}, interval: month}}}
default_plan: free""")
    assert "no invoice bills its price of €9.00 a month; write `default_plan: without_price`" in note


def test_billed_overage_of_what_is_unlimited_is_not_named() -> None:
    endless = "{included: unlimited, overage: bill}"
    assert of_the_default(PAID.replace("{included: 9}", endless) + "plain") == []
    tried = loads(TRIED.replace("{included: 1, overage: bill}", endless)).notes
    (note,) = [note.message for note in tried if "of a trial" in note.message]
    assert note.startswith("Stripe bills no usage of a trial, so words can be used")


RANKED: Final = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {price: {amount_cents: 900, interval: month}, rank: 10}
  max: {extends: pro, price: {amount_cents: 4900, interval: month}}
  team: {price: {amount_cents: 9900, interval: month}, rank: 20}
"""


def test_sold_plans_of_one_rank_and_interval_are_named() -> None:
    (note,) = loads(RANKED).notes
    assert (note.line, note.path, note.kind) == (8, "plans.max", "informs")
    assert note.message == (
        "pro, max have rank 10: a change between them counts as an upgrade, also to the cheaper plan"
        " (`billing.changes.upgrade: now`); give the higher plan a higher `rank`"
    )


@pytest.mark.parametrize(
    ("of", "into"),
    [
        ("extends: pro,", "extends: pro, rank: 15,"),
        ("4900", "0"),
        ("{amount_cents: 4900, interval: month}", "{amount_cents: 9000, interval: year}"),
        (
            "{amount_cents: 4900, interval: month}",
            "{amount_cents: 9000, interval: year, included_per: interval}",
        ),
        ("plans:", "billing: {changes: {downgrade: now}}\nplans:"),
    ],
)
def test_ranks_that_decide_nothing_or_differ_are_not(of: str, into: str) -> None:
    assert of in RANKED
    assert loads(RANKED.replace(of, into)).notes == ()


def test_equal_ranks_with_shared_tiers_have_one_note() -> None:
    """A change between them waits for the period's end, so it is no immediate upgrade."""
    tiered = RANKED.replace("{unit: request}", "{unit: request, stripe: {event_name: r, report: usage}}")
    tiered = tiered.replace("rank: 10}", "rank: 10, meters: {requests: {overage: bill}}}")
    messages = [note.message for note in loads(tiered).notes if "pro, max" in note.message]
    assert len(messages) == 1
    assert "`report: usage`" in messages[0]


NAMED: Final = free_plan(
    "{input_tokens: {unit: token}, NAME: {unit: unit}}",
    top="""routes:
  - {match: "POST /chat", usage: auto}
  - {match: "POST /more"}""",
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("audio_input_tokens", "input_audio_tokens"),
        ("output_tokns", "output_tokens"),
        ("cache_creation_tokens", "cache_write_tokens"),
        ("cache_read_input_tokens", "cached_input_tokens"),
        ("web_search", "web_searches"),
    ],
)
def test_a_meter_nothing_feeds_is_named_with_its_unit(name: str, meant: str) -> None:
    (note,) = loads(NAMED.replace("NAME", name)).notes
    assert (note.line, note.path, note.kind) == (5, f"meters.{name}", "informs")
    assert note.message == (
        f"no route feeds {name}: `usage:` feeds the meters named as a unit; did you mean"
        f" {meant!r}? Leave it as it is if the app counts it itself"
    )


def test_a_meter_of_the_apps_own_is_not_taken_for_a_unit() -> None:
    fed = NAMED.replace("NAME", "web_search").replace('"POST /more"', '"POST /more", records: [web_search]')
    for text in (fed, *(NAMED.replace("NAME", name) for name in ("images", "words", "requests"))):
        assert [note.message for note in loads(text).notes if "did you mean" in note.message] == []


TOKENS: Final = """\
schema: 1
currency: usd
default_plan: free
meters:
  METERS
routes:
  - {match: "POST /ask", ROUTE}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""


@pytest.mark.parametrize(
    ("meters", "route", "meant"),
    [
        ("tokens: {unit: token}", "rate: 5/minute", "total_tokens"),
        ("prompt_tokens: {unit: Tokens}", "rate: 5/minute", "input_tokens"),
        ("tokens: {unit: token}", "records: [tokens]", "total_tokens"),
        ("tokens: {unit: token}", "reserve: {tokens: {default: 5}}", "total_tokens"),
        ("tokens: {unit: token}\n  input_tokens: {unit: token}", "usage: auto", "total_tokens"),
    ],
)
def test_a_meter_of_tokens_that_usage_never_fills_is_named(meters: str, route: str, meant: str) -> None:
    (note,) = loads(TOKENS.replace("METERS", meters).replace("ROUTE", route)).notes
    name = meters.partition(":")[0]
    assert (note.line, note.path, note.kind) == (5, f"meters.{name}", "informs")
    assert note.message == (
        "usage read from responses, or by record_usage() and tap(), fills only meters with certain names,"
        f" such as total_tokens, input_tokens and output_tokens, and not {name}; call it {meant!r} to count"
        " that usage; leave it as it is if the app counts it by record()"
    )


@pytest.mark.parametrize(
    ("meters", "route"),
    [
        ("total_tokens: {unit: token}", "records: [total_tokens]"),
        ("tokens: {unit: token}", "consume: {tokens: 5}"),
        ("tokens: {unit: token}", "usage_fields: {tokens: usage.total_tokens}"),
        ("tokens: {unit: token}\n  input_tokens: {unit: token}", "usage: auto, records: [tokens]"),
        ("tokens: {unit: token}\n  total_tokens: {unit: token}", "usage: auto"),
        ("vouchers: {unit: token, kind: gauge}", "grow: {vouchers: 1}"),
    ],
)
def test_a_meter_of_tokens_that_a_route_fills_is_not_named(meters: str, route: str) -> None:
    assert loads(TOKENS.replace("METERS", meters).replace("ROUTE", route)).notes == ()


DENIED_TOKENS: Final = """\
schema: 1
currency: usd
default_plan: payg
meters:
  input_tokens: {unit: token}
  output_tokens: {unit: token}
  words: {unit: word}
credits:
  usd: {unit: money, costs: {tokens: provider_prices}, unknown_model: deny}
routes:
  - {match: "POST /chat", usage: openai, records: [words], model: m, reserve: {output_tokens: {default: 1}}}
plans:
  payg:
    price: {amount_cents: 0, interval: month}
    meters:
      output_tokens: {included: 0, overage: deny}
"""


@pytest.mark.parametrize(
    ("of", "into", "is_named"),
    [
        ("", "", True),
        ("overage: deny", "rate: 500/hour", True),
        ("included: 0", "included: 1", False),
        (
            "    meters:",
            "    grants: [{meter: output_tokens, quantity: 5, every: period}]\n    meters:",
            False,
        ),
        ("usage: openai, ", "", True),  # The hold asks for it.
    ],
)
def test_a_meter_that_a_balance_in_money_does_not_pay_is_named(of: str, into: str, *, is_named: bool) -> None:
    # F-22a: `check` was silent on a plan that refuses each request.
    found = [note for note in loads(DENIED_TOKENS.replace(of, into)).notes if "is served" in note.message]
    assert [(note.path, "balance 'usd' pays for calls" in note.message) for note in found] == (
        [("plans.payg.meters.output_tokens", True)] if is_named else []
    )


TIERED: Final = """\
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: r, report: usage}}
  words:    {unit: word, stripe: {event_name: w}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 5}, words: {included: 5}}}
  team:
    price: {amount_cents: 100, interval: month}
    meters: {requests: {included: 5, overage: bill}, words: {included: 5, overage: bill}}
  pro: {extends: team, price: {amount_cents: 200}}
  flat: {extends: team, meters: {requests: {included: 9, overage: deny}}}
"""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", 1),
        ("billing: {changes: {upgrade: period_end}}\n", 0),
        ("billing: {changes: {upgrade: period_end, downgrade: now}}\n", 1),
    ],
)
def test_f_224_plans_whose_changes_wait_are_named(more: str, expected: int) -> None:
    messages = [note.message for note in loads(TIERED + more).notes if "`report: usage`" in note.message]
    assert len(messages) == expected
    for message in messages:
        assert message.startswith("team, pro bill requests with `report: usage`: a change between them takes")


@pytest.mark.anyio
async def test_a_kit_that_starts_logs_its_notes_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    plans = free_plan("{requests: {unit: request, stripe: {event_name: r}}}", top=f"routes: [{{{ALL}}}]")
    kit = MeterKit(loads(plans), redis_url="memory://")
    assert caplog.messages == []
    for _ in range(2):
        async with kit:
            pass
    (line,) = [record.getMessage() for record in caplog.records if record.name == "meterkit.plans"]
    assert line == (
        "plans.yaml: billed from the first unit, as nothing is included: plans.free (line 7);"
        " `meterkit check` says more"
    )


TRIED: Final = """\
schema: 1
currency: usd
default_plan: free
meters:
  words: {unit: word, stripe: {event_name: words}}
  calls: {unit: call, stripe: {event_name: calls}}
prices: {out: {default: 4 per 1000, models: {"gpt-*": 2 per 1000}}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {words: {included: 1}, calls: {included: 1}}}
  pro:
    price: {amount_cents: 900, interval: month}
    trial: 14d
    meters:
      words: {included: 1, overage: {bill: {price: prices.out}}}
      calls: {included: 1, overage: bill}
"""


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        ("", "words, calls"),
        (
            "    budget: {amount_cents: 5000}\n",
            "calls",
        ),  # Its price is only at Stripe: the budget cannot count it.
        ("    budget: {amount_cents: 5000, at_limit: notify}\n", "words, calls"),
        ("    budget: {amount_cents: unlimited}\n", "words, calls"),
    ],
)
def test_what_a_trial_gives_without_end_is_named(budget: str, named: str) -> None:
    notes = loads(TRIED.replace("    trial", f"{budget}    trial")).notes
    (note,) = [note.message for note in notes if "of a trial" in note.message]
    assert note.startswith(f"Stripe bills no usage of a trial, so {named} can be used in it without a limit")


def test_a_get_that_holds_nothing_is_named() -> None:
    """`usage: auto` takes its response for a stored one, and ignored `reserve` without a word."""
    reserve = "reserve: {output_tokens: {default: 100}}"
    lines = [
        f'  - {{match: "{match}", {reserve}, usage: {usage}}}'
        for match, usage in (
            ("GET /chat", "auto"),
            ("GET /ask", "openai"),
            ("POST /chat", "auto"),
            ("/v1/{path:path}", "auto"),
        )
    ]
    found = loads(free_plan("{output_tokens: {unit: token}}", top="\n".join(["routes:", *lines]))).notes
    (note,) = [one for one in found if one.path.endswith("reserve")]
    assert (note.path, note.kind) == ("routes[0].reserve", "informs")
    assert "a GET request holds nothing" in note.message


LIMITED = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 100, overage: deny}}
"""


def test_a_plan_with_a_ceiling_and_no_rate_is_named() -> None:
    """F-312: in an outage only what the last reply left limits such a plan."""
    (note,) = loads(LIMITED).notes
    assert (note.path, note.kind) == ("plans.free.meters", "no_rate")
    assert note.message.startswith("the plan limits requests by period and has no rate: in an outage")
    assert loads(LIMITED.replace("{included: 100", "{rate: 5/minute, included: 100")).notes == ()
    assert loads(LIMITED.replace("{included: 100, overage: deny}", "{}")).notes == ()


@pytest.mark.parametrize(
    ("route", "is_named"),
    [
        ('{match: "POST /chat", usage: auto}', True),
        ('{match: "*", usage: openai}', True),
        ('{match: "WS /live", usage: auto}', False),  # It cannot hold anything.
        ('{match: "POST /chat", usage: auto, model: m, reserve: {output_tokens: {default: 5}}}', False),
    ],
)
def test_a_route_that_holds_nothing_of_a_balance_is_named(route: str, is_named: bool) -> None:
    credits_ = "credits: {usd: {unit: money, costs: {tokens: provider_prices}}}"
    plans = free_plan("{output_tokens: {unit: token}}", top=f"{credits_}\nroutes: [{route}]")
    assert any("on routes that hold nothing" in note.message for note in loads(plans).notes) == is_named


ROOT: Final = Path(__file__).parents[2]
TAUGHT: Final = [
    ROOT / "README.md",
    ROOT / "docs/recipes.md",
    *(ROOT / "docs").glob("quickstart*.md"),
    *(ROOT / "docs").glob("tutorial*.md"),
]
COPIED: Final = [*(ROOT / "examples").glob("*/plans.yaml")]


@pytest.mark.parametrize("path", [*TAUGHT, *COPIED], ids=lambda path: "/".join(path.parts[-2:]))
def test_plans_files_to_copy_surprise_nobody(path: Path) -> None:
    text = path.read_text("utf-8")
    blocks = re.findall(r"^```yaml[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    files = [text] if path.suffix == ".yaml" else [block for block in blocks if "schema: 1" in block]
    assert [note.message for file in files for note in loads(file).notes] == []
    assert files
