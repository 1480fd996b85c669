"""What the scans accept as a disk state, and what their reports have in common.

Belongs here: turning trees and mappings into (path, content) pairs, and the one rule of verdicts: a
finding is False, nothing seen is None, everything else is True.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from pytest_statepersist.checked import Checked
from pytest_statepersist.core.tree import Content, Directory, File, Symlink, Tree
from pytest_statepersist.errors import BlindSpot, CrashConsistencyError, UserError

__all__ = ["ScanReport", "State", "labelled", "parts_of"]

State: TypeAlias = "Tree | Mapping[str, bytes] | tuple[str, Tree | Mapping[str, bytes]]"
"""A tree, or a mapping of path to bytes; as a pair with a label, to be named in findings."""


def labelled(states: Iterable[State]) -> Iterator[tuple[str, Tree | Mapping[str, bytes]]]:
    """Yield each state with its label, ``state 0`` and so on where it has none.

    Raises `UserError` for a lone state and for anything that is no state.
    """
    if isinstance(states, Tree | Mapping):
        raise UserError("give a list of states, also where it is one: [tree]")
    for number, state in enumerate(states):
        label, tree = state if isinstance(state, tuple) else (f"state {number}", state)
        if not isinstance(tree, Tree | Mapping):
            raise UserError(
                f"{label} is {type(tree).__name__}, but a state is a Tree or a mapping of "
                "path to bytes"
            )
        yield label, tree


def parts_of(tree: Tree | Mapping[str, bytes]) -> Iterator[tuple[str, str, Content]]:
    """Yield (path, what it is, content) of all that a state shows besides its names.

    A directory has no content, a symbolic link its target, and extended attributes are parts.
    """
    if not isinstance(tree, Tree):
        for path, data in tree.items():
            yield path, "file", bytes(data)
        return
    for path, _, node in tree.walk():
        if isinstance(node, File):
            yield path, "file", node.content
            for name, value in node.xattrs:
                yield path, f"extended attribute {name}", value
        elif isinstance(node, Symlink):
            yield path, "target of the link", node.target.encode(errors="surrogateescape")
        elif isinstance(node, Directory):
            yield path, "directory", b""


class ScanReport:
    """What every scan's report can do."""

    __slots__ = ()

    @property
    def ok(self) -> bool | None:
        """False with a finding, None where nothing could be seen, True otherwise."""
        raise NotImplementedError

    def explain(self) -> str:
        """Say what was found, what was not covered, and what to do."""
        raise NotImplementedError

    def checked(self) -> Checked:
        """Return the result in the shape that every check has."""
        raise NotImplementedError

    def raise_if_findings(self) -> None:
        """Raise `CrashConsistencyError` if there are findings, `BlindSpot` if no verdict."""
        __tracebackhide__ = True  # pytest then shows the test's own line
        if self.ok is False:
            raise CrashConsistencyError(self.explain(), self)
        if self.ok is None:
            raise BlindSpot(self.explain())
