"""A translation API, ready to deploy: see README.md beside this file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel

from meterkit import MeterKit, MeterMiddleware, identify, metrics_app, record
from meterkit.fastapi import responses

kit = MeterKit(Path(__file__).with_name("plans.yaml"))
app = FastAPI(title="Translations", responses=responses)

# SHA-256 of an API key to its customer. A real service reads them from its database.
customers: dict[str, str] = json.loads(os.environ.get("CUSTOMERS", "{}"))
app.add_middleware(MeterMiddleware, kit=kit, identify=identify.api_key(customers.get, hashed=True))
app.mount("/metrics", metrics_app(kit))


class Text(BaseModel):
    """The text to translate."""

    text: str


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    return {"ok": True}


@app.post("/v1/translate")
async def translate(given: Text) -> dict[str, str | int]:
    """Translate, and record the words. A request that fails costs nothing."""
    words = given.text.split()
    record(words=len(words))
    return {"text": " ".join(word[::-1] for word in words), "words": len(words)}
