"""Phases of a subscription schedule as parameters of an update: as Stripe shows them, with one change. Pure.

An update replaces the list of phases, so each phase is sent back as Stripe shows it
(https://docs.stripe.com/billing/subscriptions/subscription-schedules#update-subscription-schedules). Every
field that is set is sent, an unknown one too: Stripe refuses a field that it does not take, by name, and
nothing is lost unnoticed. :data:`NOT_SENT` and :data:`NOT_CONTINUED` list the exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.errors import SubscriptionError
from meterkit.subscriptions.item_changes import CREATE_PRORATIONS, as_new, item_of
from meterkit.subscriptions.stripe_objects import MADE_MARK, id_in, part_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import LiveItem

NOT_SENT: Final[Mapping[tuple[str, ...], str]] = {
    ("automatic_tax", "disabled_reason"): "read-only; no parameter has it",
    ("items", "plan"): "the price under its old name; a changed item would name two prices",
    ("items", "price_data"): "a parameter only; Stripe shows the price that it made",
    ("add_invoice_items", "price_data"): "a parameter only; Stripe shows the price that it made",
    ("duration",): "a parameter only; Stripe shows the end",
}
"""Fields of phases that the response and the parameters do not share, each with the reason.

Pages: https://docs.stripe.com/api/subscription_schedules/object (response) and
https://docs.stripe.com/api/subscription_schedules/update (parameters).
"""
NOT_CONTINUED: Final[Mapping[str, str]] = {
    "add_invoice_items": "charged once, when the phase begins",
    "billing_cycle_anchor": "would move the anchor again",
    "discounts": "the subscription's present ones go on; a coupon would be redeemed again",
    "end_date": "its own",
    "proration_behavior": f"`{CREATE_PRORATIONS}`: with `none` Stripe drops the usage of metered prices",
    "start_date": "its own",
    "trial": "the end of the trial says it",
    "trial_end": "unless it is later than the cut",
}
"""Fields that the second half of a phase that is cut in two does not take over, each with the reason.

