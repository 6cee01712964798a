"""Metrics of a kit as families of prometheus-client, served in Prometheus' text format."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from meterkit.customers.drift_records import DriftRecords
from meterkit.decisions.grants import MICRO
from meterkit.errors import MeterkitError, StoreError
from meterkit.insights.audit.draining import read_backlog
from meterkit.insights.process_readings import LANE_FIGURES, spools_by_state
from meterkit.insights.store_readings import read_deliveries, read_durability, read_webhooks
from meterkit.metric_tallies import BUCKETS_S
from meterkit.redis.durability import DURABILITIES
from meterkit.store.message_queue import CHANNELS, MessageQueue
from meterkit.store.spool_file import list_spools
from meterkit.store.task_lease import StorageUpkeep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.metrics_core import Metric
    from starlette.types import Scope, Send

    from meterkit.insights.audit.draining import Backlog
    from meterkit.insights.revenue.revenue import Revenue
    from meterkit.insights.store_readings import QueueReading, StoreDurability
    from meterkit.metric_tallies import Tallies
    from meterkit.store.store import Store
    from meterkit.store.task_lease import UpkeepState


async def answer_metrics(store: Store, revenue: Revenue, tallies: Tallies, scope: Scope, send: Send) -> None:
    """Answer a request with the metrics of this process, and of what waits in the store."""
    registry = CollectorRegistry()
    spooled, stored = await _spool_families(store), await _stored_families(store)
    earned = await _revenue_families(revenue) if store.is_audited else ()
    registry.register(_CollectedFamilies([*_families(tallies, store), *spooled, *stored, *earned]))
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
    encode, content_type = choose_encoder(accept)
    head = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
    body = b"" if scope["method"] == "HEAD" else encode(registry)
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


class _CollectedFamilies:
    """The metrics collected before, in the form that prometheus-client wants."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        return self._families


async def _stored_families(store: Store) -> list[Metric]:
    if store.is_off:
        return []
    try:
        waiting, webhooks = await read_deliveries(store), await read_webhooks(store)
        keeping, drifts = await read_durability(store), await DriftRecords(store).all()
        messages = await _message_families(store)
        backlog = await read_backlog(store) if store.is_audited else None
        upkeep = None if store.catalog.storage is None else await StorageUpkeep(store).read_state()
    except StoreError:
        return []  # meterkit_store_connected reports it; the counts of this process are served in any case.
    return [
        *_durability_families(keeping),
        *_waiting_families(
            "delivery",
            waiting,
            items="What waits to be delivered to Stripe: customers (pending, unlinked), intents, invoice"
            " items for late usage and invoice lines; closes of periods.",
            age="How long the oldest is overdue (pending, queued, invoice_items), in its state (parked,"
            " dead), or over (unconfirmed).",
        ),
        *_waiting_families(
            "webhook",
            webhooks,
            items="Stripe customers to sync because of webhooks: now (due), later, given up (dead).",
            age="How long the oldest is overdue (due), or given up (dead).",
        ),
        GaugeMetricFamily(
            "meterkit_subscriptions_drifting",
            "Customers whose subscription at Stripe differs from the plans file.",
            value=len(drifts),
        ),
        *messages,
        *(() if backlog is None else _audit_families(backlog, store.now_ms())),
        *(() if upkeep is None else _storage_families(upkeep, store.now_ms())),
    ]


async def _message_families(store: Store) -> list[Metric]:
    items: Any = GaugeMetricFamily(
        "meterkit_message_items",
        "Messages by channel: to be sent now (due), later, not any more (dead).",
        labels=("channel", "state"),
    )
    for channel in CHANNELS:
        found = await MessageQueue(store, channel).count()
        for state, count in (("due", found.due), ("later", found.later), ("dead", len(found.dead))):
            items.add_metric((channel, state), count)
    return [items]


async def _revenue_families(revenue: Revenue) -> tuple[Metric, ...]:
    try:
        found = await revenue.by_plan()
    except MeterkitError:
        return ()  # meterkit_audit_age_seconds shows a database that is down.
    family: Any = GaugeMetricFamily(
        "meterkit_mrr_cents",
        "Monthly recurring revenue by the last snapshot, in the currency's smallest unit.",
        labels=("plan", "currency"),
    )
    for (plan, currency), mrr in sorted(found.items()):
        family.add_metric((plan, currency), mrr / MICRO)
    return (family,)


def _storage_families(upkeep: UpkeepState, now_ms: int) -> Iterable[Metric]:
    if upkeep.listed_ms is not None:
        yield GaugeMetricFamily(
            "meterkit_storage_drift_bytes",
            "By how many bytes the last recalculation has corrected the levels of stored objects, in sum.",
            value=upkeep.drift_bytes,
        )
        yield GaugeMetricFamily(
            "meterkit_storage_listed_age_seconds",
            "How long ago the buckets were last recalculated.",
            value=max(0, now_ms - upkeep.listed_ms) / 1000,
        )
    if upkeep.read_ms is not None:
        yield GaugeMetricFamily(
            "meterkit_storage_queue_age_seconds",
            "How long ago the queue of storage events was last read.",
            value=max(0, now_ms - upkeep.read_ms) / 1000,
        )


def _audit_families(backlog: Backlog, now_ms: int) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "meterkit_audit_waiting",
        "Entries of the audit log that are not in its database yet.",
        value=backlog.entries,
    )
    yield GaugeMetricFamily(
        "meterkit_audit_age_seconds", "How long the oldest of them has waited.", value=backlog.age_s(now_ms)
    )
    yield GaugeMetricFamily(
        "meterkit_audit_full_shards",
        "Shards with so many waiting entries that the newest are added up.",
        value=backlog.full_shards,
    )


