"""`zipfile` in append mode: the new member is written over the archive's directory.

A ZIP file ends with its directory. Appending seeks to where the directory begins and overwrites it
with the new member; the directory is written again, behind it, when the archive is closed. Until
then the archive cannot be opened, and all the members in it are out of reach. The member here is
larger than Python's buffer, so that its bytes leave the process before the directory does, and a
killed process shows it. There is no sync.

Expected: atomic nowhere; durable only where the page cache survives.
"""

import zipfile
from pathlib import Path

from examples.example import Citation, expect


def setup(directory: Path) -> None:
    with zipfile.ZipFile(directory / "album.zip", "w") as archive:
        archive.writestr("one.txt", "the first picture")


def workload(directory: Path) -> None:
    with zipfile.ZipFile(directory / "album.zip", "a") as archive:
        archive.writestr("two.txt", "the second picture " * 600)


def recover(directory: Path) -> object:
    with zipfile.ZipFile(directory / "album.zip") as archive:
        return {name: len(archive.read(name)) for name in archive.namelist()}


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (
    Citation("python", "3.11.7", "zipfile", 1642, "self.fp.seek(self.start_dir)"),
    Citation("python", "3.11.7", "zipfile", 1947, "self.fp.write(centdir)"),
    Citation("python", "3.11.7", "zipfile", 1990, "self.fp.flush()"),
)
