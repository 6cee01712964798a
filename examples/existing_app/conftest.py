import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import model
import pytest
from fastapi.testclient import TestClient
from openai import AsyncOpenAI

from meterkit import MeterKit

pytest_plugins = ["meterkit.testing.plugin"]


@pytest.fixture
def client(meterkit_kit: MeterKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the app, which is imported anew with the test's kit, a database and a model of its own."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr("meterkit.MeterKit", lambda *_, **__: meterkit_kit)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    app = importlib.import_module("app")
    transport = httpx.ASGITransport(model.app)
    app.model = AsyncOpenAI(http_client=httpx.AsyncClient(transport=transport))
    with TestClient(app.app) as client:
        token = client.post("/signup", json={"email": "ada@example.com", "password": "secret"}).json()
        client.headers["authorization"] = f"Bearer {token['access_token']}"
        yield client
