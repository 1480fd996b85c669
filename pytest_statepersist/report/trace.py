"""A trace as a table: what was called, in which order, from where, and when "saved" was said."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_statepersist.core.operations import Operation, Trace
from pytest_statepersist.core.tree import File, size_of
from pytest_statepersist.report.operations import describe_operation, place

__all__ = ["table"]

_WIDEST = 60


def table(trace: Trace) -> Iterator[str]:
    """Yield the lines of the table, milliseconds since the first operation in the second column."""
    files = [node for _, _, node in trace.base.walk() if isinstance(node, File)]
    size = sum(size_of(node.content) for node in files)
    yield f"{len(trace)} operations in {trace.directory or '?'}, recorded by {trace.recorder}"
    yield f"before: {len(files)} files, {size:,} bytes"
    begun = next((o.time for o in trace.operations if o.time is not None), None)
    texts = [describe_operation(operation) for operation in trace.operations]
    width = min(_WIDEST, max(map(len, texts), default=0))
    saved: dict[int, list[str]] = {}
    for acknowledgement in trace.acknowledgements:
        saved.setdefault(acknowledgement.position, []).append(acknowledgement.text)
    for number, operation in enumerate(trace.operations):
        yield from _acknowledged(saved.get(number, []))
        when = _milliseconds(operation, begun)
        yield f"{number:>5} {when:>9}  {texts[number]:<{width}}  {place(operation.site)}"
    yield from _acknowledged(saved.get(len(trace), []))


def _milliseconds(operation: Operation, begun: float | None) -> str:
    if operation.time is None or begun is None:
        return ""
    return f"{(operation.time - begun) / 1e6:.1f}"


def _acknowledged(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield f"{'':>15}  -- acknowledged {text}".rstrip()
