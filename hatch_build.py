"""Metadata hook of the build: the README with absolute links, and the links of the project.

Package indexes show the README without the repository around it, so relative links lead nowhere there.
The address of the repository is one setting in pyproject.toml. While it is empty, the package has no project
links, and its README has words in place of relative links, and no pictures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"""(!\[[^\]]*\]\(|\bsrc(?:set)?=")(?![a-z]+:|[#/])([^)"\s]+)""")
LINK = re.compile(r"""(\]\(|\bhref=")(?![a-z]+:|[#/])([^)"\s]+)""")
WHOLE_PICTURE = re.compile(r"!\[[^\]]*\]\((?![a-z]+:|[#/])[^)]+\)|<picture>.*?</picture>\n*", re.DOTALL)
WHOLE_LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|[#/])[^)]+\)")
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


class RepositoryLinks(MetadataHookInterface):
    """Fill in `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both to the metadata of a build."""
        address = self.config["repository"].rstrip("/")
        readme = Path(self.root, "README.md").read_text("utf-8")
        text = with_absolute_links(readme, address, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = project_urls(address, f"v{metadata['version']}")


def with_absolute_links(text: str, address: str, tag: str) -> str:
    """Lead relative links to the pages of a tag, and pictures to its files. Code stays as it is.

    Without an address, links become their words, and pictures are left out.
    """
    parts = CODE.split(text)
    for nth in range(0, len(parts), 2):
        if not address:
            parts[nth] = WHOLE_LINK.sub(r"\g<1>", WHOLE_PICTURE.sub("", parts[nth]))
            continue
        pictures = PICTURE.sub(rf"\g<1>{address}/raw/{tag}/\g<2>", parts[nth])
        parts[nth] = LINK.sub(rf"\g<1>{address}/blob/{tag}/\g<2>", pictures)
    return "".join(parts)


def project_urls(address: str, tag: str) -> dict[str, str]:
    """The links that package indexes list; none without an address."""
    if not address:
        return {}
    return {
        "Source": address,
        "Documentation": f"{address}/blob/{tag}/docs/index.md",
        "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
