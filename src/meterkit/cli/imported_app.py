"""``MODULE:NAME``: an app or a function of the user's, imported as servers do."""

from __future__ import annotations

import sys
import traceback
from contextlib import redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable


def import_app(name: str, *, is_factory: bool) -> Any:
    """The app that ``module:attribute`` names; modules are looked for in the working directory first.

    Args:
        name: as uvicorn takes it; the attribute may have dots.
        is_factory: whether it is a function without arguments that makes the app.

    Raises:
        typer.BadParameter: there is no such module or attribute.
        MeterkitError: what is imported fails; with where.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise typer.BadParameter(
            f"found {name!r:.80}; allowed is MODULE:NAME, such as main:app or shop.api:app"
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    # What the app prints is not the result.
    with redirect_stdout(sys.stderr):
        app = _attribute(_module(module_name), attribute)
        if not is_factory:
            return app
        if not callable(app):
            raise typer.BadParameter(f"--factory: {name} is no function, but of type {type(app).__name__}")
        return _run(app, f"{name} cannot make the app")


def import_function(name: str) -> Callable[..., Any]:
    """The function that ``module:attribute`` names; raises as :func:`import_app` does."""
    found = import_app(name, is_factory=False)
    if not callable(found):
        raise typer.BadParameter(f"{name} is no function, but of type {type(found).__name__}")
    return cast("Callable[..., Any]", found)


def _module(name: str) -> Any:
    try:
        return _run(lambda: import_module(name), f"{name} cannot be imported")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise MeterkitError(f"{name} cannot be imported: {error}{_place(error)}") from error
        raise typer.BadParameter(f"there is no module {error.name!r}; looked for in {Path.cwd()}") from None


def _attribute(module: Any, path: str) -> Any:
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            near = get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise typer.BadParameter(f"{module.__name__} has no {path!r:.80}{hint}")
        found = getattr(found, name)
    return found


def _run(work: Any, failed: str) -> Any:
    """Run code of the app; its errors become one message. Errors of meterkit pass unchanged."""
    try:
        return work()
    except (MeterkitError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise MeterkitError(f"{failed}: {type(error).__name__}: {error}{_place(error)}") from error


def _place(error: Exception) -> str:
    """Where in the app it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path.cwd()
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(here)]
    own = [frame for frame in own if "site-packages" not in frame.filename] or frames[-1:]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
