"""Each file is saved perfectly; the two together are not.

A transfer changes two accounts, each in a file of its own, each replaced atomically and durably.
Between the two replacements the money exists in neither account. No sync helps: what belongs
together must be one file, or be covered by a log. Every model, a killed process included, at 0
deviations.
"""

import os
from pathlib import Path

from tests.zoo.spec import ALL_MODELS, ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "alice", b"100")
    replace_durably(directory / "bob", b"100")


def workload(directory: Path) -> None:
    for account, balance in (("alice", b"90"), ("bob", b"110")):
        temporary = directory / f"{account}.tmp"
        write_synced(temporary, balance)
        os.replace(temporary, directory / account)  # BUG
        sync_directory(directory)


def recover(directory: Path) -> object:
    return [int((directory / account).read_bytes()) for account in ("alice", "bob")]


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=[100, 100],
    after=[90, 110],
    models=ALL_MODELS,
    kind="atomicity",
    causes=("not atomic",),
    deviations=0,
)
