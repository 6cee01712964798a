"""Options and arguments that commands share, their parsers and checks, and ``MODULE:NAME`` imports."""

from __future__ import annotations

import math
import os
import re
import sys
import traceback
from contextlib import aclosing, redirect_stdout
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

import typer

from meterkit.catalog import load
from meterkit.catalog.errors import suggestion
from meterkit.cli.output import print_note
from meterkit.customers.states import list_customers
from meterkit.decisions.periods import from_ms, period_ms
from meterkit.errors import MeterkitError, PlansError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from meterkit.customers.customers import Customer
    from meterkit.kit import MeterKit

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
WHEN: Final = "a date (midnight in UTC) or an instant with its zone, such as 2027-01-01T00:00:00Z"
_COMPARED_MAX: Final = 5_000
"""With more customers, no similar id is searched: it would take seconds."""


class WrongUsageError(typer.BadParameter):
    """Arguments and options that do not go together. Exits 2, with the usage of the command."""

    def format_message(self) -> str:
        """Write the message alone: the words "Invalid value" would not fit."""
        return self.message


def integer_between(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of integers from ``least`` to ``most``."""

    def parse(value: str) -> int:
        text = str(value)  # A default is not a text.
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise typer.BadParameter(f"found {text!r:.80}; allowed is a whole number from {least} to {most}")
        return int(text)

    return parse


def choice_option(name: str, *words: str, text: str) -> Any:
    """Return an option whose value is one of a few words, in any case; ``text`` is its help."""

    def parse(value: str) -> str:
        if (word := str(value).lower()) in words:
            return word
        raise typer.BadParameter(f"found {str(value)!r:.80}; allowed is {' or '.join(words)}")

    return typer.Option(
        name, parser=parse, autocompletion=lambda: [*words], metavar="|".join(words), help=text
    )


def seconds(value: str) -> float:
    """Read a number of seconds, decimals allowed."""
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise typer.BadParameter(f"found {str(value)!r:.80}; allowed is a number of seconds from 0")
    return found


def instant(value: str) -> datetime:
    """Read an instant with its time zone."""
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise typer.BadParameter(
            f"found {str(value)!r:.40}; allowed is an instant with a time zone, such as 2026-04-01T00:00:00Z"
        )
    return found


def date_or_instant(option: str, text: str | None) -> datetime | None:
    """Read a date, or an instant with its zone."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            moment = moment.replace(tzinfo=UTC)
        if moment.tzinfo is not None and moment.astimezone(UTC) >= _EPOCH:
            return moment
    except (ValueError, OverflowError):
        pass
    raise WrongUsageError(f"{option}: found {text!r:.80}; allowed is {WHEN}, since 1970")


def parse_quantities(entries: Iterable[str]) -> dict[str, int]:
    """Parse NAME=QUANTITY arguments; exits 2 if one cannot be read."""
    found: dict[str, int] = {}
    for entry in entries:
        name, _, quantity = entry.partition("=")
        if not name or not re.fullmatch(r"[0-9][0-9_]{0,39}", quantity):
            raise WrongUsageError(
                f"found {entry!r:.80}; allowed is NAME=QUANTITY with a whole number, such as ai=500 or"
                " pages=10_000"
            )
        if name in found:
            raise WrongUsageError(f"found {name!r:.80} twice; give it once")
        found[name] = int(quantity.replace("_", ""))
    return found


def _day(value: str) -> datetime:
    """Read a day, a month as its first day, or the id of a period; in UTC unless it has a zone."""
    text = str(value)
    try:
        return from_ms(period_ms(text))
    except MeterkitError:
        raise typer.BadParameter(
            f"found {text!r:.40}; allowed is a day such as 2026-10-01, or a month such as 2026-10"
        ) from None


_COMMON: Final[dict[str, dict[str, Any]]] = {
    "plans": {"metavar": "FILE", "help": "The plans file. Default: METERKIT_PLANS or plans.yaml."},
    "redis": {
        "metavar": "URL",
        "help": "The Redis server. Default: METERKIT_REDIS_URL or REDIS_URL. Keep passwords in the"
        " variable: other users of this machine can read command lines.",
    },
    "json": {"help": "Print JSON, for programs."},
}


def common_options(unused: Collection[str]) -> Iterator[Parameter]:
    """Yield the options of every command; help hides those that are ``unused``, which have no effect."""
    for name, describe_line in _COMMON.items():
        kind, default = (bool, False) if name == "json" else (str | None, None)
        option = typer.Option(f"--{name}", hidden=name in unused, **describe_line)
        annotation: Any = Annotated[kind, option]
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def plans_path(named: str | None) -> str:
    """Return the plans file of a command: the named one, otherwise that of the environment."""
    return named or os.environ.get("METERKIT_PLANS") or "plans.yaml"


def completion(part: Literal["plans", "meters"]) -> Callable[[str], list[str]]:
    """Return a completion of names in the plans file."""

    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in getattr(load(plans_path(None)), part) if name.startswith(incomplete)]
        except PlansError:
            return []  # During Tab completion: the command itself reports errors of the file.

    return complete


