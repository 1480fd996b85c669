"""What a block may have held on disk between two looks at the memory that maps it.

Belongs here: versions of a block of which some stores had been made and others not. Rules:

1. A memory map is changed by stores of words, and the kernel may write a page at any moment. A
   change of one word is one store. Of several nobody saw the order, so that none of these versions
   is known to have been there: if one of them breaks a recovery, the verdict is "not covered".
2. Few words give every mixture. Many are taken in a few groups: each group alone, all but each, and
   every prefix, which is what a copy from front to back leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.tree import File, read_content

__all__ = ["WORD", "changed_words", "mixtures", "mixtures_of"]

WORD = 8
"""Bytes that a processor stores at once, where they are aligned (x86-64, aarch64)."""
_ALL = 3
_GROUPS = 6


def changed_words(old: bytes, new: bytes) -> list[int]:
    """Return the numbers of the words that differ; the shorter content counts as zeros behind."""
    length = max(len(old), len(new))
    one, other = old.ljust(length, b"\0"), new.ljust(length, b"\0")
    if one == other:
        return []
    return [
        at // WORD for at in range(0, length, WORD) if one[at : at + WORD] != other[at : at + WORD]
    ]


def mixtures(old: bytes, new: bytes) -> Iterator[bytes]:
    """Yield versions between two contents of a block, neither of which is one of the two."""
    words = changed_words(old, new)
    if len(words) < 2:
        return
    count = len(words) if len(words) <= _ALL else min(_GROUPS, len(words))
    edges = [len(words) * n // count for n in range(count + 1)]
    groups = [words[begin:end] for begin, end in pairwise(edges)]
    seen = {old.ljust(len(new), b"\0"), new}
    for chosen in _choices(count):
        mixed = bytearray(old.ljust(len(new), b"\0"))
        for group in chosen:
            for word in groups[group]:
                mixed[word * WORD : (word + 1) * WORD] = new[word * WORD : (word + 1) * WORD]
        version = bytes(mixed)
        if version not in seen:
            seen.add(version)
            yield version


def _choices(count: int) -> Iterator[tuple[int, ...]]:
    everything = range(count)
    if count <= _ALL:
        for size in range(1, count):
            yield from combinations(everything, size)
        return
    for group in everything:
        yield (group,)
        yield tuple(other for other in everything if other != group)
        yield tuple(range(group + 1))


def mixtures_of(trace: op.Trace) -> Iterator[op.Trace]:
    """Yield, for each change whose parts have no known order, traces that end in a mixture of it.

    Each ends before the block is forced to the disk or changed again: later it has its content.
    """
    for index, operation in enumerate(trace.operations):
        if not isinstance(operation, op.Write) or not operation.unordered:
            continue
        node = apply(trace.with_operations(trace.operations[:index])).nodes.get(operation.inode)
        if not isinstance(node, File):
            continue
        old = read_content(node.content, operation.offset, len(operation.data))
        end = _until(trace, index)
        kept = tuple(ack for ack in trace.acknowledgements if ack.position <= end)
        for data in mixtures(old, operation.data):
            changed = list(trace.operations[:end])
            changed[index] = replace(operation, data=data)
            yield replace(trace, operations=tuple(changed), acknowledgements=kept)


def _until(trace: op.Trace, index: int) -> int:
    """Return how many operations there are until the write's block is forced or changed."""
    write = trace.operations[index]
    assert isinstance(write, op.Write)  # the caller has looked
    for number in range(index + 1, len(trace)):
        match trace.operations[number]:
            case op.Fsync(inode=inode, failed=False) if inode == write.inode:
                return number
            case op.SyncAll():
                return number
            case op.SyncRange() | op.Write() | op.Truncate() | op.ZeroRange() as later:
                if later.inode == write.inode:
                    return number
            case _:
                pass
    return len(trace)
