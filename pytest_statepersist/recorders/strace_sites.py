"""Call sites for a trace that was recorded from outside.

Belongs here: `lend_sites`. Operations are matched by kind, path and what they did, in order; where
the two traces have different numbers of one kind of operation, none of them gets a site, because a
wrong line is worse than none.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from pytest_statepersist.core import operations as op

__all__ = ["lend_sites"]


def lend_sites(trace: op.Trace, lender: op.Trace) -> op.Trace:
    """Return ``trace`` with the call sites of ``lender``, which recorded the same block."""
    offered: dict[tuple[object, ...], list[op.Site | None]] = defaultdict(list)
    for operation in lender.operations:
        offered[_key(operation)].append(operation.site)
    wanted: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, operation in enumerate(trace.operations):
        wanted[_key(operation)].append(index)
    operations = list(trace.operations)
    for key, indexes in wanted.items():
        sites = offered.get(key, [])
        if len(sites) == len(indexes):
            for index, site in zip(indexes, sites, strict=True):
                if site is not None:
                    operations[index] = replace(operations[index], site=site)
    return trace.with_operations(tuple(operations))


def _key(operation: op.Operation) -> tuple[object, ...]:
    kind = type(operation).__name__
    match operation:
        case op.Write(offset=offset, data=data):
            return kind, operation.path, offset, data
        case op.Rename(name=name, new_name=new_name):
            return kind, operation.path, name, new_name
        case op.Truncate(size=size):
            return kind, operation.path, size
        case op.Fsync(data_only=data_only):
            return kind, operation.path, data_only
        case _:
            return kind, operation.path
