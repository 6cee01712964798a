"""``meterkit …`` and ``python -m meterkit …``."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

_EXTRA = ("typer", "rich")


def main() -> None:
    """Run the command line; exit with its code."""
    if not all(map(find_spec, _EXTRA)):
        sys.stderr.write("meterkit: the command line needs its extra: pip install 'meterkit[cli]'\n")
        sys.exit(2)
    import_module("meterkit.cli.app").main()


if __name__ == "__main__":
    main()
