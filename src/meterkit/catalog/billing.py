"""The blocks ``billing:`` (with Checkout's options), ``dunning:``, ``anonymous:``; trusted proxies."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from meterkit.catalog.errors import RefusedError, unknown
from meterkit.catalog.models import (
    BILLED_ON_ATTEMPT,
    BILLED_ON_SUCCESS,
    OUTCOMES,
    Allotment,
    Anonymous,
    Changes,
    Dunning,
    Enforcement,
    Headers,
    Outcome,
    StoreFailure,
)
from meterkit.catalog.value_parsers import DAY_MS, NAME, duration, duration_or_0, integer, scalar, text
from meterkit.catalog.value_shapes import (
    AnyForm,
    Key,
    ListOf,
    MappedShape,
    Nullable,
    Table,
    ValueShape,
    WordChoice,
)
from meterkit.catalog.yaml_tree import Fields, Items, Node, kind_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from meterkit.catalog.errors import Problems

CheckoutOptions: TypeAlias = Mapping[str, Any]
"""Parameters of a Checkout Session (https://docs.stripe.com/api/checkout/sessions/create)."""
_OWN: Final = frozenset(
    {"mode", "customer", "customer_email", "line_items", "success_url", "cancel_url", "client_reference_id"}
    | {"metadata"}
)
_OWN_OF_SUBSCRIPTION: Final = frozenset({"metadata", "billing_mode", "trial_period_days", "trial_end"})
_SUBSCRIPTION: Final = "subscription_data"
UNIX: Final = "unix"
"""Clients of a Unix socket, which have no address."""
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


def reserved_options(options: CheckoutOptions) -> Iterator[tuple[str, ...]]:
    """The paths of the options that meterkit sets itself, flat names (``line_items[0]``) included. Pure."""
    for name, value in options.items():
        first, *rest = _split_name(name)
        if first in _OWN or (first == _SUBSCRIPTION and rest and rest[0] in _OWN_OF_SUBSCRIPTION):
            yield (name,)
        elif name == _SUBSCRIPTION and isinstance(value, Mapping):
            given = cast("Mapping[str, Any]", value)
            yield from ((name, inner) for inner in given if _split_name(inner)[0] in _OWN_OF_SUBSCRIPTION)


def _split_name(name: object) -> list[str]:
    """The path that Stripe reads in the name of a form field: ``a[b]`` is ``b`` in ``a``."""
    return str(name).replace("]", "").split("[")


class OptionsShape:
    """Any map. Its texts stay as they are written: Stripe takes ``true``, ``7`` and ``auto`` as texts."""

    def read(self, node: Node, problems: Problems) -> dict[str, object] | None:
        """The map as Stripe takes it."""
        if not isinstance(node, Fields):
            problems.refuse(node.place, f"found {kind_of(node)}; allowed: a map of options of Checkout")
            return None
        found = {name: _plain_options(value) for name, value in node.values.items()}
        for path in reserved_options(found):
            holder: Fields = node
            for name in path[:-1]:
                inner = holder.values[name]
                holder = inner if isinstance(inner, Fields) else holder
            problems.refuse(holder.places[path[-1]], "meterkit sets this itself; leave it out")
        return _nested(found)

    def schema(self) -> dict[str, object]:
        """Any object."""
        return {"type": "object", "additionalProperties": True}


def _nested(options: CheckoutOptions) -> dict[str, object]:
    """Options with flat names (``automatic_tax[enabled]``) as maps, found by the first part of the name."""
    found = dict[str, object]()
    for name, value in options.items():
        *holders, last = _split_name(name)
        inner = found
        for holder in holders:
            inner[holder] = below = _as_map(inner.get(holder))
            inner = below
        more = _as_map(value)
        inner[last] = {**_as_map(inner.get(last)), **more} if more else value
    return found


def _as_map(value: object) -> dict[str, object]:
    """A copy of a map; empty if it is none."""
    return dict(cast("Mapping[str, object]", value)) if isinstance(value, Mapping) else {}


def _plain_options(node: Node) -> object:
    if isinstance(node, Fields):
        return {name: _plain_options(value) for name, value in node.values.items()}
    if isinstance(node, Items):
        return [_plain_options(item) for item in node.items]
    return None if node.is_null else node.text


def parse_proxy_network(text: object) -> IPv4Network | IPv6Network:
    """The network that a proxy, or several, are in; an address is a network of its own.

    IPv4 addresses that are written as IPv6 ones (``::ffff:10.0.0.7``) are IPv4 addresses.

    Raises:
        ValueError: it is neither an address nor a network.
    """
    try:
        # A number would be read as an address.
        network = ip_network(str(text), strict=False)
    except ValueError:
        raise ValueError(
            f"trusted_proxies: found {text!r}; allowed are addresses and networks, "
            "for example '10.0.0.7' or '10.0.0.0/8', and 'unix'"
        ) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        address = int(network.network_address) & 0xFFFF_FFFF
        return IPv4Network((address, network.prefixlen - _MAPPED.prefixlen))
    return network


ENFORCEMENTS: Final[WordChoice[Enforcement]] = WordChoice(("on", "shadow"))
STORE_FAILURES: Final[WordChoice[StoreFailure]] = WordChoice(("allow", "deny"))
ALLOTMENTS: Final[WordChoice[Allotment]] = WordChoice(("off", "250ms"))
HEADERS: Final[WordChoice[Headers]] = WordChoice(("ietf", "x-ratelimit", "both", "none"))
_WHEN: Final = WordChoice(("now", "period_end"))
_CHARGES: Final = {"success": BILLED_ON_SUCCESS, "attempt": BILLED_ON_ATTEMPT}
HEADER_NAME: Final = text(
    64, pattern=r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", allowed="the name of a header, such as Idempotency-Key"
)
URL: Final = text(
    2048, pattern=r"https?://[^\s/?#]+[^\s]*", allowed="an address that starts with https:// or http://"
)


_PROXIES: Final = "an address or a network, such as 10.0.0.7 or 10.0.0.0/8, or unix"


def _parse_proxy(text: str) -> str:
    try:
        if text != UNIX:
            parse_proxy_network(text)
    except ValueError:
        raise RefusedError(f"allowed: {_PROXIES}") from None
    return text


_PROXY: Final = scalar(_parse_proxy, _PROXIES, pattern=r"^(unix|[0-9A-Fa-f:.]+(/[0-9.]{1,15})?)$")


def _parse_outcomes(charged: str | tuple[Outcome, ...]) -> frozenset[Outcome]:
    return _CHARGES[charged] if isinstance(charged, str) else frozenset(charged)


_OUTCOMES: Final = ", ".join(OUTCOMES)
_CHARGE_ON: Final[ValueShape[str | tuple[Outcome, ...]]] = AnyForm(
    f"success, attempt, or a list of {_OUTCOMES}",
    scalar=WordChoice(tuple(_CHARGES), others=f", or a list of {_OUTCOMES}"),
    items=ListOf(WordChoice(OUTCOMES), "outcomes", 1),
)
CHARGE_ON_SHAPE: Final = MappedShape(_CHARGE_ON, _parse_outcomes)


class ChangesTable(Table, what="changes"):
    """``changes:`` in ``billing:``."""

    upgrade = Key(
        _WHEN,
        "now (default) or period_end; between two plans that bill one meter with report: usage always"
        " period_end.",
    )
    downgrade = Key(_WHEN, "period_end (default) or now; the exception of upgrade applies, too.")
    over_limit = Key(
        WordChoice(("block_growth", "allow")),
        "Gauges above their limit after a change of plan: block_growth (default) until they fit, or"
        " allow growth as far as before the change.",
    )
    allowance = Key(
        WordChoice(("prorated", "whole")),
        "Included quantities and recurring grants of a period whose plan changes: prorated (default), each"
        " plan's by its share of the period, rounded up; or whole, all that the new plan gives.",
    )


class BillingTable(Table, what="billing"):
    """The keys of ``billing:``."""

    charge_on = Key(CHARGE_ON_SHAPE, "Outcomes that are billed: success (default), attempt or a list.")
    sources = Key(
        MappedShape(
            ListOf(WordChoice(("reported", "partial", "estimated", "missing")), "sources", 1), frozenset
        ),
        "Which token figures are billed.",
    )
    idempotency_header = Key(
        Nullable(HEADER_NAME),
        "Header that marks a repeat; default: null.",
    )
    portal_url = Key(Nullable(URL), "Where customers pay; named in 402 responses; default: null.")
    checkout = Key(
        OptionsShape(),
        "Options that each page of Stripe's Checkout gets, such as allow_promotion_codes; default: none.",
    )
    hold_invoice_ms = Key(
        # Stripe takes no usage that is older than 35 days.
        duration_or_0(most=30 * DAY_MS),
        "How long a renewal invoice stays a draft, at most, until its usage is counted; default: 24h; 0: as"
        " long as Stripe keeps it by itself.",
        name="hold_invoice",
    )
    changes = Key(
        MappedShape(ChangesTable, lambda table: Changes(**table.given())),
        "When plan changes take effect.",
    )
    late_usage = Key(
        WordChoice(("next_period", "dead_letter")),
        "Usage for a closed period: next_period (default) or dead_letter.",
    )
    usage = Key(
        WordChoice(("meters", "lines")),
        "How usage gets onto invoices: as events of Stripe's meters (default), or as lines that meterkit"
        " writes.",
    )


class DunningTable(Table, what="dunning"):
    """The keys of ``dunning:``."""

    grace_ms = Key(
        duration(), "How long full access lasts after the first failed payment; default: 7d.", name="grace"
    )
    restrict_to = Key(NAME, "The active plan after grace; default: default_plan.")
    suspend_after_ms = Key(
        duration(), "How long after the first failed payment access ends; default: 14d.", name="suspend_after"
    )
    attempts = Key(
        Nullable(integer(least=1, most=100)),
        "The failed attempt that ends grace early; null: only the days count; default: 3.",
    )
    remind_ms = Key(
        ListOf(duration(least=1), "durations"),
        "dunning.reminder is sent at each of these; default: [1d, 6d, 13d].",
        name="remind",
    )
    debt = Key(
        WordChoice(("deny", "allow")),
        "A new subscription while an invoice of an earlier one is open: deny (default) or allow.",
    )


class AnonymousTable(Table, what="anonymous"):
    """The map form of ``anonymous:``."""

    plan = Key(NAME, "The plan of requests without a customer.", required=True)
    by = Key(WordChoice(("ip",)), "What counts as one customer.", required=True)
    trusted_proxies = Key(
        ListOf(_PROXY, "addresses and networks"),
        "Addresses, networks and `unix` from which X-Forwarded-For is trusted; default: none.",
    )


ANONYMOUS_SHAPE: Final[ValueShape[str | AnonymousTable]] = AnyForm(
    "deny, or a map such as {plan: free, by: ip}",
    scalar=WordChoice(("deny",), others=", or a map such as {plan: free, by: ip}"),
    fields=AnonymousTable,
)


def build_dunning(values: DunningTable | None, *, default_plan: str, plans: Collection[str]) -> Dunning:
    """The ``dunning:`` block with its defaults; the word ``default_plan`` is resolved."""
    given: dict[str, Any] = {"grace_ms": 7 * DAY_MS, "suspend_after_ms": 14 * DAY_MS}
    if values is None:
        return Dunning(**given, restrict_to=default_plan)
    given |= values.given()
    restrict_to = values.restrict_to or "default_plan"
    if restrict_to != "default_plan" and restrict_to not in plans:
        values.refuse("restrict_to", unknown("plan", restrict_to, plans) + " (or default_plan)")
    if given["suspend_after_ms"] < given["grace_ms"] and not values.is_refused("suspend_after_ms"):
        place = values.place("suspend_after_ms" if values.has("suspend_after_ms") else "grace_ms")
        message = "both count from the first failure; allowed: a suspend_after that is at least grace"
        values.problems.refuse(place, message)
    if "remind_ms" in given:
        given["remind_ms"] = tuple(sorted(given["remind_ms"]))
        if len(set(given["remind_ms"])) < len(given["remind_ms"]):
            values.refuse("remind_ms", "found one duration twice; allowed: each once")
    given["restrict_to"] = default_plan if restrict_to == "default_plan" else restrict_to
    return Dunning(**given)


def build_anonymous(written: str | AnonymousTable | None, *, plans: Collection[str]) -> Anonymous | None:
    """The customer of a request that names none; None: the request is denied."""
    if not isinstance(written, AnonymousTable):
        return None
    plan = written.plan or ""
    if plan and plan not in plans:
        written.refuse("plan", unknown("plan", plan, plans))
    return Anonymous(plan=plan, by="ip", trusted_proxies=written.trusted_proxies or ())
