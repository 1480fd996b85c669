"""The file is synced, its directory is synced, and the directory itself has no durable name.

A new profile gets a directory of its own. The directory's entries are synced; the entry that names
the directory belongs to its parent, and nobody synced that. POSIX lets the whole profile be
unreachable after a crash. The named file systems make the parents durable with the file, so only
the `posix` model shows it, at 1 deviation: the mkdir missing, what was made inside it there.
"""

import json
from pathlib import Path

from tests.zoo.spec import ZooSpec
from tests.zoo.steps import replace_durably, sync_directory, write_synced


def setup(directory: Path) -> None:
    replace_durably(directory / "profiles.txt", b"see the directories")


def workload(directory: Path) -> None:
    profile = directory / "ada"
    profile.mkdir()  # BUG
    write_synced(profile / "settings.json", b'{"theme": "dark"}')
    sync_directory(profile)


def recover(directory: Path) -> object:
    settings = directory / "ada" / "settings.json"
    try:
        return json.loads(settings.read_text())
    except (FileNotFoundError, ValueError):
        return None


SPEC = ZooSpec(
    setup=setup,
    workload=workload,
    recover=recover,
    before=None,
    after={"theme": "dark"},
    models=("posix",),
    kind="durability",
    causes=("missing directory fsync",),
    deviations=1,
)
