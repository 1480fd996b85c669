"""`mailbox.mbox`: lock, add a message, flush, unlock, as its documentation shows.

A message is appended to the one file and `flush` syncs it, so an addition that has returned is
durable under every model: data and size of an existing file. While it runs, the size may be on disk
before the bytes (ext4, and POSIX): the appended part is zeros, no line of it begins with `From `,
and so it becomes the tail of the message before. XFS and btrfs write the size with the data of one
small append, and a write within one page is not divided by a signal: there, and for a killed
process, the message is there or it is not.

Recovery reads without the lock; a writer would also meet the lock file that a crash leaves behind.

Expected: durable everywhere; atomic on XFS, btrfs and for a killed process only.
"""

import mailbox
from pathlib import Path

from examples.example import MODELS, Citation, expect


def add(directory: Path, subject: str) -> None:
    box = mailbox.mbox(directory / "inbox")
    box.lock()
    try:
        box.add(f"Subject: {subject}\n\nDear reader,\nthis is about {subject}.\n")
        box.flush()
    finally:
        box.close()


def setup(directory: Path) -> None:
    add(directory, "bread")


def workload(directory: Path) -> None:
    add(directory, "milk")


def recover(directory: Path) -> object:
    box = mailbox.mbox(directory / "inbox", create=False)
    try:
        return [[message["subject"], message.get_payload()] for message in box]
    finally:
        box.close()


EXPECTED = expect(atomic=("xfs", "btrfs", "kill"), durable=MODELS)
CITATIONS = (
    Citation("python", "3.11.7", "mailbox", 766, "self._file.flush()"),
    Citation("python", "3.11.7", "mailbox", 658, "_sync_flush(self._file)"),
    Citation("python", "3.11.7", "mailbox", 2090, "os.rename(pre_lock.name, f.name + '.lock')"),
)
