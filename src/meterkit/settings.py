"""Settings: keywords of ``MeterKit`` and ``METERKIT_*`` variables, read into one frozen object.

Each setting has its parser, its allowed values in words and its default in one place, :class:`Settings`.
"""

from __future__ import annotations

import difflib
import os
from base64 import b64decode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeAlias, TypedDict, TypeVar, cast
from urllib.parse import urlsplit

from meterkit.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SecretStr", "SecretText", "Settings", "SettingsKeywords"]

_PREFIX: Final = "METERKIT_"
_USUAL: Final = {
    "redis_url": "REDIS_URL",
    "stripe_api_key": "STRIPE_API_KEY",
    "stripe_webhook_secret": "STRIPE_WEBHOOK_SECRET",
}
# A path of a base address may be a secret of a proxy.
_NOT_SHOWN: Final = frozenset(_USUAL) | {
    "stripe_api_base",
    "stripe_events_base",
    "storage_endpoint",
    "audit_url",
    "notify_secret",
    "smtp_url",
}
_BASE_ALLOWED: Final = "http://host or https://host, with neither a user nor a password"
_SECRET_BYTES: Final = range(24, 65)
_TEST_KEYS: Final = ("sk_test_", "rk_test_")
_SWITCH_WORDS: Final = {
    **dict.fromkeys(("on", "true", "yes", "t", "y", "1"), True),
    **dict.fromkeys(("off", "false", "no", "f", "n", "0"), False),
}


class SecretText(Protocol):
    """Text that neither ``repr`` nor ``str`` shows, such as pydantic's ``SecretStr``."""

    def get_secret_value(self) -> str:
        """Return the text."""
        ...


class SecretStr:
    """Secret of a setting; masked wherever it is printed."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "SecretStr('**********')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretStr) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


_Value = TypeVar("_Value")
_Parser: TypeAlias = Callable[[object], _Value]
"""Reads the value of a keyword or a variable; raises ValueError or TypeError if it is not allowed."""


def _secret(is_allowed: Callable[[str], bool] = lambda _: True) -> _Parser[SecretStr]:
    def parse(value: object) -> SecretStr:
        reveal: Callable[[], str] | None = getattr(value, "get_secret_value", None)
        text = value if reveal is None else reveal()
        if not isinstance(text, str) or not is_allowed(text):
            raise ValueError
        return SecretStr(text)

    return parse


def _secrets(is_allowed: Callable[[str], bool]) -> _Parser[tuple[SecretStr, ...]]:
    """Parser of secrets in one text with commas, or of several values."""
    parse_one = _secret(is_allowed)

    def parse(value: object) -> tuple[SecretStr, ...]:
        several: Iterable[object] = (value,)
        if isinstance(value, str):
            several = [part.strip() for part in value.split(",") if part.strip()]
        elif isinstance(value, Iterable):
            several = cast("Iterable[object]", value)
        return tuple(map(parse_one, several))

    return parse


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _key_prefix(value: object) -> str:
    if fullmatch(r"[A-Za-z0-9_.-]{1,32}", _text(value)) is None:
        raise ValueError
    return _text(value)


def _word(*allowed: str) -> _Parser[Any]:
    def parse(value: object) -> str:
        if value not in allowed:
            raise ValueError
        return _text(value)

    return parse


def _switch(value: object) -> bool:
    found = value if isinstance(value, bool) else _SWITCH_WORDS.get(str(value).lower())
    if found is None:
        raise ValueError
    return found


def _seconds(least: float, most: float) -> _Parser[float]:
    def parse(value: object) -> float:
        seconds = float(cast("str", value))
        if not least <= seconds <= most:
            raise ValueError
        return seconds

    return parse


def _integer(least: int, most: int) -> _Parser[int]:
    def parse(value: object) -> int:
        number = int(cast("str", value))
        if number != float(cast("str", value)) or not least <= number <= most:
            raise ValueError
        return number

    return parse


def _path(value: object) -> str | os.PathLike[str]:
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    return cast("str | os.PathLike[str]", value)


def _folder(value: object) -> Path:
    try:
        return Path(_path(value)).expanduser()
    except RuntimeError:
        raise ValueError from None


def _is_one_word(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _is_secret_key(text: str) -> bool:
    return not text.startswith("pk_") and _is_one_word(text)


def _is_database(text: str) -> bool:
    kind, _, rest = text.partition("://")
    name = kind.partition("+")[0]
    if name == "sqlite":
        return rest.removeprefix("/") not in {"", ":memory:"}
    return name == "postgresql" and bool(rest)


def _is_signing_secret(text: str) -> bool:
    prefix, _, encoded = text.partition("_")
    return prefix == "whsec" and len(b64decode(encoded, validate=True)) in _SECRET_BYTES


def _is_mail_server(text: str) -> bool:
    url = urlsplit(text)
    if url.scheme not in {"smtp", "smtps"} or not url.hostname or url.port == 0 or url.query or url.fragment:
        return False
    return not url.path.strip("/") and (url.username is None) == (url.password is None)


def _is_base_address(text: str) -> bool:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.query or url.fragment:
        return False
    # The Stripe key takes the header in which a user and a password would be sent.
    return "@" not in url.netloc and url.port != 0


def _base_address(value: object) -> SecretStr:
    return SecretStr(_secret(_is_base_address)(value).get_secret_value().rstrip("/"))


def _state_folder() -> Path:
    """Find the XDG state directory: files there survive a restart."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():
        return state / "meterkit"
    try:
        return Path.home() / ".local" / "state" / "meterkit"
    except RuntimeError:
        raise SettingsError(
            "spool_dir", "spool_dir: this user has no home directory; set METERKIT_SPOOL_DIR"
        ) from None


