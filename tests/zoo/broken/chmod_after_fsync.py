"""The mode is set after the fsync, so the fsync did not cover it.

The temporary is written and synced, made private, and renamed. The mode is an attribute of the file
and was changed after the only sync of that file: the rename may be on disk with the mode that the
file was created with, and the secret is public. Journalled metadata keeps the order on ext4 and
XFS; POSIX does not, and the log that btrfs writes for the directory may hold the name alone. 1
deviation: the change of mode missing, the rename there.
"""

import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "token", b"old")
    os.chmod(directory / "token", 0o600)
    sync_directory(directory)


def workload(directory: Path) -> None:
    temporary = directory / "token.tmp"
    write_synced(temporary, b"new")
    os.chmod(temporary, 0o600)  # BUG
    os.replace(temporary, directory / "token")
    sync_directory(directory)


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
    models=("posix", "btrfs"),
    kind="atomicity",
    causes=("missing fsync before rename",),
    deviations=1,
)
