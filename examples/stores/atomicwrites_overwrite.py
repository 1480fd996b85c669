"""atomicwrites: `atomic_write(path, overwrite=True)`.

A temporary beside the target, flushed and synced, renamed over it, and the directory synced after
the rename: the whole recipe, in a package. The sync is bound to a name of the module when it is
imported, before any recording begins.

Expected: atomic and durable everywhere.
"""

from pathlib import Path

from atomicwrites import atomic_write

from examples.example import MODELS, Citation, expect


def save(path: Path, text: str) -> None:
    with atomic_write(path, overwrite=True) as handle:
        handle.write(text)


def setup(directory: Path) -> None:
    save(directory / "notes.txt", "bread")


def workload(directory: Path) -> None:
    save(directory / "notes.txt", "bread and milk")


def recover(directory: Path) -> object:
    return (directory / "notes.txt").read_text()


EXPECTED = expect(atomic=MODELS, durable=MODELS)
CITATIONS = (
    Citation("atomicwrites", "1.4.1", "atomicwrites", 200, "_proper_fsync(f.fileno())"),
    Citation("atomicwrites", "1.4.1", "atomicwrites", 55, "os.rename(src, dst)"),
    Citation(
        "atomicwrites",
        "1.4.1",
        "atomicwrites",
        56,
        "_sync_directory(os.path.normpath(os.path.dirname(dst)))",
    ),
)
