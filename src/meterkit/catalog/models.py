"""The catalog that a plans file describes, as frozen values.

Every number is an integer in the unit that its name ends with; money is in minor units of
:attr:`Catalog.currency`; a quantity is in its meter's unit. Defaults and ``extends`` are applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal

from llm_usage.units import FIGURE_MAX
from meterkit.catalog.lost_currencies import without_amounts
from meterkit.catalog.notify_values import Notify

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from meterkit.catalog.credit_values import Credit
    from meterkit.catalog.errors import Note
    from meterkit.catalog.model_prices import PriceRows, ProviderPrices
    from meterkit.catalog.storage_values import Storage

Outcome = Literal["success", "client_gone", "client_error", "server_error", "interim"]
"""Interim: the answer asks for more before the call can complete. `charge_on` cannot list it."""
Debt = Literal["deny", "allow"]

_DAY_MS: Final = 86_400_000
OUTCOMES: Final[tuple[Outcome, ...]] = ("success", "client_gone", "client_error", "server_error")
BILLED_ON_SUCCESS: Final[frozenset[Outcome]] = frozenset({"success", "client_gone"})
BILLED_ON_ATTEMPT: Final[frozenset[Outcome]] = frozenset({*OUTCOMES, "interim"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Terms of plan changes: effective time, allowance within the period, gauges over the new limit."""

    upgrade: Literal["now", "period_end"] = "now"
    downgrade: Literal["now", "period_end"] = "period_end"
    over_limit: Literal["block_growth", "allow"] = "block_growth"
    allowance: Literal["prorated", "whole"] = "prorated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """The ``billing:`` block.

    Attributes:
        hold_invoice_ms: how long a renewal invoice stays a draft, at most, until its usage is counted.
        usage: how usage gets onto invoices: by events of Stripe's meters, or by lines that meterkit writes.
    """

    charge_on: frozenset[Outcome] = BILLED_ON_SUCCESS
    sources: frozenset[Literal["reported", "partial", "estimated", "missing"]] = frozenset(
        {"reported", "partial", "estimated"}
    )
    idempotency_header: str | None = None
    portal_url: str | None = None
    checkout: Mapping[str, Any] = field(default_factory=dict[str, Any])
    hold_invoice_ms: int = 24 * 3_600_000
    changes: Changes = Changes()
    late_usage: Literal["next_period", "dead_letter"] = "next_period"
    usage: Literal["meters", "lines"] = "meters"

    @property
    def is_by_lines(self) -> bool:
        """Whether lines that meterkit writes bill usage, not metered prices at Stripe."""
        return self.usage == "lines"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dunning:
    """The ``dunning:`` block: spans from the first failed payment.

    Attributes:
        attempts: the failed attempt that ends grace; None: only the clock does.
        remind_ms: the spans after which handlers are reminded, the shortest first.
        debt: whether a customer may subscribe while an invoice of an earlier subscription is open.
    """

    grace_ms: int
    attempts: int | None = 3
    restrict_to: str
    suspend_after_ms: int
    remind_ms: tuple[int, ...] = (1 * _DAY_MS, 6 * _DAY_MS, 13 * _DAY_MS)
    debt: Debt = "deny"


NAMED_METHODS: Final = ("tools/call", "prompts/get")
"""The methods whose ``params.name`` is a text that servers compare as it is; a resource's address is not."""


@dataclass(frozen=True, slots=True)
class McpMatch:
    """Pattern of Model Context Protocol messages that a line matches.

    Attributes:
        method: a glob pattern of JSON-RPC methods; ``*`` takes messages without one, too.
        name: a glob pattern of the names of tools or prompts; None: any.
    """

    method: str
    name: str | None = None

    def takes(self, method: str | None, name: str | None) -> bool:
        """Whether a message of this method falls under the line, and of this name where it has one."""
        if self.method != "*" and (method is None or not fnmatchcase(method, self.method)):
            return False
        return self.name is None or (name is not None and fnmatchcase(name, self.name))


