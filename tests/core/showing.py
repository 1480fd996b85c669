"""Trees in letters: ``O4096z4096`` is a file of 4,096 old bytes and as many NULs."""

from __future__ import annotations

from itertools import groupby

from pytest_statepersist.core.tree import Directory, Symlink, Tree

Shown = dict[str, str]


def show(tree: Tree) -> Shown:
    """Contents as runs of letters (``O4096N4096``), directories as ``/``."""
    shown = {}
    for path, _, node in tree.walk():
        data = "/" if isinstance(node, Directory) else ""
        if isinstance(node, Symlink):
            data = "->" + node.target
        elif not data:
            for byte, run in groupby(tree.read(path)):
                data += f"{chr(byte) if byte else 'z'}{len(list(run))}"
        shown[path] = data
    return shown


def letters(content: str | None) -> set[str]:
    return {letter for letter in content or "" if letter.isalpha()}


def length(content: str) -> int:
    digits = "".join(letter if letter.isdigit() else " " for letter in content)
    return sum(map(int, digits.split()))
