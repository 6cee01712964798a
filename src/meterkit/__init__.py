"""Usage metering and limit enforcement for ASGI services, billed through Stripe."""

import re
from importlib import import_module
from pkgutil import get_data
from typing import Any

# The stub beside this file says once, to type checkers and here, which names are public and where they are.
_STUB = get_data(__name__, "__init__.pyi") or b""
_HOMES = {name: home for home, name in re.findall(r"(?m)^from (\S+) import (\w+)", _STUB.decode())}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is first used: `import meterkit` itself loads nothing else.
    found: Any
    if name == "__all__":
        found = __dir__()
    elif name == "identify":
        found = import_module("meterkit.asgi.identify")
    elif name == "__version__":
        found = import_module("importlib.metadata").version("meterkit")
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'meterkit' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(_HOMES)
