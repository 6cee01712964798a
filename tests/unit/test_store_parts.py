"""Parts of the store and of its client that need no server."""

# Internals: parts that a store shows only under faults.

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import ssl
import stat
import sys
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event
from time import time
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest.mock import AsyncMock, Mock

import pytest

from drivers.kept_intents import subscription
from llm_usage import CallUsage
from meterkit.catalog import loads
from meterkit.customers.billed_usage import _price_meter, _RecordedAt
from meterkit.customers.grant_ledger import build_ledger
from meterkit.customers.links import claim_owner
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import Keys
from meterkit.decisions.periods import bounds_at, to_ms
from meterkit.decisions.stored_grants import StoredGrant
from meterkit.errors import MeterkitError, SettingsError, StoreError
from meterkit.metric_tallies import BUCKETS_S, Tallies
from meterkit.outbox.close_queue import PeriodClose, ends_to_close
from meterkit.outbox.intents import RESTORED, StoredIntent
from meterkit.outbox.operator_commands import _shown_intent
from meterkit.redis import discovery, scripts
from meterkit.redis.cluster_lane import ClusterConnection
from meterkit.redis.connection import OnEnd, ReplyError
from meterkit.redis.daemon_thread import import_in_thread, in_daemon_thread
from meterkit.redis.embedded import EmbeddedServer
from meterkit.redis.lane import HoldRenewal, Lane
from meterkit.redis.local_files import FileLock, check_peer, make_directory
from meterkit.redis.reconnector import AnyConnection, Reconnector
from meterkit.redis.server import eviction_warning, refuse_past_clock
from meterkit.redis.settlement_queue import NEVER_SENT, SentRecord, SettlementQueue, resolve
from meterkit.redis.url import Address, HostPort, Tls
from meterkit.store.allotment import next_size
from meterkit.store.call_amounts import amounts_of
from meterkit.store.compiled_catalog import CatalogAlarms
from meterkit.store.customer_usage import UsageReply, read_usage_reply
from meterkit.store.fallback_decider import Fallback
from meterkit.store.input_checks import check_customer, check_event_id, check_subjects
from meterkit.store.prepared_decisions import prepare_reserving
from meterkit.store.request_idempotency import MarkedDecision
from meterkit.store.reservations import HoldOwner
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import (
    MeterEntry,
    RepeatMark,
    UsedQuantities,
    format_audit_lines,
    pack_thresholds,
)
from meterkit.store.views import CustomerCache, CustomerView, PreparedDecision
from servers.stores import free_port

pytestmark = pytest.mark.anyio

# What a meter cost and which thresholds are sent show only in long runs elsewhere.


HOUR_MS: Final = 3_600_000
NOW_MS: Final = to_ms(datetime(2031, 6, 10, 12, tzinfo=UTC))
TEXT: Final = """
schema: 1
currency: usd
default_plan: free
enforcement: on
billing: {late_usage: dead_letter}
meters: {requests: {unit: request}}
routes: [{match: "*", consume: {requests: 1}}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters: {requests: {included: 1_000, overage: deny, warn_at: [80]}}
  pro:
    price: {amount_cents: 100, interval: month}
    meters: {requests: {included: 2_000, overage: deny}}
"""
CATALOG: Final = loads(TEXT)


class Known:
    """The customers that a process knows, and the decisions whose replies nobody took."""

    def __init__(self, text: str = TEXT) -> None:
        self.unclaimed: list[PreparedDecision] = []
        self.catalog = loads(text)
        self.customers = CustomerCache(
            self.catalog,
            keys=Keys("mk", 4),
            decide=scripts.load("decide"),
            settle=scripts.load("settle"),
            seal_delay_ms=300_000,
            now_ms=lambda: NOW_MS,
            on_unclaimed=lambda decided, _: self.unclaimed.append(decided),
        )

    def view(self, state: CustomerState | None = None, *, anonymous: bool = False) -> CustomerView:
        view = self.customers.get("ada", anonymous=anonymous)
        if state is None:
            return view
        return self.customers.learn(view, [2, NOW_MS, b"2:1", state.dump().encode()])


