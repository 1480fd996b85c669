"""A record longer than a block, appended to a log that cannot tell a whole record from a torn one.

The log is JSON, one line for each record. A record of several blocks reaches the disk block by
block: what is left may be its first half, or zeros with the end behind them. Recovery parses every
line and fails on the torn one, so that all the good records before it are lost with it. Every
model, a killed process included (a signal may stop a write between two pages), at 0 deviations.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably


def setup(directory: Path) -> None:
    replace_durably(directory / "events.log", b'"first"\n')


def workload(directory: Path) -> None:
    with open(directory / "events.log", "ab", buffering=0) as log:
        log.write(json.dumps("x" * 6000).encode() + b"\n")  # BUG
        os.fsync(log.fileno())


def recover(directory: Path) -> object:
    lines = (directory / "events.log").read_bytes().splitlines()
    return [len(json.loads(line)) for line in lines]


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
