"""The guide for an app that exists: its steps lead from the one example to the other, and its code runs."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from difflib import ndiff
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import httpx
import jsonschema
import pytest
import yaml
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Message

from drivers.app import http_scope, staying
from drivers.command_line import TIMEOUT_S, Shell
from drivers.lazy_modules import LazyModule
from faults.refusals import eventually
from meterkit import MeterKit, MeterMiddleware, Settings, identify

completions: Final = LazyModule("openai.types.chat")

ROOT: Final = Path(__file__).parents[1]
EXAMPLE: Final = ROOT / "examples" / "existing_app"
GUIDE: Final = (ROOT / "docs" / "existing-app.md").read_text("utf-8")
BEFORE: Final = (EXAMPLE / "before.py").read_text("utf-8")
METERED: Final = (EXAMPLE / "app.py").read_text("utf-8")
DOCKERFILE: Final = (EXAMPLE / "Dockerfile").read_text("utf-8")
COMPOSE: Final = (EXAMPLE / "compose.yaml").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def hunks() -> Iterator[tuple[str, str]]:
    """What each hunk of the guide replaces, and by what."""
    for block in blocks("diff"):
        for hunk in filter(None, re.split(r"^@@.*\n", block, flags=re.MULTILINE)):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            yield old, "".join(line[1:] for line in lines if line[0] in " +")


@pytest.fixture(autouse=True)
def _in_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    monkeypatch.setenv("METERKIT_REDIS_URL", "memory://")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


@pytest.fixture(scope="module")
def complete() -> Callable[..., dict[str, Any]]:
    """The stub's answer to a question that is not streamed."""
    found: Callable[..., dict[str, Any]] = runpy.run_path(str(EXAMPLE / "model.py"))["complete"]
    return found


def test_the_steps_lead_from_one_app_to_the_other() -> None:
    text = BEFORE
    for old, new in hunks():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
        compile(text, "app.py", "exec")
    assert text == METERED
    told = re.findall(r"(\d+)\s+(?:more|new) lines", GUIDE + (EXAMPLE / "README.md").read_text("utf-8"))
    lines = [line for line in ndiff(BEFORE.splitlines(), METERED.splitlines()) if line.startswith("+ ")]
    assert told == [str(len(lines))] * 2


def test_files_are_shown_as_they_are() -> None:
    assert blocks("yaml") == [(EXAMPLE / "plans.yaml").read_text("utf-8")]
    tests = (EXAMPLE / "conftest.py").read_text("utf-8") + (EXAMPLE / "test_app.py").read_text("utf-8")
    assert [block in tests for block in blocks("py")] == [False, True, True, False, False]
    (compose,) = blocks("yml")
    assert compose in COMPOSE


