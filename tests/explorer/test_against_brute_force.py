"""Exploring by observation finds exactly the answers that running every crash state would give.

The recovery is written against a reader, so the same code runs on a real directory (where the
explorer observes it) and on a tree in memory (where every legal state is simply listed).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_statepersist import MODELS, CrashSimulator, Tree
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import Directory

NAMES = ("a", "b", "c")
LIMIT = 20_000
"""States that are listed. A few histories of five steps have more."""


class Reader(Protocol):
    def exists(self, name: str) -> bool: ...

    def content(self, name: str) -> bytes | None: ...

    def size(self, name: str) -> int | None: ...

    def names(self) -> list[str]: ...


class OnDisk:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def exists(self, name: str) -> bool:
        return os.path.exists(self.directory / name)

    def content(self, name: str) -> bytes | None:
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        return os.path.getsize(self.directory / name) if self.exists(name) else None

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))


class InMemory:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def exists(self, name: str) -> bool:
        return name in self.tree

    def content(self, name: str) -> bytes | None:
        return self.tree.read(name) if name in self.tree else None

    def size(self, name: str) -> int | None:
        held = self.content(name)
        return None if held is None else len(held)

    def names(self) -> list[str]:
        root = self.tree[""]
        assert isinstance(root, Directory)
        return sorted(root.entries)


def follows_a_pointer(reader: Reader) -> Any:
    """What `a` holds decides which file is read next."""
    first = reader.content("a")
    if not first:
        return "no pointer", first is None
    name = NAMES[first[0] % 3]
    return name, reader.content(name)


def first_that_is_there(reader: Reader) -> Any:
    for name in ("c", "b"):
        if reader.exists(name):
            return name, reader.content(name)
    return "none", reader.size("a")


def only_names(reader: Reader) -> Any:
    return tuple(reader.names())


def sizes_then_one_content(reader: Reader) -> Any:
    sizes = tuple(reader.size(name) for name in NAMES)
    return sizes, reader.content("b") if sizes[0] else None


def everything(reader: Reader) -> Any:
    return tuple((name, reader.content(name)) for name in reader.names())


RECOVERIES = [
    follows_a_pointer,
    first_that_is_there,
    only_names,
    sizes_then_one_content,
    everything,
]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "append", "replace", "rename", "unlink", "fsync", "sync"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=5,
)


def perform(directory: Path, steps: list[tuple[str, str, str, int]]) -> None:
    for kind, name, other, byte in steps:
        path = directory / name
        data = bytes([byte]) * (3 if byte % 2 else 5000)
        if kind == "write":
            path.write_bytes(data)
        elif kind == "append":
            with open(path, "ab") as file:
                file.write(data)
        elif kind == "replace":
            (directory / "tmp").write_bytes(data)
            os.replace(directory / "tmp", path)
        elif kind == "rename" and path.exists():
            os.replace(path, directory / other)
        elif kind == "unlink" and path.exists():
            path.unlink()
        elif kind in ("fsync", "sync"):
            target = path if kind == "fsync" and path.exists() else directory
            descriptor = os.open(target, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


@pytest.mark.parametrize("recovery", RECOVERIES, ids=lambda r: r.__name__)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # Some histories take minutes: drawn anew only where there is time for them.
    derandomize=os.environ.get("STATEPERSIST_PROFILE") != "soak",
)
@given(steps=STEPS, name=st.sampled_from(sorted(MODELS)))
def test_the_same_answers_as_from_every_state(
    recovery: Callable[[Reader], Any], steps: list[tuple[str, str, str, int]], name: str
) -> None:
    seen: set[Any] = set()

    def collect(recovered: Any, _: object) -> bool:
        seen.add(recovered)
        return True

    def setup(directory: Path) -> None:
        (directory / "a").write_bytes(b"\1old")
        (directory / "b").write_bytes(b"old")

    report = CrashSimulator(model=name, deviations=99, repairs=False).explore(
        setup=setup,
        workload=lambda d: perform(d, steps),
        recover=lambda d: recovery(OnDisk(d)),
        invariant=collect,
    )
    assert report.warnings == ()
    assert report.verdict(name).complete
    disk = disk_of(report.trace, MODELS[name])
    states = list(crash_states(report.trace, MODELS[name], limit=LIMIT))
    wanted = {recovery(InMemory(disk.tree(state))) for state in states}
    assert seen >= wanted
    # What is listed in part says nothing of the rest.
    assert seen == wanted or len(states) == LIMIT