Algorithm = Literal["sliding-window", "fixed-window", "token-bucket"]
Enforcement = Literal["on", "shadow", "off"]
"""``off`` comes from the settings only: a plans file cannot say it."""
Headers = Literal["ietf", "x-ratelimit", "both", "none"]
Report = Literal["overage", "usage", "none"]
StoreFailure = Literal["allow", "deny"]
Allotment = Literal["off", "250ms"]
WithoutCard = Literal["cancel", "pause", "invoice"]
PaymentMethodTerm = Literal["required", "optional"]

ROUTE: Final = "route"
"""In the name of a policy of a route's own rate it stands where a meter's has its name."""
REQUEST_MODEL: Final = ("request",)
"""Value of `model: request` of a route: its clients choose the model."""
SPEND: Final = "spend"
"""The meter that counts what is spent, where a plan has a budget; and what policies of it begin with."""
QUANTITY_MAX: Final = FIGURE_MAX
CREDITS_MAX: Final = 9 * 10**9

SEAT_UNITS: Final = frozenset({"seat", "seats"})
"""Units of a gauge that counts seats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """At most ``limit`` units per ``window_ms``.

    Attributes:
        limit: units per window, at least 1.
        window_ms: length of the window in milliseconds.
        algorithm: how the window moves.
        burst: units that may be used at once; equals ``limit`` unless the algorithm is a token bucket.
        window: the window as policy names write it: ``3s``, ``5m``, ``1h``, ``7d``, ``1mo``.
    """

    limit: int
    window_ms: int
    algorithm: Algorithm
    burst: int
    window: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeEvent:
    """The Stripe meter event that carries a meter's usage, and which part of it is reported."""

    event_name: str
    report: Report = "overage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A meter: a counter or a gauge.

    Attributes:
        name: the key in the plans file.
        title: the name that customers see on invoices.
        kind: a ``counter`` adds up over a period, a ``gauge`` holds a level.
        source: the meter this one is derived from (``from:``), or None.
        where: for a derived meter, dimension name to glob pattern; else empty.
        charges: of a meter that counts what calls are charged: at which prices; else None.
        is_spend: whether it counts what is spent, which the store works out.
        is_row: whether it counts what is billed of its source at one of the prices by model.
    """

    name: str
    title: str
    unit: str
    kind: Literal["counter", "gauge"]
    stripe: StripeEvent | None
    source: str | None
    where: Mapping[str, str]
    charges: ProviderPrices | None = None
    is_spend: bool = False
    is_row: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overage:
    """Rule for usage beyond the included quantity.

    Attributes:
        mode: ``deny`` refuses it, ``bill`` records and reports it, ``percent`` tolerates it on a gauge.
        cap: with ``bill``, the quantity beyond included that is still admitted, and that is billed at most;
            None: no ceiling.
        per: with a price, the quantity that ``amount_cents`` buys; else None.
        amount_cents: the (default) price of ``per`` units in minor units; None: it is only at Stripe.
        percent: with ``percent``, how far above included the gauge may be, in percent of included.
        grace_ms: with ``percent``, how long. ``rows``: the prices by model; None: there is one price.
    """

    mode: Literal["deny", "bill", "percent"]
    cap: int | None = None
    per: int | None = None
    amount_cents: int | None = None
    percent: int | None = None
    grace_ms: int | None = None
    rows: PriceRows | None = None

    @property
    def unit_price(self) -> Fraction:
        """The (default) price of a unit in minor units; 0 where it has none."""
        return Fraction(self.amount_cents or 0, self.per or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitlement:
    """A plan's limits and terms for one meter.

    Attributes:
        rates: at most one per window.
        concurrency: requests in flight, or None for no limit.
        included: quantity per period that the price covers; None: unlimited.
        warn_at: percentages of included at which a threshold is crossed, ascending.
        is_unlimited: whether the file says ``included: unlimited``, rather than nothing.
        sends_included: whether Stripe gets included units, by the free tier of the customer's own price;
            None: as the meter's ``report`` says.
    """

    meter: str
    rates: tuple[Rate, ...]
    concurrency: int | None
    included: int | None
    overage: Overage
    warn_at: tuple[int, ...]
    is_unlimited: bool = False
    sends_included: bool | None = None

    @property
    def thresholds(self) -> tuple[tuple[int, int], ...]:
        """The least quantity of each of ``warn_at``, and the percentage; none where nothing is included."""
        included = self.included or 0
        return tuple((-(-included * percent // 100), percent) for percent in self.warn_at if included)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A price per interval; ``included_per`` says which span included quantities are counted over."""

    amount_cents: int
    interval: Literal["month", "year"]
    included_per: Literal["month", "interval"] = "month"
    stripe_price: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatPrice:
    """Price of a seat per interval of the plan's price."""

    amount_cents: int
    stripe_price: str | None = None


