"""The deployment with containers: its files are right, and its commands run without containers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import venv
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import jsonschema
import pytest
import yaml

from drivers.command_line import Shell
from meterkit import Settings
from meterkit.testing import StripeEmulator
from servers.stores import free_port, spawn_server
from test_examples import wait_until_ready

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "examples" / "deploy"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
DOCKERFILE: Final = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", "")
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
ENV: Final = dict(re.findall(r"^([^#=\n]+)=(.*)$", (DEPLOY / "env.example").read_text("utf-8"), re.MULTILINE))


def mounts() -> list[list[str]]:
    return [str(volume).split(":") for service in SERVICES.values() for volume in service.get("volumes", ())]


def instruction(name: str) -> list[str]:
    found = re.search(rf"^{name}\b[^\[\n]*(\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found
    return [str(word) for word in json.loads(found[1])]


def test_compose_accepts_the_file_and_its_services() -> None:
    schema = json.loads((ROOT / "tests" / "compose" / "compose-spec.json").read_text("utf-8"))
    validator: Any = jsonschema.Draft7Validator(schema)
    validator.validate(COMPOSE)
    assert {"app", "worker", "valkey", "prometheus", "grafana"} == set(SERVICES)
    assert 2 == SERVICES["app"]["deploy"]["replicas"]
    assert "off" == SERVICES["app"]["environment"]["METERKIT_FLUSH"]


def test_each_mounted_or_copied_file_exists() -> None:
    for source, *_ in mounts():
        assert source in COMPOSE["volumes"] or (DEPLOY / source).is_file(), source
    build = SERVICES["app"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert (context, True) == (ROOT, (context / build["dockerfile"]).is_file())
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())


@pytest.mark.parametrize("example", ["deploy", "existing_app"])
def test_the_package_can_be_built_of_what_an_image_copies(example: str, tmp_path: Path) -> None:
    text = (ROOT / "examples" / example / "Dockerfile").read_text("utf-8")
    copied = [
        name for names in re.findall(r"^COPY (.+) /meterkit/", text, re.MULTILINE) for name in names.split()
    ]
    assert "src" in copied
    for name in copied:
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "hatchling", "metadata", "version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_each_variable_is_a_setting_or_of_the_app() -> None:
    named = {name for service in SERVICES.values() for name in service.get("environment", {})}
    named |= set(re.findall(r"^ENV (\w+)=", DOCKERFILE, re.MULTILINE))
    assert {"CUSTOMERS"} == named - {f"METERKIT_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text("utf-8"))) == set(ENV)


def test_each_image_is_of_a_named_release() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert 3 == len(images)
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)


def test_prometheus_and_grafana_read_what_is_mounted() -> None:
    targets = {volume.split(":")[1] for service in SERVICES.values() for volume in service.get("volumes", ())}
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= targets
    (job,) = prometheus["scrape_configs"]
    assert ("app", 8000) == (job["dns_sd_configs"][0]["names"][0], job["dns_sd_configs"][0]["port"])
    boards = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yml").read_text("utf-8"))
    (board,) = (target for target in targets if target.startswith(boards["providers"][0]["options"]["path"]))
    assert board.endswith(".json")
    sources = yaml.safe_load((DEPLOY / "grafana" / "datasources.yml").read_text("utf-8"))
    assert "http://prometheus:9090" == sources["datasources"][0]["url"]


@contextmanager
def running(
    words: Sequence[str], environment: Mapping[str, str], directory: Path
) -> Generator[subprocess.Popen[bytes]]:
    """A command of the deployment, ended as Docker ends it; it must then exit by itself."""
    where = {**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (
        (directory / f"{words[0]}.log").open("ab") as log,
        subprocess.Popen(words, cwd=DEPLOY, env=where, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
    assert process.returncode in {0, 143, -15}


def run(environment: Mapping[str, str], *words: str) -> None:
    done = Shell(DEPLOY, **environment).run(*words)
    assert 0 == done.code, done.out + done.err


@pytest.mark.whole
@pytest.mark.dear("two app servers, a worker and four commands start, as the README starts them")
def test_its_commands_serve_limit_and_bill(tmp_path: Path) -> None:
    emulator = StripeEmulator()
    emulator.add_meter("translated_words")
    billed = emulator.add_customer(name="Ada")
    store_options = SERVICES["valkey"]["command"][1:]
    with ExitStack() as parts:
        store = parts.enter_context(spawn_server(*store_options))
        stripe_url = parts.enter_context(emulator.running())
        settings = {"REDIS_URL": store.url, "STRIPE_API_KEY": "sk_test_123", "STRIPE_API_BASE": stripe_url}
        settings |= {"START_TIMEOUT": "60", "STORE_TIMEOUT": "60", "FLUSH_INTERVAL": "1"}
        settings["SPOOL_DIR"] = str(tmp_path / "spool")
        environment = {f"METERKIT_{name}": value for name, value in settings.items()}
        environment["CUSTOMERS"] = ENV["CUSTOMERS"].strip("'")
        app = environment | {"METERKIT_FLUSH": SERVICES["app"]["environment"]["METERKIT_FLUSH"]}
        apps: list[httpx.Client] = []
        for _ in range(SERVICES["app"]["deploy"]["replicas"]):
            port = str(free_port())
            words = [port if word == "8000" else word for word in instruction("CMD")]
            parts.enter_context(running(words, app, tmp_path))
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
            apps.append(parts.enter_context(client))
            wait_until_ready(client)
            health = [word.replace(":8000", f":{port}") for word in instruction("HEALTHCHECK")]
            subprocess.run([sys.executable, *health[1:]], check=True, timeout=120)

        run(environment, "customers", "link", "ada", billed)
        ada = {"authorization": "Bearer key-of-ada"}

        def translate(client: httpx.Client, words: int) -> int:
            return client.post("/v1/translate", json={"text": "a " * words}, headers=ada).status_code

        with running(SERVICES["worker"]["command"], environment, tmp_path) as worker:
            assert [200, 200, 200, 200, 200, 429] == [translate(apps[turn % 2], 2) for turn in range(6)]
            run(environment, "customers", "set-plan", "ada", "pro")
            assert 200 == translate(apps[1], 1_000_003)
            while (accepted := emulator.accepted(billed, "translated_words")) == 0:
                assert worker.poll() is None
                time.sleep(0.05)
            assert 13 == accepted
        run(environment, "doctor")
        scraped = [client.get("/metrics/").text for client in apps]
    succeeded = re.compile(r'^meterkit_requests_total\{.*"success".*\} (\d+)', re.MULTILINE)
    assert [3, 3] == [sum(map(int, succeeded.findall(text))) for text in scraped]


@pytest.mark.whole
def test_the_image_installs_what_the_commands_import(tmp_path: Path) -> None:
    (line,) = re.findall(r"^RUN (pip install .*)$", DOCKERFILE, re.MULTILINE)
    venv.create(tmp_path, with_pip=True)
    words = shlex.split(line.replace("/meterkit", str(ROOT)))
    subprocess.run([tmp_path / "bin" / "python", "-m", *words], check=True, timeout=1200)
    store = {"METERKIT_REDIS_URL": SERVICES["app"]["environment"]["METERKIT_REDIS_URL"]}
    python = tmp_path / "bin" / "python"
    subprocess.run([python, "-c", "import app"], check=True, cwd=DEPLOY, env=store, timeout=120)
    subprocess.run([tmp_path / "bin" / "meterkit", "worker", "--help"], check=True, timeout=120)
