"""Findings about a deployment, decided from its readings, with the cure of each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.catalog.amount_texts import span, units
from meterkit.decisions.keys import FORMAT
from meterkit.redis.server import eviction_warning, is_replica_current, rights_refusal, scan_refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.outbox.intents import Undelivered
    from meterkit.redis.server import Durability

CLOCK_APART_MS: Final = 5_000
"""Clocks that differ by more are a finding; from a minute on nothing is decided."""

CLOCK_REFUSED_MS: Final = 60_000
OVERDUE_MS: Final = 15 * 60_000
"""How long usage that is due may wait to be sealed."""

INTENT_OLD_MS: Final = 60 * 60_000
"""How old an intent may be that Stripe does not have."""

_BACKLOG_S: Final = 600
_NAMED_MAX: Final = 5
_REDIS_LEAST: Final = (7, 0)
_VALKEY_LEAST: Final = (8, 0)
_RECOVER: Final = "`meterkit recover --dry-run` says what becomes of each, `meterkit recover` does it"
_SEE_TO: Final = "`meterkit outbox list` names each; redrive what can be delivered by now, drop what cannot"
_FLUSH: Final = "`meterkit flush` tries it, and says what holds it up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong.

    Attributes:
        check: the name of the check.
        problem: what was found, and what comes of it.
        cure: what to do.
    """

    check: str
    problem: str
    cure: str


def single(*, check: str, problem: str, cure: str) -> list[Finding]:
    """A list of one finding."""
    return [Finding(check=check, problem=problem, cure=cure)]


def version(server: Mapping[str, str]) -> list[Finding]:
    """Whether the server is one that meterkit works with; by ``INFO server``."""
    name, found, least = server_version(server)
    if found is None or _numbers(found) >= least:
        return []
    return single(
        check="server",
        problem=f"the server is {name} {found}, which has not all that meterkit needs",
        cure=f"upgrade it to {name} {'.'.join(map(str, least))} or later",
    )


def server_version(server: Mapping[str, str]) -> tuple[str, str | None, tuple[int, ...]]:
    """Make and version of a server, and the oldest version that will do."""
    # Valkey also says which Redis it is compatible with.
    if "valkey_version" in server:
        return "Valkey", server["valkey_version"], _VALKEY_LEAST
    return "Redis", server.get("redis_version"), _REDIS_LEAST


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def rights(refused: Sequence[int], *, user: str, prefix: str) -> list[Finding]:
    """Whether the server's user may run all commands; ``refused`` as of :func:`rights_refusal`."""
    refusals = (rights_refusal(refused, user=user, prefix=prefix), scan_refusal(refused, user=user))
    parted = (refusal.partition(" Add it: ") for refusal in refusals if refusal is not None)
    return [
        Finding(check="rights", problem=problem.rstrip("."), cure=f"add it: {cure}")
        for problem, _, cure in parted
    ]


