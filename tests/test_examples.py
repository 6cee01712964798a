"""The examples run, as their READMEs say."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from drivers.command_line import TIMEOUT_S, Done, Shell
from servers.stores import free_port

EXAMPLES = Path(__file__).parents[1] / "examples"
BASIC = EXAMPLES / "fastapi_basic"
AI = EXAMPLES / "fastapi_ai"
WORKERS = EXAMPLES / "workers"
SAAS = EXAMPLES / "saas"
READY_S = 120.0
JSON = {"accept": "application/json"}


@contextmanager
def served(
    directory: Path, *arguments: str, log: IO[bytes] | None = None, **variables: str
) -> Generator[httpx.Client]:
    """A client of an example, which runs under uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url, number = f"http://127.0.0.1:{listener.getsockname()[1]}", listener.fileno()
        words = [sys.executable, "-m", "uvicorn", "app:app", "--fd", str(number), *arguments]
        options: Any = {"cwd": directory, "pass_fds": [number], "stdout": log, "stderr": log}
        with subprocess.Popen(words, env=os.environ | variables, **options) as process:
            try:
                with httpx.Client(base_url=url, timeout=READY_S) as client:
                    wait_until_ready(client)
                    yield client
            finally:
                process.terminate()


def wait_until_ready(client: httpx.Client, path: str = "/healthz") -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            client.get(path)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an example's directory to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=Shell(directory, **variables).environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.dear("it starts an app server and two commands")
def test_the_fastapi_example_meters_limits_and_changes_plans(store_url: str) -> None:
    ada = {"x-customer-id": "ada"}
    shell = Shell(BASIC, METERKIT_REDIS_URL=store_url)
    with served(BASIC, "--log-level", "warning", METERKIT_REDIS_URL=store_url) as client:
        answers = [client.post("/translate", json={"text": "hello world"}, headers=ada) for _ in range(6)]
        assert [200, 200, 200, 200, 200, 429] == [answer.status_code for answer in answers]
        assert answers[0].json() == {"text": "olleh dlrow", "words": 2}
        assert '"requests-1m";q=5;w=60' in answers[0].headers["ratelimit-policy"]
        assert answers[5].json()["violated-policies"] == ["requests-1m"]
        assert int(answers[5].headers["retry-after"]) >= 1

        assert client.put("/glossaries/g", json={}, headers=ada).status_code == 403
        bob = {"x-customer-id": "bob"}
        refused = client.get("/glossaries", headers=bob)
        assert (refused.status_code, refused.json()["available_in"]) == (403, ["pro"])
        assert client.get("/me", headers=bob).json()["may"] == {"glossaries": False}
        described = client.get("/openapi.json").json()["paths"]["/glossaries"]["get"]
        assert "application/problem+json" in described["responses"]["403"]["content"]
        assert client.post("/translate", json={"text": "x"}).status_code == 401

        assert shell.run("customers", "set-plan", "ada", "pro").code == 0
        assert client.put("/glossaries/g", json={"hello": "ciao"}, headers=ada).status_code == 204
        translated = client.post("/translate", json={"text": "hello", "glossary": "g"}, headers=ada)
        assert translated.json() == {"text": "ciao", "words": 1}
        assert client.get("/glossaries", headers=ada).json() == ["g"]
        me = client.get("/me", headers=ada).json()
    assert me["may"] == {"glossaries": True}
    assert ("ada", "pro", 11) == (me["customer"], me["plan"], me["meters"]["words"]["used"])
    usage = shell.run("usage", "ada", "--json").json["meters"]
    assert (11, 9) == (usage["words"]["recorded"], usage["requests"]["recorded"])


