"""The stand-in provider and the proxy, together; Ctrl+C stops both."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
PROVIDER_PORT, PROXY_PORT = 8001, 8000


async def serve(module: str, port: int) -> None:
    """Run one of them until it ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port)),
        cwd=HERE,
        env=os.environ | {"PROVIDER_URL": f"http://127.0.0.1:{PROVIDER_PORT}/v1"},
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def main() -> None:
    async with asyncio.TaskGroup() as servers:
        servers.create_task(serve("provider", PROVIDER_PORT))
        servers.create_task(serve("app", PROXY_PORT))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
