"""A torn tail that recovery steps over, and behind which nothing will ever be found.

Records are framed, recovery stops at the first that is not whole: so far so good. But it does not
cut the torn tail off, and the next record is appended behind it. That record is whole, synced,
acknowledged, and unreachable. Recovery here does what an application does next: it appends one
record and reads again. A record of several blocks tears under every model, a killed process
included, at 0 deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import frame, replace_durably, unframe

OPENED = b"opened"


def append(directory: Path, record: bytes) -> None:
    with open(directory / "log", "ab", buffering=0) as log:
        log.write(frame(record))  # BUG
        os.fsync(log.fileno())


def read(directory: Path) -> list[bytes]:
    records, _ = unframe((directory / "log").read_bytes())
    return records


def setup(directory: Path) -> None:
    replace_durably(directory / "log", frame(b"first"))


def workload(directory: Path) -> None:
    append(directory, b"x" * 6000)


def recover(directory: Path) -> object:
    opened = read(directory).count(OPENED)
    append(directory, OPENED)
    records = read(directory)
    if records.count(OPENED) != opened + 1:
        raise LookupError("a record that was just appended cannot be read")
    return [len(record) for record in records if record != OPENED]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=[5],
    after=[5, 6000],
    models=ALL_MODELS,
    kind="unrecoverable",
    causes=("torn write",),
    deviations=0,
)
