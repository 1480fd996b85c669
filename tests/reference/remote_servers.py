"""Object-store servers on loopback, where their packages are installed; else the reason why not.

S3: moto's server. Google Cloud Storage: gcp-storage-emulator. Azure: Azurite's blob server (an
npm package, found on PATH as ``azurite-blob``). Each runs as a process of its own, ended by
`Servers.stop`. All of them are started when the first is needed: importing a server takes longer
than the tests that use it. One that is installed and does not start is an error, not a skip.
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
_PATIENCE_S = 120.0


class Unavailable(Exception):
    """The server cannot run here; the message says why."""


@dataclass
class Server:
    """A server that was started: the URL of its bucket and the options to reach it."""

    url: str
    options: dict[str, Any]
    port: int
    process: subprocess.Popen[bytes] = field(repr=False)
    has_bucket: bool = False

    def ready(self) -> Server:
        """Wait until it listens, and make its bucket."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self._listens():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.url}: the server ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.url}: not listening after {_PATIENCE_S:g} s")
            time.sleep(0.05)
        if not self.has_bucket:
            import fsspec

            fsspec.filesystem(self.url.partition(":")[0], **self.options).mkdir("bucket")
            self.has_bucket = True
        return self

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.2).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Servers:
    """All servers that can run here; each is ready when `get` returns it."""

    def __init__(self) -> None:
        self._started: dict[str, Server | Unavailable] = {}

    def get(self, name: str) -> Server:
        """Return one server. Raises `Unavailable`."""
        if not self._started:
            for each, start in STARTERS.items():
                try:
                    self._started[each] = start(_free_port())
                except Unavailable as reason:
                    self._started[each] = reason
        found = self._started[name]
        if isinstance(found, Unavailable):
            raise found
        return found.ready()

    def stop(self) -> None:
        for server in self._started.values():
            if isinstance(server, Server):
                server.stop()


def start_s3(port: int) -> Server:
    _need("moto", "s3fs")
    process = _run(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    options = {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"},
    }
    return Server("s3://bucket", options, port, process)


def start_gcs(port: int) -> Server:
    _need("gcp_storage_emulator", "gcsfs")
    # Newer gcsfs asks over gRPC what kind of bucket it is, which no emulator answers.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    process = _run(
        sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1",
        "--port", str(port), "--in-memory", "--default-bucket", "bucket",
    )  # fmt: skip
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon", "project": "test"}
    return Server("gs://bucket", options, port, process, has_bucket=True)


def start_azure(port: int) -> Server:
    _need("adlfs")
    program = shutil.which("azurite-blob")
    if program is None:
        raise Unavailable("azurite-blob is not on PATH (npm install -g azurite)")
    process = _run(
        program, "--inMemoryPersistence", "--silent", "--skipApiVersionCheck",
        "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port),
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}/{_AZURITE_ACCOUNT}"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={_AZURITE_ACCOUNT};"
        f"AccountKey={_AZURITE_KEY};BlobEndpoint={endpoint};"
    )
    return Server("az://bucket", {"connection_string": connection}, port, process)


STARTERS: dict[str, Callable[[int], Server]] = {
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


def _run(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
