"""Names of the settings."""

from __future__ import annotations

from dataclasses import fields

from meterkit import Settings


def setting_names() -> list[str]:
    return [setting.name for setting in fields(Settings)]
