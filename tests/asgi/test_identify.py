"""Who a request belongs to: headers, API keys, users and addresses."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import ipaddress
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from inspect import isawaitable
from typing import Any
from uuid import UUID

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser
from starlette.types import Scope

from drivers.app import hello, served
from drivers.sampled import few_examples
from meterkit import Caller, MeterkitError, identify
from meterkit.errors import CustomerError

pytestmark = pytest.mark.anyio


def scope(*headers: tuple[bytes, bytes], **extra: Any) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers), **extra}


def bearing(key: str) -> Scope:
    return scope((b"authorization", b"Bearer " + key.encode()))


async def found(resolve: Callable[[Scope], Any], request: Scope | str) -> Any:
    """Whom a resolver finds, sync or async; a text is a key."""
    who = resolve(bearing(request) if isinstance(request, str) else request)
    return await who if isawaitable(who) else who


class TestHeader:
    def test_names_the_customer(self) -> None:
        request = scope((b"host", b"a"), (b"x-customer-id", b"cus_1"))
        assert identify.header("X-Customer-Id")(request) == "cus_1"

    def test_names_nobody_unless_given_once(self) -> None:
        given = (b"x-customer-id", b"cus_1")
        for headers in ((), ((b"x-customer-id", b""),), (given, given), ((b"x-customer", b"cus_1"),)):
            assert identify.header("x-customer-id")(scope(*headers)) is None


class TestApiKey:
    owners = {"sk_live_1": "cus_1"}  # noqa: RUF012 - read only

    async def test_reads_a_bearer_token_and_nothing_else(self) -> None:
        resolve = identify.api_key(self.owners.get)
        for value in (b"Bearer sk_live_1", b"BEARER   sk_live_1 "):
            assert await found(resolve, scope((b"authorization", value))) == "cus_1"
        for value in (b"sk_live_1", b"Basic sk_live_1", b"Bearer ", b"Bearer sk_live_2", b"\xff\xfe"):
            assert await found(resolve, scope((b"authorization", value))) is None
        assert resolve(scope(*(bearing("sk_live_1")["headers"] * 2))) is None

    async def test_reads_a_bare_key_from_another_header(self) -> None:
        resolve = identify.api_key(self.owners.get, header="X-Api-Key")
        assert await found(resolve, scope((b"x-api-key", b"sk_live_1"))) == "cus_1"
        assert resolve(bearing("sk_live_1")) is None

    async def test_the_key_is_looked_up_as_it_came_or_its_hash(self) -> None:
        """F-136: a dict of keys gave 401 for all."""
        asked: list[str] = []
        for hashed in (False, True):
            await found(identify.api_key(asked.append, hashed=hashed), "sk_live_1")
        assert asked == ["sk_live_1", hashlib.sha256(b"sk_live_1").hexdigest()]
        assert asked[1] == identify.hash_key("sk_live_1")


class Member(BaseUser):
    is_authenticated: Any = True
    identity: Any = "user-7"
    number, share, account, raw = 7, 1.5, object(), b"x"
    uuid, missing = UUID(int=7), None

    def full_name(self) -> str:
        return "Ada"


class Guest(Member):
    is_authenticated = False


class TestUser:
    @pytest.mark.parametrize(
        ("attr", "expected"),
        [
            ("identity", "user-7"),
            ("number", "7"),
            ("share", "1.5"),
            ("uuid", str(UUID(int=7))),
            ("missing", None),
        ],
    )
    def test_names_an_attribute(self, attr: str, expected: str | None) -> None:
        assert expected == identify.user(attr)(scope(user=Member()))

    @pytest.mark.parametrize("attr", ["account", "full_name", "is_authenticated", "raw"])
    async def test_an_object_is_no_id(self, attr: str, caplog: pytest.LogCaptureFixture) -> None:
        """Its text has its address: each request was of a customer of its own, who had all that is free."""
        async with served(hello, who=lambda of: identify.user(attr)({**of, "user": Member()})) as edge:
            assert await edge.statuses("/v1/x") == [503]
        assert f"identify.user('{attr}'): found a value of type " in caplog.text

    def test_who_is_not_authenticated_is_nobody(self) -> None:
        assert identify.user("display_name")(scope(user=UnauthenticatedUser())) is None
        assert identify.user()(scope(user=Guest())) is None
        assert identify.user("display_name")(scope(user=SimpleUser("zoe"))) == "zoe"
        with pytest.raises(MeterkitError, match="AuthenticationMiddleware must see the request first"):
            identify.user()(scope())


def at(host: str, *forwarded: bytes) -> dict[str, Any]:
    return scope(*((b"x-forwarded-for", value) for value in forwarded), client=(host, 1234))


class TestClientIp:
    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:DB8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("/run/app.sock", None),
        ],
    )
    def test_is_an_ipv4_address_or_an_ipv6_network(self, host: str, expected: str | None) -> None:
        assert expected == identify.client_ip()(at(host))

    @few_examples(20)
    @given(st.ip_addresses(v=6))
    def test_all_of_a_64_is_one_customer(self, address: ipaddress.IPv6Address) -> None:
        found = identify.client_ip()(at(str(address)))
        if address.ipv4_mapped is None:
            assert found == str(ipaddress.ip_network((address, 64), strict=False))

    def test_without_trusted_proxies_the_header_is_not_read(self) -> None:
        assert identify.client_ip()(at("192.0.2.7", b"203.0.113.1")) == "192.0.2.7"
        for nowhere in (scope(client=None), scope()):
            assert identify.client_ip()(nowhere) is None

    @pytest.mark.parametrize(
        ("host", "forwarded", "expected"),
        [
            ("192.0.2.7", [b"203.0.113.1"], "192.0.2.7"),
            ("10.0.0.1", [], "10.0.0.1"),
            ("10.0.0.1", [b"6.6.6.6,203.0.113.1 , 10.0.0.2"], "203.0.113.1"),
            ("10.0.0.1", [b"203.0.113.1", b"10.0.0.2"], "203.0.113.1"),
            ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", [b"203.0.113.1, unknown"], None),
            ("10.0.0.1", [b""], None),
            ("10.0.0.1", [b"\xff\xfe"], None),
            ("10.0.0.1", [b"203.0.113.1:4711"], "203.0.113.1"),
            ("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::/64"),
            ("::ffff:10.0.0.1", [b"203.0.113.1"], "203.0.113.1"),
            ("2001:db8:ffff::1", [b"203.0.113.1"], "203.0.113.1"),
            ("10.0.0.1", [b", ".join([b"203.0.113.1"] + [b"10.0.0.2"] * 5000)], None),
            ("10.0.0.1", [b", ".join([b"6.6.6.6"] * 5000 + [b"203.0.113.1"])], "203.0.113.1"),
        ],
    )
    def test_proxies_count_from_the_right(
        self, host: str, forwarded: list[bytes], expected: str | None
    ) -> None:
        resolve = identify.client_ip(trusted_proxies=["10.0.0.0/8", "2001:db8:ffff::1"])
        assert expected == resolve(at(host, *forwarded))

    @pytest.mark.parametrize("client", [None, ("", 0), ("", None), ("unix:/run/app.sock", None)])
    def test_a_socket_is_believed_where_it_is_named(self, client: tuple[str, int | None] | None) -> None:
        """F-66: behind a proxy on a Unix socket everybody was nobody."""
        request = scope((b"x-forwarded-for", b"6.6.6.6, 203.0.113.1, 10.0.0.2"), client=client)
        assert identify.client_ip(trusted_proxies=["unix", "10.0.0.0/8"])(request) == "203.0.113.1"
        assert identify.client_ip(trusted_proxies=["unix"])(request) == "10.0.0.2"
        assert identify.client_ip(trusted_proxies=["10.0.0.0/8"])(request) is None
        assert identify.client_ip(trusted_proxies=["unix"])(scope(client=client)) is None

    @pytest.mark.parametrize("proxy", ["::ffff:10.0.0.0/104", "10.0.0.1"])
    def test_a_mapped_address_is_the_address_it_maps(self, proxy: str) -> None:
        resolve = identify.client_ip(trusted_proxies=[proxy])
        for host in ("10.0.0.1", "::ffff:10.0.0.1"):
            assert resolve(at(host, b"::ffff:203.0.113.1")) == "203.0.113.1"
        assert resolve(at("192.0.2.7", b"203.0.113.1")) == "192.0.2.7"


class TestCustomer:
    @pytest.mark.parametrize(
        ("customer", "found"),
        [
            ("", "an empty text"),
            ("é" * 129, "a text of 258 bytes"),
            ("é\x85", r"the control character U\+0085 at position 1"),
            ("ab\ud800", "a lone surrogate at position 2"),
            (b"cus_1", "a value of type bytes"),
        ],
    )
    def test_is_a_text_of_1_to_256_bytes(self, customer: object, found: str) -> None:
        assert identify.check_customer("é" * 128) == "é" * 128
        assert not identify.is_customer(customer)
        with pytest.raises(CustomerError, match=f"^customer id: found {found}; allowed is a text of 1 to"):
            identify.check_customer(customer)

    @few_examples(30)
    @given(st.text(max_size=300))
    def test_agrees_with_the_definition(self, customer: str) -> None:
        has_controls = any(ord(sign) < 0x20 or 0x7F <= ord(sign) < 0xA0 for sign in customer)
        # The strategy draws no surrogates.
        assert identify.is_customer(customer) is (1 <= len(customer.encode()) <= 256 and not has_controls)


# API keys: looked up off the loop, once for all who ask at the same time, and remembered for a while.


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - it becomes so in a thread, or in a task that runs meanwhile
        await asyncio.sleep(0)


class Table:
    """Keys and their owners, and what was asked of it, where."""

    def __init__(self, **owners: str) -> None:
        self.owners = dict(owners)
        self.asked: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.open = threading.Event()
        self.open.set()

    def look_up(self, key: str) -> str | None:
        self.asked.append(key)
        self.threads.add(threading.current_thread())
        assert self.open.wait(30)
        return self.owners.get(key)

    async def look_up_later(self, key: str) -> str | None:
        self.asked.append(key)
        await until(self.open.is_set)
        return self.owners.get(key)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of what is remembered: one number, that a test moves."""
    clock = [1000.0]
    monkeypatch.setattr("meterkit.asgi.identify.monotonic", lambda: clock[0])
    return clock


