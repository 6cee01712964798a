"""Settings of a kit by keyword and by variable, and the errors of wrong ones: pure tables."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from pathlib import Path
from typing import Any, Final, cast

import pytest
from pydantic import SecretStr

from drivers.plans import routed
from meterkit import MeterKit
from meterkit.errors import SettingsError

PLANS: Final = routed("*")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"REDIS_URL", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", "XDG_STATE_HOME"}
    for name in os.environ:
        if name.startswith("METERKIT_") or name in usual:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/someone")


def load(**keywords: Any) -> Any:
    return MeterKit(PLANS, **keywords).settings


def refusal(**keywords: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**keywords)
    return str(caught.value)


def reveal(value: Any) -> Any:
    """A setting with what it does not show."""
    if isinstance(value, tuple):
        return [reveal(secret) for secret in cast("tuple[object, ...]", value)]
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def test_defaults() -> None:
    unset = (
        *("redis_url", "plans", "stripe_api_key", "stripe_api_base", "stripe_events_base", "flush"),
        *("audit_url", "storage_endpoint", "notify_templates", "smtp_url", "enforcement"),
    )
    assert load().model_dump() == dict.fromkeys(unset) | {
        "stripe_webhook_secret": (),
        "stripe_transport": "v1",
        "flush_interval": 300.0,
        "store_timeout": 0.25,
        "start_timeout": 5.0,
        "key_prefix": "mk",
        "shards": 128,
        "customers_kept": 10_000,
        "spool_dir": Path("/home/someone/.local/state/meterkit"),
        "deliver_without_persistence": False,
        "notify_secret": (),
    }


def test_every_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, tuple[str, object]] = {
        "redis_url": ("redis://db:1/2", "redis://db:1/2"),
        "plans": ("plans.yaml", "plans.yaml"),
        "stripe_api_key": ("sk_test_1", "sk_test_1"),
        "stripe_api_base": ("http://localhost:12111/", "http://localhost:12111"),
        "stripe_events_base": ("https://events.example", "https://events.example"),
        "stripe_webhook_secret": ("whsec_1, whsec_2", ["whsec_1", "whsec_2"]),
        "stripe_transport": ("v2-stream", "v2-stream"),
        "flush_interval": ("0.5", 0.5),
        "store_timeout": ("2", 2.0),
        "key_prefix": ("my.app-1_x", "my.app-1_x"),
        "shards": ("1024", 1024),
        "customers_kept": ("250_000", 250_000),
        "spool_dir": ("~/spool", Path("/home/someone/spool")),
        "flush": ("off", False),
    }
    for name, (value, _) in read.items():
        monkeypatch.setenv(f"METERKIT_{name.upper()}", value)
    settings = load()
    for name, (_, expected) in read.items():
        assert reveal(getattr(settings, name)) == expected, name


def test_a_keyword_wins_over_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://usual")
    assert reveal(load().redis_url) == "redis://usual"
    monkeypatch.setenv("METERKIT_REDIS_URL", "")  # Nothing is given by it, nor by None.
    assert reveal(load(redis_url=None).redis_url) == "redis://usual"
    monkeypatch.setenv("METERKIT_REDIS_URL", "redis://variable")
    assert reveal(load().redis_url) == "redis://variable"
    assert reveal(load(redis_url="redis://keyword").redis_url) == "redis://keyword"


def test_the_usual_variables_of_stripe_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "rk_live_1")
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_1,whsec_2")
    settings = load()
    assert settings.live
    assert reveal(settings.stripe_webhook_secret) == ["whsec_1", "whsec_2"]


def test_the_flusher_runs_where_a_key_is_set_unless_told() -> None:
    keyed = {"stripe_api_key": "sk_test_1"}
    found = [load(**given).flushes for given in ({}, {"flush": True}, keyed, keyed | {"flush": "off"})]
    assert found == [False, True, True, False]


def test_the_spool_is_in_the_state_directory_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/state")
    assert load().spool_dir == Path("/var/lib/state/meterkit")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert load().spool_dir == Path("/home/someone/.local/state/meterkit")


def test_a_user_without_a_home_is_told_to_name_the_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    assert refusal() == "spool_dir: this user has no home directory; set METERKIT_SPOOL_DIR"
    assert load(spool_dir="/spool").spool_dir == Path("/spool")


def test_a_bad_value_is_named_with_its_source_and_range() -> None:
    cases: tuple[tuple[str, object, str], ...] = (
        ("shards", 0, "a whole number from 1 to 1024"),
        ("shards", 1025, "a whole number from 1 to 1024"),
        ("key_prefix", "mk\n", "1 to 32 of A-Z a-z 0-9 _ . -"),
        ("flush", "maybe", "on or off"),
        ("spool_dir", "~no-one/x", "the path of a directory"),
    )
    for name, value, allowed in cases:
        assert refusal(**{name: value}) == f"keyword {name}: found {value!r}; allowed: {allowed}"


def test_all_bad_values_are_named_and_the_first_is_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERKIT_KEY_PREFIX", "a:b")
    with pytest.raises(SettingsError) as caught:
        load(shards=0, stripe_transport="v3")
    assert caught.value.name == "stripe_transport"
    named = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert named == ["keyword stripe_transport", "METERKIT_KEY_PREFIX", "keyword shards"]


def test_a_bad_variable_in_small_letters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read, too; the refusal was a KeyError."""
    monkeypatch.setenv("meterkit_shards", "0")
    assert refusal() == "meterkit_shards: found '0'; allowed: a whole number from 1 to 1024"


