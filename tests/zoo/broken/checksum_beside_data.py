"""The checksum that was to protect the data makes it unreadable.

Data and checksum are two files, each replaced atomically and durably. Between the two replacements
the checksum belongs to the old data, and recovery refuses a file that is perfectly good. No sync
helps; a checksum inside the file does. Every model, a killed process included, at 0 deviations.
"""

import os
import zlib
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def checksum(data: bytes) -> bytes:
    return f"{zlib.crc32(data):08x}".encode()


def setup(directory: Path) -> None:
    replace_durably(directory / "data", b"old")
    replace_durably(directory / "data.crc", checksum(b"old"))


def workload(directory: Path) -> None:
    for name, content in (("data", b"new"), ("data.crc", checksum(b"new"))):
        temporary = directory / "incoming"
        write_synced(temporary, content)
        os.replace(temporary, directory / name)  # BUG
        sync_directory(directory)


def recover(directory: Path) -> object:
    data = (directory / "data").read_bytes()
    if checksum(data) != (directory / "data.crc").read_bytes():
        raise ValueError("the checksum does not match")
    return data.decode()


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before="old",
    after="new",
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("not atomic",),
    deviations=0,
)
