"""A secret that is private from its first byte.

The counterpart of `chmod_after_rename` and `chmod_after_fsync`: the temporary is created with its
final mode, so no later change of it can be lost or come too late.
"""

import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import sync_directory


def save(directory: Path, secret: bytes) -> None:
    temporary = directory / "token.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, secret)
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(temporary, directory / "token")
    sync_directory(directory)


def setup(directory: Path) -> None:
    save(directory, b"old")


def workload(directory: Path) -> None:
    save(directory, b"new")


def recover(directory: Path) -> object:
    token = directory / "token"
    private = token.stat().st_mode & 0o077 == 0
    return [token.read_text(), "private" if private else "public"]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=["old", "private"],
    after=["new", "private"],
)
