"""Databases of the audit log: SQLite in a file, and a PostgreSQL server of the tests' own."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import AsyncGenerator, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import pytest
from sqlalchemy import create_engine, text

from drivers.audited_kit import Audited, audited, sqlite_in

_NUMBERS: Final = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, but for the database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pgserver: Any = import_module("pgserver")
        except ImportError:
            pytest.skip("pgserver is not installed: it has no wheel for this Python")
        # Not below pytest's own directory: the server may run as another user.
        directory = mkdtemp(prefix="meterkit-pg-")
        server = pgserver.get_server(directory, cleanup_mode="stop")
    try:
        yield f"postgresql+psycopg://postgres:@/DATABASE?host={directory}"
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def audit_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return sqlite_in(tmp_path)
    url: str = request.getfixturevalue("postgres")
    name = f"audit_{next(_NUMBERS)}"
    engine = create_engine(url.replace("DATABASE", "postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.replace("DATABASE", name)


@pytest.fixture
async def at(store_url: str, tmp_path: Path) -> AsyncGenerator[Audited]:
    async with audited(store_url, sqlite_in(tmp_path)) as opened:
        yield opened