GrantedEvery = Literal["period", "once"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """Terms by which the rest of a period's grant lives on.

    Attributes:
        at_most: cap of the grant's whole balance, the new period's share included.
        periods: number of further periods.
    """

    at_most: int
    periods: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanGrant:
    """A grant that recurs every period, or is given once.

    Attributes:
        kind: whether ``name`` is a meter or a credit.
        expires_ms: life of the grant; None: it expires with its period.
        id: the plans file's own name for it, or None; see :attr:`key`.
        every: ``once``: given once in a customer's life, at the first period on a plan that has it.
        rollover: how what is left of it lives on; None: it does not.
    """

    kind: Literal["meter", "credit"]
    name: str
    quantity: int
    priority: int = 50
    expires_ms: int | None = None
    id: str | None = None
    every: GrantedEvery = "period"
    rollover: Rollover | None = None

    @property
    def key(self) -> str:
        """Identity of the grant across plans and periods: its id, otherwise priority and expiry.

        One that is given once is never the same as one of every period.
        """
        life = "period" if self.expires_ms is None else f"{self.expires_ms}ms"
        return self.id or f"{self.priority}-{life}{'-once' if self.every == 'once' else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectBudget:
    """Budget of each subject of a kind: micro-units per window (ms; 0: the billing period)."""

    micros: int
    window_ms: int
    window: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectPlan:
    """Limits by meter of each subject of one kind, and its budget or None."""

    kind: str
    limits: Mapping[str, Entitlement]
    budget: SubjectBudget | None


Bought = tuple[tuple[str, int], ...]
"""Add-ons of a customer: key and quantity of each, sorted by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addon:
    """Extra that a customer may buy beside a plan, several times.

    Attributes:
        key: the name in the plans file.
        name: what customers see on invoices.
        price: of one, per interval of the plan's price.
        included: by meter, what one adds to the plan's included quantity.
        features: that it adds.
        grants: that one adds.
        max_quantity: how many a customer may have; None: any number.
    """

    key: str
    name: str
    price: Price
    included: Mapping[str, int]
    features: frozenset[str]
    grants: tuple[PlanGrant, ...]
    max_quantity: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A named set of entitlements.

    Attributes:
        key: the name in the plans file.
        trial_without_card: what happens at the end of the trial without a payment method.
        payment_method: whether a subscription of it is active only once a payment method is saved.
        allotment: how long requests may be admitted in advance; None: as the file says.
        features: names of features, sorted; ``all`` is already spelled out.
        entitlements: one for every meter of the file, in the file's order.
        addons: keys of the add-ons that may be bought beside it.
        bought: add-ons whose entitlements are part of this one's; none in the plans file.
    """

    key: str
    name: str
    rank: int
    price: Price
    seat_price: SeatPrice | None
    trial_ms: int | None
    trial_without_card: WithoutCard = "cancel"
    payment_method: PaymentMethodTerm = "optional"
    features: frozenset[str]
    entitlements: Mapping[str, Entitlement]
    grants: tuple[PlanGrant, ...]
    allotment: Allotment | None = None
    subjects: Mapping[str, SubjectPlan] = field(default_factory=dict[str, "SubjectPlan"])
    addons: tuple[str, ...] = ()
    bought: Bought = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Quantity of one meter that a route holds before the app runs.

    Attributes:
        field: the field of the JSON request body that names the quantity, or None.
        default: the quantity where the body does not name one.
        ceiling: the most that one request may name, and sets aside.
    """

    meter: str
    field: str | None
    default: int
    ceiling: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Rules by which requests to one path are decided and counted.

    Attributes:
        match: the line of the plans file, for messages.
        method: an HTTP method, ``WS`` for websockets, or None for any HTTP method.
        path: a Starlette path template, or None for everything (``*``), websockets too.
        exempt: not identified, not decided, no headers.
        always: decided by its rates only.
        rates: what each customer may ask of it whatever the plan, in requests.
        further_features: that it takes beside ``feature``, as its path may lead to handlers of other routes.
        storage: where the size of what is stored stands (``content-length``), or None.
        storage_meter: the gauge that a ``storage`` route fills, or None.
        usage: whose token figures are read; ``fields`` where only ``usage_fields`` are.
        usage_fields: meter to the dotted paths of its figure in the JSON of the response.
        records: meters that the app records in requests of the route.
        reads_model: whether which limits hold depends on the model that the request names.
        keeps_request: whether the request's body is kept for the model that it names, as usage that the app
            reports may cost the price of that model.
        refuses_unpriced: meters for which a model that the request names must have a price.
        is_poll: whether it only fetches work that an earlier request began, and holds tokens for.
        model: names, or patterns of names, that the app chooses from, whatever the request names;
            :data:`REQUEST_MODEL`: the client's word runs; None: not said.
        provider: whose models the app calls, as the price table names it; None: the answer shows it.
        charge_on: the outcomes that are billed.
        mcp: which messages it takes of those that are posted to an MCP endpoint; None: it takes requests.
        allotment: how long requests may be admitted in advance; None: as the plan says.
        paths: ``as_sent`` if it decides what it matches, however else the path may be read.
        is_plain: whether HTTP requests are only decided, and neither body nor answer is looked into.
        is_buffered: whether HTTP requests are decided by their body or headers, too.
    """

    match: str
    method: str | None
    path: str | None
    exempt: bool = False
    always: bool = False
    rates: tuple[Rate, ...] = ()
    feature: str | None = None
    further_features: tuple[str, ...] = ()
    consume: Mapping[str, int] = field(default_factory=dict[str, int])
    per_message: Mapping[str, int] = field(default_factory=dict[str, int])
    grow: Mapping[str, int] = field(default_factory=dict[str, int])
    storage: str | None = None
    storage_meter: str | None = None
    usage: str = "none"
    usage_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    records: tuple[str, ...] = ()
    reads_model: bool = False
    keeps_request: bool = False
    refuses_unpriced: tuple[str, ...] = ()
    is_poll: bool = False
    reserve: tuple[Reserve, ...] = ()
    charge_on: frozenset[Outcome] = BILLED_ON_SUCCESS
    enforcement: Enforcement = "on"
    on_store_failure: StoreFailure = "allow"
    headers: Headers = "ietf"
    idempotency_header: str | None = None
    model: tuple[str, ...] | None = None
    provider: str | None = None
    mcp: McpMatch | None = None
    allotment: Allotment | None = None
    paths: Literal["as_sent"] | None = None
    is_plain: bool = field(init=False, repr=False, compare=False)
    is_buffered: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out what each request would ask for."""
        is_buffered = self.reserve or self.asks_model or self.storage_meter or self.idempotency_header
        is_watched = is_buffered or self.mcp or self.usage != "none" or self.keeps_request
        is_plain = not (is_watched or self.exempt or self.enforcement == "off")
        object.__setattr__(self, "is_plain", is_plain)
        object.__setattr__(self, "is_buffered", bool(is_buffered))

    def first_feature_beyond(self, features: Collection[str]) -> str | None:
        """Find the first feature that it takes and that is not among these; if there is none, `feature`."""
        lacking = (one for one in self.further_features if one not in features)
        return self.feature if self.feature not in features else next(lacking, self.feature)

    @property
    def asks_model(self) -> bool:
        """Whether the decision depends on the model that the request names."""
        return self.reads_model or bool(self.refuses_unpriced)

    @property
    def follows_request(self) -> bool:
        """Whether the file says that the client's word chooses the model."""
        return self.model == REQUEST_MODEL

    @property
    def own_models(self) -> tuple[str, ...]:
        """Names and patterns of the models that the app chooses from; none: the request may name one."""
        return () if self.follows_request else self.model or ()

    def models(self, named: Sequence[str]) -> Sequence[str]:
        """The models, by name or pattern, that a request may be of that names some; none: not known."""
        return self.own_models or named


@dataclass(frozen=True, slots=True, kw_only=True)
class Anonymous:
    """Plan of requests without a customer, and the key that stands in for one.

    ``trusted_proxies``: addresses and networks that may name a client; ``unix``: clients of a Unix socket.
    """

    plan: str
    by: Literal["ip"]
    trusted_proxies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """A whole plans file.

    Attributes:
        anonymous: None where requests without a customer are denied.
        content_hash: 16 hex digits of a BLAKE2 digest of the catalog's meaning (not of its spelling).
        source: the file's path as it was given, for messages.
        notes: what is allowed in the file and may surprise, in its order; no part of its meaning.
        other_currencies: the same file by currency beyond the first; only amounts differ.
        has_amounts: whether the file has any in this currency.
        former_plans, former_addons: those that have left the file, for the customers who still have them: not
            for sale.
    """

    source: str
    content_hash: str
    currency: str
    default_plan: str
    anonymous: Anonymous | None
    meters: Mapping[str, Meter]
    features: frozenset[str]
    credits: Mapping[str, Credit]
    routes: tuple[Route, ...]
    plans: Mapping[str, Plan]
    billing: Billing
    dunning: Dunning
    enforcement: Enforcement = "on"
    on_store_failure: StoreFailure = "allow"
    headers: Headers = "ietf"
    allotment: Allotment = "off"
    notes: tuple[Note, ...] = ()
    storage: Storage | None = None
    notify: Notify = field(default_factory=Notify)
    addons: Mapping[str, Addon] = field(default_factory=dict[str, Addon])
    other_currencies: Mapping[str, Catalog] = field(default_factory=dict[str, "Catalog"])
    has_amounts: bool = True
    former_plans: Mapping[str, Plan] = field(default_factory=dict[str, "Plan"])
    former_addons: Mapping[str, Addon] = field(default_factory=dict[str, "Addon"])

    def find_plan(self, key: str | None) -> Plan | None:
        """Plan that a customer has by this key, also one that has left the file; None: it is not known."""
        return self.plans.get(key or "") or self.former_plans.get(key or "")

    def plan_or_default(self, key: str | None) -> Plan:
        """Plan of a key as :meth:`find_plan` finds it, otherwise the default plan."""
        return self.find_plan(key) or self.plans[self.default_plan]

    def find_addon(self, key: str) -> Addon | None:
        """Add-on that a customer has by this key, also one that has left the file; None: it is not known."""
        return self.addons.get(key) or self.former_addons.get(key)

    @property
    def all_plans(self) -> tuple[Plan, ...]:
        """The plans that customers may have: those of the file, and those that have left it."""
        return (*self.plans.values(), *self.former_plans.values())

    @property
    def all_addons(self) -> tuple[Addon, ...]:
        """The add-ons that customers may have, as of :attr:`all_plans`."""
        return (*self.addons.values(), *self.former_addons.values())

    @property
    def currencies(self) -> tuple[str, ...]:
        """All currencies of the file, the first one first."""
        return (self.currency, *self.other_currencies)

    def in_currency(self, currency: str) -> Catalog:
        """Catalog with the amounts in a currency; empty: the first one."""
        own = self if currency in {"", self.currency} else self.other_currencies.get(currency)
        return own or without_amounts(self, currency)

    @property
    def counts_spend(self) -> bool:
        """Whether a plan has a budget, so that the meter ``spend`` counts what is spent."""
        return SPEND in self.meters and self.meters[SPEND].is_spend

    @property
    def has_subjects(self) -> bool:
        """Whether a plan has limits for users, teams or the like."""
        return any(plan.subjects for plan in self.all_plans)
