"""Workers of gunicorn that run uvicorn, for each loop, with and without a lifespan."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def worker(*, loop: str, http: str, lifespan: str) -> type:
    # Imported by name: the package has no types, and is configured by the class attribute.
    base: Any = import_module("uvicorn_worker").UvicornWorker
    return type("Worker", (base,), {"CONFIG_KWARGS": {"loop": loop, "http": http, "lifespan": lifespan}})


AsyncioWorker = worker(loop="asyncio", http="h11", lifespan="on")
UvloopWorker = worker(loop="uvloop", http="httptools", lifespan="on")
AsyncioWorkerWithoutLifespan = worker(loop="asyncio", http="h11", lifespan="off")
UvloopWorkerWithoutLifespan = worker(loop="uvloop", http="httptools", lifespan="off")
