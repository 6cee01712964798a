"""Spellings of a path: as a hostile client writes it, so that some router or file server still finds it."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Final

DOTS: Final = ("..", "%2e%2e", ".%2e", "%2E.", "%252e%252e", "..;", "..;x", "...")
SLASHES: Final = ("/", "//", "%2f", "%2F", "%5c", "\\", "%252f", "/./", "%2f%2f")
ENDS: Final = (
    *("/", "//", "/.", "/./", "%00", "%00.png", ";x", ";x=1/", "%3Fx", "?x", "/?x", "%23f", "#f", "/#f"),
    *("%20", ".", "%0A", "%0Ab", "%E2%80%A8b", "%ff", "%2F", "/%23/x", "/x/.."),
)
HOSTS: Final = ("http://x", "HTTP://X", "https://u:p@x:8", "ws://x", "//x")
CLIMBS: Final = ("x/../..", "x//..//..", "x/y/../../..", ".././public/..", "../../files", "deep/../../x/..")


def spellings(path: str) -> tuple[str, ...]:
    """The table: spellings that some router, server or file server is known to read as the path."""
    folder, _, last = path.rpartition("/")
    first = f"/{path.split('/')[1]}"
    below = path.removeprefix(f"{first}/")
    found = [
        f"{first}/public{before}{dot}{after}{below}" for dot, before, after in product(DOTS, SLASHES, SLASHES)
    ]
    for slash in SLASHES[1:]:
        found += [f"{first}{slash}{below}", f"{folder}{slash}{last}", f"{slash}{path[1:]}", f"{path}{slash}"]
        found += [f"{first}/x{slash}../{below}", f"{first}/x/%2e%2e{slash}{below}"]
    found += [f"{path}{end}" for end in ENDS]
    found += [f"{first}/public/{climb}/{below}" for climb in CLIMBS]
    for written in (path, f"{path}/", f"{first}/public/../{below}", f"{first}//{below}", f"/{path}"):
        found += [f"{host}{written}" for host in HOSTS]
        found += [written.upper(), written.title(), written[1:]]
        found += [f"{written}#f", f"/.{written}", f"/x/..{written}"]
        found += [written.replace(last[0], f"%{ord(last[0]):x}"), f"/%2e{written}", f"/x/%2e%2e{written}"]
    found += [f"{first}/{climb}/data/{below}" for climb in ("..", "public/../..", "..;/..")]
    found += [f"{first}/public/{'x/../' * 2_000}../{below}", f"{first}{'/' * 9_000}{below}"]
    return tuple(dict.fromkeys(found))


def random_spelling(random: Random, path: str) -> str:
    """One more of the kind: joints, capitals, encodings, climbs and ends by chance."""
    first, *segments = path[1:].split("/")
    joints = (*SLASHES, "/x/../", "/%2e/", ";p/", "/x%2f../", "/..;/", "/x/%2e%2e%2f", "\\x\\..\\", "#/../")
    starts = ("/", "//", "/x/../", "/./", "/%2e%2e/", "http://h/", "//h/", "", "/%252e/")
    climbs = ("", "", "public/../", "public%2f..%2f", "../data/", "public\\..\\", "public/x/../../")
    found = random.choice(starts) if random.random() < 0.3 else "/"
    found += f"{first}{random.choice(joints) if random.random() < 0.3 else '/'}{random.choice(climbs)}"
    for nth, segment in enumerate(segments):
        encoded = f"{ord(segment[0]):02x}{segment[1:]}"
        kinds = (segment.upper(), segment.title(), f"%{encoded}", f"%25{encoded}")
        found += random.choice(kinds) if random.random() < 0.15 else segment
        if nth < len(segments) - 1:
            found += random.choice(joints) if random.random() < 0.4 else "/"
    return found + (random.choice(ENDS) if random.random() < 0.3 else "")