def _shape(parse: _Parser[object], allowed: str) -> Mapping[str, Any]:
    """Metadata of a setting: its parser, and the allowed values in words."""
    return {"parse": parse, "allowed": allowed}


class SettingsKeywords(TypedDict, total=False):
    """Keywords of ``MeterKit`` for settings, for type checkers; see :class:`Settings`."""

    redis_url: str | SecretText | None
    stripe_api_key: str | SecretText | None
    stripe_api_base: str | SecretText | None
    stripe_events_base: str | SecretText | None
    stripe_webhook_secret: str | SecretText | Sequence[str | SecretText] | None
    stripe_transport: Literal["v1", "v2-stream"] | None
    flush_interval: float | None
    store_timeout: float | None
    start_timeout: float | None
    key_prefix: str | None
    shards: int | None
    customers_kept: int | None
    spool_dir: str | os.PathLike[str] | None
    deliver_without_persistence: bool | None
    flush: bool | None
    audit_url: str | SecretText | None
    enforcement: Literal["on", "shadow", "off"] | None
    storage_endpoint: str | SecretText | None
    notify_secret: str | SecretText | Sequence[str | SecretText] | None
    notify_templates: str | os.PathLike[str] | None
    smtp_url: str | SecretText | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings besides the plans file. Made by :meth:`load`.

    Each attribute is a keyword of ``MeterKit`` and, with ``METERKIT_`` before it, a variable. Those that may
    hold a password or a key show their text by ``get_secret_value()`` alone.

    Attributes:
        redis_url: where the store is; None: the embedded server if it is installed, else memory.
        plans: the plans file.
        stripe_api_key: None: usage is counted and not delivered.
        stripe_api_base: another address for Stripe's API, without a slash at its end; None: Stripe's own.
        stripe_events_base: another address for Stripe's meter events; None: Stripe's own.
        stripe_webhook_secret: each is accepted, so that a secret can be rolled.
        stripe_transport: how usage is sent.
        flush_interval: seconds that usage is gathered before it is due to be sent, where it is counted.
        store_timeout: seconds that one call to the store may take.
        start_timeout: seconds that starting tries to reach the store, before it is logged and the app begins.
        key_prefix: what the store's keys begin with.
        shards: over how many hash slots customers are spread; fixed when a store is first used.
        customers_kept: how many customers a process knows at once; beyond that the least recently used go.
        spool_dir: where usage waits while the store is down.
        deliver_without_persistence: whether usage is delivered with a live key from a store that has neither
            an append-only file nor a replica: it may be billed again after a restart of the store.
        flush: whether the flusher runs in this process; None: where a Stripe key is set.
        audit_url: the database of the audit log, as SQLAlchemy names it; None: there is none.
        enforcement: over what the plans file says: ``on``, ``shadow``, or ``off``: nothing is decided or
            counted; None: as the file says.
        storage_endpoint: another address of S3, such as MinIO's; None: Amazon's.
        notify_secret: each signs the webhooks that are sent, so that a secret can be rolled.
        notify_templates: a folder whose templates of e-mails replace meterkit's own; None: there is none.
        smtp_url: the server that sends e-mails, with user and password; None: no e-mail is sent.
    """

    redis_url: SecretText | None = field(default=None, metadata=_shape(_secret(), "the URL of a store"))
    plans: str | os.PathLike[str] | None = field(default=None, metadata=_shape(_path, "the path of a file"))
    stripe_api_key: SecretText | None = field(
        default=None,
        metadata=_shape(_secret(_is_secret_key), "a secret or restricted key (sk_…, rk_…), without spaces"),
    )
    stripe_api_base: SecretText | None = field(default=None, metadata=_shape(_base_address, _BASE_ALLOWED))
    stripe_events_base: SecretText | None = field(default=None, metadata=_shape(_base_address, _BASE_ALLOWED))
    stripe_webhook_secret: tuple[SecretText, ...] = field(
        default=(), metadata=_shape(_secrets(_is_one_word), "signing secrets (whsec_…), separated by commas")
    )
    stripe_transport: Literal["v1", "v2-stream"] = field(
        default="v1", metadata=_shape(_word("v1", "v2-stream"), "v1 or v2-stream")
    )
    flush_interval: float = field(
        default=300.0, metadata=_shape(_seconds(0.05, 86_400), "seconds from 0.05 to 86400, decimals allowed")
    )
    store_timeout: float = field(
        default=0.25, metadata=_shape(_seconds(0.01, 60), "seconds from 0.01 to 60, decimals allowed")
    )
    start_timeout: float = field(
        default=5.0, metadata=_shape(_seconds(0, 300), "seconds from 0 to 300, decimals allowed")
    )
    key_prefix: str = field(default="mk", metadata=_shape(_key_prefix, "1 to 32 of A-Z a-z 0-9 _ . -"))
    shards: int = field(default=128, metadata=_shape(_integer(1, 1024), "a whole number from 1 to 1024"))
    customers_kept: int = field(
        default=10_000, metadata=_shape(_integer(100, 10_000_000), "a whole number from 100 to 10000000")
    )
    spool_dir: Path = field(
        default_factory=_state_folder, metadata=_shape(_folder, "the path of a directory")
    )
    deliver_without_persistence: bool = field(default=False, metadata=_shape(_switch, "on or off"))
    flush: bool | None = field(default=None, metadata=_shape(_switch, "on or off"))
    audit_url: SecretText | None = field(
        default=None,
        metadata=_shape(
            _secret(_is_database),
            "the URL of a database by SQLAlchemy: postgresql+DRIVER://USER:PASSWORD@HOST/NAME, or sqlite:///FILE",
        ),
    )
    enforcement: Literal["on", "shadow", "off"] | None = field(
        default=None, metadata=_shape(_word("on", "shadow", "off"), "on, shadow or off")
    )
    storage_endpoint: SecretText | None = field(default=None, metadata=_shape(_base_address, _BASE_ALLOWED))
    notify_secret: tuple[SecretText, ...] = field(
        default=(),
        metadata=_shape(
            _secrets(_is_signing_secret),
            "secrets of Standard Webhooks (whsec_ and base64 of 24 to 64 bytes), by commas",
        ),
    )
    notify_templates: Path | None = field(default=None, metadata=_shape(_folder, "the path of a directory"))
    smtp_url: SecretText | None = field(
        default=None, metadata=_shape(_secret(_is_mail_server), "smtp://USER:PASSWORD@HOST:PORT, or smtps://")
    )

    @classmethod
    def load(cls, **keywords: Any) -> Self:
        """Read the settings: a keyword wins over its variable, that over the usual one (``REDIS_URL``).

        A keyword that is None and a variable that is empty count as not given.

        Raises:
            SettingsError: a keyword is unknown, or values are not allowed; all are named, the first is
                the error's ``name``.
        """
        shapes = {setting.name: setting.metadata for setting in fields(cls)}
        for name, value in keywords.items():
            if value is not None and name not in shapes:
                raise SettingsError(name, _unknown(name, list(shapes)))
        values: dict[str, Any] = {}
        refusals: dict[str, str] = {}
        for name, shape in shapes.items():
            origin, value = _find(name, keywords)
            if value is None:
                continue
            try:
                values[name] = shape["parse"](value)
            except (ValueError, TypeError, OverflowError):
                found = "a value that is not shown here" if name in _NOT_SHOWN else repr(value)
                refusals[name] = f"{origin}: found {found}; allowed: {shape['allowed']}"
        if refusals:
            raise SettingsError(next(iter(refusals)), "\n".join(refusals.values()))
        return cls(**values)

    @staticmethod
    def reveal(secret: SecretText | None) -> str | None:
        """Return the text of a secret setting; None: it is not set."""
        return None if secret is None else secret.get_secret_value()

    @property
    def is_redis_url_shared(self) -> bool:
        """Whether the store's URL is that of ``REDIS_URL``, which other software reads too."""
        return self.redis_url is not None and self.reveal(self.redis_url) == os.environ.get(
            _USUAL["redis_url"]
        )

    @property
    def delivers(self) -> bool:
        """Whether each process delivers to Stripe in the background."""
        return self.flushes and self.stripe_api_key is not None

    @property
    def flushes(self) -> bool:
        """Whether the flusher runs in this process."""
        return self.stripe_api_key is not None if self.flush is None else self.flush

    @property
    def meter_event_calls_per_s(self) -> float:
        """Maximum calls per second that send meter events to Stripe."""
        # https://docs.stripe.com/rate-limits: live 1,000 meter events a second, in a sandbox 25 requests.
        is_sandbox = not self.live and (self.stripe_events_base or self.stripe_api_base) is None
        return 20.0 if is_sandbox else 800.0

    @property
    def meter_events_per_s(self) -> float:
        """Maximum meter events per second sent to Stripe."""
        # Of a stream live 10,000 events a second, and a hundred in a call.
        calls = self.meter_event_calls_per_s
        return calls if self.stripe_transport == "v1" else min(8_000.0, 100 * calls)

    @property
    def live(self) -> bool:
        """Whether the Stripe key may move real money: any but those of test mode and sandboxes."""
        return self.stripe_api_key is not None and not self.stripe_api_key.get_secret_value().startswith(
            _TEST_KEYS
        )


def _find(name: str, keywords: Mapping[str, object]) -> tuple[str, object]:
    """Find where a setting is given, and its value; None: nowhere."""
    if keywords.get(name) is not None:
        return f"keyword {name}", keywords[name]
    for variable in (f"{_PREFIX}{name.upper()}", _USUAL.get(name, "")):
        if value := os.environ.get(variable):
            return variable, value
    return "", None


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no setting {name}; {hint}"