async def test_a_lookup_that_blocks_does_not_block_the_loop() -> None:
    """F-65: it ran on the loop, at every request."""
    table = Table(k1="acme")
    table.open.clear()
    resolve = identify.api_key(table.look_up)
    turns = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found, resolve, "k1")
        while not table.asked or turns < 100:  # The loop turns while the lookup is held up.
            turns += 1
            await asyncio.sleep(0)
        table.open.set()
    assert threading.main_thread() not in table.threads
    assert (await found(resolve, "k1"), len(table.asked)) == ("acme", 1)


@pytest.mark.parametrize("name", ["look_up", "look_up_later"])
async def test_an_owner_is_remembered_for_ttl_and_no_longer(name: str, now: list[float]) -> None:
    table = Table(k1="acme")
    resolve = identify.api_key(getattr(table, name), ttl=timedelta(seconds=60))
    assert [await found(resolve, "k1") for _ in range(3)] == ["acme"] * 3
    now[0] += 59.9
    assert resolve(bearing("k1")) == "acme"  # At once: nothing to wait for.
    assert len(table.asked) == 1
    now[0] += 0.2
    table.owners.clear()
    # That nobody owns a key is forgotten sooner.
    assert ([await found(resolve, "k1") for _ in range(3)], len(table.asked)) == ([None] * 3, 2)
    table.owners["k1"] = "zeta"
    now[0] += 5.1
    assert (await found(resolve, "k1"), len(table.asked)) == ("zeta", 3)
    forgetful = identify.api_key(getattr(table, name), ttl=timedelta(0))
    for _ in range(2):
        await found(forgetful, "k1")
    assert len(table.asked) == 5