def _waiting_families(
    name: str, waiting: Mapping[str, QueueReading], *, items: str, age: str
) -> tuple[Metric, Metric]:
    """Metric families of the entries in each state, and of the age of the oldest."""
    counts: Any = GaugeMetricFamily(f"meterkit_{name}_items", items, labels=("state",))
    ages: Any = GaugeMetricFamily(f"meterkit_{name}_age_seconds", age, labels=("state",))
    for state, found in waiting.items():
        counts.add_metric((state,), found.items)
        ages.add_metric((state,), found.age_s)
    return counts, ages


def _durability_families(durability: StoreDurability) -> Iterable[Metric]:
    ways: Any = GaugeMetricFamily(
        "meterkit_store_durability",
        "Servers by proof that they keep what is delivered; none: no proof.",
        labels=("way",),
    )
    for way in DURABILITIES:
        ways.add_metric((way,), durability.ways.get(way, 0))
    yield ways
    if durability.replicas is not None:
        yield GaugeMetricFamily(
            "meterkit_store_replicas",
            "Replicas that follow, of the server with the fewest.",
            value=durability.replicas,
        )


async def _spool_families(store: Store) -> Iterable[Metric]:
    if store.spool_dir is None:
        return []
    now_ms = store.now_ms()
    try:
        seen = await to_thread(
            list_spools, store.spool_dir, store.keys, store=str(store.address), now_ms=now_ms
        )
    except OSError:
        return []  # Doctor says why; what cannot be spooled waits in memory, and is counted as waiting.
    files: Any = GaugeMetricFamily("meterkit_spool_files", "Spools on this host.", labels=("state",))
    sizes: Any = GaugeMetricFamily("meterkit_spool_bytes", "What is in them.", labels=("state",))
    ages: Any = GaugeMetricFamily(
        "meterkit_spool_age_seconds", "How long ago the oldest of them was begun.", labels=("state",)
    )
    for state, found in spools_by_state(seen, now_ms).items():
        files.add_metric((state,), found.files)
        sizes.add_metric((state,), found.size)
        ages.add_metric((state,), found.age_s)
    return [files, sizes, ages]


def _llm_families(tallies: Tallies) -> Iterable[Metric]:
    costs: Any = CounterMetricFamily(
        "meterkit_llm_cost_micros",
        "What providers charge for calls of models by their list prices, in millionths of a US dollar.",
        labels=("model", "provider"),
    )
    charged: Any = CounterMetricFamily(
        "meterkit_llm_charged_micros",
        "What customers' balances in money are charged for calls of models, in millionths of a US dollar.",
        labels=("model", "provider"),
    )
    for key, (cost, charge) in sorted(tallies.llm.items()):
        costs.add_metric(key, float(cost))
        charged.add_metric(key, float(charge))
    unpriced: Any = CounterMetricFamily(
        "meterkit_unpriced_calls",
        "Calls that cost nothing: neither the plans file nor the price table has a price of their model.",
        labels=("model", "provider"),
    )
    for key, calls in sorted(tallies.unpriced.items()):
        unpriced.add_metric(key, calls)
    revenue: Any = CounterMetricFamily(
        "meterkit_revenue_micros",
        "Overage by its price, and what balances in money are charged, as this process entered it into the"
        " audit log, in millionths of the currency.",
        labels=("model", "provider", *(("currency",) if tallies.revenue_in else ())),
    )
    for key, earned in sorted(tallies.revenue.items()):
        revenue.add_metric(key, float(earned))
    for currency, by_model in sorted(tallies.revenue_in.items()):
        for key, earned in sorted(by_model.items()):
            revenue.add_metric((*key, currency), float(earned))
    yield from (costs, charged, unpriced, revenue)


def _families(tallies: Tallies, store: Store) -> Iterable[Metric]:
    requests: Any = CounterMetricFamily(
        "meterkit_requests",
        "Requests, by the plan of their customer, what they came to, and why they were refused.",
        labels=("plan", "outcome", "reason"),
    )
    for key, number in sorted(tallies.requests.items()):
        requests.add_metric(key, number)
    yield requests
    yield CounterMetricFamily(
        "meterkit_degraded_requests", "Requests that the store did not decide.", value=tallies.degraded
    )
    excess: Any = CounterMetricFamily(
        "meterkit_units_beyond_limits",
        "Units that were admitted beyond limits while the store was down, counted once it answers.",
        labels=("meter",),
    )
    for meter in store.catalog.meters:  # From zero on, so that Prometheus sees the first increase.
        excess.add_metric((meter,), tallies.excess[meter])
    yield excess
    yield from _llm_families(tallies)
    failures: Any = CounterMetricFamily(
        "meterkit_background_failures",
        "How often background tasks have ended by an error; each is begun anew.",
        labels=("task",),
    )
    for name, number in sorted(store.task_failures.items()):
        failures.add_metric((name,), number)
    yield failures
    ends = [*map(str, BUCKETS_S), "+Inf"]
    counts = [sum(tallies.durations[: nth + 1]) for nth in range(len(ends))]
    yield HistogramMetricFamily(
        "meterkit_decision_seconds",
        "From sending a decision's script to its reply.",
        buckets=list(zip(ends, counts, strict=True)),
        sum_value=tallies.duration_s,
    )
    lanes = list(store.lanes.values())
    for figure in LANE_FIGURES:
        family = CounterMetricFamily if figure.only_grows else GaugeMetricFamily
        yield family(f"meterkit_{figure.name.replace('.', '_')}", figure.meaning, value=figure.of(lanes))
