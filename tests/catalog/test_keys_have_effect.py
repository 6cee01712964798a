"""Every key of a plans file is read by some code, or is named as one that has no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import meterkit
from meterkit.catalog import json_schema

SRC: Final = Path(meterkit.__file__).parent

# Key to a module and a piece of it that would not be there if the key's value were not read.
# `LOADER`: the key says how the file itself is to be read.
LOADER: Final = "catalog/load.py"
READ: Final[dict[str, tuple[str, str]]] = {
    "schema": (LOADER, 'name="schema"'),
    "currency": ("cli/usage.py", "kit.catalog.currency"),
    "default_plan": ("decisions/customer_state.py", "catalog.plans[catalog.default_plan]"),
    "anonymous": ("asgi/arguments.py", "catalog.anonymous"),
    "anonymous.plan": ("store/views.py", "by_ip.plan"),
    "anonymous.by": ("catalog/billing.py", 'Choice(("ip",))'),  # The only word.
    "anonymous.trusted_proxies": ("asgi/arguments.py", "anonymous.trusted_proxies"),
    "meters": ("store/compiled.py", "catalog.meters"),
    "meters.*.name": ("subscriptions/wanted_prices.py", "meter.title"),
    "meters.*.unit": ("decisions/policies.py", "meter.unit"),
    "meters.*.kind": ("decisions/program.py", 'meter.kind == "counter"'),
    "meters.*.stripe": ("store/event_names.py", ".stripe"),
    "meters.*.stripe.event_name": ("store/event_names.py", "event_name"),
    "meters.*.stripe.report": ("decisions/program.py", "stripe.report"),
    "meters.*.from": ("store/", ".source"),
    "meters.*.where": ("decisions/", ".where"),
    "notify": ("notify/messages.py", "catalog.notify"),
    "notify.webhook": ("notify/webhook.py", "catalog.notify.webhook"),
    "notify.webhook.url": ("notify/webhook.py", "channel.url"),
    "notify.webhook.events": ("notify/webhook.py", "channel.events"),
    "notify.email": ("notify/mail.py", "catalog.notify.email"),
    "notify.email.events": ("notify/mail.py", "channel.events"),
    "notify.email.from": ("notify/mail.py", "channel.sender"),
    "storage": ("storage/service.py", "catalog.storage"),
    "storage.gauge": ("storage/shelf.py", "storage.gauge"),
    "storage.objects": ("storage/records.py", "storage.objects"),
    "storage.objects[].bucket": ("storage/records.py", "pattern.bucket"),
    "storage.objects.bucket": ("storage/recalculation.py", "pattern.bucket"),
    "storage.objects.key": ("storage/recalculation.py", "pattern.key"),
    "storage.objects[].key": ("storage/records.py", "pattern.key"),
    "storage.types": ("storage/records.py", "storage.types"),
    "features": ("catalog/plans.py", "declared.features"),
    "prices": ("catalog/credit_tables.py", "prices[cost]"),
    "plans.*.meters.*.overage.bill.price": ("catalog/plans.py", "declared.prices"),
    "prices.*.default": ("catalog/model_prices.py", "self.default"),
    "prices.*.models": ("catalog/model_prices.py", "self.models"),
    "prices.*.unknown_model": ("catalog/model_prices.py", "self.unknown_model"),
    "credits": ("store/", "catalog.credits"),
    "credits.*.unit": ("cli/usage.py", "is_money"),
    "credits.*.models": ("tokens/charging.py", "prices.models"),
    "credits.*.unknown_model": ("catalog/asked_limits.py", "unknown_model == "),
    "credits.*.costs": ("decisions/", ".costs"),
    "credits.*.low_balance": ("decisions/grants.py", "credit.low_balance_percent"),
    "routes": ("asgi/middleware.py", "catalog.routes"),
    "routes[].match": ("asgi/routing.py", "route.path"),
    "routes[].exempt": ("asgi/middleware.py", "route.exempt"),
    "routes[].always": ("decisions/customer_state.py", "route.always"),
    "routes[].feature": ("decisions/customer_state.py", "route.feature"),
    "routes[].rate": ("decisions/program.py", "route.rates"),
    "routes[].rate.limit": ("decisions/policies.py", "rate.limit"),
    "routes[].rate.burst": ("decisions/policies.py", "rate.burst"),
    "routes[].rate.algorithm": ("decisions/policies.py", "rate.algorithm"),
    "routes[].per_message": ("asgi/websocket.py", "route.per_message"),
    "routes[].consume": ("decisions/", "route.consume"),
    "routes[].grow": ("decisions/program.py", "route.grow"),
    "routes[].storage": ("asgi/reservation.py", "route.storage_meter"),
    "routes[].usage": ("asgi/usage_watch.py", "self._route.usage"),
    "routes[].usage_fields": ("asgi/reading.py", "route.usage_fields"),
    "routes[].records": ("catalog/additions.py", "route.records"),
    "routes[].model": ("catalog/models.py", "self.model"),
    "routes[].provider": ("asgi/usage_watch.py", "route.provider"),
    "routes[].reserve": ("asgi/reservation.py", "route.reserve"),
    "routes[].reserve.*.from": ("asgi/reservation.py", ".field"),
    "routes[].reserve.*.default": ("asgi/reservation.py", ".default"),
    "routes[].reserve.*.ceiling": ("asgi/reservation.py", ".ceiling"),
    "routes[].charge_on": ("asgi/exchange.py", "route.charge_on"),
    "routes[].enforcement": ("asgi/middleware.py", "route.enforcement =="),
    "routes[].on_store_failure": ("asgi/without_store.py", "route.on_store_failure"),
    "routes[].idempotency_header": ("store/idempotency.py", "route.idempotency_header"),
    "routes[].headers": ("asgi/", "route.headers"),
    "allotment": ("store/allotment.py", "catalog.allotment"),
    "routes[].allotment": ("store/allotment.py", "route.allotment"),
    "plans.*.allotment": ("store/allotment.py", "plan.allotment"),
    "billing.checkout": ("subscriptions/service/service.py", "billing.checkout"),
    "plans": ("decisions/customer_state.py", "catalog.plans.get("),
    "plans.*.extends": ("catalog/load.py", "EXTENDS"),
    "plans.*.name": ("subscriptions/wanted_prices.py", "plan.name"),
    "plans.*.price.amount_cents": ("subscriptions/wanted_prices.py", "price.amount_cents"),
    "plans.*.seat_price.amount_cents": ("subscriptions/wanted_prices.py", "seat.amount_cents"),
    "plans.*.price": ("decisions/customer_state.py", "plan.price.interval"),
    "plans.*.price.interval": ("decisions/customer_state.py", "plan.price.interval"),
    "plans.*.price.included_per": ("decisions/customer_state.py", "plan.price.included_per"),
    "plans.*.price.stripe_price": ("subscriptions/stripe_prices.py", "plan.price.stripe_price"),
    "credits.*.top_up": ("catalog/model_prices.py", "one.top_up"),
    "credits.*.top_up.packs": ("subscriptions/price_sync.py", "top_ups.amounts"),
    "credits.*.top_up.url": ("asgi/offers.py", "credit.top_up.url"),
    "credits.*.top_up.auto": ("decisions/grants.py", "credit.top_up.auto"),
    "credits.*.top_up.auto.below": ("decisions/grants.py", "auto.below_cents"),
    "credits.*.top_up.auto.amount": ("catalog/model_prices.py", "self.auto.amount_cents"),
    "credits.*.top_up.auto.at_most": ("subscriptions/service/auto_top_ups.py", "auto.at_most"),
    "plans.*.budget": (LOADER, "plan.budget"),
    "plans.*.budget.amount_cents": ("catalog/budgets.py", "amount_cents * micros"),
    "plans.*.budget.per": ("catalog/budgets.py", "values.per"),
    "plans.*.budget.warn_at": ("catalog/budgets.py", "values.warn_at"),
    "plans.*.budget.at_limit": ("catalog/budgets.py", "values.at_limit"),
    "plans.*.subjects": ("catalog/plans.py", "values.subjects"),
    "plans.*.subjects.*.budget": ("catalog/subjects.py", "values.budget"),
    "plans.*.subjects.*.budget.amount_cents": ("catalog/subjects.py", "values.amount_cents"),
    "plans.*.subjects.*.budget.per": ("catalog/subjects.py", "values.per"),
    "plans.*.subjects.*.*.rate": ("decisions/subjects.py", "limits.limits[name].rates"),
    "plans.*.subjects.*.*.rate.limit": ("decisions/policies.py", "rate.limit"),
    "plans.*.subjects.*.*.rate.algorithm": ("decisions/policies.py", "rate.algorithm"),
    "plans.*.subjects.*.*.rate.burst": ("decisions/policies.py", "rate.burst"),
    "plans.*.subjects.*.*.concurrency": ("catalog/entitlements.py", "_limit_of(values.concurrency)"),
    "plans.*.subjects.*.*.included": ("catalog/entitlements.py", "_limit_of(values.included)"),
    "plans.*.rank": ("subscriptions/change_rules.py", "wanted.rank < current.rank"),
    "plans.*.seat_price": ("subscriptions/change_rules.py", "plan.seat_price"),
    "plans.*.seat_price.stripe_price": (
        "subscriptions/stripe_prices.py",
        "plan.seat_price.stripe_price",
    ),
    "plans.*.payment_method": ("subscriptions/payment_gate.py", "plan.payment_method"),
    "plans.*.trial": ("subscriptions/service/beginning.py", "plan.trial_ms"),
    "plans.*.trial.for": ("subscriptions/service/beginning.py", "plan.trial_ms"),
    "plans.*.trial.without_card": ("subscriptions/trial_settings.py", "plan.trial_without_card"),
    "plans.*.features": ("decisions/customer_state.py", "effective.plan.features"),
    "plans.*.meters": ("decisions/customer_state.py", "plan.entitlements"),
    "plans.*.meters.*.rate": ("decisions/program.py", ".rates"),
    "plans.*.meters.*.rate.limit": ("decisions/policies.py", "rate.limit"),
    "plans.*.meters.*.rate.algorithm": ("decisions/policies.py", "rate.algorithm"),
    "plans.*.meters.*.rate.burst": ("decisions/policies.py", "rate.burst"),
    "plans.*.meters.*.concurrency": ("decisions/asked.py", "entitlement.concurrency"),
    "plans.*.meters.*.included": ("store/", "entitlement.included"),
    "plans.*.meters.*.overage": ("store/", "overage.mode"),
    "plans.*.meters.*.warn_at": ("store/settlement_shape.py", "entitlement.thresholds"),
    "plans.*.meters.*.overage.bill": ("store/", "overage.mode"),
    "plans.*.meters.*.overage.bill.cap": ("catalog/entitlements.py", "included + overage.cap"),
    "plans.*.meters.*.overage.bill.per": ("decisions/price_segments.py", "overage.per"),
    "plans.*.meters.*.overage.bill.amount_cents": ("decisions/price_segments.py", "overage.amount_cents"),
    "plans.*.meters.*.overage.percent": ("decisions/gauges.py", "overage.percent"),
    "plans.*.meters.*.overage.grace": ("decisions/gauges.py", "overage.grace_ms"),
    "plans.*.grants": ("decisions/grants.py", "grants"),
    "plans.*.grants[].credit": ("decisions/grants.py", "grant.kind"),
    "plans.*.grants[].meter": ("decisions/grants.py", "grant.kind"),
    "plans.*.grants[].quantity": ("decisions/grants.py", "grant.quantity"),
    "plans.*.grants[].every": ("catalog/plans.py", 'EVERY_WORDS: Final = ("period",)'),  # The only word.
    "plans.*.grants[].priority": ("decisions/grants.py", "grant.priority"),
    "plans.*.grants[].expires": ("decisions/grants.py", "grant.expires_ms"),
    "plans.*.grants[].id": ("decisions/grants.py", "grant.key"),
    "billing": (LOADER, "values.billing"),
    "billing.charge_on": (LOADER, "charge_on=money.charge_on"),
    "billing.idempotency_header": (LOADER, "idempotency_header"),
    "billing.sources": ("asgi/call_amounts.py", "catalog.billing.sources"),
    "billing.portal_url": ("asgi/refuser.py", "catalog.billing.portal_url"),
    "billing.changes": ("subscriptions/service/changing.py", "billing.changes"),
    "billing.changes.upgrade": ("subscriptions/change_rules.py", "changes.upgrade"),
    "billing.changes.downgrade": ("subscriptions/change_rules.py", "changes.downgrade"),
    "billing.changes.over_limit": ("decisions/customer_state.py", "changes.over_limit"),
    "billing.changes.allowance": ("decisions/plan_shares.py", "changes.allowance"),
    "billing.hold_invoice": ("delivery/draft_hold.py", "hold_invoice_ms"),
    "billing.late_usage": ("store/settlement.py", "catalog.billing.late_usage"),
    "dunning": ("decisions/customer_state.py", "catalog.dunning"),
    "dunning.grace": ("decisions/subscription.py", "dunning.grace_ms"),
    "dunning.attempts": ("decisions/subscription.py", "dunning.attempts"),
    "dunning.remind": ("decisions/subscription.py", "dunning.remind_ms"),
    "dunning.debt": ("subscriptions/service/beginning.py", "dunning.debt"),
    "dunning.restrict_to": ("decisions/customer_state.py", "catalog.dunning.restrict_to"),
    "dunning.suspend_after": ("decisions/subscription.py", "dunning.suspend_after_ms"),
    "enforcement": ("catalog/notes.py", "catalog.enforcement"),
    "on_store_failure": (LOADER, '"on_store_failure", "headers"'),
    "headers": (LOADER, '"on_store_failure", "headers"'),
}


# Key to the attribute that code would read if the key had an effect.
def keys(schema: dict[str, Any], path: str = "") -> dict[str, str]:
    """Every key of the schema with its description."""
    found: dict[str, str] = {}
    for name, described in cast("dict[str, dict[str, Any]]", schema.get("properties", {})).items():
        below = f"{path}.{name}" if path else name
        found[below] = described["description"]
        found |= keys(described, below)
    for form in schema.get("anyOf", []):
        found |= keys(form, path)
    if isinstance(schema.get("items"), dict):
        found |= keys(schema["items"], path if path.endswith(".rate") else f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        found |= keys(schema["additionalProperties"], f"{path}.*")
    return found


def source(place: str) -> str:
    files = sorted((SRC / place).glob("*.py")) if place.endswith("/") else [SRC / place]
    return "".join(file.read_text("utf-8") for file in files)


def test_every_key_is_read() -> None:
    """F-60, F-108."""
    assert set(keys(json_schema())) == set(READ)


def test_what_is_said_to_be_read_is_read() -> None:
    missing = {key: piece for key, (place, piece) in READ.items() if piece not in source(place)}
    assert missing == {}
