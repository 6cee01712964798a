"""What the pages show to type is typed, in its order, in a directory with what the page says is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import pytest

from drivers.command_line import TIMEOUT_S
from drivers.forked_command import forked_program
from drivers.sampled import some
from drivers.shown_blocks import ROOT, Shown, shown
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator
from servers.stores import free_port

SHOWN: Final = shown()
TYPED: Final = [block for block in SHOWN if block.language == "console" and not block.reason]
# Pages whose files another test writes and runs, by its place.
FILES_RUN: Final = {
    "docs/existing-app.md": "tests/test_existing_app.py",
    "docs/testing.md": "tests/testing/test_plugin.py",
    "docs/tutorial.md": "tests/site/test_consoles.py",
}
TUTORIAL: Final = "docs/tutorial.md"
EXISTING: Final = "docs/existing-app.md"
QUICKSTART: Final = "docs/quickstart.md"
SERVES: Final = ("uvicorn ", "meterkit worker", "meterkit stripe emulator")
# What ends with 1 as it should: a line has no route in the quickstart's app; no sync was given up; Stripe
# does not have the customer of the file; no day has ended yet.
ENDS_WITH_1: Final = (
    *("meterkit routes ", "meterkit webhooks redrive ", "meterkit import stripe --csv "),
    *("meterkit outbox show ", "meterkit outbox park ", "meterkit outbox drop ", "meterkit revenue --"),
)
BY_LINES: Final = "billing: {usage: lines}\n"
USAGES: Final = ("lines", "meters")
READY_S: Final = 120.0
FENCED: Final = re.compile(r"^ *```(\w*).*?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


Process = subprocess.Popen[str]


def ports() -> dict[str, str]:
    """What stands for the ports of the pages: others may be using those."""
    return {name: str(free_port()) for name in ("8000", "12111")}


def of(page: str, language: str) -> list[str]:
    return [block.text for block in SHOWN if (block.page, block.language) == (page, language)]


@dataclass
class Typist:
    """Types what a page shows; what serves is left running until the end."""

    directory: Path
    environment: dict[str, str]
    served: list[tuple[str, Process]] = field(default_factory=list[tuple[str, Process]])
    ports: dict[str, str] = field(default_factory=ports)
    made: str = "cus_none"
    programs: Path | None = None

    def type(self, block: Shown) -> None:
        for shown_command, output in commands(block.text):
            command, *expected = map(self.adapted, [shown_command, *output])
            if command.startswith(SERVES):
                self.serve(command, expected)
            else:
                self.run(command, expected)

    def adapted(self, text: str) -> str:
        """With ports that nobody else has, and the id that an earlier answer gave."""
        for shown_port, port in self.ports.items():
            for before in (":", "--port "):
                text = text.replace(f"{before}{shown_port}", f"{before}{port}")
        text = text.replace("uvicorn app:app", f"uvicorn app:app --port {self.ports['8000']}")
        return text.replace("emulator --plans", f"emulator --port {self.ports['12111']} --plans").replace(
            "cus_THE_ID_OF_THE_ANSWER", self.made
        )

    def run(self, command: str, expected: list[str]) -> None:
        kept = self.directory / ".environment"
        path = self.environment["PATH"]
        environment = self.environment | ({"PATH": f"{self.programs}:{path}"} if self.programs else {})
        done = subprocess.run(
            ["/bin/bash", "-c", f'{command}\ncode=$?; env -0 > "{kept}"; exit $code'],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        said = done.stdout + done.stderr
        is_failing = command.startswith(ENDS_WITH_1) and "--readings" not in command
        assert done.returncode == int(is_failing), f"{command}\n{said}"
        assert_said(expected, said, command)
        self.environment = dict(pair.split("=", 1) for pair in kept.read_text().split("\0") if "=" in pair)
        self.environment["PATH"] = path
        self.made = (re.findall(r'"id": *"(cus_\w+)"', done.stdout) or [self.made])[0]
        kept.unlink()

    def serve(self, command: str, expected: list[str]) -> None:
        process = subprocess.Popen(
            ["/bin/bash", "-c", f"exec {command}"],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.served.append((command, process))
        if "emulator" in command:
            assert process.stdout is not None
            said = 3 if "--forward-to" in command else 2
            lines = [process.stdout.readline().strip() for _ in range(said)]
            assert_said(expected, "\n".join(lines), command)
            self.environment |= dict(line.removeprefix("export ").split("=", 1) for line in lines)
        elif found := re.search(r"--port (\d+)", command):
            wait_for(int(found[1]))

    def end(self) -> None:
        """Stop what serves: each ends well when it is told to."""
        for _, process in self.served:
            process.send_signal(signal.SIGINT)
        ended = {command: process.wait(TIMEOUT_S) for command, process in self.served}
        for _, process in self.served:
            if process.stdout is not None:
                process.stdout.close()
        # 130 says the same as a signal: what is told so early has nothing to put away yet.
        assert set(ended.values()) <= {0, -signal.SIGINT, 128 + signal.SIGINT}, ended


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command with the lines that are shown as its output."""
    lines = text.replace("\\\n", "").splitlines()
    starts = [nth for nth, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start].removeprefix("$ "), lines[start + 1 : end]


