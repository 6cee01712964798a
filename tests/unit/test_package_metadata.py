"""What package indexes show: the README with absolute links, and the links of the project."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ADDRESS: Final = "https://github.com/OWNER/meterkit"
RELATIVE: Final = re.compile(r"""(?:\]\(|(?:src|srcset|href)=")(?!https://|#)([^)"]+)""")


class HookInterface:
    """What a metadata hook has of hatchling's class."""

    def __init__(self, root: str, config: dict[str, Any]) -> None:
        self.root, self.config = root, config


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of hatch_build.py, also where hatchling is not installed."""
    interface: Any = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = HookInterface
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    for name in ("hatchling.metadata.plugin", "hatchling.metadata", "hatchling"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return runpy.run_path(str(ROOT / "hatch_build.py"))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def filled_in(build: dict[str, Any], repository: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"version": "0.1.0"}
    build["RepositoryLinks"](str(ROOT), {"repository": repository}).update(metadata)
    return metadata


def test_f_337_without_an_address_the_readme_has_no_dead_link(build: dict[str, Any]) -> None:
    """F-337: on a package index, links of the wheel's README led nowhere."""
    metadata = filled_in(build, "")
    text = metadata["readme"]["text"]
    assert (RELATIVE.findall(text), metadata["urls"]) == ([], {})
    assert "- Quickstart: from plans to a first bill\n" in text
    assert "<picture" not in text
    assert text.count("```") == (ROOT / "README.md").read_text("utf-8").count("```")


@pytest.mark.parametrize("address", [ADDRESS, f"{ADDRESS}/"])
def test_with_an_address_no_link_is_relative(build: dict[str, Any], address: str) -> None:
    metadata = filled_in(build, address)
    text = metadata["readme"]["text"]
    assert RELATIVE.findall((ROOT / "README.md").read_text("utf-8"))
    assert RELATIVE.findall(text) == []
    assert f"({ADDRESS}/blob/v0.1.0/docs/quickstart.md)" in text
    assert f'src="{ADDRESS}/raw/v0.1.0/docs/assets/usage-summary-light.png"' in text
    assert metadata["urls"]["Source"] == ADDRESS
    files = [url.partition("/v0.1.0/")[2] for url in metadata["urls"].values() if "/v0.1.0/" in url]
    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](docs/a.md#b)", f"[a]({ADDRESS}/blob/v1/docs/a.md#b)"),
        ("![a](docs/a.png)", f"![a]({ADDRESS}/raw/v1/docs/a.png)"),
        ('<a href="LICENSE">', f'<a href="{ADDRESS}/blob/v1/LICENSE">'),
        *((text, text) for text in ("[a](#b)", "[a](https://b.example/c)", "[a](mailto:a@b.example)")),
        *(
            (text, text)
            for text in ("```md\n[a](b.md)\n```\n", '<img alt="a" src="https://b.example/c.png">')
        ),
    ],
)
def test_links_and_pictures_lead_to_the_tag(build: dict[str, Any], text: str, expected: str) -> None:
    assert build["with_absolute_links"](text, ADDRESS, "v1") == expected


def test_the_project_names_the_hook_and_ships_it() -> None:
    found = project()
    hatch = found["tool"]["hatch"]
    assert set(found["project"]["dynamic"]) == {"readme", "urls"}
    assert hatch["metadata"]["hooks"]["custom"].keys() == {"repository"}
    assert "hatch_build.py" in hatch["build"]["targets"]["sdist"]["include"]


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
@pytest.mark.parametrize("address", ["", ADDRESS])
def test_the_metadata_of_a_wheel_has_the_links(address: str, tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path)
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    text = re.sub(r'^repository = ".*"$', f'repository = "{address}"', pyproject, count=1, flags=re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text(text)
    code = "from hatchling.build import prepare_metadata_for_build_wheel as prepare; print(prepare('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    head, _, readme = (tmp_path / done.stdout.strip() / "METADATA").read_text("utf-8").partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert (f"Project-URL: Source, {ADDRESS}" in head, RELATIVE.findall(readme)) == (bool(address), [])


def test_a_release_tries_every_extra_and_names_what_is_left() -> None:
    release = runpy.run_path(str(ROOT / "release/prepare.py"))
    found = project()
    assert set(found["project"]["optional-dependencies"]) == set(release["MODULES"])
    assert [name for names in release["MODULES"].values() for name in names if find_spec(name) is None] == []
    left = "\n".join(release["left_to_do"]())
    assert [step in left for step in ("git tag v0.1.0", "twine upload dist/*", "make docs")] == [True] * 3
    has_address = bool(found["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"])
    assert ("`repository`" in left) == (not has_address)


def test_each_release_fits_one_screen_of_the_changelog() -> None:
    _, *releases = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")
    assert [release.partition("\n")[0] for release in releases if release.count("\n") > 45] == []
