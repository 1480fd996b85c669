"""Models and traces as values: names, options, and where acknowledgements go."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from pytest_statepersist.core.models import (
    MODELS,
    FsyncDirectory,
    FsyncFile,
    MetadataOrder,
    SyncCall,
    get_model,
    get_models,
)
from pytest_statepersist.core.operations import (
    Acknowledgement,
    Fsync,
    Mkdir,
    Operation,
    Rename,
    SyncAll,
    Trace,
    Unlink,
    Write,
)
from pytest_statepersist.core.states import allows, crash_states, disk_of, window_at
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import TraceError, UserError

BASE = Tree.from_mapping({"f": b"old"})
F = BASE.resolve("f") or 0


def test_names_find_models_and_unknown_ones_say_what_there_is() -> None:
    assert get_model("ext4") is MODELS["ext4"] is get_model(MODELS["ext4"])
    with pytest.raises(UserError, match="posix, ext4, ext4-writeback"):
        get_model("ext5")
    with pytest.raises(UserError, match="not as int"):
        get_model(4)  # type: ignore[arg-type]


def test_several_models_each_once_and_in_order() -> None:
    assert [m.name for m in get_models(["xfs", "posix", "xfs"])] == ["xfs", "posix"]
    assert get_models("posix") == (MODELS["posix"],)
    with pytest.raises(UserError, match="no persistence model was named"):
        get_models([])


def test_options_make_another_model_with_a_name_that_says_so() -> None:
    posix = MODELS["posix"]
    assert posix.with_options() is posix is posix.with_options(tear=4096)
    changed = posix.with_options(tear=512, sync=SyncCall.EVERYTHING)
    assert str(changed) == "posix(tear=512, sync=everything)"
    assert (changed.unit, posix.unit) == (512, 4096)
    assert MODELS["btrfs"].with_options(tear=512).unit == 4096
    with pytest.raises(UserError, match="tear=100"):
        posix.with_options(tear=100)
    with pytest.raises(FrozenInstanceError):
        posix.name = "strict"  # type: ignore[misc]


def test_the_flags_are_those_of_the_table() -> None:
    """One line for each file system, so that a change of a rule is seen in review."""
    flags = {
        model.name: (
            model.metadata_order,
            model.size_needs_data,
            model.data_needs_metadata,
            model.allocate_on_replace,
            model.tail_zeroed_first,
            model.reuse_freed_blocks,
            model.names_return,
            model.log_forgets,
            model.fsync_file,
            model.fsync_directory,
            model.fdatasync_is_fsync,
            model.sync,
            model.sector_tearing,
        )
        for model in MODELS.values()
        if model.name != "kill"
    }
    journal, y, n = MetadataOrder.JOURNAL, True, False
    before, all_of_it = FsyncFile.EARLIER_METADATA, FsyncDirectory.EVERYTHING
    everything = SyncCall.EVERYTHING
    # fmt: off
    assert flags == {
        "posix": (MetadataOrder.NONE, n, n, n, n, n, n, n, FsyncFile.ITSELF,
                  FsyncDirectory.ENTRIES, n, SyncCall.NOTHING, y),
        "ext4": (journal, n, n, y, y, n, n, n, before, all_of_it, n, everything, y),
        "ext4-writeback": (journal, n, n, y, n, y, n, n, before, all_of_it, n, everything, y),
        "ext4-noauto_da_alloc": (journal, n, n, n, y, n, n, n, before, all_of_it, n, everything, y),
        "xfs": (journal, y, n, n, n, n, n, n, before, FsyncDirectory.EARLIER_METADATA, n,
                SyncCall.IF_METADATA_PENDING, y),
        "btrfs": (MetadataOrder.LOG, y, y, n, n, n, y, y, FsyncFile.NAMES,
                  FsyncDirectory.ENTRIES_AND_NAME, y, everything, n),
    }
    # fmt: on


def test_acknowledgements_move_with_the_operations() -> None:
    operations: tuple[Operation, ...] = (Write(F, 0, b"new"), Fsync(F))
    trace = Trace(BASE, operations, (Acknowledgement(1, "a"), Acknowledgement(2, "b")))
    longer = trace.insert(1, SyncAll())
    assert [type(o) for o in longer.operations] == [Write, SyncAll, Fsync]
    assert [ack.position for ack in longer.acknowledgements] == [2, 3]
    assert longer.remove(1) == trace
    assert [ack.position for ack in trace.insert(2, SyncAll()).acknowledgements] == [1, 3]
    assert [ack.position for ack in trace.remove(0).acknowledgements] == [0, 1]
    assert trace.with_operations(()).acknowledgements == trace.acknowledgements
    assert len(trace) == 2


def test_what_is_no_crash_point_or_bound_is_refused() -> None:
    trace, posix = Trace(BASE, (Write(F, 0, b"new"),)), MODELS["posix"]
    with pytest.raises(UserError, match="not a crash point"):
        allows(trace, posix, BASE, at=2)
    with pytest.raises(UserError, match="crash point"):
        window_at(disk_of(trace, posix), 5)
    with pytest.raises(UserError, match="deviations=-1"):
        next(crash_states(trace, posix, deviations=-1))
    assert len(list(crash_states(trace, posix, limit=1))) == 1


@pytest.mark.parametrize(
    "operation",
    [Write(9, 0, b"x"), Mkdir(F, 0, "d"), Unlink(F, 7, "f"), Rename(F, 0, "f", F, "g")],
    ids=lambda operation: type(operation).__name__,
)
def test_an_impossible_trace_is_refused(operation: Operation) -> None:
    with pytest.raises(TraceError, match="operation 0"):
        disk_of(Trace(BASE, (operation,)), MODELS["posix"])
