"""Every key that meterkit keeps in Redis: its name, and which of them live without a TTL.

A customer's shard is part of every key, as its hash tag: ``mk:{17}:c:acme``. So what one script touches
lies on one server, on a cluster too.
"""

from __future__ import annotations

import zlib
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from meterkit.catalog.budgets import WINDOWS
from meterkit.catalog.models import SPEND
from meterkit.errors import PlansError, Problem
from meterkit.safe_text import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.catalog import Catalog, Route

FORMAT: Final = 3
"""Version of everything that is stored; the first part of each ``rev``."""

HOOKS_SHARD: Final = 0
"""Shard of data that belongs to no customer, such as leases of tasks."""

HEAD_FIELD: Final = "h"
"""Counter field with the customer's own numbers and the rev."""

WITHOUT_TTL: Final = (
    r"^[\w.-]+:meta$",  # format and number of shards
    r"^[\w.-]+:events$",  # event names of meters, also of those that are gone from the plans file
    r"^[\w.-]+:plans$",  # terms of plans, also of those that are gone from the plans file
    r"^[\w.-]+:\{\d+\}:s:",  # state: customers that have a record
    r"^[\w.-]+:\{\d+\}:[gj]:",  # grants and their ledger: customers with a state or a debt, or given once
    r"^[\w.-]+:\{\d+\}:h:",  # ledger of changes: customers with a state
    r"^[\w.-]+:\{\d+\}:turns$",  # customers with a change scheduled by the clock
    r"^[\w.-]+:\{\d+\}:a?v:",  # levels of gauges, those above 0: an app's facts, of no period
    r"^[\w.-]+:\{\d+\}:q:",  # stored objects, while they are there, and until a listing of what is removed
    r"^[\w.-]+:\{\d+\}:customers$",  # their names
    r"^[\w.-]+:\{\d+\}:l:",  # Stripe customer to customer
    r"^[\w.-]+:\{\d+\}:(dirty|unlinked)$",  # customers with pending usage
    r"^[\w.-]+:\{\d+\}:over$",  # gauges above what is included
    r"^[\w.-]+:\{\d+\}:audit(:sums)?$",  # entries that are not in the database of the audit log yet
    r"^[\w.-]+:\{\d+\}:(intents|outbox|items|parked|dead|compare|life)$",  # deliveries to Stripe
    r"^[\w.-]+:\{\d+\}:hints:(entries|due|dead)$",  # Stripe customers to fetch
    r"^[\w.-]+:\{\d+\}:messages:\w+:(entries|due|dead)$",  # messages to be sent
    r"^[\w.-]+:\{\d+\}:n:",  # kinds of e-mails that a customer does not want
    r"^[\w.-]+:\{\d+\}:c:",  # counters, only while a linked customer's usage is pending
)
"""Patterns of the keys that may be without a TTL; every other key has one."""


def shard_of(text: str, shards: int) -> int:
    """The shard of a customer or of a Stripe customer: CRC-32 of its UTF-8 bytes, modulo ``shards``."""
    return zlib.crc32(text.encode()) % shards


