"""Write the table of minimum versions of the README from pyproject.toml: python docs/tools/minimum_versions.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN = (
    "<!-- minimum versions: python docs/tools/minimum_versions.py writes this table from pyproject.toml -->\n"
)
END = "<!-- end of minimum versions -->"
INSTALLED = re.compile(r"pip install '\.\[([a-z,]+)\]'")
REQUIREMENT = re.compile(r"([A-Za-z0-9-]+)(?:\[[^]]*\])?>=([\d.]+)(?:,<([\d.]+))?")


def table(project: dict[str, Any], extras: list[str]) -> str:
    """A row for meterkit itself, and one for each extra."""
    rows = {
        "Python": project["requires-python"].removeprefix(">="),
        "meterkit": _versions(project["dependencies"]),
    }
    rows |= {f"`{extra}`": _versions(project["optional-dependencies"][extra]) for extra in extras}
    return "\n".join(
        ["| | at least |", "|---|---|", *(f"| {name} | {versions} |" for name, versions in rows.items()), ""]
    )


def _versions(requirements: list[str]) -> str:
    return ", ".join(_version(requirement) for requirement in requirements)


def _version(requirement: str) -> str:
    matched = REQUIREMENT.fullmatch(requirement)
    if matched is None:
        raise ValueError(f"cannot read the requirement {requirement!r}; write name>=1.2 or name>=1.2,<2")
    name, least, below = matched.groups()
    return f"{name} {least}" + (f" (below {below})" if below else "")


def with_table(readme: str, project: dict[str, Any]) -> str:
    """The README with the table of the extras that its first command installs."""
    installed = INSTALLED.search(readme)
    if installed is None:
        raise ValueError("README.md has no command that installs extras: pip install '.[…]'")
    head, _, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"README.md has no lines {BEGIN.strip()!r} and {END!r}")
    return f"{head}{BEGIN}\n{table(project, installed[1].split(','))}\n{END}{tail}"


def current_project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8"), current_project()), "utf-8")
