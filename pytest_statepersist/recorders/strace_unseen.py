"""Finding out what strace did not print, by looking at the files afterwards.

Belongs here: the bytes that the kernel moved by itself, and the files that came from outside (what
memory maps changed is `strace_maps`'). Rules:

1. Bytes that are still in the file, since no later call touched them, are what the call put there.
2. Bytes that are gone are taken from the file they were copied from, as the trace has it.
3. Anything else is a `BlindSpot`: nothing is guessed.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.tree import File, Tree, read_content
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.strace_model import Findings, Known, Unknown

__all__ = ["FinalContents", "birth_time", "find_out"]

_AT_FDCWD = -100
_STATX_BTIME = 0x800
_LONGEST_MAP = 256 << 20


def find_out(trace: op.Trace, findings: Findings, *, begun: float) -> Known:
    """Return what a second pass must know; ``trace`` is that of the first, with zeros for it.

    The directory must be as the recording left it; ``begun`` is the wall time of its begin in
    seconds. Raises `BlindSpot`.
    """
    seeker = _Seeker(trace)
    for inode in findings.presumed:
        seeker.must_be_new(inode, begun)
    contents = [seeker.content(unknown) for unknown in findings.unknowns]
    arrivals = {line: seeker.arrival(line, inode) for line, inode in findings.arrivals.items()}
    return Known(contents, arrivals)


class _Seeker:
    def __init__(self, trace: op.Trace) -> None:
        self.trace = trace
        self.final: Tree = apply(trace)
        self.paths: dict[int, str] = {}
        for path, inode, node in self.final.walk():
            if isinstance(node, File):
                self.paths.setdefault(inode, os.path.join(trace.directory, path))

    def content(self, unknown: Unknown) -> bytes:
        """Return the bytes that a call put into a file."""
        inode, begin, end = unknown.inode, unknown.offset, unknown.offset + unknown.length
        index = self._index(unknown.line, inode)
        if index is None:
            return bytes(unknown.length)  # a file that never came inside
        later = self.trace.operations[index + 1 :]
        if inode in self.paths and not any(_touches(o, inode, begin, end) for o in later):
            found = self._read(inode, begin, unknown.length)
            if len(found) == unknown.length:
                self._remember(index, found)
                return found
        if unknown.source is not None:
            source, offset = unknown.source
            before = apply(self.trace.with_operations(self.trace.operations[:index]))
            node = before.nodes.get(source)
            if isinstance(node, File):
                found = read_content(node.content, offset, unknown.length)
                if len(found) == unknown.length:
                    self._remember(index, found)
                    return found
        path = self.trace.operations[index].path
        raise BlindSpot(
            f"what happened on disk is not covered: the kernel copied {unknown.length} bytes into "
            f"{path!r} (sendfile, splice or copy_file_range), from a place that was not recorded, "
            "and later calls overwrote them",
            culprit=path,
        )

    def _index(self, line: int, inode: int) -> int | None:
        for index, operation in enumerate(self.trace.operations):
            site = operation.site
            if isinstance(operation, op.Write) and site is not None and site.line == line:
                return index if operation.inode == inode else None
        return None

    def _remember(self, index: int, data: bytes) -> None:
        """Put found bytes into the trace, for what was copied from there in its turn."""
        operations = list(self.trace.operations)
        write = operations[index]
        assert isinstance(write, op.Write)  # `_index` looks for nothing else
        operations[index] = op.Write(
            inode=write.inode, offset=write.offset, data=data, path=write.path, site=write.site
        )
        self.trace = self.trace.with_operations(tuple(operations))

    def arrival(self, line: int, inode: int) -> tuple[bytes, int]:
        """Return content and mode of a file that came from outside."""
        later = self.trace.operations
        changed = any(_touches(o, inode, 0, 1 << 62) and _line(o) > line for o in later)
        path = self.paths.get(inode)
        if path is not None and not changed:
            status = real.lstat(path)
            if stat.S_ISREG(status.st_mode):
                with real.open(path, "rb") as file:
                    return file.read(), stat.S_IMODE(status.st_mode)
        name = next((o.path for o in later if _is_on(o, inode)), "")
        raise BlindSpot(
            f"what happened on disk is not covered: {name!r} came from outside the directory, was "
            "made before the recording or in a way that it did not see, and was changed or removed "
            "afterwards, so its content is not known",
            culprit=name,
        )

    def must_be_new(self, inode: int, begun: float) -> None:
        """Make sure that a file which came inside was made during the recording."""
        name = next((o.path for o in self.trace.operations if _is_on(o, inode)), None)
        if name is None:
            return  # it never came inside
        path = self.paths.get(inode)
        born = None if path is None else birth_time(path)
        if born is None or born < begun:
            raise BlindSpot(
                f"what happened on disk is not covered: {name!r} was opened outside the directory "
                "and came inside later; whether it was there before the recording, and what was in "
                "it, is not known",
                culprit=name,
            )

    def _read(self, inode: int, offset: int, length: int) -> bytes:
        with real.open(self.paths[inode], "rb", buffering=0) as file:
            file.seek(offset)
            found = bytearray()
            while len(found) < length and (piece := file.read(length - len(found))):
                found += piece
            return bytes(found)


class FinalContents:
    """The contents of files at the end of a recording, by their inode numbers in the trace."""

    def __init__(self, trace: op.Trace) -> None:
        self._paths = {
            inode: os.path.join(trace.directory, path)
            for path, inode, node in apply(trace).walk()
            if isinstance(node, File)
        }

    def content(self, inode: int) -> bytes | None:
        """Return the content, ``None`` where the file has no name any more.

        Raises `BlindSpot` for one that is too large to be compared.
        """
        path = self._paths.get(inode)
        if path is None:
            return None
        if real.lstat(path).st_size > _LONGEST_MAP:
            raise BlindSpot(
                f"what happened on disk is not covered: {path!r} is mapped for writing and too "
                "large to be compared: make it smaller for this test",
                culprit=path,
            )
        with real.open(path, "rb", buffering=0) as file:
            return bytes(file.readall())


def birth_time(path: str) -> float | None:
    """Return when a file was made, in seconds; ``None`` where the file system does not say.

    Python's own stat does not tell on Linux; the structure is that of statx(2).
    """
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    buffer = ctypes.create_string_buffer(256)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, buffer) != 0:
        return None
    mask: int = struct.unpack_from("=I", buffer)[0]
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return float(seconds + nanoseconds / 1e9)


def _is_on(operation: op.Operation, inode: int) -> bool:
    return getattr(operation, "inode", None) == inode


def _line(operation: op.Operation) -> int:
    return 0 if operation.site is None else operation.site.line


def _touches(operation: op.Operation, inode: int, begin: int, end: int) -> bool:
    """Say whether an operation changes bytes of a range of a file."""
    match operation:
        case op.Write(inode=number, offset=offset, data=data):
            return number == inode and offset < end and begin < offset + len(data)
        case op.Truncate(inode=number, size=size):
            return number == inode and size < end
        case op.ZeroRange(inode=number, offset=offset, length=length):
            return number == inode and offset < end and begin < offset + length
        case _:
            return False
