"""The JSON Schema of plans files, for editors; made from the tables that the loader reads with."""

from __future__ import annotations

from typing import Final

from meterkit.catalog.load import ROOT

SCHEMA_ID: Final = "urn:meterkit:schema:plans:1"


def json_schema() -> dict[str, object]:
    """A JSON Schema (draft 2020-12) of plans files.

    It knows every key, word and spelling; what names must exist and which quantities fit each
    other only :func:`meterkit.catalog.load` knows.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "meterkit plans file",
        "description": "What a service counts, how its routes are decided, and what its plans give.",
        **ROOT.schema(),
    }
