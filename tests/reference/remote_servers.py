"""Object-store servers on loopback, where their packages are installed; else the reason why not.

S3: moto's server. Google Cloud Storage: gcp-storage-emulator. Azure: Azurite's blob server (an
npm package, found on PATH as ``azurite-blob``). Each runs as a process of its own and is
ended by `stop`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Azurite's published development account; it opens nothing else.
_AZURITE_ACCOUNT = "devstoreaccount1"
_AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


class Unavailable(Exception):
    """The server cannot run here; the message says why."""


@dataclass
class Server:
    """A running server: the URL of an empty bucket and the options to reach it."""

    url: str
    options: dict[str, Any]
    process: subprocess.Popen[bytes] = field(repr=False)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_s3() -> Server:
    _need("moto", "s3fs")
    port = _free_port()
    process = _run(port, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    options = {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"},
        "skip_instance_cache": True,
    }
    return _with_bucket(Server("s3://bucket", options, process))


def start_gcs() -> Server:
    _need("gcp_storage_emulator", "gcsfs")
    # Newer gcsfs asks over gRPC what kind of bucket it is, which no emulator answers.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    port = _free_port()
    process = _run(
        port, sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1",
        "--port", str(port), "--in-memory", "--default-bucket", "bucket",
    )  # fmt: skip
    options = {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "token": "anon",
        "project": "test",
        "skip_instance_cache": True,
    }
    return Server("gs://bucket", options, process)


def start_azure() -> Server:
    _need("adlfs")
    program = shutil.which("azurite-blob")
    if program is None:
        raise Unavailable("azurite-blob is not on PATH (npm install -g azurite)")
    port = _free_port()
    process = _run(
        port, program, "--inMemoryPersistence", "--silent", "--skipApiVersionCheck",
        "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port),
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}/{_AZURITE_ACCOUNT}"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={_AZURITE_ACCOUNT};"
        f"AccountKey={_AZURITE_KEY};BlobEndpoint={endpoint};"
    )
    options = {"connection_string": connection, "skip_instance_cache": True}
    return _with_bucket(Server("az://bucket", options, process))


STARTERS: dict[str, Callable[[], Server]] = {
    "s3": start_s3,
    "gcs": start_gcs,
    "azure": start_azure,
}


def _need(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run(port: int, *command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            if process.poll() is not None:
                raise Unavailable(f"{command[:3]} ended with {process.returncode}") from None
            time.sleep(0.05)
        else:
            return process
    process.kill()
    process.wait()
    raise Unavailable(f"{command[:3]} did not listen within 30 s")


def _with_bucket(server: Server) -> Server:
    import fsspec

    try:
        protocol = server.url.split(":")[0]
        fsspec.filesystem(protocol, **server.options).mkdir("bucket")
    except BaseException:
        server.stop()
        raise
    return server
