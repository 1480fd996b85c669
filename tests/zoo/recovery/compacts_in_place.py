"""Recovery cuts a torn tail by writing the whole log again, over itself.

Records are framed, and a torn tail has to go before the next append. Recovery opens the log for
writing, which empties it, and writes the good records back. A second crash there loses all of them,
including those that were safe for years. Cutting the tail with `truncate` would have been shorter.
Every model, a killed process included: a record of several blocks is torn by the first crash, the
second comes after the truncation, both at 0 deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import frame, replace_durably, unframe


def setup(directory: Path) -> None:
    replace_durably(directory / "log", frame(b"first"))


def workload(directory: Path) -> None:
    with open(directory / "log", "ab", buffering=0) as log:
        log.write(frame(b"x" * 6000))
        os.fsync(log.fileno())


def recover(directory: Path) -> object:
    content = (directory / "log").read_bytes()
    records, end = unframe(content)
    if end < len(content):
        with open(directory / "log", "wb", buffering=0) as log:  # BUG
            log.write(content[:end])
            os.fsync(log.fileno())
    return [len(record) for record in records]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=[5],
    after=[5, 6000],
    models=ALL_MODELS,
    kind="atomicity",
    # The log is rewritten in place; run again after a crash, recovery gives another answer.
    causes=("not atomic", "recovery not idempotent"),
    deviations=0,
)