def test_what_may_be_secret_is_not_shown() -> None:
    cases: tuple[tuple[str, object], ...] = (
        ("stripe_api_key", "sk live_hidden"),
        ("stripe_api_key", "pk_live_hidden"),
        ("stripe_api_key", "whsec_hidden"),
        ("stripe_api_key", "sk_"),
        ("stripe_webhook_secret", "whsec_ok,hid den"),
        ("stripe_webhook_secret", "whsec_ok,hidden"),
        ("stripe_webhook_secret", "whsec_"),
        ("stripe_api_base", "ftp://me:hidden@host"),
        # F-69: it was taken, shown by the transport, and nothing was ever delivered.
        ("stripe_api_base", "https://me:hidden@host"),
        ("stripe_api_base", "https://host:hidden"),
        ("redis_url", b"\xff hidden"),
    )
    for name, value in cases:
        message = refusal(**{name: value})
        assert message.startswith(f"keyword {name}: found a value that is not shown here; allowed: ")
        assert "hid" not in message


def test_what_the_usual_variable_holds_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "pk_hidden")
    monkeypatch.setenv("METERKIT_AUDIT_URL", "mysql://ada:hidden@db/books")
    message = refusal()
    assert "STRIPE_API_KEY: found a value that is not shown here; allowed:" in message
    assert "METERKIT_AUDIT_URL: found a value that is not shown here" in message
    assert "hidden" not in message


def test_an_unknown_keyword_is_refused_with_the_nearest_spelling() -> None:
    assert refusal(redis_ulr="redis://x") == "there is no setting redis_ulr; did you mean redis_url?"
    assert refusal(zzz=1).startswith("there is no setting zzz; there are redis_url, plans, ")


def test_bad_secrets_of_messages_are_refused_unseen() -> None:
    for name, value in (
        ("notify_secret", "whsec_c2hvcnQ="),
        ("notify_secret", f"whsec_{b64encode(bytes(65)).decode()}"),
        ("notify_secret", "whsec_not base64 at all, of any kind"),
        ("smtp_url", "https://hidden@mail.example"),
        ("smtp_url", "smtp://:0"),
        ("smtp_url", "smtp://hidden:port"),
    ):
        with pytest.raises(SettingsError) as refused:
            load(**{name: value})
        said = str(refused.value)
        assert refused.value.name == name
        assert ("hidden" in said, "a value that is not shown here" in said) == (False, True), value


PASSWORD: Final = "hidden-7"


def test_no_form_of_the_settings_shows_a_password_or_a_key() -> None:
    signing = f"whsec_{b64encode(PASSWORD.encode() * 4).decode()}"
    settings = load(
        redis_url=f"redis://user:{PASSWORD}@db/1",
        stripe_api_key=f"sk_test_{PASSWORD}",
        stripe_api_base=f"https://proxy.example/{PASSWORD}",
        stripe_events_base=f"https://proxy.example/{PASSWORD}/",
        stripe_webhook_secret=f"whsec_{PASSWORD}",
        audit_url=f"postgresql+psycopg://user:{PASSWORD}@db/books",
        storage_endpoint=f"https://minio.example/{PASSWORD}",
        notify_secret=signing,
        smtp_url=f"smtp://user:{PASSWORD}@mail.example",
    )
    shown = [
        *(repr(settings), repr(settings.model_copy()), settings.model_dump_json()),
        *map(str, (settings, settings.model_dump(), settings.model_dump(mode="json"), dict(settings))),
        *map(str, (settings.__dict__, list(settings), settings.__pydantic_fields_set__)),
        json.dumps(settings.model_dump(mode="json")),
    ]
    assert [text for text in shown if PASSWORD in text or signing in text] == []
    assert reveal(settings.redis_url) == f"redis://user:{PASSWORD}@db/1"
    assert reveal(settings.stripe_events_base) == f"https://proxy.example/{PASSWORD}"
    assert reveal(settings.smtp_url) == f"smtp://user:{PASSWORD}@mail.example"


def test_a_misspelled_variable_is_logged_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    misspelled = ("METERKIT_ENFORCMENT", "METERKIT_REDIS", "METERKIT_STRIPE_KEY", "METERKIT_WEBHOOK_SECRET")
    # Of tests, and of Kubernetes for a service of that name.
    others = ("CHROMIUM", "ALL_MUTANTS", "SPIKE_CUSTOMERS", "SITE", "PORT", "SERVICE_HOST", "SERVICE_PORT")
    for name in (*misspelled, *(f"METERKIT_{other}" for other in others), "METERKIT_SHARDS"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("METERKIT_REDIS_PORT", "tcp://10.0.0.7:6379")  # Of a service called meterkit-redis.
    assert load(redis_url="memory://").shards == 7
    (logged,) = [record.message for record in caplog.records if "no setting reads" in record.message]
    meant = ("ENFORCEMENT", "REDIS_URL", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET")
    hints = [
        f"{name} (did you mean METERKIT_{known}?)" for name, known in zip(misspelled, meant, strict=True)
    ]
    assert logged == f"no setting reads {', '.join(hints)}: correct or remove it"