def assert_said(expected: list[str], said: str, command: str) -> None:
    """The lines that are shown come in this order; others may stand between them."""
    rest = iter(said.splitlines())
    for line in expected:
        assert any(line.strip() == other.strip() for other in rest), f"{command}: {line!r} is not in\n{said}"


def wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def typist() -> Iterator[Typist]:
    """Somebody who has done the quickstart, in a directory of their own, with the emulator as Stripe."""
    # The path of a socket is short; that of pytest's directories is not.
    with tempfile.TemporaryDirectory(prefix="mk") as name:
        directory = Path(name)
        plans, app = of("docs/quickstart.md", "yaml")[0], of("docs/quickstart.md", "python")[0]
        (directory / "plans.yaml").write_text(plans)
        (directory / "app.py").write_text(app)
        ours = ("METERKIT_", "REDIS_URL", "STRIPE_", "COLUMNS")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        found = Typist(directory, environment | {"PATH": path, "METERKIT_STORE_TIMEOUT": "60"})
        try:
            yield found
        finally:
            found.end()


def bill_by(typist: Typist, usage: str) -> None:
    """Have the plans file bill usage by lines, as it is shown, or by meters."""
    path = typist.directory / "plans.yaml"
    text = path.read_text()
    assert BY_LINES in text
    path.write_text(text if usage == "lines" else text.replace(BY_LINES, ""))


def with_the_rest(typist: Typist) -> None:
    """What the page on the command line has besides: credits, another app, a file of links."""
    bill_by(typist, "meters")  # What these pages show of deliveries is of events.
    plans = (typist.directory / "plans.yaml").read_text() + "credits: {ai: {costs: {words: 1 per 100}}}\n"
    app = (typist.directory / "app.py").read_text()
    made = "def make_app():\n" + "".join(f"    {line}\n" for line in app.splitlines()) + "    return app\n"
    (typist.directory / "shop").mkdir()
    files = {"plans.yaml": plans, "next.yaml": plans, "main.py": app, "shop/api.py": made}
    for name, text in files.items():
        (typist.directory / name).write_text(text)
    (typist.directory / "links.csv").write_text("customer,stripe_customer\neve,cus_eve\n")


def write_the_tutorials_files(typist: Typist) -> None:
    """Its plans files, and each file that begins with its name."""
    files = {text.split()[1]: text for text in of(TUTORIAL, "py")}
    assert {"app.py", "main.py", "month.py"} == set(files)
    plans = dict(zip(("plans.yaml", "more.yaml"), of(TUTORIAL, "yaml"), strict=True))
    for name, text in (files | plans).items():
        (typist.directory / name).write_text(typist.adapted(text))


def wait_until_paid(typist: Typist) -> None:
    """The webhook comes a moment after the payment."""
    key = typist.environment["KEY"]
    url = f"http://127.0.0.1:{typist.ports['8000']}/billing/subscription"
    deadline = time.monotonic() + READY_S
    while httpx.get(url, headers={"authorization": f"Bearer {key}"}).json().get("plan") != "pro":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.dear("an app, a worker and Stripe are started and used")
@pytest.mark.parametrize("usage", some(USAGES, ["meters"]))
def test_the_tutorial_goes_from_an_empty_folder_to_an_invoice(usage: str, typist: Typist) -> None:
    write_the_tutorials_files(typist)
    bill_by(typist, usage)
    type_forked(typist, [block for block in TYPED if block.page == TUTORIAL])
    # F-22g: a second caller got a key to the paying account.
    taken = httpx.post(f"http://127.0.0.1:{typist.ports['8000']}/signup", params={"name": "acme"})
    assert (taken.status_code, "key" in taken.json()) == (409, False)
    store = f"embedded://{typist.directory}/.meterkit"
    with MeterKit(typist.directory / "plans.yaml", redis_url=store).sync() as kit:
        questions = kit.usage("acme")["meters"]["questions"]
    billed = questions["pending"] if usage == "lines" else questions["delivered"]
    assert (6, 1) == (questions["used"], billed)


