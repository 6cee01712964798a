"""Layout of ``--help``: plain sections, arguments by what they are for, examples at the end."""

from __future__ import annotations

from textwrap import indent
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from meterkit.cli.examples import EXAMPLES


class Command(TyperCommand):
    """A command whose help names arguments by what they are for, without Python types."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and parameter.param_type_name == "argument":
                # Typer puts the type behind the name.
                sections["Arguments"].append((_name(parameter), record[1]))
            elif record is not None:
                sections["Options"].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the line that begins with ``Usage:``."""
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        return ["[OPTIONS]", *map(usage_word, arguments)]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(ctx, formatter)


class CommandGroup(TyperGroup):
    """A group of commands, with examples."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _write_examples(ctx, formatter)


class TopLevel(CommandGroup):
    """The top-level commands; for a bare subcommand such as `link`, suggests `customers link`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command by the words of the command line."""
        name = args[0] if args else ""
        if name not in self.commands:
            found = [group for group, part in self.commands.items() if name in getattr(part, "commands", ())]
            if found:
                names = " or ".join(f"'meterkit {group} {name}'" for group in found)
                ctx.fail(f"No such command {name!r}. Did you mean {names}?")
        return super().resolve_command(ctx, args)


def command_group(name: str, description: str, *, has_default: bool = False) -> typer.Typer:
    """Make a group of commands, such as `meterkit customers`.

    Without a subcommand it prints its help, or runs its default command if it ``has_default``.
    """
    return typer.Typer(name=name, cls=CommandGroup, help=description, no_args_is_help=not has_default)


def usage_word(argument: Any) -> str:
    """Write an argument of a usage line: ``[INTENT...]`` may be left out or repeated."""
    return _name(argument) if argument.required else f"[{_name(argument)}]"


def _name(parameter: Any) -> str:
    return str(parameter.metavar) + ("..." if parameter.nargs != 1 else "")


def _write_examples(ctx: Any, formatter: Any) -> None:
    _, _, command = ctx.command_path.partition(" ")
    with formatter.section("Examples"):
        for purpose, example in EXAMPLES[command].items():
            formatter.write_text(f"{purpose}:")
            # `write_text` would wrap a line that a person copies.
            formatter.write(indent(f"{example}\n", " " * (formatter.current_indent + 2)))
