"""The commit mark overtakes what it commits.

A transaction is appended in two writes: the payload, then a mark that says it is complete. Both are
synced together at the end, and together means in any order: the mark's block may be on disk behind
a payload of zeros. Recovery trusts the mark. A sync between the two, or a checksum in the mark,
closes it. Every model of power loss, at 1 deviation. A killed process loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably

BLOCK = 4096
MARK = b"committed"


def setup(directory: Path) -> None:
    replace_durably(directory / "log", b'"old"'.ljust(BLOCK))


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "log", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b'"new"'.ljust(BLOCK))  # BUG
    os.write(descriptor, MARK)
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    content = (directory / "log").read_bytes()
    committed = content[2 * BLOCK :] == MARK
    return json.loads(content[BLOCK : 2 * BLOCK] if committed else content[:BLOCK])


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before="old",
    after="new",
    models=POWER_LOSS,
    kind="unrecoverable",
    causes=("reordered writes",),
    deviations=1,
)
