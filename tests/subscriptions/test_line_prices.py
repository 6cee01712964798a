"""Prices of usage lines: usage keeps the one at which it was recorded, whatever becomes of the plans file.

A new store takes the prices that were sold from the metadata of the subscription.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import Final

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import flushed, shop_of_lines, usage_lines
from meterkit.catalog import Catalog, loads

pytestmark = pytest.mark.anyio

PLANS = plans_text("invoice_lines")
DEARER = loads(PLANS.replace("amount_cents: 4}", "amount_cents: 9}"))
PLAN, PRICES = "meterkit_line_plan", "meterkit_line_prices_1"
BASIC = """\
  basic:
    price: {amount_cents: 900, interval: month}
    meters:
      words: {included: 100, overage: deny}
      pages: {included: 10, overage: {bill: {per: 1000, amount_cents: 15}}}
"""
SOLD = '{"words":"1/4","pages":"1000/15"}'


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop_of_lines(store_url) as opened:
        yield opened


async def sold(at: Shop) -> dict[str, str]:
    """What the metadata of the only subscription say of its prices."""
    (found,) = await at.stripe_list("/v1/subscriptions")
    return {name: text for name, text in found["metadata"].items() if name.startswith("meterkit_line")}


async def put(at: Shop, **metadata: str) -> None:
    """Have a person change the metadata of the only subscription."""
    (found,) = await at.stripe_list("/v1/subscriptions")
    changed = {f"metadata[{name}]": text for name, text in metadata.items()}
    await at.stripe_change(f"/v1/subscriptions/{found['id']}", **changed)


async def forget(at: Shop, catalog: Catalog) -> str:
    """Have a customer be unknown here, and another one have its subscription, by another plans file."""
    linked = (await at.kit.customers.get("acme")).stripe_customer
    await at.kit.customers.unlink("acme")
    at.kit.store.use(catalog)
    await at.kit.subscriptions.import_from_stripe(ids={f"{linked}": "zed"})
    return "zed"


async def charged(at: Shop, customer: str) -> list[tuple[str, str, str, int]]:
    """Use 26 words more than are included, and have the period end; the lines of that."""
    await at.kit.record(customer, "words", 126)
    at.go(END + timedelta(minutes=3))
    await at.kit.subscriptions.sync(customer)
    await at.kit.flush(everything=True)
    return await usage_lines(at)


async def test_a_price_of_many_decimals_is_shown_as_invoiced(at: Shop) -> None:
    """Three units at 11 cents for six were shown as 6 cents: their line has 1.833333333333 cents a unit."""
    price = {"per": 6, "amount_cents": 11}
    await at.kit.customers.override("acme", {"words": {"overage": {"bill": price}}})
    await at.kit.record("acme", "words", 103)
    shown = (await at.kit.usage("acme"))["meters"]["words"]["overage_cents"]
    at.go(END + timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")
    await flushed(at)
    ((_, units, _, invoiced),) = await usage_lines(at)
    assert (units, invoiced, shown) == ("3", 5, 5)


async def test_a_subscription_says_what_it_was_sold_at(at: Shop) -> None:
    assert await sold(at) == {PLAN: "pro", PRICES: SOLD}
    at.kit.store.use(DEARER)
    await at.kit.subscriptions.sync("acme")
    assert await sold(at) == {PLAN: "pro", PRICES: SOLD}
    await at.kit.subscriptions.change_plan("acme", "team")
    assert await sold(at) == {PLAN: "team", PRICES: '{"words":"1/7","pages":"1000/10"}'}


async def test_it_is_written_once(at: Shop) -> None:
    before = len(at.changes())
    await at.kit.subscriptions.sync("acme")
    assert len(at.changes()) == before


async def test_a_new_store_charges_what_was_sold(at: Shop) -> None:
    assert await charged(at, await forget(at, DEARER)) == [("Words", "26", "4", 104)]


async def test_what_this_store_knows_comes_first(at: Shop) -> None:
    await put(at, **{PRICES: '{"words":"1/1"}'})
    assert await charged(at, "acme") == [("Words", "26", "4", 104)]
    assert await sold(at) == {PLAN: "pro", PRICES: SOLD}


@pytest.mark.parametrize(
    "metadata",
    [
        {PLAN: "team"},
        {PLAN: ""},
        {PRICES: ""},
        {PRICES: "4 cents"},
        {PRICES: "[4]"},
        {PRICES: '{"words":"0/4"}'},
        {PRICES: '{"words":4}'},
    ],
    ids=["of another plan", "no plan", "none", "no JSON", "a list", "no price", "a number"],
)
async def test_what_cannot_be_read_is_as_in_the_plans_file(at: Shop, metadata: dict[str, str]) -> None:
    await put(at, **metadata)
    assert await charged(at, await forget(at, DEARER)) == [("Words", "26", "9", 234)]


async def test_a_key_that_may_not_write_it_stops_no_sync(at: Shop, caplog: pytest.LogCaptureFixture) -> None:
    await put(at, **{PRICES: ""})
    (shown,) = await at.stripe_list("/v1/subscriptions")
    at.emulator.fail_next("error", status=403, path=f"/v1/subscriptions/{shown['id']}")
    found = await at.kit.subscriptions.sync("acme")
    assert found is not None
    assert "the prices of usage of subscription" in caplog.text
    await at.kit.subscriptions.sync("acme")
    assert await sold(at) == {PLAN: "pro", PRICES: SOLD}


NAMES: Final = [f"meter_with_a_long_name_{nth}" for nth in range(40)]
AT_3_CENTS: Final = "included: 0, overage: {bill: {per: 1, amount_cents: 3}}"


def with_many_meters() -> str:
    """The plans file with 40 further meters, which all of its plans deny."""
    text = PLANS
    for name in NAMES:
        text = text.replace("plans:\n", f"  {name}: {{unit: page, stripe: {{event_name: {name}}}}}\nplans:\n")
        text = text.replace(
            "      pages: {included: 10,",
            f"      {name}: {{included: 0, overage: deny}}\n      pages: {{included: 10,",
        )
    return text


async def test_many_prices_need_several_values(store_url: str) -> None:
    priced = with_many_meters().replace("included: 0, overage: deny", AT_3_CENTS)
    async with shop(store_url, catalog=loads(priced), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        values = [text for name, text in (await sold(at)).items() if name != PLAN]
        prices = {event: label for value in values for event, label in json.loads(value).items()}
        assert len(values) > 2
        assert prices == {"words": "1/4", "pages": "1000/15", **dict.fromkeys(NAMES, "1/3")}
        edited = loads(priced.replace("amount_cents: 3}", "amount_cents: 8}"))
        zed = await forget(at, edited)
        await at.kit.record(zed, NAMES[-1], 5)
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync(zed)
        await at.kit.flush(everything=True)
        assert [(units, price) for _, units, price, _ in await usage_lines(at)] == [("5", "3")]


async def test_a_plan_of_fewer_prices_keeps_none_of_the_last(store_url: str) -> None:
    free, pro, team = re.split(r"(?=^  (?:pro|team):)", with_many_meters(), flags=re.MULTILINE)
    text = f"{free}{pro.replace('included: 0, overage: deny', AT_3_CENTS)}{team}"
    async with shop(store_url, catalog=loads(text), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        assert len(await sold(at)) > 2
        await at.kit.subscriptions.change_plan("acme", "team")
        assert await sold(at) == {PLAN: "team", PRICES: '{"words":"1/7","pages":"1000/10"}'}


async def test_with_meters_it_says_nothing(store_url: str) -> None:
    async with shop(store_url) as at:
        await at.subscribed()
        assert await sold(at) == {}


async def test_a_plan_set_by_hand_keeps_the_price_of_that_day(at: Shop) -> None:
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    at.clock.set(HALF)
    at.kit.store.use(DEARER)
    await at.kit.customers.set_plan("bob", "pro")
    assert await charged(at, "bob") == [("Words", "26", "4", 104)]


async def test_a_plan_set_anew_has_the_price_of_then(at: Shop) -> None:
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 103)
    at.clock.set(HALF)
    at.kit.store.use(DEARER)
    await at.kit.customers.set_plan("bob", "team")
    await at.kit.customers.set_plan("bob", "pro")
    at.clock.advance(timedelta(minutes=1))
    await at.kit.record("bob", "words", 5)
    at.go(END + timedelta(minutes=3))
    await at.kit.flush(everything=True)
    lines = [(units, price) for _, units, price, _ in await usage_lines(at)]
    assert sorted(lines) == [("3", "4"), ("5", "9")]


OF_PRO: Final = "{included: 100, overage: {bill: {per: 1, amount_cents: 4}}}"
RENAMED: Final = PLANS.replace("words: {unit", "texts: {unit").replace("words: {included", "texts: {included")
GONE: Final = re.sub(r"\n +words: .*", "", PLANS)
DENIED: Final = PLANS.replace("{bill: {per: 1, amount_cents: 4}}", "deny")
NO_EVENT: Final = DENIED.replace(", stripe: {event_name: words}}", "}").replace(
    "{bill: {per: 1, amount_cents: 7}}", "deny"
)
NOT_SENT: Final = PLANS.replace("event_name: words}", "event_name: words, report: none}")
RECORDED: Final = ("Words", "26", "4", 104)


async def used(at: Shop, customer: str = "acme") -> None:
    """Use 26 words more than are included, and go to mid-period."""
    await at.kit.record(customer, "words", 126)
    await flushed(at)
    at.go(HALF)


async def deployed(at: Shop, text: str) -> None:
    at.kit.store.use(loads(text))
    await at.kit.subscriptions.sync("acme")


async def passed_end(at: Shop) -> list[tuple[str, str, str, int]]:
    """Have the period end; its lines."""
    at.go(END + timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")
    await flushed(at)
    return await usage_lines(at)


each_edit = pytest.mark.parametrize(
    "text", [GONE, DENIED, NO_EVENT, NOT_SENT, RENAMED], ids=["gone", "denied", "no event", "none", "renamed"]
)


@pytest.mark.parametrize("is_synced", [True, False], ids=["synced", "not synced"])
@each_edit
async def test_i13_what_leaves_the_plans_file_is_billed_as_recorded(
    at: Shop, text: str, *, is_synced: bool
) -> None:
    await used(at)
    if is_synced:
        await deployed(at, text)
    else:
        at.kit.store.use(loads(text))
    assert await passed_end(at) == [RECORDED]


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "at Stripe"])
@each_edit
async def test_i13_a_dearer_plan_follows_what_left_the_plans_file(
    at: Shop, text: str, *, is_here: bool
) -> None:
    await used(at)
    at.kit.store.use(loads(text))
    if is_here:
        await at.kit.subscriptions.change_plan("acme", "team")
    else:
        (found,) = await at.stripe_list("/v1/subscriptions")
        (item,) = found["items"]["data"]
        (price,) = await at.stripe_list("/v1/prices", **{"lookup_keys[0]": "meterkit:team:base"})
        more = {"items[0][id]": item["id"], "items[0][price]": price["id"]}
        await at.stripe_change(f"/v1/subscriptions/{found['id']}", **more)
        await at.kit.subscriptions.sync("acme")
    assert (await at.kit.usage("acme"))["plan"] == "team"
    assert await passed_end(at) == [RECORDED]


@pytest.mark.parametrize("plan", ["pro", "team"])
@each_edit
async def test_i13_an_override_prices_what_left_the_plans_file(at: Shop, text: str, plan: str) -> None:
    price = {"bill": {"per": 1, "amount_cents": 2}}
    await at.kit.customers.override("acme", {"words": {"overage": price}})
    await used(at)
    await deployed(at, text)
    usage = await at.kit.store.usage_of_many(["acme"], former=True)
    assert usage[0]["meters"]["words"]["overage_cents"] in {52, None}
    await at.kit.subscriptions.change_plan("acme", plan)
    assert await passed_end(at) == [("Words", "26", "2", 52)]


@pytest.mark.parametrize("ends", ["taken back", "by the clock"])
async def test_i13_an_override_that_ends_prices_its_lost_meter(at: Shop, ends: str) -> None:
    price = {"bill": {"per": 1, "amount_cents": 2}}
    until = HALF + timedelta(days=3) if ends == "by the clock" else None
    await at.kit.customers.override("acme", {"words": {"overage": price}}, until=until)
    await used(at)
    await deployed(at, GONE)
    if until is None:
        assert (await at.kit.customers.override("acme", {"words": {}})).overrides == {}
    assert await passed_end(at) == [("Words", "26", "2", 52)]


@pytest.mark.parametrize("text", [GONE, RENAMED], ids=["gone", "renamed"])
@pytest.mark.parametrize("plan", ["pro", "team"])
async def test_i13_so_is_usage_on_a_plan_set_by_hand(at: Shop, text: str, plan: str) -> None:
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await used(at, "bob")
    at.kit.store.use(loads(text))
    await at.kit.customers.set_plan("bob", plan)
    lines = await passed_end(at)
    assert [line[1:] for line in lines] == [RECORDED[1:]]


@pytest.mark.parametrize(
    "texts",
    [
        [DENIED, PLANS.replace("amount_cents: 4}", "amount_cents: 9}")],
        [GONE, PLANS.replace("amount_cents: 4}", "amount_cents: 9}")],
        [
            PLANS.replace("event_name: words}", "event_name: w2}").replace(
                "amount_cents: 4}", "amount_cents: 9}"
            )
        ],
    ],
    ids=["denied for a day", "gone for a day", "another event name"],
)
async def test_i13_a_price_that_comes_back_is_the_customers_own(at: Shop, texts: list[str]) -> None:
    await used(at)
    for text in texts:
        at.clock.advance(timedelta(days=1))
        await deployed(at, text)
        words = (await at.kit.usage("acme"))["meters"].get("words")
        assert words is None or words["overage_cents"] == 104
    await at.kit.record("acme", "words", 10)
    assert await passed_end(at) == [("Words", "36", "4", 144)]
    (price, *_) = json.loads((await sold(at))[PRICES]).values()
    assert price == "1/4"


async def test_i13_a_renamed_meter_of_the_default_plan_keeps_its_price(at: Shop) -> None:
    billing = PLANS.replace("words: {included: 100, overage: deny}", f"words: {OF_PRO}")
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    at.kit.store.use(loads(billing))
    await used(at, "bob")
    texts = billing.replace("words: {unit", "texts: {unit").replace("words: {included", "texts: {included")
    at.kit.store.use(loads(texts))
    await at.kit.customers.set_plan("bob", "team")
    assert [line[1:] for line in await passed_end(at)] == [RECORDED[1:]]


async def test_usage_without_a_known_price_waits_for_its_meter(
    at: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """The plans file had got its meter after the subscription began."""
    more = PLANS.replace(
        "  pages: {unit", "  notes: {unit: note, stripe: {event_name: notes}}\n  pages: {unit"
    )
    more = more.replace(f"words: {OF_PRO}", f"words: {OF_PRO}\n      notes: {OF_PRO}")
    at.kit.store.use(loads(more))
    await at.kit.record("acme", "notes", 126)
    await flushed(at)
    at.kit.store.use(loads(PLANS))
    for instant, has_ended in ((END - timedelta(milliseconds=1), False), (END, True)):
        at.clock.set(instant)
        (found,) = await at.kit.reconcile("acme", at=HALF)
        assert found.advice.startswith("26 units wait for a line") == has_ended
    assert await passed_end(at) == []
    assert (
        "its meter is not in the plans file, and how it was billed is not known: put it back" in caplog.text
    )
    (found,) = await at.kit.reconcile("acme", at=HALF)
    assert found.waiting == 26
    assert found.advice == (
        "26 units wait for a line, and notes is not in the plans file: if the next flush writes none, no"
        " price of them is known; put the meter back"
    )
    at.kit.store.use(loads(more))
    await flushed(at)
    assert [line[1:] for line in await usage_lines(at)] == [RECORDED[1:]]


async def test_f_302_a_meter_that_left_the_file_keeps_its_price(at: Shop) -> None:
    billing = PLANS.replace("words: {included: 100, overage: deny}", f"words: {OF_PRO}")
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    at.kit.store.use(loads(billing))
    await used(at, "bob")
    at.kit.store.use(loads(re.sub(r"\n +words: .*", "", billing)))
    assert await passed_end(at) == [RECORDED]


BY_MODEL: Final = plans_text("prices_by_model").replace(
    "default_plan: free\n", "default_plan: free\nbilling: {usage: lines}\n"
)


def priced(table: str) -> str:
    """A plans file with these prices by model."""
    return BY_MODEL.replace("TABLE", f"{{default: 3 per 1000, models: {{{table}}}}}")


def answer(model: str, tokens: int) -> dict[str, object]:
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    return {"object": "chat.completion", "model": model, "choices": [], "usage": usage}


@pytest.mark.parametrize("plan", ["pro", "flat"])
async def test_i13_a_pattern_that_leaves_the_file_is_billed(store_url: str, plan: str) -> None:
    before = loads(priced('"large-*": 400 per 1000'))
    async with shop(store_url, catalog=before, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record_usage("acme", answer("large-1", 3000))  # 1,000 are included.
        await flushed(at)
        at.go(HALF)
        await deployed(at, priced('"small-*": 1 per 1000'))
        await at.kit.subscriptions.change_plan("acme", plan)
        assert await passed_end(at) == [("Output tokens: large-*", "2000", "0.4", 800)]


BY_HAND: dict[str, tuple[list[str | int | datetime], list[tuple[str, str]]]] = {
    "until the end": (["team", 126, END], [("26", "7")]),
    "taken back": (["team", 126, "", END], [("26", "7")]),
    "taken back after the end": (["team", 126, END, ""], [("26", "7")]),
    "set after the end": (["team", 126, "pro", 5, END, "team"], [("26", "7"), ("5", "4")]),
    "two plans": (["pro", 126, "team", 10, "", END], [("10", "7"), ("26", "4")]),
    "edited meanwhile": (["team", 126, "dearer", 10, END], [("36", "7")]),
    "canceled": (["team", 126, "cancel", END], [("26", "7")]),
}


@pytest.mark.parametrize("name", BY_HAND)
async def test_a_plan_by_hand_bills_what_the_sold_plan_does_not(store_url: str, name: str) -> None:
    """Each step is a plan set by hand (empty: taken back), words that are recorded, or another event."""
    steps, lines = BY_HAND[name]
    async with shop(store_url, catalog=loads(PLANS + BASIC), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="basic")
        at.clock.set(HALF)
        for step in steps:
            at.clock.advance(timedelta(minutes=3))
            if isinstance(step, int):
                await at.kit.record("acme", "words", step)
            elif step == "dearer":
                at.kit.store.use(loads((PLANS + BASIC).replace("amount_cents: 7}", "amount_cents: 9}")))
            elif step == "cancel":
                await at.kit.subscriptions.cancel("acme", immediately=True)
            elif isinstance(step, datetime):
                at.go(step)
            else:
                await at.kit.customers.set_plan("acme", step or None)
        at.go(timedelta(minutes=15))
        await at.kit.subscriptions.sync("acme")
        await at.kit.flush(everything=True)
        assert sorted((units, price) for _, units, price, _ in await usage_lines(at)) == lines


async def test_a_plan_by_hand_bills_what_left_the_sold_plan(at: Shop) -> None:
    await used(at)
    await deployed(at, DENIED)
    await at.kit.customers.set_plan("acme", "team")
    await at.kit.record("acme", "words", 10)
    lines = await passed_end(at)
    assert sorted((units, price) for _, units, price, _ in lines) == [("10", "7"), ("26", "4")]


async def test_usage_without_a_price_is_not_called_late(at: Shop, caplog: pytest.LogCaptureFixture) -> None:
    at.kit.store.use(loads(PLANS.replace("{bill: {per: 1, amount_cents: 4}}", "bill")))
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    assert await charged(at, "bob") == []
    (said,) = [one.getMessage() for one in caplog.records if "'bob'" in one.getMessage()]
    assert said.startswith("usage of customer 'bob' in the period from 2031-06-01T00:00:00Z has no price")
    assert said.endswith("; 26 of words: no invoice bills it")


async def test_i13_a_new_pattern_costs_the_default_until_a_repair(store_url: str) -> None:
    before, after = (priced(f'"small-*": 1 per 1000{more}') for more in ("", ', "large-*": 400 per 1000'))
    async with shop(store_url, catalog=loads(before), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record_usage("acme", answer("small-1", 1000))  # They are included.
        await flushed(at)
        at.go(HALF)
        await deployed(at, after)
        await at.kit.record_usage("acme", answer("large-1", 10_000))
        (drift,) = (await at.kit.subscriptions.check())["acme"]
        assert drift.kind == "new_models"
        assert drift.message == (
            "output_tokens:large-* cost it the default price: their own prices are newer than it"
        )
        assert (await at.kit.subscriptions.repair("acme")).mended == (drift,)
        await deployed(at, after)
        assert await at.kit.subscriptions.check() == {}
        await at.kit.record_usage("acme", answer("large-1", 1000))
        assert sorted(await passed_end(at)) == [
            ("Output tokens", "10000", "0.003", 30),
            ("Output tokens: large-*", "1000", "0.4", 400),
        ]
