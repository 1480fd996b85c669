"""semidbm: set a key, close.

One append of key, value and checksum to the data file, with `os.write` bound as a default argument;
`close` syncs the file, so a change that has been closed is durable. While it runs, the size may be
there before the bytes (ext4, and POSIX). The loader takes the zeros for records with empty keys,
since it does not verify the checksum; it then returns keys that nobody wrote, or fails at the end
of the file. On XFS and btrfs the size of one small append needs its data, and a signal does not
divide a write within one page: there the key is set or it is not.

Expected: durable everywhere; atomic on XFS, btrfs and for a killed process only.
"""

from pathlib import Path

import semidbm

from examples.example import MODELS, Citation, expect


def put(directory: Path, key: str, value: str) -> None:
    db = semidbm.open(str(directory / "db"), "c")
    db[key] = value
    db.close()


def setup(directory: Path) -> None:
    put(directory, "bread", "two loaves")


def workload(directory: Path) -> None:
    put(directory, "milk", "three litres")


def recover(directory: Path) -> object:
    db = semidbm.open(str(directory / "db"), "r")
    try:
        return {key.decode(): db[key].decode() for key in db.keys()}  # noqa: SIM118
    finally:
        db.close()


EXPECTED = expect(atomic=("xfs", "btrfs", "kill"), durable=MODELS)
CITATIONS = (
    Citation("semidbm", "0.5.1", "semidbm.db", 133, "write(self._data_fd, blob)"),
    Citation("semidbm", "0.5.1", "semidbm.db", 199, "os.fsync(self._data_fd)"),
    Citation(
        "semidbm", "0.5.1", "semidbm.loaders.mmapload", 41, "key_size, val_size = struct.unpack("
    ),
)