def bill(*arguments: str) -> Done:
    """Run the chat's way to its bill; nothing of it may be left."""
    # The path of a socket is short; that of pytest's directories is not.
    with tempfile.TemporaryDirectory() as directory:
        environment = Shell(AI, TMPDIR=directory, METERKIT_REDIS_URL="redis://nowhere").environment
        with subprocess.Popen(
            [sys.executable, str(AI / "bill.py"), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.terminate()
                out, err = process.communicate()
                pytest.fail(f"bill.py did not end; it said:\n{out}\n{err}")
        assert [] == sorted(Path(directory).iterdir())
    return Done(code=process.returncode, out=out, err=err)


def rows(out: str, meter: str) -> list[list[int]]:
    """The figures of a meter, a line for each table: served, recorded, included, prepaid, due, billed."""
    lines = [line.split()[1:] for line in out.splitlines() if line.startswith(f"{meter} ")]
    return [[int(cell.replace(",", "")) for cell in line] for line in lines]


@pytest.mark.whole
@pytest.mark.dear("the example starts its own servers, store and Stripe")
def test_the_chat_is_paid_by_included_credits_then_money() -> None:
    done = bill()
    assert done.code == 0, done.out + done.err
    first, second, third, compared = rows(done.out, "output_tokens")
    assert (first, second) == ([300, 300, 300, 0, 0, 0], [600, 600, 400, 200, 0, 0])
    *saw, included, by_credits, overage, _ = third
    assert ([900, 900], 400, 500) == (saw, included, by_credits + overage)
    assert by_credits > 200  # The credits were used up in the middle of this answer.
    assert overage > 0
    found = re.search(r"set aside until she left: 4,000 output tokens\nestimated: [\d,]+ and (\d+)", done.out)
    assert found
    estimated = int(found[1])
    assert 0 < estimated < 4_000
    assert [900 + estimated] * 2 + [400, by_credits] + [overage + estimated] * 2 == compared
    assert all(line[-1] == line[-2] > 0 for line in rows(done.out, "input_tokens")[-1:])
    assert "answered 429 before the model ran; tokens counted: 0" in done.out


@pytest.mark.whole
def test_a_chat_whose_event_is_lost_is_found_and_named() -> None:
    done = bill("--break")
    assert done.code == 1, done.out + done.err
    assert re.search(
        r"\nada, \w+_tokens: [\d,]+ served, .*, [1-9][\d,]* to be billed, but Stripe has 0\.\n", done.out
    )


@pytest.mark.parametrize(("module", "code"), [("chat", 0), ("app", 1)])
def test_the_chat_itself_does_without_meterkit(module: str, code: int) -> None:
    done = run(AI, "-c", f"import sys; sys.modules['meterkit'] = None; import {module}")
    assert code == done.returncode, done.stderr


@pytest.mark.dear("the example starts and forks its own processes")
def test_forked_workers_count_up_to_what_is_included(store_url: str) -> None:
    done = run(WORKERS, "run.py", METERKIT_REDIS_URL=store_url)
    assert (0, "") == (done.returncode, done.stderr)
    bob = [line for line in done.stdout.splitlines() if line.startswith("bob: ")]
    assert sorted(["bob: 30 words"] * 3 + ["bob: refused: included"] * 2) == sorted(bob)
    assert "eve: failed, there is nothing to shout; nothing is counted" in done.stdout
    for used in ("ada has used 3 jobs, 9 words", "bob has used 3 jobs, 90", "eve has used 0 jobs, 0 words"):
        assert used in done.stdout


@pytest.mark.whole
@pytest.mark.dear("a run of pytest of its own")
@pytest.mark.parametrize(("name", "most"), [("starlette_minimal", 2), ("existing_service", 5)])
def test_the_tests_of_an_example_pass_where_it_stands(name: str, most: int) -> None:
    # The plugin of looptime is for pytest-asyncio, and fails without it.
    plain = ("-p", "no:cacheprovider", "-p", "no:looptime_plugin")
    done = run(EXAMPLES / name, "-m", "pytest", "-q", *plain, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{most} passed" in done.stdout


@pytest.mark.whole
@pytest.mark.dear("it starts gunicorn with its workers")
def test_the_existing_service_runs_under_gunicorn(tmp_path: Path, store_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"METERKIT_REDIS_URL": store_url, "DATABASE_URL": f"sqlite:///{tmp_path}/notes.db"}
    with subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "app:create_app()", "--bind", address, "--log-level", "warning"],
        cwd=EXAMPLES / "existing_service",
        env=Shell(tmp_path, **settings).environment,
    ) as process:
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=READY_S) as client:
                wait_until_ready(client)
                headers = {"authorization": "Bearer token-of-ada"}
                for _ in range(4):
                    added = client.post("/api/notes", json={"text": "x" * 20}, headers=headers)
                    assert added.status_code == 201
        finally:
            process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    shell = Shell(EXAMPLES / "existing_service", METERKIT_REDIS_URL=store_url)
    meters = shell.run("usage", "account-1", "--json").json["meters"]
    assert (4, 80) == (meters["requests"]["used"], meters["characters"]["used"])


@pytest.mark.dear("the example plays months in a process of its own")
def test_a_customers_life_is_played_as_the_readme_has_it() -> None:
    done = run(SAAS, "play.py", METERKIT_REDIS_URL="redis://nowhere")
    assert done.returncode == 0, done.stderr
    shown = re.search(r"```text\n(.*?)```", (SAAS / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert done.stdout == shown[1]


@contextmanager
def signed_in(address: str, key: str) -> Generator[httpx.Client]:
    """A browser that has signed in with a key."""
    with httpx.Client(base_url=address, follow_redirects=True, trust_env=False, timeout=READY_S) as browser:
        wait_until_ready(browser, path="/signin")
        answer = browser.post("/signin", data={"key": key})
        assert answer.status_code == 200, answer.text
        yield browser


@pytest.mark.whole
def test_the_product_shows_pages_to_who_signed_in() -> None:
    port = free_port()
    address, environment = f"http://127.0.0.1:{port}", Shell(SAAS).environment
    with subprocess.Popen(
        [sys.executable, "play.py", "--keep", "--port", str(port)],
        cwd=SAAS,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = list[str]()
            while not lines or "as an operator" not in lines[-1]:
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr and process.stderr.read()
            acme, operator = (re.findall(r"with the key (\S+);", line)[0] for line in lines[-2:])
            with signed_in(address, acme) as browser:
                assert browser.get("/usage/").text.count("data-") > 0
                figures = browser.get("/usage/", headers=JSON).json()
                assert (figures["usage"]["customer"], figures["plan_name"]) == ("acme", "Company")
                assert figures["usage"]["meters"]["questions"]["recorded"] == 63
                others = {one["plan"]: (one["cost_cents"], one["refused"]) for one in figures["other_plans"]}
                # Four seats are in use; Team includes two seats and five questions.
                assert others == {"free": (0, ["questions", "seats"]), "team": (2700 + 2 * 800 + 58 * 45, [])}
                assert [one["total_cents"] for one in figures["invoices"]] == [9200, 3070, 1300, 3500]
                assert {one["currency"] for one in [figures["usage"], *figures["invoices"]]} == {"eur"}
                assert browser.get("/operator/").status_code == 403
            with signed_in(address, operator) as browser:
                assert browser.get("/usage/").status_code == 401
                deadline = time.monotonic() + READY_S
                while not (found := browser.get("/operator/", headers=JSON).json())["customers"]:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                assert found["plans"] == {"free": 0, "team": 0, "company": 1}
            assert httpx.post(f"{address}/signin", data={"key": "of no customer"}).status_code == 403
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
