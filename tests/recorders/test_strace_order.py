"""Calls at the same time: which order they get, and where no order can be trusted."""

from __future__ import annotations

import pytest

from pytest_statepersist.recorders.strace_order import Change, Kind, conflict, in_order, kind_of
from pytest_statepersist.recorders.strace_parser import Call, Exit


def call(name: str, start: int, end: int, task: int = 1) -> Call:
    return Call(task, name, (), 0, "", None, None, start, end)


def names(*events: Call | Exit) -> list[str]:
    return [event.name for event, _ in in_order(events) if isinstance(event, Call)]


def test_calls_that_do_not_overlap_keep_their_order() -> None:
    assert names(call("fsync", 0, 0), call("write", 1, 1), call("rename", 2, 3)) == [
        "fsync",
        "write",
        "rename",
    ]


def test_a_write_comes_before_a_sync_that_ran_at_the_same_time() -> None:
    assert names(call("fsync", 0, 2, 1), call("write", 1, 3, 2)) == ["write", "fsync"]


def test_a_rename_comes_before_a_sync_that_it_crosses_and_after_a_write() -> None:
    found = names(call("fsync", 0, 3, 1), call("write", 1, 4, 2), call("rename", 2, 5, 3))
    assert found == ["write", "rename", "fsync"]


def test_the_horizon_is_the_earliest_line_still_to_come() -> None:
    events = [call("write", 0, 0), call("fsync", 1, 9), call("write", 5, 5), Exit(1, 10)]
    assert [horizon for _, horizon in in_order(events)] == [0, 1, 1, 10]


KINDS = {
    "write": Kind.WRITE,
    "durable": Kind.DURABLE_WRITE,
    "metadata": Kind.METADATA,
    "file sync": Kind.FILE_SYNC,
    "wide sync": Kind.WIDE_SYNC,
}


def change(kind: str, *, task: int, inode: int, start: int = 0, end: int = 9) -> Change:
    return Change(start, end, task, inode, KINDS[kind], "fsync", "f")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("write", "write", False),
        ("write", "metadata", False),
        ("write", "file sync", False),
        ("write", "wide sync", False),  # of a directory: it covers no data
        ("write", "durable", False),
        ("metadata", "file sync", False),
        ("file sync", "file sync", False),
        ("file sync", "wide sync", False),
        ("metadata", "write", True),
        ("metadata", "metadata", True),
        ("metadata", "wide sync", True),
        ("metadata", "durable", True),
        ("file sync", "metadata", True),
        ("durable", "durable", True),
        ("durable", "file sync", True),
        ("durable", "wide sync", True),
    ],
)
def test_conflicts_between_different_files(first: str, second: str, expected: bool) -> None:
    one, two = change(first, task=1, inode=1), change(second, task=2, inode=2)
    assert conflict(one, two) is expected


@pytest.mark.parametrize("second", ["write", "metadata", "durable", "file sync"])
def test_two_calls_on_one_file_conflict(second: str) -> None:
    assert conflict(change("write", task=1, inode=1), change(second, task=2, inode=1))


def test_no_conflict_within_a_task_or_one_after_the_other() -> None:
    one = change("metadata", task=1, inode=1)
    assert not conflict(one, change("metadata", task=1, inode=1))
    assert not conflict(one, change("metadata", task=2, inode=1, start=10, end=12))


def test_sync_of_everything_conflicts_with_a_write() -> None:
    everything = Change(0, 9, 2, 0, Kind.WIDE_SYNC, "sync", "")
    assert conflict(change("write", task=1, inode=1), everything)


def test_kinds() -> None:
    assert kind_of("pwrite64") is Kind.WRITE
    assert kind_of("pwrite64", durable=True) is Kind.DURABLE_WRITE
    assert kind_of("fsync") is Kind.FILE_SYNC
    assert kind_of("fsync", directory=True) is Kind.WIDE_SYNC
    assert kind_of("syncfs") is Kind.WIDE_SYNC
    assert kind_of("renameat2") is Kind.METADATA