def test_the_audit_log_has_time_model_and_price_of_usage() -> None:
    for used, at_ms, price, lines in (
        ({}, None, "", b""),
        ({}, 5, "", b"5\n\n\n"),
        ({"model": "m"}, None, "", b"\nm\n\n"),
        ({"provider": "p"}, 5, "", b"5\n\np\n"),
        ({}, None, "plans/1 a1b2::o1/1", b"\n\n\nplans/1 a1b2::o1/1"),
    ):
        assert format_audit_lines(UsedQuantities(dimensions=used), at_ms, price) == lines


def test_a_customer_id_has_up_to_256_bytes_and_a_claim_names_it() -> None:
    assert claim_owner("ada\n0123456789abcdef") == "ada"
    for longest in ("a" * 256, "é" * 128):
        assert check_customer(longest) == longest
        check_event_id(longest)
        with pytest.raises(MeterkitError, match="found a text of 257 bytes"):
            check_customer(f"{longest}a")
        with pytest.raises(MeterkitError, match="event_id: found a text of 257 bytes"):
            check_event_id(f"{longest}a")


def test_a_request_names_up_to_three_subjects() -> None:
    three = {"user": "u_7", "team": "red", "key": "k"}
    assert check_subjects(three) == tuple(three.items())
    with pytest.raises(MeterkitError, match="found 4; allowed is a mapping of at most 3 kinds"):
        check_subjects(three | {"app": "ios"})


def test_late_usage_is_logged_with_what_becomes_of_it(caplog: pytest.LogCaptureFixture) -> None:
    for late_usage, fate in (("dead_letter", "is not billed"), ("next_period", "is billed in this one")):
        alarms = CatalogAlarms(loads(TEXT.replace("dead_letter", late_usage)))
        alarms.log_backdated_usage("ada", {"requests": 3}, NOW_MS)
        assert f"what comes for it now {fate} (billing.late_usage: {late_usage})" in caplog.messages[-1]


def test_a_grant_is_over_at_the_instant_at_which_it_expires() -> None:
    times = dict.fromkeys(("effective_ms", "expires_ms", "created_ms", "until_ms"), 0)
    grant = StoredGrant(
        name="a m:requests one", target="m:requests", quantity=10, used=0, priority=50, **times
    )
    for expires_ms, entries in ((NOW_MS, ["grant", "expire"]), (NOW_MS + 1, ["grant"])):
        lines = build_ledger([replace(grant, expires_ms=expires_ms, until_ms=expires_ms)], {}, NOW_MS)
        assert [line.entry for line in lines] == entries


def test_the_first_instant_of_a_closed_period_is_in_it() -> None:
    start_ms, end_ms = (to_ms(datetime(2031, month, 15, tzinfo=UTC)) for month in (3, 4))
    totals = [f"{start_ms}|e".encode(), str(end_ms).encode()]
    nothing = list[bytes]()
    state = CustomerState().dump().encode()
    reply = UsageReply(NOW_MS, b"", state, nothing, totals, nothing, [], nothing)
    for at_ms in (start_ms, end_ms - 1):
        period = read_usage_reply("ada", CATALOG, reply, at_ms=at_ms)["period"]
        assert (to_ms(period["start"]), to_ms(period["end"])) == (start_ms, end_ms)


def test_an_intent_says_who_parked_it_and_if_it_is_restored() -> None:
    fields = {"v": "1", "state": "parked", "customer": "ada", "stripe": "cus_1", "period": "0", "meter": "x"}
    fields |= {"event": "e", "value": "6", "time": "60", "key": "k", "first": "0", "attempts": "0", "at": "0"}
    found, restored = (
        _shown_intent(StoredIntent.read("one", 0, json.dumps(fields | more).encode()), {}, {}, NOW_MS)
        for more in ({}, {RESTORED: "1"})
    )
    assert (found.restored, restored.restored) == (False, True)
    assert replace(found, state="parked", why="parked by hand: wait").is_parked_by_hand
    assert not replace(found, state="parked", why="Stripe may have it").is_parked_by_hand
    assert not replace(found, state="dead", why="parked by hand: no").is_parked_by_hand


