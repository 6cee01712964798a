"""A translation service, metered: uvicorn app:app, then see README.md beside this file."""

from __future__ import annotations

from pathlib import Path

from fastapi import Depends, FastAPI, Response
from pydantic import BaseModel

from meterkit import MeterKit, MeterMiddleware, allows, identify, record
from meterkit.fastapi import Current, requires, responses

kit = MeterKit(Path(__file__).with_name("plans.yaml"))
app = FastAPI(title="Translations", responses=responses)
# A gateway in front of this service has authenticated the caller and sets the header.
app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))

glossaries: dict[str, dict[str, str]] = {}


class Text(BaseModel):
    """What is to be translated."""

    text: str
    glossary: str | None = None


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    return {"ok": True}


@app.post("/translate")
def translate(given: Text) -> dict[str, str | int]:
    """Translate, and count the words. A request that fails costs nothing."""
    words = given.text.split()
    terms = glossaries.get(given.glossary or "", {})
    record(words=len(words))
    return {"text": " ".join(terms.get(word, word[::-1]) for word in words), "words": len(words)}


@app.put("/glossaries/{name}", status_code=204, response_class=Response)
def put_glossary(name: str, terms: dict[str, str]) -> None:
    glossaries[name] = terms


@app.get("/glossaries", dependencies=[Depends(requires("glossaries"))])
async def list_glossaries() -> list[str]:
    return sorted(glossaries)


@app.get("/me")
async def me(caller: Current) -> dict[str, object]:
    """What the caller has used and may use, as the caller may see it."""
    usage = await kit.usage(caller.customer)
    used = {
        name: {"used": meter["used"], "remaining": meter["remaining"]}
        for name, meter in usage["meters"].items()
    }
    may = {"glossaries": allows("glossaries")}
    return {"customer": caller.customer, "plan": caller.plan, "may": may, "meters": used}