https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup is the page about `none`.
"""
_ITEM_OWN: Final = frozenset({"price", "quantity"})
_ITEM_SETTINGS: Final = ("billing_thresholds", "metadata", "tax_rates")
_SUBSCRIPTION_SETTINGS: Final = (
    "application_fee_percent",
    "automatic_tax",
    "billing_thresholds",
    "collection_method",
    "default_payment_method",
    "default_tax_rates",
    "description",
    "invoice_settings",
    "on_behalf_of",
    "transfer_data",
)
_OF_PHASE: Final = (*_SUBSCRIPTION_SETTINGS, "metadata", "trial", "trial_end")
_ONCE: Final = ("add_invoice_items", "billing_cycle_anchor", "trial_end")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDraft:
    """A phase that is sent back to Stripe, and its items apart.

    Attributes:
        params: all but the items.
        items: their prices and quantities.
        settings: the other parameters of each item, by its id in ``items``; in a phase ahead also those of
            present items, by their prices.
        is_later: whether the phase begins when the change takes effect, or after that.
    """

    params: Mapping[str, Parameter]
    items: tuple[LiveItem, ...]
    settings: Mapping[str, Mapping[str, Parameter]]
    is_later: bool = False

    def lines(self) -> list[dict[str, Parameter]]:
        """Return the items as they are."""
        return [{**self.settings.get(item.id, {}), **as_new(item)} for item in self.items]

    def to_params(self, lines: Sequence[Mapping[str, Parameter]]) -> dict[str, Parameter]:
        """Return the phase with these items."""
        return {**self.params, "items": list(lines)}


def present_phases(schedule: Mapping[str, Any], subscription: Mapping[str, Any]) -> list[PhaseDraft]:
    """Return the current and the future phases of a schedule as they are.

    The current phase has the items, settings, discounts and metadata that the subscription has now: direct
    changes of the subscription stay.

    Args:
        schedule: as Stripe shows it, with expanded prices.
        subscription: as Stripe shows it.
    """
    return [_draft_of(phase, schedule, subscription) for phase in _present(schedule)]


def cut_phases(
    schedule: Mapping[str, Any], subscription: Mapping[str, Any], *, change_s: int, interval: str
) -> list[PhaseDraft]:
    """Return the current and the future phases with a phase that begins when a change takes effect.

    If no phase covers that time, a last one of one interval is added. After that the subscription goes on
    without the schedule.

    Args:
        schedule: as Stripe shows it, with expanded prices.
        subscription: as Stripe shows it.
        change_s: when the change takes effect (Unix seconds).
        interval: of the base price after the change: ``month`` or ``year``.

    Raises:
        SubscriptionError: the schedule cancels the subscription before the change.
    """
    drafts: list[PhaseDraft] = []
    shown = _present(schedule)
    for phase in shown:
        draft = _draft_of(phase, schedule, subscription)
        if phase["start_date"] >= change_s:
            drafts.append(_mark_later(draft, phase["start_date"], change_s))
        elif phase["end_date"] <= change_s:
            drafts.append(draft)
        else:
            rest = _continue_phase(draft, phase, schedule, subscription)
            own = {
                name: phase[name] for name in ("end_date", "trial_end") if (phase.get(name) or 0) > change_s
            }
            drafts += [_end_phase(draft, change_s), _set_params(rest, own)]
    last = shown[-1]
    if last["end_date"] <= change_s:
        if schedule.get("end_behavior") == "cancel":
            raise SubscriptionError(
                f"the schedule {schedule['id']} cancels the subscription before the change takes effect:"
                " change its `end_behavior` at Stripe first"
            )
        if last["end_date"] < change_s:
            drafts[-1] = _end_phase(drafts[-1], change_s)
        rest = _continue_phase(_draft_of(last, schedule, subscription), last, schedule, subscription)
        drafts.append(_set_params(rest, {"duration": {"interval": interval, "interval_count": 1}}))
    return drafts


def restored_schedule(made: Mapping[str, Any], kept: Mapping[str, Any], now_s: int) -> dict[str, Any]:
    """A new schedule of a subscription with the phases ahead of one that was released.

    Args:
        made: the new schedule, with its one phase.
        kept: the released one, which has not been over at ``now_s``.
        now_s: this instant (Unix seconds).
    """
    ahead = sorted(
        (phase for phase in kept["phases"] if phase["start_date"] > now_s), key=lambda one: one["start_date"]
    )
    end_s = ahead[0]["start_date"] if ahead else max(phase["end_date"] for phase in kept["phases"])
    (current,) = made["phases"]
    return {**made, "phases": [{**current, "end_date": end_s}, *ahead]}


def is_bare(schedule: Mapping[str, Any]) -> bool:
    """Whether a schedule changes nothing, as one that was created and has not got its phases yet."""
    return len(_present(schedule)) == 1 and schedule.get("end_behavior") == "release"


def has_custom_terms(schedule: Mapping[str, Any]) -> bool:
    """Whether a schedule has more than one change of plan, which its release would lose.

    That is a cancellation at its end, another phase, or a future phase with other terms than the current one.
    A phase that meterkit has made has the terms that the subscription had at that time.
    """
    current, *later = _present(schedule)
    if schedule.get("end_behavior") == "cancel" or len(later) > 1:
        return True
    if part_of(schedule, "metadata").get(MADE_MARK):
        return False
    lasting = _lasting_terms(current)
    return any(_lasting_terms(phase) != lasting or any(map(phase.get, _ONCE)) for phase in later)


def _lasting_terms(phase: Mapping[str, Any]) -> tuple[object, ...]:
    """Terms of a phase and of its items that do not concern its beginning, its end, prices and quantities."""
    params = _params_of(phase, ())
    terms = {name: params[name] for name in sorted(params) if name not in {*NOT_CONTINUED, "items"}}
    of_items = sorted({repr(sorted(_settings(item).items())) for item in phase["items"]})
    return terms, params.get("discounts"), of_items


def _present(schedule: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The current phase and those after it; past ones can be left out."""
    phases: list[Mapping[str, Any]] = sorted(schedule["phases"], key=lambda phase: phase["start_date"])
    begins_s = part_of(schedule, "current_phase").get("start_date") or 0
    return [phase for phase in phases if phase["start_date"] >= begins_s] or phases