def test_what_was_delivered_is_priced_where_its_prices_are_known() -> None:
    def priced(marks: str, overage: int, *, stranded: int = 0, items: str = "") -> Any:
        counts: Any = {"delivered": 10, "overage": overage}
        recorded = _RecordedAt(marks, label="1/2", sent_label="1/2", stranded=stranded, items=items)
        return _price_meter(counts, recorded, late=0, has_parts=False)

    # One price: all that is delivered costs that, whatever was recorded.
    assert priced("", 12) == {2: 10}
    # Two: which of them what is missing had is not known.
    assert priced("1/3 4 4\n", 10) == {3: 4, 2: 6}
    assert priced("1/3 4 4\n", 12) is None
    # Late units were recorded twice, or never sealed: sealed units have the price of their seal.
    assert priced("1/3 4 4\n", 12, stranded=2) == priced("1/3 4 4\n", 12, items="1/3 2") == {3: 4, 2: 6}


def test_a_call_that_no_meter_counts_is_told_unless_figures_are(caplog: pytest.LogCaptureFixture) -> None:
    call, known = CallUsage(input_tokens=3, output_tokens=1, source="reported"), Known().customers
    assert amounts_of([call], known, has_figures=True) == {}  # Nor are its units, without an audit log.
    assert caplog.messages == []
    assert amounts_of([call], known) == {}
    assert "no meter counts the usage of a model call" in caplog.text


def test_of_anonymous_callers_no_threshold_is_sent() -> None:
    entry = MeterEntry("requests", "requests", (1_000, -1, 0, 0, 0))
    assert pack_thresholds(Known().view(), [entry]) == (2, 800, 80, 1_000)
    assert pack_thresholds(Known().view(anonymous=True), [entry]) == ()


def test_a_reservation_is_limited_by_its_models_meters() -> None:
    derived = '{requests: {unit: request}, large: {unit: request, from: requests, where: {model: "*-large"}}}'
    known = Known(TEXT.replace("{requests: {unit: request}}", derived))
    for model, expected in (("m-large", {"requests": 5, "large": 5}), ("m-small", {"requests": 5})):
        route = known.catalog.routes[0]
        assert prepare_reserving(known.view(), route, {"requests": 5}, models=(model,)).reserved == expected


def test_for_two_hours_after_a_period_its_close_is_noted() -> None:
    view = Known().view(CustomerState(stripe_customer="cus_1"))
    end_ms = view.effective.bounds.end_ms
    # The process has learnt nothing of the customer since the period ended.
    for hours, has_start in ((1, True), (2, False), (3, False)):
        now_ms = end_ms + hours * HOUR_MS
        found = {PeriodClose.read(0, member.encode()).end_ms for member in ends_to_close([view], now_ms)}
        assert found == {bounds_at(now_ms).end_ms} | ({end_ms} if has_start else set())


def test_without_the_store_a_plan_change_holds_from_its_time() -> None:
    changes = {"pending_plan": "free", "pending_at_ms": NOW_MS + 1_000}
    view = Known().view(CustomerState(stripe_customer="cus_1", subscription=subscription(**changes)))
    for passed_ms, plan in ((0, "pro"), (999, "pro"), (1_000, "free")):
        fallback = Fallback(partial(int, NOW_MS + passed_ms))
        assert fallback.decide(view, CATALOG.routes[0], None).plan == plan


def test_a_cancelled_marked_request_returns_its_hold() -> None:
    for enforcement, reply, given_back in (
        ("on", [7, NOW_MS], 0),  # Where it is refused, it holds nothing.
        ("shadow", [7, NOW_MS], 1),
        ("shadow", ReplyError("ERR no"), 0),
    ):
        known = Known(TEXT.replace("on\n", f"{enforcement}\n"))
        MarkedDecision(known.view().prepare(known.catalog.routes[0]), "digest").on_unclaimed_reply(reply)
        assert len(known.unclaimed) == given_back, (enforcement, reply)


