"""A secret is published for everybody and made private a moment later.

The file is replaced by the book, then its mode is set. A crash between the two leaves the new
secret readable for every user of the machine, for good, since no later save repairs it. No sync
helps; creating the temporary with the right mode does. Every model, a killed process included, at 0
deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "token", b"old")
    os.chmod(directory / "token", 0o600)
    sync_directory(directory)


def workload(directory: Path) -> None:
    temporary = directory / "token.tmp"
    write_synced(temporary, b"new")
    os.replace(temporary, directory / "token")  # BUG
    sync_directory(directory)
    descriptor = os.open(directory / "token", os.O_RDWR)
    os.fchmod(descriptor, 0o600)
    os.fsync(descriptor)
    os.close(descriptor)


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
    models=ALL_MODELS,
    kind="atomicity",
    causes=("not atomic",),
    deviations=0,
)