CustomerArgument = Annotated[str, typer.Argument(metavar="CUSTOMER", help="Your own id of the customer.")]
PeriodOption = Annotated[
    datetime | None,
    typer.Option(
        "--period",
        parser=_day,
        metavar="DATE",
        help="The billing period that contains this day, such as 2026-10-01 or 2026-10, in UTC.",
    ),
]
PlanArgument = Annotated[
    str | None,
    typer.Argument(metavar="PLAN", help="A plan of the plans file.", autocompletion=completion("plans")),
]
OldPlanArgument = Annotated[str | None, typer.Argument(metavar="FROM", help="The plan that customers leave.")]
NewPlanArgument = Annotated[
    str | None,
    typer.Argument(metavar="TO", help="The plan that customers get.", autocompletion=completion("plans")),
]
CustomerOption = Annotated[
    str | None,
    typer.Option("--customer", metavar="CUSTOMER", help="Your own id of one customer. Default: all."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]


def import_app(name: str, *, is_factory: bool) -> Any:
    """Import the app ``module:attribute``; the working directory is searched first.

    Args:
        name: as for uvicorn; the attribute may have dots.
        is_factory: it is a function without arguments that returns the app.

    Raises:
        WrongUsageError: there is no such module or attribute.
        MeterkitError: the import fails; the message has the place.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise WrongUsageError(f"found {name!r:.80}; allowed is MODULE:NAME, such as main:app or shop.api:app")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    # The app's output must not mix with the result.
    with redirect_stdout(sys.stderr):
        app = _attribute(_module(module_name), attribute)
        if not is_factory:
            return app
        if not callable(app):
            raise WrongUsageError(f"--factory: {name} is not a function but of type {type(app).__name__}")
        return _run(app, f"{name} cannot make the app")


def import_function(name: str) -> Callable[..., Any]:
    """Import the function ``module:attribute``; raises as :func:`import_app` does."""
    found = import_app(name, is_factory=False)
    if not callable(found):
        raise WrongUsageError(f"{name} is not a function but of type {type(found).__name__}")
    return cast("Callable[..., Any]", found)


def _module(name: str) -> Any:
    try:
        return _run(lambda: import_module(name), f"{name} cannot be imported")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise MeterkitError(f"{name} cannot be imported: {error}{_error_location(error)}") from error
        meant = name.removesuffix(".py").replace("/", ".")
        hint = f"; did you mean {meant!r}?" if meant != name else ""
        raise WrongUsageError(f"there is no module {error.name!r}; searched in {Path.cwd()}{hint}") from None


def _attribute(module: Any, path: str) -> Any:
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            near = get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise WrongUsageError(f"{module.__name__} has no {path!r:.80}{hint}")
        found = getattr(found, name)
    return found


def _run(work: Any, failed: str) -> Any:
    """Run code of the app; turn its errors into one message. Errors of meterkit pass unchanged."""
    try:
        return work()
    except (MeterkitError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise MeterkitError(f"{failed}: {type(error).__name__}: {error}{_error_location(error)}") from error


def _error_location(error: Exception) -> str:
    """Return the file and line of the app where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path.cwd()
    app_frames = [frame for frame in frames if Path(frame.filename).is_relative_to(here)]
    app_frames = [frame for frame in app_frames if "site-packages" not in frame.filename] or frames[-1:]
    return f" ({app_frames[-1].filename}:{app_frames[-1].lineno})" if app_frames else ""


async def note_unknown(
    kit: MeterKit, customer: str, *, shown: str = " These are the values of a new customer"
) -> None:
    """Print a note about an unknown id, which may be a typo, and about the ``shown`` values."""
    if not await kit.customers.known(customer):
        print_note(f"{await _unknown_customer_text(kit, customer)}{shown}")


def note_missing_plan(kit: MeterKit, customer: Customer) -> None:
    """Print a note if a customer's plan is missing from the plans file."""
    if customer.missing_plan is not None:
        is_kept = customer.plan == customer.missing_plan
        print_note(
            f"customer {customer.customer}: plan `{customer.missing_plan}` is not in {kit.catalog.source}:"
            f" served on {'its former terms' if is_kept else f'`{customer.plan}`'}"
        )


async def check_known(kit: MeterKit, customer: str) -> None:
    """Check that a customer exists.

    Raises:
        MeterkitError: the id is unknown; the message suggests a similar one.
    """
    if not await kit.customers.known(customer):
        raise MeterkitError(f"{await _unknown_customer_text(kit, customer)} Nothing was changed")


async def new_customer_note(kit: MeterKit, customer: str) -> str:
    """Return the note for a customer that this command creates; empty if it exists."""
    if await kit.customers.known(customer):
        return ""
    hint = await _suggest_customer(kit, customer)
    undo = f" `meterkit customers delete {quote(customer)}` undoes this" if hint else ""
    return f"created customer {customer}{hint}{undo}"


async def _unknown_customer_text(kit: MeterKit, customer: str) -> str:
    hint = await _suggest_customer(kit, customer)
    return f"unknown customer {customer}{hint or '.'}"


async def _suggest_customer(kit: MeterKit, customer: str) -> str:
    """Return ``; did you mean 'x'?`` if there is a customer with a similar id, otherwise nothing."""
    found: list[str] = []
    async with aclosing(list_customers(await kit.store.admin(), kit.store.keys)) as customers:
        async for known in customers:
            found.append(known)
            if len(found) > _COMPARED_MAX:
                return ""
    return suggestion(customer, sorted(found))