class Held(HoldOwner):
    """What a request holds that has ended."""

    __slots__ = ()

    def release_hold(self) -> None:
        """Nothing is left to give back."""


def test_only_the_last_settlement_of_several_has_the_mark() -> None:
    known = Known()
    decided = MarkedDecision(known.view().prepare(known.catalog.routes[0]), "digest")
    holder = Held.__new__(Held)
    holder._renewed, holder._slot, holder._decided_ms = None, 0, NOW_MS
    found = holder._build_settlements(decided, [UsedQuantities.of({"requests": used}) for used in (2, 3)])
    assert [(one.mark, one.used.recorded) for one in found] == [
        (RepeatMark("digest", billed=False), {"requests": 3}),
        (RepeatMark("digest", billed=True), {"requests": 2}),
    ]


async def test_who_waits_for_a_settlement_gets_its_first_outcome() -> None:
    settlement = Settlement(Known().view())
    resolve(settlement, None)  # Nobody waits.
    for error, other in ((StoreError("first"), None), (None, StoreError("second"))):
        settlement.waiter = waiter = asyncio.get_running_loop().create_future()
        resolve(settlement, error)
        resolve(settlement, other)
        assert waiter.exception() is error


def test_the_log_of_a_server_begins_anew_once_it_is_large(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    log = tmp_path / "valkey.log"
    log.write_bytes(bytes(7))
    assert server._fresh_log() == 7
    log.write_bytes(bytes(2 * 10**6))
    assert (server._fresh_log(), log.exists()) == (0, False)


# Pieces of the store's client that need no server.


def test_a_thread_gives_its_result_or_its_error() -> None:
    assert in_daemon_thread(lambda: 7, name="seven").result(10) == 7
    assert isinstance(in_daemon_thread(lambda: 1 // 0, name="none").exception(10), ZeroDivisionError)


_PART = """
import steps
steps.order.append(__name__)
steps.begun[__name__].set()
steps.begun["other"].wait(0.1)
steps.order.append(__name__)
"""


def test_threads_import_one_module_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("meterkit.redis.daemon_thread._imported", {})
    order, begun = list[str](), {name: Event() for name in ("one", "other")}
    monkeypatch.setitem(sys.modules, "steps", cast("Any", SimpleNamespace(order=order, begun=begun)))
    for name in begun:
        (tmp_path / f"{name}.py").write_text(_PART)

    async def import_both() -> None:
        await asyncio.gather(*map(import_in_thread, begun))

    try:
        asyncio.run(import_both())
    finally:
        for name in begun:
            sys.modules.pop(name, None)
    assert order in (["one", "one", "other", "other"], ["other", "other", "one", "one"])


def test_a_clock_may_be_ahead_and_no_more_than_a_minute_behind() -> None:
    now = time()
    for told in (now + 10**6, now - 30):
        assert refuse_past_clock(partial(float, told), "redis://x")() == told
    with pytest.raises(MeterkitError, match="which is past, and redis://x keeps nothing"):
        refuse_past_clock(lambda: now - 90, "redis://x")()


def test_files_of_a_store_are_of_this_user_alone(tmp_path: Path) -> None:
    make_directory(tmp_path / "new")
    ignored = tmp_path / "new" / ".gitignore"
    assert ignored.read_text() == "# A database of meterkit.\n*\n"
    lock = FileLock(tmp_path / "new" / "some.lock")
    assert lock.acquire()
    try:
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (ignored, tmp_path / "new" / "some.lock")]
    finally:
        lock.close()
    assert modes == [0o600, 0o600]


def test_a_server_of_this_user_is_used(tmp_path: Path) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        check_peer(one, tmp_path / "socket")


def test_a_full_disk_is_named_and_another_error_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, error in ((errno.ENOSPC, StoreError), (errno.EIO, OSError)):
        monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=OSError(number, "so it is")))
        with pytest.raises(error, match=r"so it is|disk"):
            EmbeddedServer(tmp_path / "store").start()


