"""A load that cannot read its file answers as if nothing had ever been saved.

One error of a cable, and the program starts with empty settings, which it then saves over the
user's own.
"""

import json
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably

KINDS = {"wrong answer"}


def setup(directory: Path) -> None:
    replace_durably(directory / "state.json", b"1")


def workload(directory: Path) -> None:
    replace_durably(directory / "state.json", b"2")


def recover(directory: Path) -> object:
    try:
        return json.loads((directory / "state.json").read_text())  # BUG
    except OSError:
        return {}


SPEC = ZooSpec(setup=setup, workload=workload, recover=recover, before=1, after=2)
