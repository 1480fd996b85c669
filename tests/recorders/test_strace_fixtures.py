"""Recorded outputs of strace 5.10 to 6.13 (fixtures/strace): each must give the same trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.models import MODELS
from pytest_statepersist.core.operations import Durability, Fsync, Operation, Trace, Write
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import File, Symlink, Tree
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.strace_maps import MapKind, settle
from pytest_statepersist.recorders.strace_model import Known, StraceModel, births_in
from pytest_statepersist.recorders.strace_order import in_order
from pytest_statepersist.recorders.strace_parser import Call, parse

FIXTURES = Path(__file__).parents[2] / "fixtures" / "strace"
VERSIONS = ["5.10", "5.16", "6.1", "6.13"]
DIRECTORY = "/tmp/statepersist-fixture/state"

# What strace does not print, as the workload's source says it: three copies and a mapped byte.
KNOWN = Known(contents=(b"app", b"end", b"appe"))
MAPPED = 7, b"012m456789"


def replayed(version: str, known: Known | None = KNOWN) -> tuple[TraceBuilder, StraceModel]:
    with open(FIXTURES / f"strace-{version}.txt", encoding="ascii") as lines:
        events = list(parse(lines))
    builder = TraceBuilder(DIRECTORY, Tree(), recorder="strace")
    model = StraceModel(builder, births=births_in(events), known=known)
    model.add_task(events[0].task, DIRECTORY, "workload")
    for event, horizon in in_order(events):
        model.feed(event, horizon)
    return builder, model


def settled(version: str) -> Trace:
    builder, model = replayed(version)
    positions = builder.positions()
    events = [replace(each, position=positions[each.position]) for each in model.map_events]
    return settle(builder.finish(), events, dict([MAPPED]).get)[0]


def essence(operations: tuple[Operation, ...]) -> list[Operation]:
    return [replace(operation, site=None, time=None) for operation in operations]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_directory_is_what_the_workload_left(version: str) -> None:
    assert replayed(version)[0].doubts == []
    tree = apply(settled(version))
    odd = bytearray(5000)
    odd[0:22] = b'hello\0wWXldone, "two"\n'
    odd[100:111] = b'one, "two"\n'
    odd[100:105] = bytes(5)
    outer = File(b"append", 0o644, xattrs=(("user.note", b"v\0w"),))
    found = {path: node for path, _, node in tree.walk()}
    assert found["odd name\n<\udcff>"] == File(bytes(odd), 0o600)
    assert found["copies"] == found["second"] == outer
    assert found["outer"] == File(b"appendappe", 0o644)
    assert found["mapped"] == File(b"012m456789", 0o644)
    assert found["named"] == File(b"late name", 0o644)
    assert found["thread"] == File(b"from a thread", 0o640)
    assert found["shared"] == File(b"child parent", 0o644)
    assert found["t"] == File(b"shell\n", 0o644)
    assert found["e/how"] == File(b"", 0o600)
    assert sorted(found) == sorted(
        {"copies", "e", "e/how", "mapped", "named", "odd name\n<\udcff>", "outer"}
        | {"second", "shared", "t", "thread"}
    )
    assert not any(isinstance(node, Symlink) for node in found.values())
    assert tree.resolve("copies") == tree.resolve("second")


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != "6.1"])
def test_all_versions_give_one_trace(version: str) -> None:
    assert essence(settled(version).operations) == essence(settled("6.1").operations)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_strace_does_not_print_is_asked_for(version: str) -> None:
    _, model = replayed(version, None)
    findings = model.findings
    assert [(u.offset, u.length, u.source) for u in findings.unknowns] == [
        (0, 3, (3, 0)),
        (3, 3, (3, 3)),
        (6, 4, None),  # from a pipe
    ]
    assert [(event.kind, event.inode) for event in model.map_events] == [
        (MapKind.OPENED, MAPPED[0]),
        (MapKind.CLOSED, MAPPED[0]),
    ]


def test_writes_carry_program_call_number_and_durability() -> None:
    operations = replayed("6.1")[0].finish().operations
    lines = (FIXTURES / "strace-6.1.txt").read_text().splitlines()
    written = [o for o in operations if isinstance(o, Write) and o.durability is Durability.DATA]
    assert [o.data for o in written] == [b"appended", b"too"]
    for operation in operations:
        assert operation.site is not None
        assert operation.site.function in lines[operation.site.line - 1]
    assert {o.site.file for o in operations if o.site} == {"workload", "sh", "mv"}


def test_every_line_counts() -> None:
    """A parser that lost lines would make the other tests pass by accident of their content."""
    for version in VERSIONS:
        with open(FIXTURES / f"strace-{version}.txt", encoding="ascii") as lines:
            rows = lines.readlines()
        calls = [event for event in parse(rows) if isinstance(event, Call)]
        assert sum(1 if c.start == c.end else 2 for c in calls) == sum(
            "+++" not in row for row in rows
        )


def text(value: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in value.encode())


@pytest.mark.parametrize("first", ["-1 EIO (Input/output error)", "0"])
def test_a_syncfs_that_failed_leaves_all_files_for_the_next_one_to_overlook(first: str) -> None:
    opened, other = (f"{fd}<{text(f'{DIRECTORY}/{fd}')}>" for fd in (3, 4))
    outside = f"5<{text('/elsewhere/5')}>"
    calls = [
        f'openat(AT_FDCWD, "{text("3")}", O_WRONLY|O_CREAT, 0644) = {opened}',
        f'openat(AT_FDCWD, "{text("4")}", O_WRONLY|O_CREAT, 0644) = {other}',
        f'write({opened}, "{text("new")}", 3) = 3',
        f"syncfs({outside}) = -1 EIO (Input/output error)",
        f"syncfs({other}) = {first}",
        f"syncfs({other}) = 0",
    ]
    lines = [f"7 1795258060.4{number:05d} {call}" for number, call in enumerate(calls)]
    events = list(parse(lines))
    builder = TraceBuilder(DIRECTORY, Tree(), recorder="strace")
    model = StraceModel(builder, births=births_in(events))
    model.add_task(7, DIRECTORY, "workload")
    for event, horizon in in_order(events):
        model.feed(event, horizon)
    trace = builder.finish()
    failed = [each.path for each in trace.operations if isinstance(each, Fsync) and each.failed]
    disk = disk_of(trace, MODELS["ext4"])
    states = [s for s in crash_states(trace, disk.model) if s.points[-1][1] == len(trace)]
    contents = [[getattr(n, "content", None) for n in disk.tree(s).nodes.values()] for s in states]
    lost = any(b"new" not in each for each in contents)
    assert (failed, lost) == ((["3"], True) if first != "0" else ([], False))
