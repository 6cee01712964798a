"""What goes wrong is said once, with what was found, where, and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers.sampled import whole
from meterkit.testing import StripeEmulator
from servers.stores import free_port, spawn_server

if TYPE_CHECKING:
    from drivers.command_line import Shell

COMMANDS = (
    ("customers", "list"),
    ("customers", "set-plan", "ada", "pro"),
    ("grants", "list", "ada"),
    ("usage", "ada"),
    ("flush",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_store_that_cannot_be_reached_is_said_once(shell: Shell, command: tuple[str, ...]) -> None:
    # F-69: two lines in two wordings.
    port = free_port()
    shell.environment |= {"METERKIT_START_TIMEOUT": "0.2", "METERKIT_STRIPE_API_KEY": "sk_test_1"}
    done = shell.run(*command, "--redis", f"redis://127.0.0.1:{port}")
    assert (1, "") == (done.code, done.out)
    assert done.err == (
        f"meterkit: the store at redis://127.0.0.1:{port}/0 cannot be reached: Connection refused;"
        " --redis or METERKIT_REDIS_URL names another\n"
    )


def test_a_plans_file_that_is_not_there_is_named_with_what_to_do(shell: Shell, directory: Path) -> None:
    # F-69.
    words = f"No such file or directory; looked for in {directory}; --plans or METERKIT_PLANS names another"
    cannot = "the plans file cannot be read"
    assert shell.run("check", "rel/p.yaml").err == f"rel/p.yaml: {cannot}: {words}\n"
    assert shell.run("usage", "ada", "--plans", "plan.yaml").err == (
        f"plan.yaml: {cannot}: {words}; did you mean 'plans.yaml'?\n"
    )
    shell.environment["METERKIT_PLANS"] = "/nowhere/plans.yaml"
    assert shell.run("usage", "ada").err == (
        f"/nowhere/plans.yaml: {cannot}: No such file or directory; --plans or METERKIT_PLANS names another\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ("usage", "acmee"),
            0,
            "nothing is known of customer acmee; did you mean 'acme'? This is the state of a new",
        ),
        (("grants", "list", "acmee"), 0, "nothing is known of customer acmee; did you mean 'acme'?"),
        (("usage", "zz"), 0, "nothing is known of customer zz. This is the state of a new customer"),
        (("customers", "delete", "acmee"), 1, "nothing is known of customer acmee; did you mean 'acme'?"),
        (("grants", "add", "acme", "tokns=1", "--id", "a"), 1, "did you mean 'tokens'?"),
        (("customers", "set-status", "acme", "past-due"), 1, "did you mean 'past_due'?"),
        (("customers", "overide", "acme", "token", "included=1"), 2, "Did you mean 'override'?"),
        (
            ("customers", "set-plan", "acmee", "pro"),
            0,
            "nothing was known of it; did you mean 'acme'? `meterkit customers delete acmee` takes this back",
        ),
    ],
    ids=lambda value: "" if isinstance(value, int | str) else " ".join(value),
)
def test_the_nearest_known_name_is_told(
    stored: Shell, arguments: tuple[str, ...], code: int, told: str
) -> None:
    # F-69.
    assert stored.run("grants", "add", "acme", "tokens=5", "--id", "inv_42").code == 0
    done = stored.run(*arguments)
    assert code == done.code
    assert told in " ".join(done.err.split())
    if code == 1:
        assert (done.out, len(done.err.splitlines())) == ("", 1)


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
    told = [line for line in done.stderr.splitlines() if not line.startswith("nothing is known")]
    assert (1, ["meterkit: the output cannot be written: No space left on device"]) == (done.returncode, told)


def test_a_store_that_is_there_and_refuses_is_what_doctor_is_for(shell: Shell) -> None:
    shell.environment |= {"METERKIT_START_TIMEOUT": "0.2"}
    with spawn_server("--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        done = shell.run("customers", "set-plan", "ada", "pro", "--redis", server.url)
    assert (1, "") == (done.code, done.out)
    assert done.err.endswith("used memory > 'maxmemory'.; `meterkit doctor` says what to do\n")


def test_a_store_that_takes_no_writes_is_read_from(shell: Shell) -> None:
    shell.environment |= {"METERKIT_START_TIMEOUT": "0.2", "METERKIT_SHARDS": "4"}
    with spawn_server() as server:
        shell.environment["METERKIT_REDIS_URL"] = server.url
        shell.run("customers", "set-plan", "ada", "pro")
        server.command("CONFIG", "SET", "maxmemory", 1)
        server.command("SCRIPT", "FLUSH")
        done = shell.run("usage", "ada", "--json")
        assert (done.code, done.json["plan"]) == (0, "pro")
        assert "refuses to serve: OOM" in done.err
        assert done.err.endswith("; it is only read from\n")
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
                "; METERKIT_STRIPE_API_KEY is to be a secret or restricted key of the account\n"
            )
