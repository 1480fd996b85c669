"""From what a recovery asked to what decides the answer, and to the answer itself.

Belongs here: translating an `Observation` into cells of a crash state (`cells_read`), and into
answers that can be compared between states without touching a disk (`Memory`). Rules:

1. Paths are looked up in the crash state as it was before recovery began. What a recovery reads of
   its own making is read again from there, which can only be too much.
2. A symbolic link on the way makes the whole disk count as read.
3. Two states with equal answers to all that a run asked have the same outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.effects import Cell, Part
from pytest_statepersist.core.reading import (
    ATTRIBUTES,
    DIRECTORY,
    LINK,
    SIZE,
    TIMES,
    Reader,
)
from pytest_statepersist.core.states import content_cells, visible_cells
from pytest_statepersist.core.tree import ROOT, Content, Directory, Symlink, digest_of
from pytest_statepersist.core.window import Choice
from pytest_statepersist.explorer.observe import Asked, Observation, Read

__all__ = ["WHOLE", "Asker", "Memory", "Questions", "cells_read", "questions"]

Questions = tuple[tuple[Any, str], ...]
"""What a run asked, in an order that depends only on earlier answers."""

WHOLE = "whole disk"
_SHAPE = "names, sizes and attributes"
_ALL_TIMES = "modification times of all files"
_HASHED = 4096


def questions(observation: Observation) -> Questions:
    """Return what a run asked as a sequence of questions."""
    if observation.everything:
        return ((WHOLE, ""), (_ALL_TIMES, ""))
    asked: list[tuple[Any, str]] = list(dict.fromkeys(observation.asked))
    if observation.native:
        asked.insert(0, (_SHAPE, ""))
    if observation.times:
        asked.append((_ALL_TIMES, ""))
    return tuple(asked)


def cells_read(disk: Disk, state: CrashState, asked: Questions) -> Iterator[Cell]:
    """Yield the cells of a state that decide the answers; cells may come more than once."""
    for read, path in asked:
        if read == WHOLE:
            yield from visible_cells(disk, state)
        elif read == _SHAPE:
            yield from _shape(disk, state)
        elif read == _ALL_TIMES:
            # Which files there are is part of the answer.
            yield from (c for c in visible_cells(disk, state) if c.part is Part.ENTRY)
            yield from _times(disk, state)
        else:
            yield from _cells(disk, state, read, path)


def _shape(disk: Disk, state: CrashState) -> Iterator[Cell]:
    for cell in visible_cells(disk, state):
        if cell.part is not Part.DATA:
            yield cell


def _times(disk: Disk, state: CrashState) -> Iterator[Cell]:
    for _, inode in _files(disk, state, "", ROOT):
        yield Cell(Part.TIMES, inode)


def _files(disk: Disk, state: CrashState, prefix: str, directory: int) -> Iterator[tuple[str, int]]:
    for name, inode in sorted(disk.listing(state, directory).items()):
        if is_directory(disk, inode):
            yield from _files(disk, state, f"{prefix}{name}/", inode)
        else:
            yield f"{prefix}{name}", inode


def _cells(disk: Disk, state: CrashState, read: Read, path: str) -> Iterator[Cell]:
    here = ROOT
    for part in path.split("/") if path else ():
        if not is_directory(disk, here):
            return
        yield Cell(Part.ENTRY, here, part)
        found = disk.entry(state, here, part)
        if found is None:
            return
        if is_link(disk, found):
            yield from visible_cells(disk, state)
            yield from _times(disk, state)
            return
        here = found
    yield from _node_cells(disk, state, read, here)


def _node_cells(disk: Disk, state: CrashState, read: Read, inode: int) -> Iterator[Cell]:
    if read is Read.LOOKUP:
        return
    directory = is_directory(disk, inode)
    if read in (Read.LIST, Read.TREE) and directory:
        for name in sorted(disk.names(inode)):
            yield Cell(Part.ENTRY, inode, name)
    if read is Read.LIST:
        return
    yield Cell(Part.ATTRIBUTES, inode)
    if inode in disk.effects.many_names:
        yield from sorted(disk.effects.cells_naming.get(inode, ()))
    if read in (Read.TIMES, Read.TREE):
        yield Cell(Part.TIMES, inode)
    if directory:
        if read is Read.TREE:
            for child in disk.listing(state, inode).values():
                yield from _node_cells(disk, state, read, child)
        return
    if read in (Read.CONTENT, Read.TREE):
        yield from content_cells(disk, state, inode)
    else:
        yield Cell(Part.SIZE, inode)


def is_directory(disk: Disk, inode: int) -> bool:
    """Say whether an inode is a directory."""
    return isinstance(disk.trace.base.nodes.get(inode), Directory) or isinstance(
        disk.effects.created.get(inode), op.Mkdir
    )


def is_link(disk: Disk, inode: int) -> bool:
    """Say whether an inode is a symbolic link."""
    return isinstance(disk.trace.base.nodes.get(inode), Symlink) or isinstance(
        disk.effects.created.get(inode), op.Symlink
    )


# -- answers


def answer(disk: Disk, state: CrashState, asked: tuple[Any, str]) -> Any:
    """Return what a state answers to one question, as a value that can be hashed."""
    read, path = asked
    if read == WHOLE:
        return disk.tree(state).key()
    if read == _SHAPE:
        return tuple(_shape_rows(disk, state, "", ROOT))
    if read == _ALL_TIMES:
        return tuple((p, disk.mtime(state, i)) for p, i in _files(disk, state, "", ROOT))
    here = ROOT
    for part in path.split("/") if path else ():
        if not is_directory(disk, here):
            return None
        found = disk.entry(state, here, part)
        if found is None:
            return None
        if is_link(disk, found):
            times = [disk.mtime(state, i) for _, i in _files(disk, state, "", ROOT)]
            return (disk.tree(state).key(), tuple(times))
        here = found
    return _answer(disk, state, read, here)


def _answer(disk: Disk, state: CrashState, read: Read, inode: int) -> Any:
    directory = is_directory(disk, inode)
    if read is Read.LOOKUP:
        return directory
    if read is Read.LIST:
        if not directory:
            return False
        listing = disk.listing(state, inode)
        return tuple(sorted((name, is_directory(disk, child)) for name, child in listing.items()))
    mode: Any
    mode, xattrs = disk.attributes(state, inode)
    if xattrs:
        mode = (mode, *sorted(xattrs.items()))
    links = 1
    if inode in disk.effects.many_names:
        cells = disk.effects.cells_naming.get(inode, ())
        links = sum(disk.entry(state, c.inode, str(c.key)) == inode for c in cells)
    times = disk.mtime(state, inode) if read in (Read.TIMES, Read.TREE) else None
    if directory:
        below: Any = None
        if read is Read.TREE:
            below = tuple(
                (name, _answer(disk, state, read, child))
                for name, child in sorted(disk.listing(state, inode).items())
            )
        return (mode, links, times, below)
    if is_link(disk, inode):
        return disk.node(state, inode)
    if read in (Read.CONTENT, Read.TREE):
        return (mode, links, times, _brief(disk.content(state, inode)))
    return (mode, links, times, disk.size(state, inode))


def _brief(content: Content) -> bytes | str:
    if isinstance(content, bytes) and len(content) <= _HASHED:
        return content
    return digest_of(content)


def _shape_rows(disk: Disk, state: CrashState, prefix: str, inode: int) -> Iterator[Any]:
    for name, child in sorted(disk.listing(state, inode).items()):
        path = f"{prefix}{name}"
        yield path, _answer(disk, state, Read.STAT, child)
        if is_directory(disk, child):
            yield from _shape_rows(disk, state, f"{path}/", child)


class Asker(Reader):
    """Asks questions about the fullest state of a choice, and narrows the choice by what it saw.

    The answers are those of `answer`, the narrowing is that of `cells_read`; what most recoveries
    ask is answered without making a `CrashState`. A question is worked out once for a choice, and
    the choices that a later question splits off take along what was answered before it.
    """

    def __init__(self, disk: Disk, limit: int | None = None) -> None:
        super().__init__(disk, limit)
        self._parts: dict[str, tuple[str, ...]] = {}
        self._contents: dict[tuple[Any, ...], Any] = {}
        self._said: dict[tuple[Any, str], Any] = {}
        self._trail: list[tuple[tuple[Any, str], Any]] = []

    def open(self, choice: Choice) -> None:
        """Begin to ask about a choice."""
        super().open(choice)
        if choice.note is None:
            self._trail = []
            self._said = {}
        else:
            trail, length = choice.note
            self._trail = trail[:length]
            self._said = dict(self._trail)

    def ask(self, asked: tuple[Any, str]) -> Any:
        """Return what the fullest state answers to one question, and decide what it depends on."""
        known = self._said.get(asked, _UNASKED)
        if known is not _UNASKED:
            return known
        self.note = (self._trail, len(self._trail))
        known = self._said[asked] = self._ask(asked)
        self._trail.append((asked, known))
        return known

    def ask_all(self, choice: Choice, asked: Questions) -> list[Any]:
        """Return a choice's answers to all that a run asked, and leave it narrowed to them.

        ``choice`` is the one that is open, of which some of it may have been asked already.
        """
        if tuple(question for question, _ in self._trail) != asked[: len(self._trail)]:
            self.open(replace(choice, note=None))
        return [self.ask(question) for question in asked]

    def _ask(self, asked: tuple[Any, str]) -> Any:
        read, path = asked
        if read.__class__ is not Read or read is _TREE:
            return self._ask_plainly(asked)
        here = ROOT
        parts = self._parts.get(path)
        if parts is None:
            parts = self._parts[path] = tuple(path.split("/")) if path else ()
        for part in parts:
            if self.kind(here) != DIRECTORY:
                return None
            found = self.entry(here, part)
            if found is None:
                return None
            if self.kind(found) == LINK:
                return self._ask_plainly(asked)
            here = found
        directory = self.kind(here) == DIRECTORY
        if read is _LOOKUP:
            return directory
        if read is _LIST:
            return self._listing(here) if directory else False
        if here in self.disk.effects.many_names:
            return self._ask_plainly(asked)
        attributes = self.see(ATTRIBUTES, here)
        time = self.see(TIMES, here) if read is _TIMES else None
        size, held = None, None
        if not directory:
            size = self.see(SIZE, here)
            if read is _CONTENT:
                held = (*[self.data(here, n) for n in self.units(here, size[1])], self.ghosts)
        key = (read, here, attributes, time, size, held)
        known = self._contents.get(key)
        if known is None:
            known = self._contents[key] = _answer(self.disk, self.state(), read, here)
        return known

    def _listing(self, directory: int) -> tuple[tuple[str, bool], ...]:
        rows = []
        for name in self.names(directory):
            found = self.entry(directory, name)
            if found is not None:
                rows.append((name, self.kind(found) == DIRECTORY))
        return tuple(rows)

    def _ask_plainly(self, asked: tuple[Any, str]) -> Any:
        state = self.state()
        self.narrow(cells_read(self.disk, state, (asked,)))
        return answer(self.disk, state, asked)


_UNASKED: Any = object()
_LOOKUP, _TIMES, _LIST, _CONTENT, _TREE = (
    Read.LOOKUP,
    Read.TIMES,
    Read.LIST,
    Read.CONTENT,
    Read.TREE,
)


class _Node:
    __slots__ = ("answers", "leaf", "question")

    def __init__(self) -> None:
        self.question: tuple[Any, str] | None = None
        self.answers: dict[Any, _Node] = {}
        self.leaf: Any = None


class Memory:
    """Outcomes by what was asked and answered: a decision tree over observations."""

    def __init__(self) -> None:
        self._root = _Node()

    def find(self, ask: Callable[[tuple[Any, str]], Any]) -> Any:
        """Return what is remembered for a state that answers alike, ``None`` if nothing is.

        ``ask`` gives the state's answer to a question; it is called as far as they are remembered.
        """
        node = self._root
        while node.leaf is None:
            if node.question is None:
                return None
            found = node.answers.get(ask(node.question))
            if found is None:
                return None
            node = found
        return node.leaf

    def remember(self, asked: Questions, answers: Sequence[Any], leaf: Any) -> None:
        """Keep a leaf under the answers of a state to what was asked.

        A run that asks something else after equal answers (threads) is not remembered.
        """
        node = self._root
        for question, value in zip(asked, answers, strict=True):
            if node.leaf is not None:
                return
            if node.question is None:
                node.question = question
            elif node.question != question:
                return
            node = node.answers.setdefault(value, _Node())
        if node.question is None and node.leaf is None:
            node.leaf = leaf


def extend(asked: Questions, more: Questions) -> Questions:
    """Join what a run asked with what further runs on its disk asked."""
    return tuple(dict.fromkeys((*asked, *more)))


def asked_of(path: str, read: Read) -> Asked:
    """Make one question about a path."""
    return (read, path)
