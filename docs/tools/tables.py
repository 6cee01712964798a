"""Tables that are made from the code: the keys of the plans file, and the commands with their options."""

from __future__ import annotations

from typing import Any

import typer.main

from meterkit.catalog import json_schema
from meterkit.cli.app import app
from meterkit.cli.help_pages import usage_word

Schema = dict[str, Any]
# Patterns of the schema, by something that only they have.
SPELLINGS = {
    "[Pp][Ee][Rr]": "a rate: `100/hour`",
    "([0-9]+w)?": "a duration: `7d`",
    "?B$": "a quantity: `1_000`, `5MB`",
    "^[a-z]{3}$": "three small letters: `usd`",
    "{0,63}$": "a name",
    "https?": "a URL",
    "unix|": "an address, a network, `unix`",
    "*[0-9_]+)?$": "`3`, `1 per 100`",
    " periods?$": "billing periods: `2 periods`",
    " *%?$": "a share: `20%`",
    "[*]|": "`METHOD /path`, `/path`, `*`",
}
MANY = {
    "a map": "maps",
    "three small letters: `usd`": "currencies",
    "a name": "names",
    "a text": "texts",
    "a whole number": "whole numbers",
    "a rate: `100/hour`": "rates",
    "a rate: `100/hour` or a map": "rates",
}
OF_ALL_COMMANDS = {"help", "plans", "redis", "json"}
# What stands for a name that the file chooses, by the key above it.
CHOSEN = {"meters": "METER", "plans": "PLAN", "addons": "ADDON", "credits": "CREDIT"} | dict.fromkeys(
    ("consume", "reserve"), "METER"
)


def plans_keys() -> str:
    """A section for each map of the plans file, with a table of its keys."""
    sections: list[str] = []
    _describe(json_schema(), "", sections)
    return "\n\n".join(sections)


def _describe(schema: Schema, path: str, sections: list[str]) -> None:
    needed = schema.get("required", [])
    rows = [
        f"| `{name}` | {kind_of(inner)} | {'yes' if name in needed else ''} | {cell(inner.get('description', ''))} |"
        for name, inner in schema["properties"].items()
    ]
    heading = f"### `{path}`" if path else "### The file"
    sections.append("\n".join([heading, "", "| key | value | required | |", "|---|---|---|---|", *rows]))
    for name, inner in schema["properties"].items():
        below = f"{path}.{name}" if path else name
        found = _tables(inner, below, name)
        for nth, (place, table) in enumerate(found):
            if table not in [before for _, before in found[:nth]]:  # One, or a list of the same.
                _describe(table, place, sections)


def _tables(schema: Schema, path: str, name: str) -> list[tuple[str, Schema]]:
    """The maps with known keys in what a key may hold, each with its place."""
    if "properties" in schema:
        return [(path, schema)]
    if "anyOf" in schema:
        return [found for form in schema["anyOf"] for found in _tables(form, path, name)]
    if schema.get("type") == "array":
        return _tables(schema["items"], f"{path}[]" if not path.endswith("]") else path, name)
    if isinstance(schema.get("additionalProperties"), dict):
        return _tables(schema["additionalProperties"], f"{path}.{CHOSEN.get(name, 'NAME')}", name)
    return []


def kind_of(schema: Schema) -> str:
    """What a value may be, in words."""
    if "anyOf" in schema:
        said = [word for form in schema["anyOf"] for word in kind_of(form).split(" or ")]
        whole = any(word.startswith("a whole number") for word in said)
        kept = [word for word in said if not (whole and word.startswith("a quantity")) and word != "digits"]
        return " or ".join(dict.fromkeys(kept))
    if "enum" in schema:
        return ", ".join(dict.fromkeys(f"`{word}`" for word in map(str, schema["enum"])))
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "object":
        inner = schema.get("additionalProperties")
        if schema.get("propertyNames") == {"pattern": "^[a-z]{3}$"}:
            return "one for each currency"
        return (
            f"a map of names to {MANY.get(kind_of(inner), kind_of(inner))}"
            if isinstance(inner, dict)
            else "a map"
        )
    if kind == "array":
        return f"a list of {MANY.get(kind_of(schema['items']), kind_of(schema['items']))}"
    if kind == "integer":
        return "a whole number"
    if kind == "boolean":
        return "`true` or `false`"
    if kind == "null":
        return "`null`"
    pattern = schema.get("pattern", "")
    return next(
        (said for sign, said in SPELLINGS.items() if sign in pattern),
        "digits" if "[0-9]" in pattern[:8] else "a text",
    )


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def commands() -> str:
    """A section for each command, with its options."""
    root: Any = typer.main.get_command(app)
    return "\n\n".join(_commands(root, "meterkit"))


def _commands(group: Any, name: str) -> list[str]:
    sections: list[str] = []
    for word, command in group.commands.items():
        called = f"{name} {word}"
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                sections.append(_command(command, called))
            sections += _commands(command, called)
        else:
            sections.append(_command(command, called))
    return sections


def _command(command: Any, called: str) -> str:
    """One command with the options that not all commands have."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join([called, *map(usage_word, arguments)])
    rows = [
        f"| {_spelt(option)} | {cell(option.help or '')} |"
        for option in options
        if option.name not in OF_ALL_COMMANDS
    ]
    told = " ".join((command.help or "").split("\f")[0].split())
    table = ["", "| option | |", "|---|---|", *rows] if rows else []
    return "\n".join([f"### {called}", "", f"`{usage}`", "", told, *table])


def _spelt(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} `{(option.metavar or option.type.name).upper()}`"


if __name__ == "__main__":
    print(plans_keys())
    print(commands())