def _draft_of(
    phase: Mapping[str, Any], schedule: Mapping[str, Any], subscription: Mapping[str, Any]
) -> PhaseDraft:
    params = _params_of(phase, ())
    params.pop("items", None)
    if phase["start_date"] != _present(schedule)[0]["start_date"]:
        items = tuple(_phase_item(item, str(place)) for place, item in enumerate(phase["items"]))
        settings = {item.id: _settings(shown) for item, shown in zip(items, phase["items"], strict=True)}
        draft = PhaseDraft(params=params, items=items, settings=settings)
        is_made_here = MADE_MARK in part_of(schedule, "metadata")
        return _with_present_discounts(draft, subscription) if is_made_here else draft
    live: Sequence[Mapping[str, Any]] = subscription["items"]["data"]
    by_price = {id_in(item, "price"): item for item in phase["items"]}
    present = _params_of(_present_terms(_terms_of(subscription, phase), phase, _OF_PHASE), ())
    return PhaseDraft(
        params={name: value for name, value in present.items() if name != "items"},
        items=tuple(item_of(item) for item in live),
        settings={
            item["id"]: _settings(
                _present_terms(item, by_price.get(id_in(item, "price"), {}), _ITEM_SETTINGS)
            )
            for item in live
        },
    )


def _with_present_discounts(draft: PhaseDraft, subscription: Mapping[str, Any]) -> PhaseDraft:
    """A future phase with the discounts that the subscription and its items have now.

    One that a person has given since meterkit made the phase would end with the current phase. Settings of
    present items that the phase lacks are by their prices.
    """
    live = {id_in(item, "price"): item for item in subscription["items"]["data"]}
    settings = {
        price: _continued_settings(_settings(_present_terms(item, {}, _ITEM_SETTINGS)), item)
        for price, item in live.items()
    }
    for item in draft.items:
        kept, known = draft.settings[item.id], live.get(item.price)
        settings[item.id] = kept if known is None else _continued_settings(kept, known)
    params = {name: value for name, value in draft.params.items() if name != "discounts"}
    discounts = _discounts(subscription.get("discounts"))
    params |= {"discounts": discounts} if discounts else {}
    return replace(draft, params=params, settings=settings)


def _continue_phase(
    draft: PhaseDraft, phase: Mapping[str, Any], schedule: Mapping[str, Any], subscription: Mapping[str, Any]
) -> PhaseDraft:
    """The second half of a phase that is cut in two."""
    params = {name: value for name, value in draft.params.items() if name not in NOT_CONTINUED}
    settings = draft.settings
    if phase is _present(schedule)[0]:
        discounts = _discounts(subscription.get("discounts"))
        live: Sequence[Mapping[str, Any]] = subscription["items"]["data"]
        settings = {item["id"]: _continued_settings(settings[item["id"]], item) for item in live}
    else:
        discounts = cast("list[Parameter]", draft.params.get("discounts") or [])
    if discounts:
        params["discounts"] = discounts
    return PhaseDraft(
        params={**params, "proration_behavior": CREATE_PRORATIONS},
        items=draft.items,
        settings=settings,
        is_later=True,
    )


def _continued_settings(
    settings: Mapping[str, Parameter], item: Mapping[str, Any]
) -> Mapping[str, Parameter]:
    """The settings of an item that goes on, with the discounts that it has now."""
    kept = {name: value for name, value in settings.items() if name != "discounts"}
    discounts = _discounts(item.get("discounts"))
    return {**kept, "discounts": discounts} if discounts else kept


def _mark_later(draft: PhaseDraft, start_s: int, change_s: int) -> PhaseDraft:
    """A phase after the change; the one that begins with it prorates, so that no usage is dropped."""
    is_dropping = start_s == change_s and draft.params.get("proration_behavior") == "none"
    changed = _set_params(draft, {"proration_behavior": CREATE_PRORATIONS}) if is_dropping else draft
    return replace(changed, is_later=True)


def _end_phase(draft: PhaseDraft, end_s: int) -> PhaseDraft:
    """A phase with another end; its trial ends then at the latest."""
    params: dict[str, Parameter] = {name: value for name, value in draft.params.items() if name != "trial"}
    trial_end_s = params.get("trial_end")
    if isinstance(trial_end_s, int):
        params["trial_end"] = min(trial_end_s, end_s)
    return replace(draft, params={**params, "end_date": end_s})


def _set_params(draft: PhaseDraft, params: Mapping[str, Parameter]) -> PhaseDraft:
    return replace(draft, params={**draft.params, **params})


