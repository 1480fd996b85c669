"""From what a recovery asked to what decides the answer, and to the answer itself.

Belongs here: translating an `Observation` into cells of a crash state (`cells_read`), and into
answers that can be compared between states without touching a disk (`Memory`). Rules:

1. Paths are looked up in the crash state as it was before recovery began. What a recovery reads of
   its own making is read again from there, which can only be too much.
2. A symbolic link on the way makes the whole disk count as read.
3. Two states with equal answers to all that a run asked have the same outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.effects import Cell, Part
from pytest_statepersist.core.states import content_cells, visible_cells
from pytest_statepersist.core.tree import ROOT, Content, Directory, Symlink, digest_of
from pytest_statepersist.explorer.observe import Asked, Observation, Read

__all__ = ["Memory", "Questions", "cells_read", "questions"]

Questions = tuple[tuple[Any, str], ...]
"""What a run asked, in an order that depends only on earlier answers."""

_WHOLE = "whole disk"
_SHAPE = "names, sizes and attributes"
_ALL_TIMES = "modification times of all files"
_HASHED = 4096


def questions(observation: Observation) -> Questions:
    """Return what a run asked as a sequence of questions."""
    if observation.everything:
        return ((_WHOLE, ""), (_ALL_TIMES, ""))
    asked: list[tuple[Any, str]] = list(dict.fromkeys(observation.asked))
    if observation.native:
        asked.insert(0, (_SHAPE, ""))
    if observation.times:
        asked.append((_ALL_TIMES, ""))
    return tuple(asked)


def cells_read(disk: Disk, state: CrashState, asked: Questions) -> Iterator[Cell]:
    """Yield the cells of a state that decide the answers; cells may come more than once."""
    for read, path in asked:
        if read == _WHOLE:
            yield from visible_cells(disk, state)
        elif read == _SHAPE:
            yield from _shape(disk, state)
        elif read == _ALL_TIMES:
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
    if read == _WHOLE:
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
    mode = disk.attributes(state, inode)[0]
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

    def find(self, disk: Disk, state: CrashState) -> Any:
        """Return what is remembered for a state that answers alike, ``None`` if nothing is."""
        node = self._root
        while node.leaf is None:
            if node.question is None:
                return None
            found = node.answers.get(answer(disk, state, node.question))
            if found is None:
                return None
            node = found
        return node.leaf

    def remember(self, disk: Disk, state: CrashState, asked: Questions, leaf: Any) -> None:
        """Keep a leaf under the answers of a state.

        A run that asks something else after equal answers (threads) is not remembered.
        """
        node = self._root
        for question in asked:
            if node.leaf is not None:
                return
            if node.question is None:
                node.question = question
            elif node.question != question:
                return
            value = answer(disk, state, question)
            node = node.answers.setdefault(value, _Node())
        if node.question is None and node.leaf is None:
            node.leaf = leaf


def extend(asked: Questions, more: Questions) -> Questions:
    """Join what a run asked with what further runs on its disk asked."""
    return tuple(dict.fromkeys((*asked, *more)))


def asked_of(path: str, read: Read) -> Asked:
    """Make one question about a path."""
    return (read, path)
