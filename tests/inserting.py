"""Sync calls that really are made while a workload runs, at places that a trace names.

Belongs here: the check of repairs that trusts nothing of them. A repair is found by altering a
recorded trace; here the store runs again, each call of the repair is made by the operating system
right after the operation that it names, and what was recorded is a new trace.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.repairs import Repair
from pytest_statepersist.recorders import python

__all__ = ["EVERYTHING", "places_of", "with_syncs"]

Places = Mapping[int, set[str]]
"""For the number of an operation: "file", "directory" or "old directory"."""
EVERYTHING = {"file", "directory", "old directory"}
_RECORDERS = os.path.dirname(python.__file__)


def places_of(trace: op.Trace, repair: Repair) -> Places:
    """Return where the sync calls of a repair belong."""
    found: dict[int, set[str]] = defaultdict(set)
    for line in repair.lines:
        for each in line.insertions:
            operation = trace.operations[each.after]
            old = isinstance(operation, op.Rename) and (
                each.call.inode == operation.parent != operation.new_parent
            )
            what = "directory" if line.directory else "file"
            found[each.after].add("old directory" if old else what)
    return found


@contextmanager
def with_syncs(trace: op.Trace, places: Places | None) -> Iterator[list[str]]:
    """Make the calls while a recorded workload runs in this block; yield the paths synced.

    ``trace`` is what the workload did before; ``None`` for places syncs after every operation.
    """
    session: Any = python._slot.session
    log, directory = session.builder.log, session.directory
    kinds = [type(operation) for operation in trace.operations]
    seen, number, busy = len(log), 0, False
    synced: list[str] = []

    def after(cls: type[Any], fields: Any, path: str) -> None:
        wanted = EVERYTHING if places is None else places.get(number, set())
        full = os.path.join(directory, path)
        named = cls in (op.Create, op.Mkdir, op.Symlink, op.Link, op.Unlink, op.Rmdir, op.Rename)
        paths = [full] if "file" in wanted and not os.path.isdir(full) else []
        if "directory" in wanted and named:
            paths.append(os.path.dirname(full))
        if "old directory" in wanted and cls is op.Rename:
            paths.append(os.path.join(directory, session.builder[fields[1]].path))
        for each in paths:
            if os.path.exists(each) and not os.path.islink(each):
                descriptor = os.open(each, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
                synced.append(os.path.relpath(each, directory))

    def returned(frame: Any, event: str, _: object) -> None:
        """The recorder has just returned to whoever called: what it saw is in the log."""
        nonlocal seen, number, busy
        if busy or event != "return" or not frame.f_code.co_filename.startswith(_RECORDERS):
            return
        caller = frame.f_back
        if caller is not None and caller.f_code.co_filename.startswith(_RECORDERS):
            return
        busy = True
        while seen < len(log):
            cls, path, _, _, _, *fields = session.builder.entries(seen)[0]
            seen += 1
            if number < len(kinds) and cls is kinds[number] and not os.path.isabs(path):
                after(cls, fields, path)
                number += 1
        seen = len(log)
        busy = False

    old = sys.getprofile()
    sys.setprofile(returned)
    try:
        yield synced
    finally:
        sys.setprofile(old)


def inserting(
    workload: Callable[..., Any], trace: op.Trace, places: Places | None
) -> Callable[..., Any]:
    """Return a workload that makes these sync calls; it takes what the other one takes."""

    def run(directory: Path, acknowledge: Callable[[Any], None]) -> Any:
        with with_syncs(trace, places):
            return call(workload, directory, acknowledge)

    return run


def call(workload: Callable[..., Any], directory: Path, acknowledge: Callable[[Any], None]) -> Any:
    from pytest_statepersist.arguments import with_acknowledge

    return with_acknowledge(workload)(directory, acknowledge)
