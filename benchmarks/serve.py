"""Serves one variant under uvicorn, for a load generator: python serve.py VARIANT REDIS_URL PORT LOOP."""

from __future__ import annotations

import importlib.util
import sys
import warnings

import uvicorn
from variants import BY_NAME

if __name__ == "__main__":
    name, redis_url, port, loop = sys.argv[1:]
    warnings.simplefilter("ignore")
    uvicorn.run(
        BY_NAME[name].build(redis_url),
        host="127.0.0.1",
        port=int(port),
        loop=loop,
        http="httptools" if importlib.util.find_spec("httptools") else "h11",
        log_level="warning",
        access_log=False,
    )