def job_digest(job_id: str) -> str:
    """Digest of a provider's job id, as keys contain it."""
    return blake2b(job_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def meter_token(meter: str) -> str:
    """Token of a meter in field names: four characters."""
    return _token(f"meter {meter}")


def rate_token(meter: str, window_ms: int, algorithm: str) -> str:
    """Token of a rate in field names: four characters; a changed limit or burst keeps its counts."""
    return _token(f"rate {meter} {window_ms} {algorithm}")


def meter_field(meter: str) -> str:
    """The field of the counters that has what was recorded, is held and is pending of a meter."""
    return f"{meter_token(meter)}m"


def concurrency_field(meter: str) -> str:
    """The field of the counters that has a meter's requests in flight."""
    return f"{meter_token(meter)}n"


def credit_hold_field(meter: str) -> str:
    """The field of the counters that has what a meter's holds cost at the prices of their models."""
    return f"{meter_token(meter)}w"


def rate_field(meter: str, window_ms: int, algorithm: str) -> str:
    """The field of the counters that has what a rate has counted."""
    return f"{rate_token(meter, window_ms, algorithm)}r"


def route_name(route: Route) -> str:
    """Name of a route in place of a rate's meter; it contains blanks, which no meter's name does."""
    if route.mcp is not None:
        return f"route MCP {route.path} {route.mcp.method} {route.mcp.name or '*'}"
    return f"route {route.method or '*'} {route.path or '*'}"


def _token(name: str) -> str:
    return urlsafe_b64encode(blake2b(name.encode(), digest_size=3).digest()).decode()


def check_tokens(catalog: Catalog) -> None:
    """Refuse two names that would share a field of the counters: their digests have 24 bits.

    Raises:
        PlansError: two meters, or rates of theirs, would be counted as one.
    """
    tokens: dict[str, str] = {}
    for path, token, what in _counted_names(catalog):
        if tokens.setdefault(token, what) != what:
            message = f"{what} and {tokens[token]} would be counted as one; rename one of the meters"
            raise PlansError([Problem(catalog.source, 0, 0, path, message)])


def _counted_names(catalog: Catalog) -> Iterator[tuple[str, str, str]]:
    """Yield what has a counter field: its path in the plans file, its token, a description."""
    for name in catalog.meters:
        yield f"meters.{name}", meter_token(name), f"the meter {name}"
        rated = [rate for plan in catalog.plans.values() for rate in plan.entitlements[name].rates]
        given = [kind.limits.get(name) for plan in catalog.plans.values() for kind in plan.subjects.values()]
        rated += [rate for limits in given if limits is not None for rate in limits.rates]
        for rate in rated:
            what = f"the {rate.algorithm} rate of {name} per {rate.window_ms} ms"
            yield f"meters.{name}", rate_token(name, rate.window_ms, rate.algorithm), what
    for plan in catalog.plans.values() if catalog.has_subjects else ():
        # An override may give each of its subjects a budget of any span.
        path = f"plans.{plan.key}.subjects"
        yield path, meter_token(SPEND), f"the meter {SPEND}"
        for window_ms, _ in WINDOWS.values():
            what = f"the fixed-window rate of {SPEND} per {window_ms} ms"
            yield path, rate_token(SPEND, window_ms, "fixed-window"), what
    for nth, route in enumerate(catalog.routes):
        for rate in route.rates:
            what = f"the {rate.algorithm} rate of {route.match!r} per {rate.window_ms} ms"
            yield f"routes[{nth}].rate", rate_token(route_name(route), rate.window_ms, rate.algorithm), what


class CustomerKeys:
    """Keys of one customer; each access builds the name.

    Args:
        stem: what all keys of the shard begin with.
        shard: of the customer.
        customer: the customer's id.
        anonymous: whether the customer is one.
    """

    __slots__ = ("_customer", "_space", "_stem", "shard")

    def __init__(self, stem: str, shard: int, customer: str, *, anonymous: bool) -> None:
        self.shard = shard
        self._stem = stem
        self._customer = customer
        self._space = "a" if anonymous else ""

    @property
    def counters(self) -> str:
        """Hash: rates, meters, requests in flight."""
        return f"{self._stem}{self._space or 'c'}:{self._customer}"

    @property
    def state(self) -> str:
        """Hash: the customer's state and its rev."""
        return self._of("s")

    @property
    def totals(self) -> str:
        """Hash: closed periods, and what became of sealed usage."""
        return self._of("t")

    @property
    def grants(self) -> str:
        """Hash: grants and credits."""
        return self._of("g")

    @property
    def ledger(self) -> str:
        """Stream: ledger of grants."""
        return self._of("j")

    @property
    def levels(self) -> str:
        """Hash: levels of gauges."""
        return self._of("v")

    @property
    def marks(self) -> str:
        """Sorted set: idempotency keys of requests."""
        return self._of("i")

    @property
    def history(self) -> str:
        """Stream: changes of the state."""
        return self._of("h")

    @property
    def corrections(self) -> str:
        """Stream: corrections, which reduce recorded units."""
        return self._of("k")

    @property
    def objects(self) -> str:
        """Hash: stored objects."""
        return self._of("q")

    @property
    def dirty(self) -> str:
        """Sorted set, of the shard: linked customers with pending usage."""
        return f"{self._stem}dirty"

    @property
    def unlinked(self) -> str:
        """Sorted set, of the shard: customers with pending usage and without a link."""
        return f"{self._stem}unlinked"

    @property
    def over(self) -> str:
        """Sorted set, of the shard: gauges above what is included."""
        return f"{self._stem}over"

    @property
    def notices(self) -> str:
        """Stream, of the shard: events of customers."""
        return f"{self._stem}notices"

    def _of(self, kind: str) -> str:
        return f"{self._stem}{self._space}{kind}:{self._customer}"


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of keys under one prefix and number of shards."""

    prefix: str
    shards: int

    @property
    def meta(self) -> str:
        """Hash: format, shards."""
        return f"{self.prefix}:meta"

    @property
    def events(self) -> str:
        """Hash: a meter's token to its name and its event name at Stripe."""
        return f"{self.prefix}:events"

    @property
    def plans(self) -> str:
        """Hash: ``plan KEY`` or ``addon KEY`` to its terms in the newest plans file that had it."""
        return f"{self.prefix}:plans"

    def shard(self, shard: int, name: str) -> str:
        """A key of one shard, for example its ``outbox``."""
        return f"{self.prefix}:{{{shard}}}:{name}"

    def producer(self, shard: int, producer: str) -> str:
        """String: the last settlement number applied of a producer."""
        return self.shard(shard, f"w:{producer}")

    def event(self, shard: int, customer: str, event_id: str) -> str:
        """String: an event id of the app that was counted, for 35 days."""
        name = f"{customer}\0{event_id}".encode("utf-8", "surrogatepass")
        digest = blake2b(name, digest_size=16).hexdigest()
        return self.shard(shard, f"e:{digest}")

    def job(self, job_id: str) -> str:
        """Hash of a provider's job: its customer, and how its end was counted, for 40 days."""
        return self.job_of(job_digest(job_id))

    def job_of(self, digest: str) -> str:
        """Hash of a provider's job, by the digest of its id."""
        return self.shard(shard_of(digest, self.shards), f"o:{digest}")

    def jobs(self, customer: str) -> str:
        """Sorted set: digests of the ids of jobs that a customer began, by when they are forgotten (ms)."""
        return self.shard(shard_of(customer, self.shards), f"z:{customer}")

    def correction(self, shard: int, digest: str) -> str:
        """String: a correction and its result, by the app's id for it, for 400 days."""
        return self.shard(shard, f"r:{digest}")

    def link(self, stripe_customer: str) -> str:
        """String: the customer that a Stripe customer is linked to; see change_claim.lua."""
        return self.shard(shard_of(stripe_customer, self.shards), f"l:{stripe_customer}")

    def beginning(self, customer: str) -> str:
        """String: lock of a customer's sign-up, for a minute at most."""
        return self.shard(shard_of(customer, self.shards), f"b:{customer}")

    def formers(self, stripe_customer: str) -> str:
        """Hash: the customers that a Stripe customer was linked to, for 40 days after the last of them."""
        return self.shard(shard_of(stripe_customer, self.shards), f"f:{stripe_customer}")

    def delivered(self, shard: int, now_ms: int) -> str:
        """Hash: what Stripe accepted on the day of an instant, for 36 days."""
        return self.shard(shard, f"delivered:{now_ms // 86_400_000}")

    def batches(self, shard: int, now_ms: int) -> str:
        """Hash: the idempotency keys of batches that were sent on the day of an instant, for 8 days."""
        return self.shard(shard, f"batches:{now_ms // 86_400_000}")

    def totals(self, shard: int, customer: str) -> str:
        """Hash: closed periods of a customer of that shard, and what became of sealed usage."""
        return self.shard(shard, f"t:{customer}")

    def turns(self, shard: int) -> str:
        """Sorted set: customers by when the clock changes something for them."""
        return self.shard(shard, "turns")

    def notices(self, shard: int) -> str:
        """Stream: events of customers, for the app's handlers."""
        return self.shard(shard, "notices")

    def relist(self, shard: int) -> str:
        """Sorted set: customers whose buckets must be listed again, by when that was found."""
        return self.shard(shard, "relist")

    def presigned(self, customer: str, hour: int) -> str:
        """Hash: uploads of a customer that were presigned in an hour since the epoch; see hold_upload.lua."""
        return self.shard(shard_of(customer, self.shards), f"p:{hour}:{customer}")

    def audit(self, shard: int) -> str:
        """Stream: audit entries that are not in the database yet."""
        return self.shard(shard, "audit")

    def audit_sums(self, shard: int) -> str:
        """Hash: audit entries added up because the stream is full; see fold_audit.lua."""
        return self.shard(shard, "audit:sums")

    def hooks(self, name: str) -> str:
        """State of the nightly sync and of price checks, all in one shard."""
        return self.shard(HOOKS_SHARD, f"hooks:{name}")

    def hints(self, shard: int, name: str) -> str:
        """Queue of Stripe customers to fetch: ``entries``, ``due``, and so on; see queue_sync.lua."""
        return self.shard(shard, f"hints:{name}")

    def messages(self, channel: str, shard: int, name: str) -> str:
        """Messages to be sent: ``entries``, ``due``, and so on; see queue_sync.lua."""
        return self.shard(shard, f"messages:{channel}:{name}")

    def unwanted(self, customer: str) -> str:
        """Set: the kinds of e-mails that a customer does not want."""
        return self.shard(shard_of(customer, self.shards), f"n:{customer}")

    def spikes(self, shard: int, at_ms: int) -> str:
        """Hash: meter and customer of each spike of the day of an instant, for 2 days."""
        return self.shard(shard, f"spikes:{at_ms // 86_400_000}")

    def watched(self, customer: str, digest: str) -> str:
        """String: a watch's finding about a customer: the event, then the time of its notice; 2 days."""
        return self.shard(shard_of(customer, self.shards), f"x:{digest}")

    def subjects(self, customer: str) -> str:
        """Sorted set: the subjects of a customer, by until when their counters live."""
        return self.shard(shard_of(customer, self.shards), f"u:{customer}")

    def subject(self, customer: str, kind: str, subject: str) -> str:
        """Hash: the counters of a subject of a customer."""
        name = f"{customer}\0{kind}\0{subject}".encode()
        digest = blake2b(name, digest_size=16).hexdigest()
        return self.shard(shard_of(customer, self.shards), f"y:{digest}")

    def customer(self, customer: str, *, anonymous: bool = False) -> CustomerKeys:
        """Keys of a customer; an anonymous one has counters in a separate space and no state."""
        shard = shard_of(customer, self.shards)
        return CustomerKeys(self.shard(shard, ""), shard, plain_text(customer), anonymous=anonymous)
