"""Quantities that a request sets aside before the app runs; models without a price are refused.

Parsers differ about repeated members, spellings and encodings. So the largest figure that one of them could
find counts, and the ceiling if the body cannot be read: a client must not choose the default.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_usage import LlmRequest, read_request
from llm_usage.call_usage import WRITTEN_CHARS_MAX
from llm_usage.estimate import held_input, speech_units
from llm_usage.listed_models import providers_of
from llm_usage.requested_model import RequestHead, models_of_body, requested_models
from llm_usage.units import UNITS
from meterkit.asgi.buffered_body import head_of, ways_of
from meterkit.asgi.upload import announced_bytes
from meterkit.catalog.errors import listed
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.decision import Decision, RequestProblem
from meterkit.decisions.periods import from_ms
from meterkit.store.prepared_decisions import prepare_reserving, read_decision
from meterkit.store.request_idempotency import mark_requests, repeat_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from starlette.types import Scope

    from llm_usage.estimate import InputEstimator
    from llm_usage.llm_request import NamedLimit
    from meterkit.asgi.buffered_body import BufferedBody
    from meterkit.catalog import Reserve, Route
    from meterkit.decisions.model_charges import ModelCharges
    from meterkit.redis.lane import Lane
    from meterkit.store.store import Prepare, Store
    from meterkit.store.views import CustomerView, PreparedDecision

_NO_HEAD: Final = RequestHead()
_NO_CHARGES: Final[Mapping[str, ModelCharges]] = {}
_STORE_FAILED: Final = Decision(allowed=False, reason="store", degraded=True)
_PER_ANSWER: Final = frozenset({"output_tokens", "reasoning_tokens", "total_tokens"})
_SHOWN_MAX: Final = 256
_HELD_MODELS_MAX: Final = 16


async def find_known_refusal(
    store: Store, lane: Lane, view: CustomerView, route: Route
) -> PreparedDecision | None:
    """Find the decision that refuses a request by the customer's state alone, before its body is read.

    The store is asked only where the known state refuses: for all others one round trip decides, after their
    body was read. A new customer is one of them, unless the default plan refuses.

    Raises:
        StoreError: the store cannot decide.
    """
    reads_body = route.reserve or route.asks_model
    if not reads_body or route.enforcement == "shadow" or view.prepare(route).refusal is None:
        return None

    def confirm(newest: CustomerView, _: str) -> PreparedDecision:
        return newest.prepare(route, "v")

    decided = confirm(view, "v")
    decided, reply = await store.conclude(lane, decided, confirm, await lane.ask(decided))
    if decided.refusal is None:
        return None
    read_decision(decided, reply)  # The customer is known from now on.
    return decided


class UnservedError(Exception):
    """Refuses a request before the store decides; ``decided`` has the policies that it falls under."""

    def __init__(self, decision: Decision, decided: PreparedDecision | None = None) -> None:
        self.decision = decision
        self.decided = decided


class RequestReservation(NamedTuple):
    """Quantities that one request sets aside.

    Attributes:
        quantities: by meter.
        models: that the request names; none where it names none, or cannot be read.
        problem: refuses the request whatever its customer has left.
        free: money meters that the request certainly adds nothing to.
    """

    quantities: dict[str, int]
    models: Sequence[str] = ()
    problem: RequestProblem | None = None
    free: frozenset[str] = frozenset()


async def prepare_reservation(
    store: Store,
    lane: Lane,
    view: CustomerView,
    route: Route,
    body: BufferedBody,
    *,
    estimate: InputEstimator | None,
) -> Prepare:
    """Read what a request asks for, with its body if the route needs it; return its decision's preparer.

    Raises:
        UnservedError: the customer's state refuses it, or it asks for more than it may.
        StoreError: the store cannot decide.
    """
    refused = await find_known_refusal(store, lane, view, route)
    if refused is not None:
        raise UnservedError(refused.refusal or _STORE_FAILED, refused)
    compiled, found = view.cache, RequestReservation({})
    if route.reserve or route.asks_model:
        await body.read()
        content, size, ended = body.content()
        found = reservation(
            route,
            body=content,
            size=size,
            ended=ended,
            counters=compiled.counters,
            estimate=estimate,
            charges=compiled.charges,
            at=from_ms(compiled.now_ms()) if compiled.charges else None,
            head=head_of(body.scope),
            ways=ways_of(body.scope) if compiled.charges else (),
            check_models=partial(unpriced_problem, view, route),
        )
    quantities, models, problem, free = found
    if route.storage_meter is not None:
        announced = announced_bytes(body)
        if announced is not None:
            quantities[route.storage_meter] = announced

    def prepare(view: CustomerView, mode: str) -> PreparedDecision:
        if not (quantities or route.reserve or route.asks_model):
            return view.prepare(route, mode)
        return prepare_reserving(view, route, quantities, mode, models=models, free=free)

    decide = refuse_problem(view, route, prepare, problem)
    digest = repeat_digest(route, body.scope)
    return decide if digest is None else mark_requests(decide, digest)


def refuse_problem(
    view: CustomerView, route: Route, prepare: Prepare, problem: RequestProblem | None
) -> Prepare:
    """Refuse a request that has a problem; shadow mode serves it.

    Raises:
        UnservedError: it has one, and is refused.
    """
    if problem is None:
        return prepare
    refusal = _refuse_with(view, problem)
    if route.enforcement != "shadow":
        raise UnservedError(refusal, prepare(view, "d"))

    def waived(view: CustomerView, mode: str) -> PreparedDecision:
        decided = copy(prepare(view, mode))  # It may be the one of all requests of the route.
        if decided.shadow and decided.waived is None:
            decided.waived = refusal
        return decided

    return waived


def _refuse_with(view: CustomerView, problem: RequestProblem) -> Decision:
    return Decision(customer=view.customer, plan=view.effective.plan.key, allowed=False, problem=problem)


def reservation(
    route: Route,
    *,
    body: bytes,
    size: int,
    counters: Collection[str],
    estimate: InputEstimator | None = None,
    ended: bool = True,
    charges: Mapping[str, ModelCharges] = _NO_CHARGES,
    at: datetime | None = None,
    head: RequestHead = _NO_HEAD,
    ways: Sequence[tuple[str, str]] = (),
    check_models: Callable[[Sequence[str]], RequestProblem | None] = lambda _: None,
) -> RequestReservation:
    """Work out the quantities that a request reserves by meter, and the models that it names.

    Of each meter in ``reserve:`` what the body names, otherwise the default; of output for as many answers as
    it asks for; at most the ceiling, and that where the body cannot be read. A request that names more than
    the ceiling has a problem. Where the meters are declared
    and not in ``reserve:``, of ``input_tokens`` an estimate, and of ``total_tokens`` input and output
    together. Where output is set aside, the most that the tokens may be charged is, too.

    Args:
        route: the route.
        body: as much of the request's body as was read.
        size: bytes of the whole of it, as far as that is known.
        counters: the meters that can be counted on.
        estimate: the app's own estimator of the input; None: it has none.
        ended: whether the body was read to its end.
        charges: what calls are charged, by the meter that counts it.
        at: when (aware), where calls are charged: prices have dates.
        head: the request's, which may name a model.
        ways: of processing that the request's head asks for.
        check_models: finds the problem of named models; see :func:`unpriced_problem`.
    """
    is_whole = ended and size <= len(body)
    asked = None
    if is_whole:
        asked = read_request(body) if body else LlmRequest()
    named, models = _read_models(route, head, body, asked, is_whole=is_whole)
    unpriced = check_models(named)
    free = _free_meters(route, models, charges, at)
    if not route.reserve:
        return RequestReservation({}, models, unpriced, free)
    held = {reserve.meter: _held_quantity(reserve, asked) for reserve in route.reserve}
    wants_input = bool(charges) or "input_tokens" in counters or "total_tokens" in counters
    entered = held.get("input_tokens")
    if entered is None:
        entered = held_input(asked, body, size, estimate) if wants_input else 0
        if "input_tokens" in counters:
            held["input_tokens"] = entered
    if "total_tokens" in counters and "total_tokens" not in held:
        held["total_tokens"] = min(entered + held.get("output_tokens", 0), QUANTITY_MAX)
    if at is not None and (left := held.get("output_tokens")) is not None:
        spoken = speech_units(asked)
        for meter in charges.keys() - free:
            held[meter] = charges[meter].held(
                models,
                route.usage,
                input_tokens=entered,
                output_tokens=max(left, spoken.get("output_tokens", 0)),
                at=at,
                provider=route.provider,
                has_media=asked is None or asked.has_media,
                is_listed=bool(route.own_models),
                context=_asked_ways(asked, ways),
                others={**spoken, **{meter: quantity for meter, quantity in held.items() if meter in UNITS}},
            )
    return RequestReservation(held, models, unpriced or _find_excess(route, asked), free)


def _read_models(
    route: Route, head: RequestHead, body: bytes, asked: LlmRequest | None, *, is_whole: bool
) -> tuple[Sequence[str], Sequence[str]]:
    """Find the models that must have a price, and those whose dearest is held: none if these are not known.

    Names in places where few apps and gateways read a model raise the hold, and need no price.
    """
    own = route.own_models
    if own:
        return own, own
    of_body = models_of_body(head, body, asked, is_whole=is_whole)
    models = requested_models(head, of_body)
    if of_body is None and not models:
        return ("",), ()
    if asked is None:
        return models, models
    of_tools = asked.tool_models
    elsewhere = (*of_tools, *asked.mentioned_models)
    if not (models and elsewhere):
        return (*models, *of_tools), models
    found = tuple(dict.fromkeys((*models, *(name[:WRITTEN_CHARS_MAX] for name in elsewhere))))
    return (*models, *of_tools), found if len(found) <= _HELD_MODELS_MAX else ()


def _asked_ways(
    asked: LlmRequest | None, of_head: Sequence[tuple[str, str]]
) -> Sequence[tuple[str, str]] | None:
    """The ways of processing that a request asks for; None: it may ask for any."""
    of_body = None if asked is None else asked.context
    return of_body if of_body is None or not of_head else (*of_body, *of_head)


def _free_meters(
    route: Route, models: Sequence[str], charges: Mapping[str, ModelCharges], at: datetime | None
) -> frozenset[str]:
    """Find the money meters on which the call of a request certainly costs nothing.

    A model of that price counts only where the file says that the client's word runs.
    """
    if at is None:
        return frozenset()
    found, models = charges.items(), models if route.follows_request else ()
    return frozenset(
        name for name, one in found if one.is_free(models, route.usage, at, provider=route.provider)
    )


def _find_excess(route: Route, asked: LlmRequest | None) -> RequestProblem | None:
    """Find the first line of ``reserve:`` whose ceiling the request exceeds."""
    if asked is None:
        return None
    for reserve in route.reserve:
        named = None if reserve.field is None else asked.named_limit(reserve.field)
        if named is None:
            continue
        quantity = named.quantity * (asked.named_answers() if reserve.meter in _PER_ANSWER else 1)
        if quantity > reserve.ceiling:
            return above_ceiling(named, min(quantity, QUANTITY_MAX), reserve.ceiling)
    return None


def _held_quantity(reserve: Reserve, asked: LlmRequest | None) -> int:
    if asked is None:
        return (
            reserve.ceiling if reserve.field is not None or reserve.meter in _PER_ANSWER else reserve.default
        )
    quantity = reserve.default
    if reserve.field is not None:
        quantity = asked.limit(reserve.field, default=reserve.default)
    return min(quantity * (asked.answers() if reserve.meter in _PER_ANSWER else 1), reserve.ceiling)


def above_ceiling(named: NamedLimit, asked: int, ceiling: int) -> RequestProblem:
    """Word the problem of a request that names more than a line of ``reserve:`` allows.

    Args:
        named: the field and its figure.
        asked: for all answers together.
        ceiling: of the line.
    """
    times = "" if asked == named.quantity else f" ({named.quantity} for each answer)"
    return RequestProblem(
        code="request-above-ceiling",
        detail=(
            f"{named.field} asks for {asked}{times}; one request may ask for {ceiling} at most, all its"
            " answers together. Ask for less."
        ),
        members={"field": named.field, "asked": asked, "ceiling": ceiling},
    )


def unpriced_problem(view: CustomerView, route: Route, models: Sequence[str]) -> RequestProblem | None:
    """Find a model without a price that a request names or may name, on a route that refuses those.

    None: the route refuses none, all models have a price, or none is named.

    Args:
        view: the customer, whose plan says which prices count.
        route: the route.
        models: that the request's head and body name; one is the empty text where that is not certain.
    """
    if not route.refuses_unpriced:
        return None
    if "" in models:
        return _UNREAD
    unpriced = (model for model in models if not _has_price(view, route, model))
    found = next(unpriced, None)
    return None if found is None else not_priced(found)


_UNREAD: Final = RequestProblem(
    code="model-not-priced",
    detail=(
        "The model of this request is not known, because its body could not be read to its end, and only"
        " models with a price are sold here. Send a JSON object or a form of at most 1 MiB, without"
        " compression."
    ),
    members={},
)


def socket_problem(view: CustomerView, route: Route, scope: Scope) -> RequestProblem | None:
    """Find a model without a price in the URL of a websocket."""
    return unpriced_problem(view, route, route.models(requested_models(head_of(scope), ())))


def _has_price(view: CustomerView, route: Route, model: str) -> bool:
    compiled = view.cache
    for meter in route.refuses_unpriced:
        charges = compiled.charges.get(meter)
        if charges is not None:
            at = from_ms(compiled.now_ms())
            if not charges.has_price(model, route.usage, at, route.provider):
                return False
            continue
        rows = view.entitlements[meter].overage.rows
        table = None if view.prepaid is None else view.prepaid.by_model.get(meter)
        if any(one is not None and one.refuses_others and not one.has_price(model) for one in (rows, table)):
            return False
    return True


def not_priced(model: str) -> RequestProblem:
    """Word the problem of a request that names a model without a price."""
    shown = model if len(model) <= _SHOWN_MAX else f"{model[:_SHOWN_MAX]}…"
    choices = providers_of(model)
    why = f"its price depends on the provider: {listed(choices)}" if choices else "it has no price"
    return RequestProblem(
        code="model-not-priced",
        detail=f"The model {shown!r} is not sold here, because {why}. Name another model.",
        members={"model": shown},
    )