def test_a_server_that_may_throw_keys_away_is_warned_of() -> None:
    assert eviction_warning({"maxmemory_policy": "noeviction"}) is None
    unlimited = eviction_warning({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}) or ""
    assert "no limit now: maxmemory 0) it throws away customers" in unlimited
    volatile = eviction_warning({"maxmemory_policy": "volatile-lru", "maxmemory": "9"}) or ""
    assert "memory is full it throws away counters" in volatile


def test_a_script_has_each_function_once() -> None:
    # In decide, branches that few requests take include the same functions, so that others need not pay.
    for name in ("seal", "mark_late_usage"):
        functions = re.findall(r"^local function (\w+)", scripts.load(name).text, re.MULTILINE)
        assert 0 < len(functions) == len(set(functions))


def test_without_a_certificate_of_its_own_a_client_names_none() -> None:
    assert isinstance(Tls().context, ssl.SSLContext)
    with pytest.raises(SettingsError, match=r"ssl_certfile=none\.pem cannot be used"):
        _ = Tls(certfile="none.pem").context


def test_an_unknown_certificate_is_refused_with_its_cure() -> None:
    error = ssl.SSLCertVerificationError("no")
    error.verify_code, error.verify_message = 19, "self-signed certificate in certificate chain"
    for tls, named in ((Tls(), "the system's are asked"), (Tls(ca_certs="ca.pem"), "ca.pem is read")):
        assert f"of the authorities that vouch for it ({named})" in tls.refusal(error)
    for code in (62, 64):  # Of another host; of another address.
        error.verify_code = code
        assert "the URL is to name a host that the certificate names" in Tls().refusal(error)


async def test_every_request_is_answered_and_one_in_eight_is_timed() -> None:
    tallies, loop = Tallies(), asyncio.get_running_loop()

    def call(_: object) -> asyncio.Future[Any]:
        future = loop.create_future()
        future.set_result(7)
        return future

    timed = tallies.time_calls(call)
    asked: Any = None
    assert [await timed(asked) for _ in range(16)] == [7] * 16
    await asyncio.sleep(0)
    assert (sum(tallies.durations), len(tallies.durations)) == (2, len(BUCKETS_S) + 1)


async def test_a_cluster_that_cannot_be_reached_says_why() -> None:
    place = HostPort("127.0.0.1", free_port())
    for places, why in (((place,), "Connect call failed|refused"), ((), "no node is named")):
        with pytest.raises(StoreError, match=f"cannot be reached: .*({why})"):
            await discovery.find_slots(Address(kind="cluster", places=places), (), timeout_s=5, clock=time)


async def test_renewal_that_begins_again_renews_once_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    renewal = HoldRenewal(lambda _: None, lambda: 0)
    timers = list[asyncio.TimerHandle]()
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def call_later(*given: Any, **more: Any) -> asyncio.TimerHandle:
        timers.append(later(*given, **more))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", call_later, raising=False)
    renewal.begin()
    renewal.begin()
    renewal.stop()
    assert [timer.cancelled() for timer in timers] == [True, True]


def lane() -> Lane:
    async def connect(_: OnEnd) -> AnyConnection:
        raise StoreError("it is away")

    script = scripts.load("settle")
    return Lane(connect, keys=Keys("mk", 1), scripts=[script], fence=script, timeout_s=1, now_ms=lambda: 0)


async def test_a_warning_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    found = lane()
    for _ in range(3):
        found.warn("the store is full")
    assert (caplog.messages, found.is_served) == (["the store is full"], False)


async def test_scripts_are_loaded_once_until_the_reply() -> None:
    found, line = lane(), Mock()
    line.ask.side_effect = replies = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for given in (None, line, line):
        found.load(given)
    await asyncio.sleep(0)
    found.load(line)  # Refusals of one moment may come in several pieces.
    assert [asked.args[:2] for asked in line.ask.mock_calls] == [("SCRIPT", "LOAD")]
    replies[0].set_result("its digest")
    await asyncio.sleep(0)
    found.load(line)
    assert len(line.ask.mock_calls) == 2


