"""``customers override --subject`` and ``usage --by``."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.command_line import Shell
from drivers.plans import plans_text

pytestmark = pytest.mark.anyio

PLANS = plans_text("subjects_command")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "plans.yaml").write_text(PLANS)
    return tmp_path


async def test_usage_by_user_is_what_the_kit_says(stored: Shell) -> None:
    assert stored.run("usage", "acme", "--by", "user", "--json").json == []
    assert "no user of acme has usage" in stored.run("usage", "acme", "--by", "user").err
    async with stored.kit() as kit:
        for nth in (1, 2):
            await kit.record("acme", "words", 1000 * nth, subjects={"user": f"u_{nth}", "team": "red"})
            await kit.consume("acme", "requests", subjects={"team": "red"})
    found = stored.run("usage", "acme", "--by", "user", "--json").json
    assert [(one["subject"], one["meters"]["words"]["recorded"], one["spent_micros"]) for one in found] == [
        ("u_1", 1000, 30_000),
        ("u_2", 2000, 60_000),
    ]
    words = {"recorded": 1000, "held": 0, "included": 90_000}
    spent = {"spent_micros": 30_000, "limit_cents": 200, "per": "period"}
    assert found[0] == {"kind": "user", "subject": "u_1", "meters": {"words": words}, **spent}
    (team,) = stored.run("usage", "acme", "--by", "team", "--json").json
    assert team["meters"]["requests"] == {"recorded": 2, "held": 0, "included": 100}
    assert (team["spent_micros"], team["limit_cents"], team["per"]) == (None, None, None)
    told = stored.run("usage", "acme", "--by", "user").out
    assert told.splitlines()[0].split() == ["user", "words", "spent", "budget"]
    for word in ("u_1", "u_2", "1,000", "$0.06", "$2.00 per period"):
        assert word in told


def test_a_user_override_lasts_until_it_ends_or_is_cleared(stored: Shell) -> None:
    given = ("acme", "budget", "amount_cents=900", "--subject", "user=u_7", "--until", "2999-01-01")
    found = stored.run("customers", "override", *given, "--json").json
    assert found["subject_overrides"] == {"user:u_7": {"budget": {"amount_cents": 900}}}
    assert found["override_ends"] == {"subject user:u_7": "2999-01-01T00:00:00Z"}
    equals = ("acme", "words", "included=5", "--subject", "user=a=b")
    assert stored.run("customers", "override", *equals).code == 0
    found = stored.run("customers", "show", "acme", "--json").json
    assert found["subject_overrides"] == {
        "user:u_7": {"budget": {"amount_cents": 900}},
        "user:a=b": {"words": {"included": 5}},
    }
    told = stored.run("customers", "show", "acme").out
    assert "user:u_7 budget: amount_cents=900 until 2999-01-01" in " ".join(told.split())
    assert "user:a=b words: included=5" in " ".join(told.split())
    cleared = stored.run("customers", "override", "acme", "--subject", "user=u_7", "--clear", "--json").json
    assert list(cleared["subject_overrides"]) == ["user:a=b"]
    assert cleared["override_ends"] == {}


def test_an_override_that_cannot_be_read_is_refused(stored: Shell) -> None:
    for arguments, code, said in (
        ("--subject user=u_7", 2, "KEY=VALUE"),
        ("words included=5 --subject user", 2, "KIND=ID"),
        ("words included=5 --clear --subject user=u_7", 2, "--clear"),
        ("words included=5 --subject app=x", 1, "declared are team, user"),
        ("word included=5 --subject user=u_7", 1, "did you mean 'words'"),
        ("words overage=bill --subject user=u_7", 1, "overage"),
        ("--feature x --subject user=u_7", 2, "--subject"),
    ):
        done = stored.run("customers", "override", "acme", *arguments.split())
        assert (done.code, said in done.err) == (code, True), done.err
        assert stored.run("customers", "show", "acme", "--json").json["subject_overrides"] == {}


def test_usage_that_cannot_be_shown_by_user_is_refused(stored: Shell) -> None:
    for arguments, code, said in (
        (("acme", "--by", "app"), 1, "declared are team, user"),
        (("--all", "--by", "user"), 2, "--by"),
        (("acme", "--by", "user", "--period", "2026-01"), 2, "--by"),
    ):
        done = stored.run("usage", *arguments)
        assert (done.code, said in done.err) == (code, True), done.err
