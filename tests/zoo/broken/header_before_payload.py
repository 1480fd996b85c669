"""Inside one file, too, nothing is ordered without a sync.

The file has a header that says which of two slots is current. A save writes the idle slot, then the
header, then syncs once. The kernel may write the header's block first: the header points to a slot
that still holds the value of two saves ago. Recovery finds a whole value and is content. Every
model of power loss, at 1 deviation (the slot's write missing, the header's there). A killed process
loses nothing.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import POWER_LOSS, ZooSpec
from tests.zoo.steps import replace_durably

BLOCK = 4096


def setup(directory: Path) -> None:
    blocks = (b"1", b'{"score": 1}', b'{"score": 0}')
    replace_durably(directory / "slots", b"".join(block.ljust(BLOCK) for block in blocks))


def workload(directory: Path) -> None:
    descriptor = os.open(directory / "slots", os.O_WRONLY)
    os.pwrite(descriptor, b'{"score": 2}'.ljust(BLOCK), 2 * BLOCK)  # BUG
    os.pwrite(descriptor, b"2", 0)
    os.fsync(descriptor)
    os.close(descriptor)


def recover(directory: Path) -> object:
    content = (directory / "slots").read_bytes()
    slot = int(content[:BLOCK])
    return json.loads(content[slot * BLOCK : (slot + 1) * BLOCK])


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before={"score": 1},
    after={"score": 2},
    models=POWER_LOSS,
    kind="atomicity",
    causes=("reordered writes",),
    deviations=1,
)
