"""persist-queue: `Queue.put`, which "will always persist immediately".

An item is appended to the current chunk and flushed to the kernel; then the positions of head and
tail are pickled into a temporary that replaces the file `info`. A killed process leaves at worst an
append that `info` does not know, and opening the queue cuts it off. Neither the chunk nor `info` is
synced (the chunk only when it is full): after a power loss `info` may be empty or zeros, and then
the queue cannot be opened at all.

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

from persistqueue import Queue

from examples.example import Citation, expect


def queue(directory: Path) -> Queue:
    return Queue(str(directory / "queue"), tempdir=str(directory / "queue"))


def setup(directory: Path) -> None:
    (directory / "queue").mkdir()
    queue(directory).put("send the invoice")


def workload(directory: Path) -> None:
    queue(directory).put("call the bank")


def recover(directory: Path) -> object:
    jobs = queue(directory)
    return [jobs.get(block=False) for _ in range(jobs.qsize())]


EXPECTED = expect(atomic=("kill",), durable=("kill",))
CITATIONS = (
    Citation("persist-queue", "1.1.0", "persistqueue.queue", 157, "self.headf.flush()"),
    Citation("persist-queue", "1.1.0", "persistqueue.queue", 163, "os.fsync(self.headf.fileno())"),
    Citation(
        "persist-queue",
        "1.1.0",
        "persistqueue.queue",
        266,
        "atomic_rename(tmpfn, self._infopath())",
    ),
    Citation("persist-queue", "1.1.0", "persistqueue.queue", 92, "_truncate(headfn, hoffset)"),
)