@pytest.mark.whole
@pytest.mark.dear("a run of pytest of its own, from sign-up to cancellation")
def test_its_own_tests_pass_where_it_stands() -> None:
    plain = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = Shell(EXAMPLE, **plain).environment
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.fixture
def litellm_app(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the app, which streams through LiteLLM as the guide shows it."""
    stub = runpy.run_path(str(EXAMPLE / "model.py"))

    async def acompletion(**asked: Any) -> AsyncIterator[Any]:
        response = stub["complete"](asked)

        async def chunks() -> AsyncIterator[Any]:
            async for event in response.body_iterator:
                if event.startswith("data: {"):
                    yield completions.ChatCompletionChunk.model_validate_json(event.removeprefix("data: "))

        return chunks()

    monkeypatch.setitem(sys.modules, "litellm", module("litellm", acompletion=acompletion))
    names = runpy.run_path(str(EXAMPLE / "app.py"))
    scope: dict[str, Any] = names["ask"].__globals__
    exec(blocks("py")[0], scope)  # noqa: S102 - It is our own documentation.
    return scope


@pytest.mark.anyio
@pytest.mark.dear("the app is imported, with OpenAI's SDK")
async def test_litellm_streams_are_counted(litellm_app: dict[str, Any]) -> None:
    kit = litellm_app["kit"]
    headers = {"authorization": f"Bearer {litellm_app['make_token'](7)['access_token']}"}
    transport = httpx.ASGITransport(litellm_app["app"])
    async with kit, httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
        answer = await client.post("/ask", json={"text": "one two three"})
        assert answer.text == "three two one "
        assert (await kit.usage("account-7"))["meters"]["total_tokens"]["recorded"] == 6


@pytest.mark.anyio
@pytest.mark.dear("the app is imported, with OpenAI's SDK")
async def test_a_client_that_leaves_pays_prompt_and_output(litellm_app: dict[str, Any]) -> None:
    app, kit = litellm_app["app"], litellm_app["kit"]
    token = litellm_app["make_token"](8)["access_token"]
    body, sent = json.dumps({"text": "one two three"}).encode(), list[bytes]()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if b"two " in sent:
            raise OSError("the client has left")

    scope = http_scope("/ask", method="POST", asgi={"version": "3.0", "spec_version": "2.4"})
    scope["headers"] = [
        (b"authorization", f"Bearer {token}".encode()),
        (b"content-type", b"application/json"),
    ]

    async def is_counted() -> bool:
        found: int = (await kit.usage("account-8"))["meters"]["total_tokens"]["recorded"]
        return found == len("one two three") // 4 + len("three two ") // 4

    async with kit:
        with suppress(ClientDisconnect):
            await app(scope, staying(body), send)
        await eventually(is_counted)


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    return made


class FakeQueue:
    """Celery as the guide uses it: a bound task gets its request."""

    def __init__(self, name: str, *, broker: str) -> None:
        assert (name, broker) == ("assistant", "redis://localhost/1")

    def task(self, *, bind: bool, acks_late: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        assert bind
        assert acks_late

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(job: str, *given: str) -> object:
                return function(SimpleNamespace(request=SimpleNamespace(id=job)), *given)

            return run

        return decorate


def test_a_celery_job_that_runs_again_counts_its_calls(
    complete: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "celery", module("celery", Celery=FakeQueue))
    scope: dict[str, Any] = {"__name__": "tasks"}
    exec(blocks("py")[3], scope)  # noqa: S102 - It is our own documentation.

    def create(**asked: Any) -> Any:
        return completions.ChatCompletion.model_validate(complete(asked))

    scope["model"] = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    with scope["kit"] as kit:
        for _ in range(2):
            assert scope["translate"]("job-1", "account-8", "the sea") == "sea the Translate:"
        meters = kit.usage("account-8")["meters"]
    assert (meters["requests"]["recorded"], meters["total_tokens"]["recorded"]) == (1, 2 * 6)


@pytest.mark.anyio
async def test_an_arq_job_that_runs_again_counts_its_calls(
    complete: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = module("arq.connections", RedisSettings=dict)
    monkeypatch.setitem(sys.modules, "arq", module("arq", connections=connections))
    monkeypatch.setitem(sys.modules, "arq.connections", connections)
    scope: dict[str, Any] = {"__name__": "arq_worker"}
    exec(blocks("py")[4], scope)  # noqa: S102 - It is our own documentation.

    async def create(**asked: Any) -> Any:
        return completions.ChatCompletion.model_validate(complete(asked))

    scope["model"] = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    worker, context = scope["WorkerSettings"], {"job_id": "job-1"}
    await worker.on_startup(context)
    (translate,) = worker.functions
    for _ in range(2):
        assert await translate(context, "account-9", "the sea") == "sea the Translate:"
    kit: Any = context["kit"]
    meters = (await kit.usage("account-9"))["meters"]
    await worker.on_shutdown(context)
    assert (meters["requests"]["recorded"], meters["total_tokens"]["recorded"]) == (1, 2 * 6)


@pytest.mark.anyio
@pytest.mark.parametrize(("exposed", "is_told"), [((), True), (("x-total",), False)])
async def test_an_own_list_of_exposed_headers_replaces_ours(exposed: tuple[str, ...], is_told: bool) -> None:
    kit, app = MeterKit("plans.yaml"), FastAPI()
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    app.add_middleware(CORSMiddleware, allow_origins=["http://page"], expose_headers=exposed)
    headers = {"x-customer-id": "ada", "origin": "http://page"}
    transport = httpx.ASGITransport(app)
    async with kit, httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
        answer = await client.get("/nothing")
    assert answer.status_code == 404
    assert ("ratelimit" in answer.headers["access-control-expose-headers"]) is is_told


def test_compose_runs_the_app_the_worker_and_a_store() -> None:
    found = yaml.safe_load(COMPOSE)
    schema = json.loads((ROOT / "tests" / "compose" / "compose-spec.json").read_text("utf-8"))
    validator: Any = jsonschema.Draft7Validator(schema)
    validator.validate(found)
    services = found["services"]
    assert set(services) == {"app", "worker", "valkey"}
    assert services["worker"]["command"] == ["meterkit", "worker"]
    named = {name for service in services.values() for name in service.get("environment", {})}
    named |= set(re.findall(r"(\w+)=", re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)[0]))
    own = named - {f"METERKIT_{name.upper()}" for name in Settings.model_fields}
    assert own == {*re.findall(r'environ\.get\("(\w+)"', METERED), "OPENAI_API_KEY"} - {"ORIGIN"}
    asked = set(re.findall(r"\$\{(\w+):\?", COMPOSE))
    assert asked == set(re.findall(r"^(\w+)=", (EXAMPLE / "env.example").read_text("utf-8"), re.MULTILINE))
    volumes = re.findall(r"/var/lib/\w+", re.findall(r"^VOLUME (.+)$", DOCKERFILE, re.MULTILINE)[0])
    assert [volume.split(":")[1] for volume in services["app"]["volumes"]] == volumes
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
