"""Lazy import of ``genai-prices``: the package is optional and large."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meterkit.catalog.price_table import installed_table
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_table() -> Any:
    """The providers and models of the package.

    Raises:
        MeterkitError: it is not installed.
    """
    table = installed_table()
    if table is None:
        raise MeterkitError(
            "providers' prices need genai-prices; install it with: pip install 'meterkit[prices]'"
        )
    return table


@cache
def read_units() -> dict[str, dict[str, Any]]:
    """Unit to its definition: the name of its price, for how many units that is, and its dimensions."""
    read_table()
    found: dict[str, dict[str, Any]] = import_module("genai_prices.data_units").unit_data
    return found


@cache
def unit_dimensions() -> Mapping[str, frozenset[tuple[str, str]]]:
    """Unit to its dimensions: a unit with more of them is a part of those with fewer.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """
    return {unit: frozenset(known["dimensions"].items()) for unit, known in read_units().items()}


@cache
def table_version() -> str:
    """The version of the price table, for example ``genai-prices/0.2.3``.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """
    read_table()
    return f"genai-prices/{import_module('genai_prices').__version__}"


def is_installed() -> None:
    """See that the prices are there.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """
    read_table()
