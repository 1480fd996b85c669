"""A load takes a file that it cannot look at for one that is not there.

`os.path.exists` answers no where the disk failed. The program starts with empty settings, which it
then saves over the user's own.
"""

import json
import os
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

KINDS = {"wrong answer"}


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def workload(directory: Path) -> None:
    replace_durably(directory / "state.json", b"2")


def recover(directory: Path) -> object:
    if not os.path.exists(directory / "state.json"):  # BUG
        return {}
    return json.loads((directory / "state.json").read_text())


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
