"""What the kernel keeps for threads and processes: descriptors, directories, memory maps.

Belongs here: who shares what after fork, clone and exec, and nothing about files' contents. Rules:

1. Threads share one table of descriptors; a forked process gets a copy whose entries lead to the
   same open files, with their common positions.
2. Only files that matter are in a table: a descriptor that is not there is of no interest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pytest_statepersist.core.operations import Durability

__all__ = ["Descriptors", "Mapping", "Memory", "OpenFile", "Surroundings", "Task"]


@dataclass(slots=True, eq=False)
class OpenFile:
    """One open of a file; ``position`` is ``None`` where it is not known."""

    inode: int
    position: int | None = 0
    append: bool = False
    durability: Durability = Durability.NONE
    written: bool = False
    references: int = 0


@dataclass(slots=True, eq=False)
class Surroundings:
    """Working directory (inode number, or a path outside) and umask; shared by threads."""

    cwd: int | str
    umask: int = 0o022

    def copy(self) -> Surroundings:
        """Return what a forked process gets."""
        return Surroundings(self.cwd, self.umask)


@dataclass(slots=True, eq=False)
class Mapping:
    """A piece of memory that shows a file."""

    address: int
    length: int
    offset: int
    file: OpenFile
    shared: bool
    writable: bool


@dataclass(slots=True, eq=False)
class Memory:
    """The memory maps of one address space."""

    maps: list[Mapping] = field(default_factory=list)
    users: int = 0


class Descriptors:
    """A table of descriptors; ``closed`` is called with each open file that nobody holds more."""

    def __init__(self, closed: Callable[[OpenFile], None]) -> None:
        self._closed = closed
        self.users = 0
        self._files: dict[int, OpenFile] = {}
        self._on_exec: set[int] = set()

    def get(self, number: int) -> OpenFile | None:
        """Return the open file behind a descriptor, ``None`` where none that matters is."""
        return self._files.get(number)

    def set(self, number: int, file: OpenFile | None, *, close_on_exec: bool = False) -> None:
        """Make a descriptor lead to an open file; what it led to before is closed."""
        if file is not None:
            file.references += 1
        self.close(number)
        if file is not None:
            self._files[number] = file
            if close_on_exec:
                self._on_exec.add(number)

    def close(self, number: int) -> None:
        """Close a descriptor."""
        file = self._files.pop(number, None)
        self._on_exec.discard(number)
        if file is not None:
            self.release(file)

    def release(self, file: OpenFile) -> None:
        """Give up one hold on an open file."""
        file.references -= 1
        if file.references == 0:
            self._closed(file)

    def close_all(self, numbers: Iterable[int] | None = None) -> None:
        """Close several descriptors, all by default."""
        for number in sorted(self._files if numbers is None else numbers):
            self.close(number)

    def within(self, first: int, last: int) -> list[int]:
        """Return the descriptors from ``first`` to ``last``."""
        return [number for number in self._files if first <= number <= last]

    def mark(self, number: int, *, close_on_exec: bool) -> None:
        """Set or clear that exec closes a descriptor."""
        if close_on_exec and number in self._files:
            self._on_exec.add(number)
        else:
            self._on_exec.discard(number)

    def exec(self) -> None:
        """Close what exec closes."""
        self.close_all(list(self._on_exec))

    def copy(self) -> Descriptors:
        """Return what a forked process gets: other descriptors of the same open files."""
        other = Descriptors(self._closed)
        for number, file in self._files.items():
            other.set(number, file, close_on_exec=number in self._on_exec)
        return other


@dataclass(slots=True, eq=False)
class Task:
    """A thread; ``number`` is a small one for the trace, ``program`` what it runs."""

    number: int
    descriptors: Descriptors
    surroundings: Surroundings
    memory: Memory
    program: str

    def __post_init__(self) -> None:
        self.descriptors.users += 1
        self.memory.users += 1

    def child(self, number: int, flags: frozenset[str]) -> Task:
        """Return the task that clone made with these flags; fork has none."""
        return Task(
            number,
            self.descriptors if "CLONE_FILES" in flags else self.descriptors.copy(),
            self.surroundings if "CLONE_FS" in flags else self.surroundings.copy(),
            self.memory if "CLONE_VM" in flags else self._copied_memory(),
            self.program,
        )

    def _copied_memory(self) -> Memory:
        for mapping in self.memory.maps:
            mapping.file.references += 1
        return Memory([_copy(mapping) for mapping in self.memory.maps])

    def leave_memory(self) -> None:
        """Stop to use the address space: the last one to leave drops its maps."""
        self.memory.users -= 1
        if self.memory.users == 0:
            for mapping in self.memory.maps:
                self.descriptors.release(mapping.file)
            self.memory.maps.clear()

    def exec(self, program: str) -> None:
        """Begin another program."""
        self.leave_memory()
        self.memory = Memory(users=1)
        if self.descriptors.users > 1:  # shared by vfork-like clones: exec unshares it
            self.descriptors.users -= 1
            self.descriptors = self.descriptors.copy()
            self.descriptors.users = 1
        self.descriptors.exec()
        self.program = program

    def unshare(self, flags: frozenset[str]) -> None:
        """Get copies of what was shared."""
        if "CLONE_FILES" in flags and self.descriptors.users > 1:
            self.descriptors.users -= 1
            self.descriptors = self.descriptors.copy()
            self.descriptors.users = 1
        if "CLONE_FS" in flags:
            self.surroundings = self.surroundings.copy()

    def exit(self) -> None:
        """End: the last one to leave closes what was open."""
        self.leave_memory()
        self.descriptors.users -= 1
        if self.descriptors.users == 0:
            self.descriptors.close_all()


def _copy(mapping: Mapping) -> Mapping:
    return Mapping(
        mapping.address,
        mapping.length,
        mapping.offset,
        mapping.file,
        mapping.shared,
        mapping.writable,
    )