async def test_settings_that_do_not_fit_the_store_are_refused() -> None:
    async def refuse(_: OnEnd) -> AnyConnection:
        raise SettingsError("redis_url", "redis_url: it is another's")

    reconnector = Reconnector(refuse, timeout_s=1, on_change=lambda _: None)
    with pytest.raises(SettingsError, match="it is another's"):
        await reconnector.reach(5)
    await reconnector.stop()


async def test_a_call_that_waited_for_a_connection_waits_no_longer() -> None:
    line, is_there = Mock(close=AsyncMock()), asyncio.Event()

    async def connect(_: OnEnd) -> AnyConnection:
        await is_there.wait()
        return cast("AnyConnection", line)

    reconnector = Reconnector(connect, timeout_s=0.05, on_change=lambda _: None)
    reconnector.begin()
    reply = reconnector.call(Mock())
    is_there.set()
    with pytest.raises(StoreError, match="did not answer within") as caught:
        await asyncio.wait_for(reply, 5)
    assert (len(line.call.mock_calls), caught.value.executed) == (1, None)
    await reconnector.stop()


async def test_slots_are_fetched_once_at_a_time_while_it_is_open() -> None:
    fetched = list[object]()

    async def find(known: object) -> discovery.Slots:
        fetched.append(known)
        return discovery.Slots(())

    cluster = ClusterConnection(
        discovery.Slots(()), connect_to=AsyncMock(), find=find, keys=Keys("mk", 1), timeout_s=1
    )
    for _ in range(3):
        cluster.refresh_slots()
        await asyncio.sleep(0)
    await cluster.close()
    cluster.refresh_slots()
    await asyncio.sleep(0)
    assert len(fetched) == 1


async def test_what_is_spooled_is_no_longer_recovered() -> None:
    fenced, tasks = asyncio.Event(), list[asyncio.Task[None]]()

    async def fence(_: str) -> int:
        await fenced.wait()
        return 0

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    lane = Mock(stopping=False, fence=fence, spawn=spawn)
    queue = SettlementQueue(lane, Keys("mk", 1), 0)
    known = Mock(is_deleted=False)
    first, second = (Mock(slot=0, pack=lambda: (b"", b""), view=known) for _ in range(2))
    queue.settle(first)
    queue.disconnected()  # Its recovery waits.
    await asyncio.sleep(0)
    queue.spill()
    queue.settle(second)
    fenced.set()
    await asyncio.wait(tasks)
    assert (len(lane.spool.keep.mock_calls), [*queue.producer.inflight]) == (1, [second])


def test_a_spool_tells_what_was_acknowledged_before_it() -> None:
    """The process that sends it compares, if this one ends before it can."""

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        work.close()

    lane = Mock(stopping=False, post=None, spawn=spawn)
    queue = SettlementQueue(lane, Keys("mk", 1), 0)
    queue.producer.acknowledged = 5
    settlements = [Mock(view=Mock(is_deleted=False)) for _ in range(2)]
    for settlement in settlements:
        queue.settle(settlement)
    compared = SentRecord(queue.producer.key, NEVER_SENT, 5)
    queue.spill()
    lane.spool.keep.assert_called_once_with(0, [*zip(settlements, (compared, None), strict=True)])


def test_an_allotment_grows_and_shrinks_with_what_is_used() -> None:
    for asked, granted, unused, is_early, size in (
        (64, 8, 2, True, 128),  # Little was left before half of the term was over.
        (64, 8, 2, False, 64),
        (64, 8, 3, True, 32),  # More than a quarter of the granted units is unused.
        (7, 7, 7, False, 4),
        (4096, 4096, 0, True, 4096),
    ):
        assert next_size(asked, granted, unused, is_early=is_early) == size, (asked, unused)
