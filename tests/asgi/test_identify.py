from __future__ import annotations

import hashlib
import ipaddress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

from drivers.sampled import few_examples
from meterkit import identify
from meterkit.errors import CustomerError, MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable


def scope(*headers: tuple[bytes, bytes], **extra: Any) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers), **extra}


async def found(resolve: Callable[[dict[str, Any]], Any], request: dict[str, Any]) -> object:
    """Whom a resolver finds, sync or async."""
    who = resolve(request)
    return await who if isawaitable(who) else who


class TestHeader:
    def test_names_the_customer(self) -> None:
        found = identify.header("X-Customer-Id")(scope((b"host", b"a"), (b"x-customer-id", b"cus_1")))
        assert found == "cus_1"

    def test_names_nobody_unless_given_once(self) -> None:
        given = (b"x-customer-id", b"cus_1")
        for headers in ((), ((b"x-customer-id", b""),), (given, given), ((b"x-customer", b"cus_1"),)):
            assert identify.header("x-customer-id")(scope(*headers)) is None


class TestApiKey:
    owners = {"sk_live_1": "cus_1"}  # noqa: RUF012 - read only

    @pytest.mark.anyio
    async def test_reads_a_bearer_token_and_nothing_else(self) -> None:
        resolve = identify.api_key(self.owners.get)
        for value in (b"Bearer sk_live_1", b"BEARER   sk_live_1 "):
            assert await found(resolve, scope((b"authorization", value))) == "cus_1"
        for value in (b"sk_live_1", b"Basic sk_live_1", b"Bearer ", b"Bearer sk_live_2", b"\xff\xfe"):
            assert await found(resolve, scope((b"authorization", value))) is None

    @pytest.mark.anyio
    async def test_reads_a_bare_key_from_another_header(self) -> None:
        resolve = identify.api_key(self.owners.get, header="X-Api-Key")
        assert await found(resolve, scope((b"x-api-key", b"sk_live_1"))) == "cus_1"
        assert resolve(scope((b"authorization", b"Bearer sk_live_1"))) is None

    def test_two_keys_are_nobodys(self) -> None:
        value = (b"authorization", b"Bearer sk_live_1")
        assert identify.api_key(self.owners.get)(scope(value, value)) is None

    @pytest.mark.anyio
    async def test_the_key_is_looked_up_as_it_came_or_its_hash(self) -> None:
        """F-136: a dict of keys gave 401 for all."""
        asked: list[str] = []
        came = scope((b"authorization", b"Bearer sk_live_1"))
        await found(identify.api_key(asked.append), came)
        await found(identify.api_key(asked.append, hashed=True), came)
        assert asked == ["sk_live_1", hashlib.sha256(b"sk_live_1").hexdigest()]
        assert asked[1] == identify.hash_key("sk_live_1")


class Member(BaseUser):
    def __init__(self, number: int | None, organisation: str) -> None:
        self.number = number
        self.organisation = organisation

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def identity(self) -> str:
        return f"user-{self.number}"


class Guest(Member):
    @property
    def is_authenticated(self) -> bool:
        return False


class TestUser:
    @pytest.mark.parametrize(
        ("attr", "expected"), [("identity", "user-7"), ("number", "7"), ("organisation", "acme")]
    )
    def test_names_an_attribute(self, attr: str, expected: str) -> None:
        assert expected == identify.user(attr)(scope(user=Member(7, "acme")))

    def test_who_is_not_authenticated_is_nobody(self) -> None:
        assert identify.user("display_name")(scope(user=UnauthenticatedUser())) is None
        assert identify.user()(scope(user=Guest(7, "acme"))) is None
        assert identify.user("display_name")(scope(user=SimpleUser("zoe"))) == "zoe"

    def test_without_authentication_it_says_what_to_do(self) -> None:
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

    def test_a_connection_without_address_is_nobody(self) -> None:
        assert identify.client_ip()(scope(client=None)) is None
        assert identify.client_ip()(scope()) is None

    def test_without_trusted_proxies_the_header_is_not_read(self) -> None:
        assert identify.client_ip()(at("192.0.2.7", b"203.0.113.1")) == "192.0.2.7"

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
    def test_proxies_are_believed_from_the_right(
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
        def is_control(character: str) -> bool:
            return ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0

        # The strategy draws no surrogates.
        size = len(customer.encode())
        expected = 1 <= size <= 256 and not any(map(is_control, customer))
        assert identify.is_customer(customer) is expected
