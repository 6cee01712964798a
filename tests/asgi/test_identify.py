from __future__ import annotations

import hashlib
import ipaddress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

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

    @pytest.mark.parametrize(
        "headers",
        [
            (),
            ((b"x-customer-id", b""),),
            ((b"x-customer-id", b"cus_1"), (b"x-customer-id", b"cus_2")),
            ((b"x-customer-id", b"cus_1"), (b"x-customer-id", b"cus_1")),
            ((b"x-customer", b"cus_1"),),
        ],
        ids=["missing", "empty", "twice", "the same twice", "another name"],
    )
    def test_names_nobody_unless_given_once(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        assert identify.header("x-customer-id")(scope(*headers)) is None

    def test_reads_utf8(self) -> None:
        assert identify.header("c")(scope((b"c", "Zoë".encode()))) == "Zoë"

    @given(st.binary(min_size=1))
    def test_never_raises_and_what_is_not_utf8_is_no_customer(self, value: bytes) -> None:
        found = identify.header("c")(scope((b"c", value)))
        assert found is not None
        try:
            value.decode()
        except UnicodeDecodeError:
            assert not identify.is_customer(found)
        else:
            assert value == found.encode()


class TestApiKey:
    owners = {"sk_live_1": "cus_1"}  # noqa: RUF012 - read only

    @pytest.mark.parametrize("value", [b"Bearer sk_live_1", b"bearer sk_live_1", b"BEARER   sk_live_1 "])
    @pytest.mark.anyio
    async def test_finds_the_owner_of_a_bearer_token(self, value: bytes) -> None:
        assert await found(identify.api_key(self.owners.get), scope((b"authorization", value))) == "cus_1"

    @pytest.mark.parametrize(
        "value",
        [b"", b"sk_live_1", b"Basic sk_live_1", b"Bearer", b"Bearer ", b"Bearer sk_live_2", b"\xff\xfe"],
    )
    @pytest.mark.anyio
    async def test_finds_nobody_otherwise(self, value: bytes) -> None:
        assert await found(identify.api_key(self.owners.get), scope((b"authorization", value))) is None

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

    def test_no_key_is_not_looked_up(self) -> None:
        asked: list[str] = []
        identify.api_key(asked.append)(scope((b"authorization", b"Bearer ")))
        assert asked == []


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

    def test_means_the_identity(self) -> None:
        assert identify.user()(scope(user=Member(7, "acme"))) == "user-7"

    def test_an_attribute_that_is_none_or_empty_is_nobody(self) -> None:
        assert identify.user("number")(scope(user=Member(None, ""))) is None
        assert identify.user("organisation")(scope(user=Member(None, ""))) is None

    def test_who_is_not_authenticated_is_nobody(self) -> None:
        assert identify.user("display_name")(scope(user=UnauthenticatedUser())) is None
        assert identify.user()(scope(user=Guest(7, "acme"))) is None
        assert identify.user("display_name")(scope(user=SimpleUser("zoe"))) == "zoe"

    def test_a_user_of_any_class_will_do(self) -> None:
        assert identify.user("imag")(scope(user=3 + 4j)) == "4.0"

    def test_without_authentication_it_says_what_to_do(self) -> None:
        with pytest.raises(MeterkitError, match="AuthenticationMiddleware must see the request first"):
            identify.user()(scope())


def at(host: str, *forwarded: bytes) -> dict[str, Any]:
    return scope(*((b"x-forwarded-for", value) for value in forwarded), client=(host, 1234))


class TestClientIp:
    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("testclient", None),
            ("/run/app.sock", None),
            ("", None),
        ],
    )
    def test_is_an_ipv4_address_or_an_ipv6_network(self, host: str, expected: str | None) -> None:
        assert expected == identify.client_ip()(at(host))

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
            ("10.0.0.1", [b"203.0.113.1"], "203.0.113.1"),
            ("10.0.0.1", [b"6.6.6.6, 203.0.113.1"], "203.0.113.1"),
            ("10.0.0.1", [b"6.6.6.6,203.0.113.1 , 10.0.0.2"], "203.0.113.1"),
            ("10.0.0.1", [b"203.0.113.1", b"10.0.0.2"], "203.0.113.1"),
            ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", [b"203.0.113.1, unknown"], None),
            ("10.0.0.1", [b""], None),
            ("10.0.0.1", [b"fe80::1%eth0"], "fe80::/64"),
            ("10.0.0.1", [b"fe80::1%" + b"x" * 64], None),
            ("10.0.0.1", [b"\xff\xfe"], None),
            ("10.0.0.1", [b"203.0.113.1:4711"], "203.0.113.1"),
            ("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::/64"),
            ("10.0.0.1", [b"[2001:db8::1]"], "2001:db8::/64"),
            ("::ffff:10.0.0.1", [b"203.0.113.1"], "203.0.113.1"),
            ("2001:db8:ffff::1", [b"203.0.113.1"], "203.0.113.1"),
            ("10.0.0.1", [b", ".join([b"203.0.113.1"] + [b"10.0.0.2"] * 20)], "203.0.113.1"),
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

    @pytest.mark.parametrize("proxy", ["::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "10.0.0.1"])
    def test_a_mapped_address_is_the_address_it_maps(self, proxy: str) -> None:
        resolve = identify.client_ip(trusted_proxies=[proxy])
        for host in ("10.0.0.1", "::ffff:10.0.0.1"):
            assert resolve(at(host, b"::ffff:203.0.113.1")) == "203.0.113.1"
        assert resolve(at("192.0.2.7", b"203.0.113.1")) == "192.0.2.7"

    def test_forwarded_is_never_read(self) -> None:
        request = scope((b"forwarded", b"for=203.0.113.1"), client=("10.0.0.1", 1))
        assert identify.client_ip(trusted_proxies=["10.0.0.0/8"])(request) == "10.0.0.1"

    @given(st.lists(st.binary(max_size=40), max_size=4))
    def test_never_raises(self, forwarded: list[bytes]) -> None:
        found = identify.client_ip(trusted_proxies=["10.0.0.1"])(at("10.0.0.1", *forwarded))
        assert found is None or identify.is_customer(found)

    @pytest.mark.parametrize("text", ["*", "", "10.0.0.0/33", "localhost"])
    def test_what_is_no_address_cannot_be_trusted(self, text: str) -> None:
        with pytest.raises(
            ValueError, match=r"trusted_proxies: found '.*'; allowed are addresses and networks"
        ):
            identify.client_ip(trusted_proxies=[text])


class TestCustomer:
    @pytest.mark.parametrize(
        "customer",
        ["a", "cus_1", "a b", "Zoë", "日本", "x" * 256, "é" * 128, "🙂" * 64, "\u2028", "'; --", "{}"],
    )
    def test_is_any_text_of_1_to_256_bytes(self, customer: str) -> None:
        assert identify.is_customer(customer)
        assert identify.check_customer(customer) == customer

    @pytest.mark.parametrize(
        ("customer", "found"),
        [
            ("", "an empty text"),
            ("x" * 257, "a text of 257 bytes"),
            ("é" * 129, "a text of 258 bytes"),
            ("a\x00", r"the control character U\+0000 at position 1"),
            ("\n", r"the control character U\+000A at position 0"),
            ("a\x7fb", r"the control character U\+007F at position 1"),
            ("é\x85", r"the control character U\+0085 at position 1"),
            ("ab\ud800", "a lone surrogate at position 2"),
            (7, "a value of type int"),
            (None, "a value of type NoneType"),
            (b"cus_1", "a value of type bytes"),
        ],
    )
    def test_is_nothing_else(self, customer: object, found: str) -> None:
        assert not identify.is_customer(customer)
        with pytest.raises(
            CustomerError, match=f"^customer id: found {found}; allowed is a text of 1 to 256"
        ):
            identify.check_customer(customer)

    def test_an_id_that_is_refused_is_not_repeated(self) -> None:
        with pytest.raises(CustomerError) as caught:
            identify.check_customer("hunter2\n")
        assert "hunter2" not in str(caught.value)

    @given(st.text(max_size=300))
    def test_agrees_with_the_definition(self, customer: str) -> None:
        def is_control(character: str) -> bool:
            return ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0

        # The strategy draws no surrogates.
        size = len(customer.encode())
        expected = 1 <= size <= 256 and not any(map(is_control, customer))
        assert identify.is_customer(customer) is expected
