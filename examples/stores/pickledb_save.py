"""pickleDB: `set`, then `save`, which promises to "atomically save database to disk".

`save` writes `<name>.tmp` through aiofiles in a thread and renames it over the database. Against a
killed process that is atomic. There is no sync: a power loss leaves an empty file (XFS, btrfs, ext4
without auto_da_alloc) or one full of zeros (ext4). `load` takes an empty file for an empty
database, so the keys are gone without an error.

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

from pickledb import PickleDB

from examples.example import Citation, expect


def save(directory: Path, **values: object) -> None:
    db = PickleDB(str(directory / "app.json")).load()
    for key, value in values.items():
        db.set(key, value)
    db.save()


def setup(directory: Path) -> None:
    save(directory, user="ada")


def workload(directory: Path) -> None:
    save(directory, user="grace", visits=7)


def recover(directory: Path) -> object:
    db = PickleDB(str(directory / "app.json")).load()
    return {key: db.get(key) for key in db.all()}


EXPECTED = expect(atomic=("kill",), durable=("kill",))
CITATIONS = (
    Citation("pickledb", "1.6", "pickledb", 108, "await f.write(orjson.dumps(self.db))"),
    Citation(
        "pickledb",
        "1.6",
        "pickledb",
        109,
        "await asyncio.to_thread(os.replace, temp, self.location)",
    ),
    Citation(
        "pickledb",
        "1.6",
        "pickledb",
        86,
        "if os.path.exists(self.location) and os.path.getsize(self.location) > 0:",
    ),
)