def persistence(
    way: Durability, info: Mapping[str, str], *, appendfsync: str | None, is_accepted: bool
) -> list[Finding]:
    """Whether the server persists writes; by ``INFO persistence``.

    Args:
        way: how it is made sure that it does.
        info: what the server says of its persistence; empty: nothing.
        appendfsync: its option of this name; None where it does not say.
        is_accepted: whether the settings say that usage may be delivered from a store that forgets.
    """
    found: list[Finding] = []
    if way == "none" and not is_accepted:
        found += single(
            check="persistence",
            problem="the server has neither an append-only file nor a replica: a restart makes it forget"
            " customers, usage and deliveries; with a live Stripe key nothing is delivered from there",
            cure="set appendonly yes, or, where it is kept in another way,"
            " METERKIT_DELIVER_WITHOUT_PERSISTENCE=on",
        )
    if appendfsync == "no" and info.get("aof_enabled") == "1":
        found += single(
            check="persistence",
            problem="the server has appendfsync no: it never knows what is on its disk; nothing is sent",
            cure="set appendfsync everysec",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        found += single(
            check="persistence",
            problem="the server could not write its append-only file, and refuses writes until it can",
            cure="give its disk room, and look at its log",
        )
    return found


def eviction(memory: Mapping[str, str]) -> list[Finding]:
    """Whether the server throws keys away; by ``INFO memory``."""
    warning = eviction_warning(memory)
    if warning is None:
        return []
    problem, _, cure = warning.rpartition("; ")
    return [Finding(check="eviction", problem=problem, cure=cure)]


def replication(info: Mapping[str, str]) -> list[Finding]:
    """Whether the server is the one to be written to, and its replicas follow; by ``INFO replication``."""
    if info.get("role") == "slave":
        return single(
            check="replication",
            problem="the server is a replica: nothing is decided or counted there",
            cure=f"name its master, {info.get('master_host')}:{info.get('master_port')}",
        )
    return [
        Finding(
            check="replication",
            problem=f"{name} ({text}) does not follow: what it lacks is lost where it takes over",
            cure="look at the replica's log and at the network between the two",
        )
        for name, text in info.items()
        if name.removeprefix("slave").isdecimal() and not is_replica_current(text)
    ]


def clock(ahead_ms: int) -> list[Finding]:
    """Whether this host's clock and the server's agree; by how much the server's is ahead."""
    apart_ms = abs(ahead_ms)
    if apart_ms <= CLOCK_APART_MS:
        return []
    effect = "nothing is decided" if apart_ms > CLOCK_REFUSED_MS else "beyond 60 s nothing is decided"
    where = "ahead of" if ahead_ms > 0 else "behind"
    return single(
        check="clock",
        problem=f"the server's clock is {span(apart_ms)} {where} this host's; {effect}",
        cure="have both hosts set their clocks by NTP (chrony, systemd-timesyncd)",
    )


def shards(meta: Mapping[str, str], *, configured: int, key: str) -> list[Finding]:
    """Whether the store was made for this release and these settings; by what it keeps of itself."""
    if not meta:
        return []  # Nothing has been written yet.
    try:
        written, found = int(meta["format"]), int(meta["shards"])
    except (KeyError, ValueError):
        return single(
            check="shards",
            problem=f"the store holds at {key} what meterkit did not write: {dict(meta)}",
            cure="set METERKIT_KEY_PREFIX to one that nothing else uses",
        )
    if written != FORMAT:
        age = "newer" if written > FORMAT else "older"
        cure = "upgrade this one" if written > FORMAT else "deliver what is pending with that release first"
        return single(
            check="shards",
            problem=f"the store was written by a release that is {age} (format {written}, not {FORMAT})",
            cure=cure,
        )
    if found != configured:
        return single(
            check="shards",
            problem=f"the store has {found} shards, METERKIT_SHARDS is {configured}: nothing starts",
            cure=f"set METERKIT_SHARDS={found}",
        )
    return []


def stray_keys(keys: Sequence[str]) -> list[Finding]:
    """Keys that have no TTL and are not of those that may be without one."""
    if not keys:
        return []
    what = "1 key has" if len(keys) == 1 else f"{len(keys):,} keys have"
    return single(
        check="keys",
        problem=f"{what} no TTL and should have one: {named(keys)}",
        cure="find the program that writes under this prefix (METERKIT_KEY_PREFIX); DEL unneeded keys",
    )


def overdue(customers: int, oldest_ms: int) -> list[Finding]:
    """Usage that should have been sealed for delivery: of how many customers, and for how long."""
    if not customers:
        return []
    whose = "1 customer" if customers == 1 else f"{customers:,} customers"
    return single(
        check="pending",
        problem=f"usage of {whose} has been due for up to {span(oldest_ms)} and is not on its way",
        cure=f"run `meterkit worker`, or set the Stripe key where the app runs; {_FLUSH}",
    )


def old_intent(customer: str, age_ms: int) -> list[Finding]:
    """The intent that has waited longest for Stripe to accept it."""
    if age_ms <= INTENT_OLD_MS:
        return []
    return single(
        check="intents",
        problem=f"an intent of customer {customer} is {span(age_ms)} old, and Stripe does not have it",
        cure=_FLUSH,
    )


def unlinked(customers: Sequence[str]) -> list[Finding]:
    """Customers with usage to bill, and no Stripe customer to bill."""
    if not customers:
        return []
    whose = "1 customer has" if len(customers) == 1 else f"{len(customers):,} customers have"
    return single(
        check="unlinked",
        problem=f"{whose} usage to bill and no Stripe customer: {named(customers)}; it is kept until 35"
        " days after its period",
        cure="meterkit customers link CUSTOMER STRIPE_CUSTOMER",
    )


def undelivered(intents: Iterable[Undelivered]) -> list[Finding]:
    """What Stripe did not accept: a finding for each state and meter."""
    groups: dict[tuple[str, str, bool], list[Undelivered]] = {}
    for one in intents:
        groups.setdefault((one.state, one.meter, one.restored), []).append(one)
    return [_undelivered(state, meter, found) for (state, meter, _), found in sorted(groups.items())]


def _undelivered(state: str, meter: str, found: Sequence[Undelivered]) -> Finding:
    count = "1 intent" if len(found) == 1 else f"{len(found):,} intents"
    whose = named(sorted({one.customer for one in found}))
    return Finding(
        check=state,
        problem=f"{units(one.quantity for one in found)} of {meter} in {count}, of {whose}: {found[0].why}",
        cure=_RECOVER if found[0].restored else _SEE_TO,
    )


def throughput(*, customers: int, intents: int, interval_s: float, limit_per_s: float) -> list[Finding]:
    """Whether what is to be sent can be.

    Args:
        customers: those whose usage is due within one interval: each makes a meter event at least.
        intents: those that wait.
        interval_s: the setting ``flush_interval``.
        limit_per_s: how many meter events a second are sent at most.
    """
    found: list[Finding] = []
    if customers / interval_s > limit_per_s:
        longer = -(-customers // limit_per_s)
        found += single(
            check="throughput",
            problem=f"usage of {customers:,} customers each {interval_s:g} s makes"
            f" {customers / interval_s:,.0f} meter events a second at least; {limit_per_s:,.0f} are sent",
            cure=f"set METERKIT_FLUSH_INTERVAL to {longer:,.0f} at least, or"
            " METERKIT_STRIPE_TRANSPORT to v2-stream",
        )
    if intents / limit_per_s > max(_BACKLOG_S, interval_s):
        found += single(
            check="throughput",
            problem=f"{intents:,} intents wait, which takes {span(int(intents / limit_per_s * 1000))}",
            cure=f"see that `meterkit worker` runs, and set a longer METERKIT_FLUSH_INTERVAL; {_FLUSH}",
        )
    return found


def half_linked(claims: Sequence[tuple[str, str]]) -> list[Finding]:
    """Stripe customers that were claimed for a customer who is not linked to them."""
    return [
        Finding(
            check="links",
            problem=f"{stripe_customer} is claimed for customer {customer}, who is not linked to it: a link"
            " was not made, or not undone, to its end",
            cure=f"repeat what was meant: meterkit customers link {customer} {stripe_customer}, or unlink",
        )
        for customer, stripe_customer in claims
    ]


def named(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more:,} more" if more > 0 else "")
