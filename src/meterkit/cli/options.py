"""What commands have in common: options and arguments."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["CustomerArgument", "JsonOption", "PlansOption", "RedisOption"]

PlansOption = Annotated[
    str | None,
    typer.Option("--plans", metavar="FILE", help="The plans file; default: METERKIT_PLANS, else plans.yaml."),
]
RedisOption = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        help="The store; default: METERKIT_REDIS_URL, else REDIS_URL. A password belongs in the variable:"
        " other users of this machine can read a command line.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CustomerArgument = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The app's own id of a customer.")]
