"""F-137: what takes longer than a second shows how far it is, to a person at a terminal."""
# Internals: a bar is drawn by a timer, at a terminal that stands still.

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from meterkit.cli import progress
from meterkit.cli.app import app
from meterkit.cli.progress import shown_steps
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def be_terminal(monkeypatch: pytest.MonkeyPatch, name: str = "xterm") -> None:
    """Have stderr taken for a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", name)
    monkeypatch.setenv("COLUMNS", "100")


def test_a_bar_is_drawn_once_a_second_is_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_terminal(monkeypatch)
    monkeypatch.setattr(progress, "AFTER_S", 3600.0)
    with shown_steps() as steps:
        steps.update("linking customers", 3, 1500)
        assert capsys.readouterr().err == ""
        steps.show()  # As its timer does.
        assert "3/1,500" in capsys.readouterr().err
        steps.of("looking")(7, 9)
    assert "7/9" in capsys.readouterr().err
    steps.show()
    assert capsys.readouterr().err == ""


def test_every_long_command_has_one(directory: Path, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[str]()

    def update(_: progress.Steps, doing: str, done: int = 0, total: int | None = None) -> None:
        del done, total
        shown.append(doing)

    monkeypatch.setattr(progress.Steps, "update", update)
    (directory / "links.csv").write_text("acme,cus_acme\n")
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_customer("cus_acme")
    with emulator.running() as url:
        settings = {
            "METERKIT_REDIS_URL": store_url,
            "METERKIT_STRIPE_API_KEY": "sk_test_1",
            "METERKIT_STRIPE_API_BASE": url,
            "METERKIT_PLANS": str(directory / "plans.yaml"),
        }
        for command, doing in {
            f"customers link --csv {directory / 'links.csv'}": "linking customers",
            "flush": "delivering",
            "reconcile": "comparing customers",
            "recover --yes": "comparing with Stripe",
            "import stripe": "reading customers",
        }.items():
            shown.clear()
            done = CliRunner(env=settings).invoke(app, command.split())
            assert done.exit_code == 0, done.output
            assert doing in shown