@pytest.mark.dear("each command of a page in bash")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.whole
def test_the_quickstart_does_what_it_says(usage: str, typist: Typist) -> None:
    bill_by(typist, usage)
    look = Shown(QUICKSTART, "console", "$ meterkit usage bob --json > bob.json\n", None)
    type_forked(typist, [*(block for block in TYPED if block.page == QUICKSTART), look])
    words = json.loads((typist.directory / "bob.json").read_text())["meters"]["words"]
    assert words["pending" if usage == "lines" else "delivered"] == 3


class PatientTypist(Typist):
    """Types a command again that only looks, until it shows what the page has: usage comes a moment later."""

    def run(self, command: str, expected: list[str]) -> None:
        looks = command.startswith(("meterkit usage ", "curl -s ")) and not re.search(
            r" (?:--json|-F|-X|-d) ", command
        )
        deadline = time.monotonic() + READY_S
        while True:
            try:
                return super().run(command, expected)
            except AssertionError:
                if not looks or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@pytest.mark.whole  # tests/test_existing_app.py runs the same app.
@pytest.mark.dear("an app, its model and Stripe are started and used")
def test_an_app_that_exists_is_metered_step_by_step(typist: Typist) -> None:
    for path in (ROOT / "examples" / "existing_app").iterdir():
        if path.suffix in {".py", ".yaml"}:
            shutil.copy(path, typist.directory)
    patient = PatientTypist(typist.directory, typist.environment, typist.served, typist.ports)
    patient.ports["9000"] = str(free_port())
    type_forked(patient, [block for block in TYPED if block.page == EXISTING])


@pytest.mark.whole  # Commands of these pages have tests of their own in tests/cli; `make field` types them.
@pytest.mark.parametrize(
    "page",
    sorted({block.page for block in TYPED} - {TUTORIAL, EXISTING, QUICKSTART}),
)
@pytest.mark.dear("each command of a page in bash")
def test_what_is_shown_to_type_does_what_it_says(page: str, typist: Typist) -> None:
    blocks = [block for block in TYPED if block.page == page]
    with_the_rest(typist)
    stripe = StripeEmulator()
    stripe.add_meters(loads((typist.directory / "plans.yaml").read_text()))
    shown = "".join(block.text for block in blocks)
    for customer in {"cus_eve", *re.findall(r"\bcus_\w+", shown)}:
        stripe.add_customer(customer)
    with stripe.running() as url:
        typist.environment |= {"METERKIT_STRIPE_API_BASE": url, "METERKIT_STRIPE_API_KEY": "sk_test_emulator"}
        type_forked(typist, blocks)


def type_forked(typist: Typist, blocks: Sequence[Shown]) -> None:
    """Type blocks; commands that end are forked, as most of the time would be the start of Python."""
    with forked_program(typist.directory, timeout_s=TIMEOUT_S) as typist.programs:
        for block in blocks:
            if block.page == TUTORIAL and "/billing/subscription" in block.text:
                wait_until_paid(typist)
            typist.type(block)
        if blocks[0].page != TUTORIAL:
            typist.end()
            typist.served.clear()


def test_what_is_not_said_is_noticed(typist: Typist) -> None:
    with pytest.raises(AssertionError, match="is not in"):
        typist.type(Shown("", "console", "$ echo right\nwrong\n", None))
    with pytest.raises(AssertionError, match="no such"):
        typist.type(Shown("", "console", "$ echo no such option && false\n", None))


def test_every_block_is_run_or_says_why_not() -> None:
    left = [block for block in SHOWN if block.reason]
    assert {block.language for block in left} <= {"console", "py"}
    assert {block.page for block in SHOWN if block.language == "py" and not block.reason} == set(FILES_RUN)
    assert [test for test in FILES_RUN.values() if not (ROOT / test).is_file()] == []
    assert len(SHOWN) - len(left) > 50


def test_a_copy_button_leaves_prompts_out() -> None:
    """F-137: `$ ` is a prompt of the console lexer alone, which the style sheet hides while it is copied."""
    style = (ROOT / "docs/assets/stylesheets/extra.css").read_text("utf-8")
    assert "code[data-md-copying] :is(.gp, .go) { display: none; }" in style
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [found for page in pages for found in FENCED.findall(page.read_text("utf-8"))]
    prompted = {language for language, text in blocks if re.search(r"^\s*\$ ", text, re.MULTILINE)}
    assert prompted == {"console"}
