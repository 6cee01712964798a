"""The demonstration: its bill, its pages, and that nothing is left of it."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from drivers.command_line import TIMEOUT_S, Shell, first_line

JSON = {"accept": "application/json"}


@pytest.fixture
def demo() -> Iterator[Shell]:
    """A shell whose temporary directory must be empty in the end, with nobody left in it."""
    # The path of a socket is short; that of pytest's directories is not.
    with tempfile.TemporaryDirectory() as directory:
        settings = {"METERKIT_SHARDS": "7", "METERKIT_REDIS_URL": "redis://nowhere"}
        yield Shell(Path(directory), TMPDIR=directory, **settings)
        assert [] == sorted(Path(directory).iterdir())
        assert [] == processes_with(directory)


def processes_with(directory: str) -> list[str]:
    """The command lines of processes that work in this temporary directory or have it as theirs."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes() + b"\0"
            command = (process / "cmdline").read_bytes()
            works_in = str((process / "cwd").readlink())
        except OSError:
            continue
        mentioned = f"TMPDIR={directory}\0".encode() in variables
        if command and (mentioned or works_in.startswith(directory)):
            found.append(command.decode(errors="replace"))
    return found


@pytest.mark.whole
def test_the_bill_is_right_to_the_unit(demo: Shell) -> None:
    done = demo.run("demo")
    assert (done.code, done.err) == (0, "")
    assert_right(done.out)


def assert_right(said: str) -> None:
    """Check what a demonstration says of a right bill."""
    assert re.search(r"Stripe has exactly the [\d,]+ units that are to be billed", said)
    assert "service: running under uvicorn at http://127.0.0.1:" in said
    assert len(re.findall(r" yes\s", said)) == 6
    assert re.search(r"requests answered: (\d+) of \1\n", said)
    for told in (
        "the free plan does not include the feature 'reports'; pro and scale do",
        "the free plan allows 40 requests per month, and 40 were served",
        "the pro plan allows 120 requests per day, and 120 were let in",
        "sent again: 1; not delivered: 0",
    ):
        assert told in " ".join(said.split())
    # Four at a time: each of them may have begun while there was something left.
    assert re.search(
        r"the scale plan allows 25,000 tokens per month, and 25,[0-7]\d\d", " ".join(said.split())
    )


@pytest.mark.whole
@pytest.mark.dear("all of the demonstration")
def test_a_lost_event_is_found_and_named(demo: Shell) -> None:
    done = demo.run("demo", "--break")
    assert done.code == 1, done.err
    assert len(re.findall(r" yes\s", done.out)) == 5
    assert re.search(
        r"\n\w+, \w+: [\d,]+ served, [\d,]+ recorded, [\d,]+ to be billed, but Stripe has 0\.\n", done.out
    )


@pytest.mark.dear("all of the demonstration")
def test_the_pages_of_a_kept_demonstration_show_its_figures(demo: Shell) -> None:
    with demo.running("demo", "--keep") as process, httpx.Client(trust_env=False) as browser:
        served, pages, said = dict[tuple[str, str], int](), dict[str, str](), list[str]()
        plans = dict[str, str]()
        while "operators" not in pages:
            said.append(line := first_line(process))
            assert process.poll() is None
            # Customer, plan, meter, served, counted, to be billed, Stripe has, match.
            if line.endswith(" yes"):
                who, plans[who], meter, _, units, *_ = line.split()
                served[who, meter] = int(units.replace(",", ""))
            elif "://" in line and line.endswith("/"):
                what, _, address = line.rpartition(": ")
                pages[what.split()[-1]] = address
        assert_right("\n".join(said))
        assert len(plans) == 3
        for customer, plan in plans.items():
            shown = browser.get(pages[customer])
            assert "default-src 'none'" in shown.headers["content-security-policy"]
            figures = browser.get(pages[customer], headers=JSON).json()
            assert figures["plan_name"] == plan
            for meter in ("requests", "tokens"):
                counted = served[customer, meter]
                assert figures["usage"]["meters"][meter]["recorded"] == counted > 0
                assert sum(figures["days"]["meters"][meter]) == counted
                assert f'<data value="{counted}">' in shown.text
        found = browser.get(pages["operators"], headers=JSON).json()
        assert (found["customers"]["customers"], found["plans"]) == (3, {"free": 1, "pro": 1, "scale": 1})
        assert found["delivered"]["requests"]["delivered"] == sum(
            units for (_, meter), units in served.items() if meter == "requests"
        )
        near = browser.get(f"{pages['operators']}near.json").json()
        assert {row["customer"] for row in near} == {"ada", "curie"}
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
        assert process.stderr.read() == ""


def test_without_an_extra_the_pages_name_the_cure(demo: Shell, tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise ImportError")
    done = Shell(tmp_path, TMPDIR=str(demo.directory)).run("demo", "--keep")
    assert (done.code, done.out) == (2, "")
    assert "pip install 'meterkit[pages,audit]'" in done.err


@pytest.mark.dear("a demonstration is started")
def test_a_demonstration_that_is_stopped_leaves_nothing(demo: Shell) -> None:
    with demo.running("demo") as process:
        while not first_line(process).startswith("service:"):
            assert process.poll() is None
        for _ in range(2):  # As from a supervisor and its own parent.
            process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 143