def _terms_of(subscription: Mapping[str, Any], phase: Mapping[str, Any]) -> dict[str, Any]:
    """A subscription with its trial and `days_until_due` as a phase has them, and the metadata of both.

    A phase puts its metadata on the subscription: an older value would replace the present one.
    """
    terms = dict(subscription)
    if "status" in terms:
        is_trial = terms["status"] == "trialing"
        terms |= {"trial": None, "trial_end": terms.get("trial_end") if is_trial else None}
    if "days_until_due" in terms:
        days = {"days_until_due": terms["days_until_due"]}
        terms["invoice_settings"] = {**part_of(terms, "invoice_settings"), **days}
    if "metadata" in terms:
        own = part_of(terms, "metadata")
        terms["metadata"] = {name: own[name] for name in part_of(phase, "metadata") if name in own}
    return terms


def _present_terms(
    live: Mapping[str, Any], shown: Mapping[str, Any], settings: Iterable[str]
) -> dict[str, Any]:
    """A phase, or an item of it, as shown, with the present terms of the subscription, or its item.

    Args:
        live: the subscription or its item.
        shown: the phase or its item.
        settings: the names that have the same value in both.
    """
    terms = {**shown, **{name: live[name] for name in settings if name in live}}
    if "discounts" in live:
        terms["discounts"] = _present_discounts(live["discounts"], shown.get("discounts"))
    return terms


def _present_discounts(live: object, shown: object) -> list[object]:
    """Discounts of a phase that the subscription still has, as shown, and its other ones by their ids."""
    left, kept = list(cast("list[object]", live or [])), list[object]()
    for each in cast("list[object]", shown or []):
        same = next((one for one in left if _names(each) & _names(one)), None)
        if same is not None:
            left.remove(same)
            kept.append(each)
    return kept + left


def _names(discount: object) -> set[str]:
    """The ids of a discount, its coupon and its promotion code that are shown."""
    if not isinstance(discount, dict):
        return {str(discount)}
    shown = cast("dict[str, Any]", discount)
    source = part_of(shown, "source")
    found = (id_in(shown, "id"), id_in(shown, "discount"), id_in(shown, "promotion_code"))
    return {*found, id_in(shown, "coupon"), id_in(source, "coupon")} - {""}


def _phase_item(item: Mapping[str, Any], place: str) -> LiveItem:
    price = part_of(item, "price") or {"id": item["price"]}
    return item_of({**item, "id": place, "price": price})


def _settings(item: Mapping[str, Any]) -> dict[str, Parameter]:
    """All parameters of a phase's item but price and quantity."""
    shown = {name: value for name, value in item.items() if name not in _ITEM_OWN}
    return _params_of(shown, ("items",))


def _params_of(found: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Parameter]:
    """The parameters of an object: ids for objects, nothing that is not set."""
    params: dict[str, Parameter] = {}
    for name, value in found.items():
        here = (*path, name)
        if here in NOT_SENT:
            continue
        sent = _discounts(value) if name == "discounts" else _parameter(value, here)
        if sent is not None and sent not in ("", [], {}):
            params[name] = sent
    return params


def _parameter(value: object, path: tuple[str, ...]) -> Parameter:
    if isinstance(value, list):
        return [_parameter(each, path) for each in cast("list[object]", value)]
    if not isinstance(value, dict):
        return cast("Parameter", value)
    found = cast("dict[str, Any]", value)
    if path[-1] == "metadata":
        return found
    is_expanded = isinstance(found.get("object"), str) and isinstance(found.get("id"), str)
    return found["id"] if is_expanded else _params_of(found, path)


def _discounts(found: object) -> list[Parameter]:
    """Discounts by one name each: the discount that is there, else its promotion code, else its coupon.

    A coupon or a code that is sent for a discount that is there would be redeemed again
    (https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-phases-discounts).
    """
    sent: list[Parameter] = []
    for each in cast("list[object]", found or []):
        if isinstance(each, str):
            sent.append({"discount": each})
            continue
        shown = cast("dict[str, Any]", each)
        names = ("id",) if shown.get("object") == "discount" else ("discount", "promotion_code", "coupon")
        name = next((name for name in names if id_in(shown, name)), None)
        if name is not None:
            sent.append({"discount" if name == "id" else name: id_in(shown, name)})
    return sent
