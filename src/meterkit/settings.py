"""Settings: keywords of ``MeterKit`` and ``METERKIT_*`` variables, read into one frozen object."""

from __future__ import annotations

import difflib
import logging
import os
import re
from base64 import b64decode

# Pydantic reads the annotations of the class below when it is made, so their names are needed then.
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypedDict
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from meterkit.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Settings", "SettingsKeywords"]

_logger = logging.getLogger("meterkit")

_PREFIX: Final = "METERKIT_"
_MISSPELLED_RATIO: Final = 0.65
"""Similarity of names from which a variable counts as misspelled; below it may belong to other software."""
_ADDRESSES: Final = ("tcp://", "udp://", "sctp://")
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
_SECRET_KEY: Final = re.compile(r"[sr]k_.")
_WEBHOOK_SECRET: Final = re.compile(r"whsec_.")
_TEST_KEYS: Final = ("sk_test_", "rk_test_")


def _one_word(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    return secret


def _secret_key(secret: SecretStr) -> SecretStr:
    if not _SECRET_KEY.match(secret.get_secret_value()):
        raise ValueError
    return _one_word(secret)


def _webhook_secret(secret: SecretStr) -> SecretStr:
    if not _WEBHOOK_SECRET.match(secret.get_secret_value()):
        raise ValueError
    return _one_word(secret)


def _database(secret: SecretStr) -> SecretStr:
    kind, _, rest = secret.get_secret_value().partition("://")
    is_file = kind.partition("+")[0] == "sqlite" and rest.removeprefix("/") not in {"", ":memory:"}
    if not is_file and not (kind.partition("+")[0] == "postgresql" and rest):
        raise ValueError
    return secret


def _signing_secret(secret: SecretStr) -> SecretStr:
    prefix, _, encoded = secret.get_secret_value().partition("_")
    if prefix != "whsec" or len(b64decode(encoded, validate=True)) not in _SECRET_BYTES:
        raise ValueError
    return secret


def _mail_server(secret: SecretStr) -> SecretStr:
    url = urlsplit(secret.get_secret_value())
    if url.scheme not in {"smtp", "smtps"} or not url.hostname or url.port == 0 or url.query or url.fragment:
        raise ValueError
    if url.path.strip("/") or (url.username is None) != (url.password is None):
        raise ValueError
    return secret


def _by_comma(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, SecretStr) else value


def _base_address(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.query or url.fragment:
        raise ValueError
    # The Stripe key takes the header in which a user and a password would be sent.
    if "@" in url.netloc or url.port == 0:
        raise ValueError
    return SecretStr(text.rstrip("/"))


def _folder(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError from None


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


_Base = Annotated[SecretStr, AfterValidator(_base_address)]


class SettingsKeywords(TypedDict, total=False):
    """Keywords of ``MeterKit`` for settings, for type checkers; see :class:`Settings`."""

    redis_url: str | SecretStr | None
    stripe_api_key: str | SecretStr | None
    stripe_api_base: str | SecretStr | None
    stripe_events_base: str | SecretStr | None
    stripe_webhook_secret: str | SecretStr | Sequence[str | SecretStr] | None
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
    audit_url: str | SecretStr | None
    enforcement: Literal["on", "shadow", "off"] | None
    storage_endpoint: str | SecretStr | None
    notify_secret: str | SecretStr | Sequence[str | SecretStr] | None
    notify_templates: str | os.PathLike[str] | None
    smtp_url: str | SecretStr | None


class Settings(BaseSettings):
    """Settings besides the plans file. Made by :meth:`load`.

    Each attribute is a keyword of ``MeterKit`` and, with ``METERKIT_`` before it, a variable. Those that may
    hold a password or a key are ``SecretStr``: neither ``repr`` nor ``model_dump`` shows them.

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
        start_timeout: seconds that the start and the first requests wait for the store before the app goes on
            without it.
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

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    redis_url: Annotated[SecretStr | None, Field(description="the URL of a store")] = None
    plans: Annotated[str | os.PathLike[str] | None, Field(description="the path of a file")] = None
    stripe_api_key: Annotated[
        Annotated[SecretStr, AfterValidator(_secret_key)] | None,
        Field(description="a secret or restricted key (sk_…, rk_…), without spaces"),
    ] = None
    stripe_api_base: Annotated[_Base | None, Field(description=_BASE_ALLOWED)] = None
    stripe_events_base: Annotated[_Base | None, Field(description=_BASE_ALLOWED)] = None
    stripe_webhook_secret: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_webhook_secret)], ...],
        NoDecode,
        BeforeValidator(_by_comma),
        Field(description="signing secrets of webhook destinations (whsec_…), separated by commas"),
    ] = ()
    stripe_transport: Annotated[Literal["v1", "v2-stream"], Field(description="v1 or v2-stream")] = "v1"
    flush_interval: Annotated[
        float, Field(ge=0.05, le=86_400, description="seconds from 0.05 to 86400, decimals allowed")
    ] = 300.0
    store_timeout: Annotated[
        float, Field(ge=0.01, le=60, description="seconds from 0.01 to 60, decimals allowed")
    ] = 0.25
    start_timeout: Annotated[
        float, Field(ge=0, le=300, description="seconds from 0 to 300, decimals allowed")
    ] = 5.0
    key_prefix: Annotated[
        str, Field(pattern=r"\A[A-Za-z0-9_.-]{1,32}\z", description="1 to 32 of A-Z a-z 0-9 _ . -")
    ] = "mk"
    shards: Annotated[int, Field(ge=1, le=1024, description="a whole number from 1 to 1024")] = 128
    customers_kept: Annotated[
        int, Field(ge=100, le=10_000_000, description="a whole number from 100 to 10000000")
    ] = 10_000
    spool_dir: Annotated[Path, AfterValidator(_folder), Field(description="the path of a directory")] = Field(
        default_factory=_state_folder
    )
    deliver_without_persistence: Annotated[bool, Field(description="on or off")] = False
    flush: Annotated[bool | None, Field(description="on or off")] = None
    audit_url: Annotated[
        Annotated[SecretStr, AfterValidator(_database)] | None,
        Field(
            description="the URL of a database by SQLAlchemy: postgresql+DRIVER://USER:PASSWORD@HOST/NAME, or"
            " sqlite:///FILE"
        ),
    ] = None
    enforcement: Annotated[Literal["on", "shadow", "off"] | None, Field(description="on, shadow or off")] = (
        None
    )
    storage_endpoint: Annotated[_Base | None, Field(description=_BASE_ALLOWED)] = None

    notify_secret: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_signing_secret)], ...],
        NoDecode,
        BeforeValidator(_by_comma),
        Field(description="secrets of Standard Webhooks (whsec_ and base64 of 24 to 64 bytes), by commas"),
    ] = ()
    notify_templates: Annotated[
        Annotated[Path, AfterValidator(_folder)] | None, Field(description="the path of a directory")
    ] = None
    smtp_url: Annotated[
        Annotated[SecretStr, AfterValidator(_mail_server)] | None,
        Field(description="smtp://USER:PASSWORD@HOST:PORT, or smtps://"),
    ] = None

    @classmethod
    def load(cls, **keywords: Any) -> Self:
        """Read the settings: a keyword wins over its variable, that over the usual one (``REDIS_URL``).

        A keyword that is None and a variable that is empty count as not given.

        Raises:
            SettingsError: a keyword is unknown, or values are not allowed; all are named, the first is
                the error's ``name``.
        """
        given = {name: value for name, value in keywords.items() if value is not None}
        for name in given:
            if name not in cls.model_fields:
                raise SettingsError(name, _unknown(name, list(cls.model_fields)))
        try:
            settings = cls(**given)
        except ValidationError as error:
            bad = list(dict.fromkeys(str(problem["loc"][0]) for problem in error.errors()))
            raise SettingsError(bad[0], "\n".join(_refusal(name, given) for name in bad)) from None
        _warn_of_misspelled_variables()
        return settings

    @model_validator(mode="before")
    @classmethod
    def _usual_variables(cls, found: dict[str, Any]) -> dict[str, Any]:
        """Add what stands under the names by which other software finds the same values; the weakest."""
        usual = {name: os.environ.get(variable) for name, variable in _USUAL.items()}
        return {name: value for name, value in usual.items() if value} | found

    @staticmethod
    def reveal(secret: SecretStr | None) -> str | None:
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


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no setting {name}; {hint}"


def _warn_of_misspelled_variables() -> None:
    """Log the ``METERKIT_*`` variables that no setting reads and that resemble one that a setting reads."""
    known = [name.upper() for name in Settings.model_fields]
    found: list[str] = []
    for variable in sorted(os.environ):
        name = variable.removeprefix(_PREFIX)
        # Kubernetes and Docker set such addresses for each service: METERKIT_REDIS_PORT=tcp://10.0.0.7:6379.
        if name == variable or name in known or os.environ[variable].startswith(_ADDRESSES):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELLED_RATIO)
        found += [f"{variable} (did you mean {_PREFIX}{meant}?)" for meant in near]
    if found:
        _logger.warning("no setting reads %s: correct or remove it", ", ".join(found))


def _refusal(name: str, given: dict[str, Any]) -> str:
    """Word an error: the value, its place, the allowed values."""
    # Pydantic reads a variable in any case; of two the last one counts.
    written = {variable.upper(): variable for variable in os.environ if os.environ[variable]}
    variable = written.get(f"{_PREFIX}{name.upper()}")
    if name in given:
        origin, value = f"keyword {name}", given[name]
    elif variable is not None:
        origin, value = variable, os.environ[variable]
    else:
        origin = _USUAL[name]
        value = os.environ[origin]
    found = "a value that is not shown here" if name in _NOT_SHOWN else repr(value)
    return f"{origin}: found {found}; allowed: {Settings.model_fields[name].description}"
