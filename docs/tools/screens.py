"""Screens of the command line, from what its commands say when they are run: python docs/tools/screens.py DIRECTORY [--anew]."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from meterkit.catalog import loads
from meterkit.testing import StripeEmulator

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "screens"
COLUMNS = 92
COLOURS = TerminalTheme(
    (16, 28, 27),
    (220, 235, 232),
    [
        (30, 45, 43),
        (240, 128, 110),
        (111, 208, 160),
        (240, 190, 100),
        (120, 180, 230),
        (200, 150, 220),
        (110, 208, 192),
        (200, 215, 212),
    ],
    [
        (90, 110, 107),
        (255, 150, 130),
        (140, 230, 180),
        (255, 205, 120),
        (150, 200, 250),
        (220, 175, 240),
        (140, 230, 215),
        (255, 255, 255),
    ],
)
# rich's own frame names a font of another host.
FRAME = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{unique_id}-said">
<title id="{unique_id}-said">TITLE</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, 'Noto Sans Mono', 'DejaVu Sans Mono', monospace;
font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ display: none; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
# What differs from run to run, and what stands for it on the pages.
ALWAYS = (
    (
        re.compile(r"period \d{4}-\d\d-01T00:00:00Z to \d{4}-\d\d-01T00:00:00Z"),
        "period 2031-06-01T00:00:00Z to 2031-07-01T00:00:00Z",
    ),
)
PLANS = """\
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  words:    {unit: word, stripe: {event_name: translated_words}}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 5/minute, included: 100, overage: deny}
      words:    {included: 10_000, overage: deny}
  pro:
    price: {amount_cents: 4900, interval: month}
    meters:
      requests: {included: unlimited}
      words:    {included: 1_000, overage: {bill: {cap: 50_000, per: 1000, amount_cents: 12}}}
"""
WRONG = (
    ("rate: 5/minute", "rates: 5/minute"),
    ("overage: deny}\n  pro", "overage: denied}\n  pro"),
    ("plan: free", "plan: fre"),
)
USED = """
import asyncio
from meterkit import MeterKit
async def main():
    async with MeterKit() as kit:
        await kit.customers.set_plan("ada", "pro")
        await kit.record("ada", "requests", 12)
        await kit.record("ada", "words", 3_500)
        async with kit.reserve("ada", {"words": 400}):
            return
asyncio.run(main())
"""


class Shell:
    """A directory with a plans file and a store of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ours = ("METERKIT_", "REDIS_URL", "STRIPE_", "NO_COLOR", "COLUMNS")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ours)
        } | {
            "METERKIT_REDIS_URL": f"embedded://{directory}/.meterkit",
            "METERKIT_SPOOL_DIR": f"{directory}/spools",
            "FORCE_COLOR": "1",
            "COLUMNS": str(COLUMNS),
        }
        (directory / "plans.yaml").write_text(PLANS, "utf-8")

    def run(self, *arguments: str) -> str:
        """What `meterkit …` prints, notes and refusals too."""
        return self._run("-m", "meterkit", *arguments)

    def use(self) -> None:
        """Have a customer use something."""
        self._run("-c", USED)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout


def check(shell: Shell) -> list[tuple[str, str]]:
    """A plans file with three mistakes."""
    text = PLANS
    for right, wrong in WRONG:
        text = text.replace(right, wrong)
    (shell.directory / "plans.yaml").write_text(text, "utf-8")
    return [("meterkit check plans.yaml", shell.run("check", "plans.yaml"))]


def usage(shell: Shell) -> list[tuple[str, str]]:
    """What a customer has used, and what the doctor says of it."""
    shell.use()
    return [("meterkit usage ada", shell.run("usage", "ada")), ("meterkit doctor", shell.run("doctor"))]


def flush(shell: Shell) -> list[tuple[str, str]]:
    """Delivery to an emulator of Stripe, and what the customer's usage is then."""
    shell.use()
    stripe = StripeEmulator()
    stripe.add_customer("cus_ada")
    stripe.add_meters(loads(PLANS))
    with stripe.running() as url:
        shell.environment |= {"METERKIT_STRIPE_API_BASE": url, "METERKIT_STRIPE_API_KEY": "sk_test_emulator"}
        link = ("customers", "link", "ada", "cus_ada")
        return [
            (f"meterkit {' '.join(arguments)}", shell.run(*arguments))
            for arguments in (link, ("flush", "--all"), ("usage", "ada"))
        ]


SCREENS = {"check": check, "usage": usage, "flush": flush}


def screen(name: str) -> str:
    """The SVG of one screen."""
    with tempfile.TemporaryDirectory(prefix="mk") as directory:
        said = SCREENS[name](Shell(Path(directory)))
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for nth, (command, printed) in enumerate(said):
        for pattern, always in ALWAYS:
            printed = pattern.sub(always, printed)  # noqa: PLW2901
        console.print(
            Text(("\n" if nth else "") + "$ ", style="bold cyan") + Text(command, style="bold white")
        )
        console.print(Text.from_ansi(printed.strip("\n")))
    title = f"A terminal: {' and '.join(command for command, _ in said)}"
    frame = FRAME.replace("TITLE", title)
    return console.export_svg(title=name, theme=COLOURS, code_format=frame, unique_id=f"screen-{name}")


def run_all() -> dict[str, str]:
    """All screens by name, from commands that are run now."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(SCREENS, pool.map(screen, SCREENS), strict=True))


def made() -> dict[str, str]:
    """All screens by name; run again only where the code has changed."""
    found = sha256()
    for path in (
        Path(__file__),
        *sorted((ROOT / "src").rglob("*.py")),
        *sorted((ROOT / "src").rglob("*.lua")),
    ):
        found.update(path.read_bytes())
    kept = KEPT / found.hexdigest()
    if not kept.is_dir():
        texts = run_all()
        shutil.rmtree(KEPT, ignore_errors=True)
        KEPT.mkdir(parents=True)
        unfinished = Path(tempfile.mkdtemp(dir=KEPT))
        for name, text in texts.items():
            (unfinished / f"{name}.svg").write_text(text, "utf-8")
        unfinished.rename(kept)
    return {name: (kept / f"{name}.svg").read_text("utf-8") for name in SCREENS}


if __name__ == "__main__":
    for name, text in (run_all() if "--anew" in sys.argv else made()).items():
        Path(sys.argv[1], f"{name}.svg").write_text(text, "utf-8")
