"""``meterkit storage`` and ``meterkit worker --storage-queue``, against moto's servers over HTTP."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moto.server import ThreadedMotoServer

from drivers.command_line import InProcessShell
from storage.conftest import forget_all
from storage.test_histories import PLANS

if TYPE_CHECKING:
    from pathlib import Path

    from servers.stores import Server


def test_drift_is_shown_and_corrected(valkey: Server, tmp_path: Path) -> None:
    (tmp_path / "plans.yaml").write_text(PLANS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        address = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
        forget_all(address)
        access = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        shell = InProcessShell(
            tmp_path,
            METERKIT_REDIS_URL=valkey.url,
            METERKIT_STORAGE_ENDPOINT=address,
            METERKIT_SHARDS="4",
            AWS_DEFAULT_REGION="us-east-1",
            **access,
        )
        boto3: Any = import_module("boto3")
        s3 = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        s3.create_bucket(Bucket="uploads")
        for key, size in (("ada/images/a", 7), ("bob/images/a", 5)):
            s3.put_object(Bucket="uploads", Key=key, Body=b"x" * size)
        looked = shell.run("storage", "recalculate", "--dry-run", "--json")
        assert (looked.code, looked.json) == (0, {"ada": 7, "bob": 5})
        assert shell.run("storage", "recalculate", "bob").out.split()[-2:] == ["bob", "5"]
        assert shell.run("storage", "recalculate", "--json").json == {"ada": 7}
        assert "all levels are right" in shell.run("storage", "recalculate").err
    finally:
        server.stop()