async def test_where_the_first_to_ask_is_cancelled_the_next_one_asks() -> None:
    table = Table(k1="acme")
    table.open.clear()
    resolve = identify.api_key(table.look_up_later)
    first, *others = [asyncio.create_task(found(resolve, "k1")) for _ in range(4)]
    await until(lambda: bool(table.asked))
    others.pop().cancel()  # One of those who wait: nobody else hears of it.
    first.cancel()
    await asyncio.wait([first])
    table.open.set()
    assert (await asyncio.gather(*others), len(table.asked)) == (["acme", "acme"], 2)


async def test_what_a_lookup_raises_is_raised_and_not_remembered() -> None:
    outcomes: list[Any] = ["acme", LookupError("the directory is away")]

    def look_up(_: str) -> str:
        outcome = outcomes.pop()
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    resolve = identify.api_key(look_up)
    both = await asyncio.gather(found(resolve, "k1"), found(resolve, "k1"), return_exceptions=True)
    assert ([str(one) for one in both], await found(resolve, "k1")) == (["the directory is away"] * 2, "acme")
    gc.collect()  # A future whose exception nobody fetched would complain now.
    assert outcomes == []


async def test_the_cache_is_bounded_and_strangers_evict_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.asgi.identify._KEYS_KEPT_MAX", 4)
    table = Table(k0="acme", **{f"k{n}": f"customer-{n}" for n in range(1, 6)})
    resolve = identify.api_key(table.look_up_later)
    assert await found(resolve, "k0") == "acme"
    for n in range(50):
        assert await found(resolve, f"stranger-{n}") is None
    assert resolve(bearing("k0")) == "acme"
    for n in range(1, 6):
        await found(resolve, f"k{n}")
    table.asked.clear()
    for n in (5, 4, 3, 2, 0):
        await found(resolve, f"k{n}")
    assert table.asked == ["k0"]


