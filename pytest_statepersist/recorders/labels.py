"""Extended attributes: which of them a trace holds.

Belongs here: what every recorder does when one is set or removed. Trees hold those of files that
programs may set (``user.``); other name spaces belong to the kernel.
"""

from __future__ import annotations

from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders.builder import TraceBuilder

__all__ = ["labels"]


def labels(
    builder: TraceBuilder, number: int, name: str, value: bytes | None
) -> tuple[tuple[str, bytes | None], ...]:
    """Return what a trace says of an attribute that was set, or removed where there is no value.

    Those of a directory are in no tree, so that setting one is a doubt.
    """
    if not name.startswith("user."):
        return ()
    inode = builder.inodes[number]
    if inode.entries is not None:
        builder.doubt(
            BlindSpot(
                f"{inode.path or '.'!r} was given {name!r}, but extended attributes of "
                "directories are in no crash state; keep them at a file in it",
                culprit=inode.path,
            ),
            about=number,
        )
    return ((name, value),)