async def test_strangers_keys_delay_no_owner_that_is_known() -> None:
    """A few made-up keys took all threads: each customer whose minute was over waited behind them."""
    table = Table(k1="acme")
    resolve = identify.api_key(table.look_up, ttl=timedelta(0))
    assert await found(resolve, "k1") == "acme"
    table.open.clear()
    strangers = [asyncio.create_task(found(resolve, f"stranger-{n}")) for n in range(17)]
    known = asyncio.create_task(found(resolve, "k1"))
    try:
        async with asyncio.timeout(5):
            await until(lambda: table.asked.count("k1") == 2)
    finally:
        table.open.set()
    assert (await known, set(await asyncio.gather(*strangers))) == ("acme", {None})


async def test_no_key_is_kept_anywhere() -> None:
    resolve = identify.api_key(Table(**{"sk-live-secret": "acme"}).look_up)
    await found(resolve, "sk-live-secret")
    await found(resolve, "sk-live-wrong")
    cells: list[object] = [cell.cell_contents for cell in resolve.__closure__ or ()]
    owners = next(cell for cell in cells if hasattr(cell, "of"))
    assert "sk-live" not in repr(cells) + repr(vars(owners))
    assert identify.hash_key("sk-live-secret") in repr(vars(owners))


async def test_a_lookup_that_finds_no_owner_at_all_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """F-136: the log said `anonymous`, and nothing of the form in which a key is looked up."""
    for hashed, gets in ((False, "the key as the client sent it"), (True, "the SHA-256 of the key, in hex")):
        caplog.clear()
        resolve = identify.api_key(dict[str, str]().get, hashed=hashed)
        assert [await found(resolve, f"k{n}") for n in range(20)] == [None] * 20
        assert [gets in message for message in caplog.messages] == [True]
    caplog.clear()
    resolve = identify.api_key({"k7": "acme"}.get)
    for n in (7, *range(7)):
        await found(resolve, f"k{n}")
    assert caplog.records == []


@pytest.mark.parametrize("hashed", [True, False])
async def test_i10_what_a_lookup_raises_does_not_tell_the_key(hashed: bool) -> None:
    owners: dict[str, str] = {}
    with pytest.raises(MeterkitError, match=r"^the lookup of an API key raised KeyError$") as raised:
        await found(identify.api_key(owners.__getitem__, hashed=hashed), "sk-live-secret")
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("key", ["sk-live-secret", r"sk-live-\secret"])
async def test_i10_what_led_to_a_lookups_error_is_not_told(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A table of keys in front of a database that is down: the log had both errors."""

    def look_up(asked: str) -> str:
        try:
            return {"sk-live-1": "acme"}[asked]
        except KeyError:
            raise ConnectionError("the database is down")  # noqa: B904 - as a handler that fails does

    async with served(hello, who=identify.api_key(look_up)) as edge:
        assert await edge.statuses("/v1/x", headers={"authorization": f"Bearer {key}"}) == [503]
    assert "the lookup of an API key raised ConnectionError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {"authorization": "Bearer sk-live-secret"}),
        ("", {"x-api-key": "sk-live-secret"}),
        ("", {"cookie": "lang=en; session=sk-live-secret"}),
        ("?token=sk-live-secret", {}),
    ],
    ids=["authorization", "own", "cookie", "query"],
)
async def test_i10_what_identify_raises_does_not_tell_a_key(
    query: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """An app's own table of keys: the log had the key with the KeyError."""

    async def look_up(scope: Scope) -> str:
        given = [scope["query_string"], *(value for _, value in scope["headers"])]
        (key,) = {word for value in given for word in re.findall(rb"sk-live-\w+", value)}
        return {"sk-live-1": "acme"}[key.decode()]

    async with served(hello, who=look_up) as edge:
        assert await edge.statuses(f"/v1/x{query}", headers=headers) == [503]
    assert "identify raised KeyError" in caplog.text
    assert "look_up" in caplog.text  # Where it was raised.
    assert "secret" not in caplog.text


def test_a_ttl_that_is_none_is_refused() -> None:
    wrong: list[Any] = [60, timedelta(seconds=-1), None]
    for ttl in wrong:
        with pytest.raises(MeterkitError, match=r"^ttl: found .*; allowed is a timedelta from 0"):
            identify.api_key(Table().look_up, ttl=ttl)


@pytest.mark.parametrize("named", ["customer", "user"])
async def test_f_334_the_text_of_an_object_is_no_id(named: str) -> None:
    """F-334: ``str()`` of a user of an ORM was a customer of its own in each process."""

    class User:
        id = 7

    text = str(User())

    def who(scope: Scope) -> Caller:
        del scope
        return Caller(text) if named == "customer" else Caller("acme", {"user": text})

    async with served(hello, who=who) as at:
        refused = await at.client.get("/v1/x")
        assert refused.status_code == 400
        assert "the text of an object; give its id, such as str(user.id)" in refused.json()["detail"]
        with pytest.raises(CustomerError, match="the text of an object; give its id"):
            await at.kit.record(text, "requests", 1)
        await at.kit.record("<User 7>", "requests", 1)
