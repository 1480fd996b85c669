"""What real file systems left after a power loss, row by row, asked of the models.

The answers were measured on Linux 6.18 (default mkfs; every write and flush of the block device
logged, each legal power-loss image mounted and read back; 58,000 to 85,000 images per column).
``Y`` was seen on disk and must be allowed, by that file system's model and by `posix`. ``n`` was
not seen, which is evidence and not proof: the model refuses it, or the row says why it is looser.

Letters: O are old bytes, N, M, A, L new ones, z is NUL. Files are 8 KiB unless a row says else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import pytest

from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import Tree
from tests.core.showing import Shown, length, letters, show
from tests.core.traces import Workload

COLUMNS = ("ext4", "ext4-writeback", "ext4-noauto_da_alloc", "xfs", "btrfs")
O8, N8, M8 = b"O" * 8192, b"N" * 8192, b"M" * 8192
NUL8 = "z8192"
LAST = -1
"""Crash point: every call of the workload has returned."""


@dataclass(frozen=True)
class Row:
    """``answers`` has one letter per column. ``at`` is a crash point, ``None`` for any."""

    question: str
    workload: Workload
    holds: Callable[[Shown], bool]
    answers: str
    at: int | None = None
    tear: int = 4096
    reuse: bool = False
    looser: dict[str, str] = field(default_factory=dict)
    implied: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Column → (question, column) of a cell that was seen and contradicts this ``n``, and why."""


def one(path: str) -> Workload:
    return Workload({path: O8})


def nothing() -> Workload:
    return Workload({})


def empty_or_nul(name: str) -> Callable[[Shown], bool]:
    return lambda d: d.get(name) == "" or letters(d.get(name)) == {"z"}


HOLES = "the rule asks for the block of the last byte only; holes before it were seen after appends"
FLUSH = (
    "the rename starts the write of the new file but waits for nothing, and a sync of another "
    "file was never relied on to force data"
)
WEAKER = "data=writeback only takes rules of ext4 away, and on ext4 it was seen"
RUNNING = "a sync that runs forces nothing yet, and without it this was seen"
EMPTIED = "a file that was emptied is written like a new one, where it was seen"
PRESSURE = "sizes at an inner block boundary were seen under memory pressure"
LOG_ALONE = (
    "a log was seen to overtake other renames and unlinks; for a plain pair of renames it was not"
)

replace_over = one("f").create("t", N8).rename("t", "f")
replace_synced_name = one("f").create("t", N8).rename("t", "f").fsync("")
replace_synced_file = one("f").create("t", N8).fsync("t").rename("t", "f")
replace_right = one("f").save("f", N8)
unlink_rename = one("f").create("t", N8).unlink("f").rename("t", "f")
to_new = nothing().create("t", N8).rename("t", "n")
to_new_synced = nothing().create("t", N8).fsync("t").rename("t", "n")
to_new_synced_after = nothing().create("t", N8).rename("t", "n").fsync("n")
two_new = nothing().create("A", N8).create("B", M8)
two_new_synced = nothing().create("A", N8).create("B", M8).fsync("B")
overwrite = one("f").write("f", 0, N8)
overwrite_synced = one("f").write("f", 0, N8).fsync("f")
overwrite_two = Workload({"f": O8, "g": O8}).write("f", 0, N8).write("g", 0, M8).fsync("g")
append_inside = Workload({"f": b"O" * 1000}).append("f", b"A" * 2000)
append_blocks = Workload({"f": b"O" * 4096}).append("f", b"A" * 8192)
append_synced = Workload({"f": b"O" * 4096}).append("f", b"A" * 8192).fsync("f")
append_datasynced = Workload({"f": b"O" * 4096}).append("f", b"A" * 8192).fdatasync("f")
new_file = nothing().create("f", N8)
new_file_synced = nothing().create("f", N8).fsync("f")
one_deep = nothing().mkdir("d").create("d/f", N8).fsync("d/f")
two_deep = nothing().mkdir("d").mkdir("d/e").create("d/e/f", N8).fsync("d/e/f")
child_synced_name = Workload({"d": None}).create("d/f", N8).fsync("d")
mkdir_synced = nothing().mkdir("d").create("d/f", N8).fsync("d")
rewrite = one("f").truncate("f", 0).write("f", 0, N8)
rewrite_closed = one("f").truncate("f", 0).write("f", 0, N8).close("f").create("later")
ftruncate = one("f").truncate("f", 0).write("f", 0, N8[:4096]).write("f", 4096, N8[4096:])
ftruncate_closed = (
    Workload({"f": O8, "g": O8}).truncate("f", 0).write("f", 0, N8).close("f").rename("g", "later")
)
shrink = one("f").truncate("f", 5000)
extend_overwrite = one("f").truncate("f", 16384).write("f", 0, N8[:4096])
chain = Workload({"A": O8, "C": N8}).rename("A", "B").rename("C", "A")
pair_synced = Workload({"A": O8, "C": N8}).rename("A", "B").rename("C", "D").fsync("D")
two_replaces = (
    Workload({"f": O8, "g": O8})
    .create("t", N8)
    .fsync("t")
    .rename("t", "f")
    .create("u", M8)
    .fsync("u")
    .rename("u", "g")
)
replace_then_sync = one("f").create("t", N8).rename("t", "f").create("g", M8).fsync("g")
linked = Workload({"a": O8}).link("a", "b").unlink("a")
linked_synced_old = Workload({"a": O8}).link("a", "b").fsync("a")
linked_synced_new = Workload({"a": O8}).link("a", "b").unlink("a").fsync("b")
moved = Workload({"d1/f": O8, "d2": None}).rename("d1/f", "d2/f").fsync("d2")
moved_synced_old = Workload({"d1/f": O8, "d2": None}).rename("d1/f", "d2/f").fsync("d1")
directory_moved = Workload({"d/x": O8}).rename("d", "e").create("e/g", M8).fsync("e/g")
unlinked = Workload({"a": O8}).unlink("a").fsync("")
unlinked_other = Workload({"a": O8}).unlink("a").create("b", M8).fsync("b")
LOG = b"L" * 4096
wal = one("f").create("log", LOG).fsync("log").write("f", 0, N8)
wal_truncated = one("f").create("log", LOG).fsync("log").write("f", 0, N8).truncate("log", 0)
wal_unlinked = one("f").create("log", LOG).fsync("log").write("f", 0, N8).unlink("log")
synced_all = Workload({"f": O8, "g": O8}).write("f", 0, N8).write("g", 0, M8).fsync("g").sync()

ROWS = [
    # rename over an existing name
    Row(
        "zero length after rename over (no fsync)",
        replace_over,
        lambda d: d.get("f") == "",
        "nnYYY",
    ),
    Row(
        "full size but all NULs after rename over (no fsync)",
        replace_over,
        lambda d: d.get("f") == NUL8,
        "YYYnn",
    ),
    Row(
        "the same after rename + fsync(dir), no fsync(file): zero length or NULs",
        replace_synced_name,
        empty_or_nul("f"),
        "YYYYY",
        LAST,
    ),
    Row(
        "neither old nor new name (f missing) after rename over",
        replace_over,
        lambda d: "f" not in d,
        "nnnnn",
    ),
    Row(
        "f neither whole old nor whole new although tmp was fsynced first",
        replace_synced_file,
        lambda d: d.get("f") not in ("O8192", "N8192"),
        "nnnnn",
    ),
    Row(
        "rename lost after it returned (fsync(tmp), no dir fsync)",
        replace_synced_file,
        lambda d: d.get("f") == "O8192",
        "YYYYY",
        LAST,
    ),
    Row(
        "rename lost after fsync(dir)",
        replace_right,
        lambda d: d.get("f") != "N8192",
        "nnnnn",
        LAST,
    ),
    Row(
        "unlink(f) then rename(t,f): f zero length or NULs",
        unlink_rename,
        empty_or_nul("f"),
        "YYYYY",
    ),
    Row(
        "unlink(f) then rename(t,f): f missing altogether",
        unlink_rename,
        lambda d: "f" not in d,
        "YYYYY",
    ),
    Row(
        "same, f missing AND t missing",
        unlink_rename,
        lambda d: "f" not in d and "t" not in d,
        "nnnnn",
    ),
    # rename to a new name
    Row("zero length under the new name (no fsync)", to_new, lambda d: d.get("n") == "", "YYYYY"),
    Row(
        "full size, all NULs under the new name (no fsync)",
        to_new,
        lambda d: d.get("n") == NUL8,
        "YYYnn",
    ),
    Row(
        "rename to new name lost after it returned (fsync(tmp) first, no dir fsync)",
        to_new_synced,
        lambda d: "n" not in d,
        "YYYYY",
        LAST,
    ),
    Row(
        "new name lost although the file was fsynced AFTER the rename",
        to_new_synced_after,
        lambda d: "n" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "old name still there after that fsync",
        to_new_synced_after,
        lambda d: "t" in d,
        "nnnnn",
        LAST,
    ),
    # create order
    Row(
        "B exists without A (create A, create B, no fsync)",
        two_new,
        lambda d: "B" in d and "A" not in d,
        "nnnnn",
    ),
    Row(
        "B has its data, A is empty or NUL",
        two_new,
        lambda d: d.get("B") == "M8192" and empty_or_nul("A")(d),
        "YYYYY",
    ),
    Row(
        "B without A after fsync(B)",
        two_new_synced,
        lambda d: "B" in d and "A" not in d,
        "nnnnY",
        LAST,
    ),
    Row("A empty or NUL after fsync(B)", two_new_synced, empty_or_nul("A"), "YYYYY", LAST),
    # overwrite in place
    Row(
        "torn multi-block overwrite, no fsync",
        overwrite,
        lambda d: letters(d["f"]) == {"O", "N"},
        "YYYYY",
    ),
    Row(
        "torn multi-block overwrite while fsync is running",
        overwrite_synced,
        lambda d: letters(d["f"]) == {"O", "N"},
        "YYYYn",
        1,
        implied={"btrfs": ("torn multi-block overwrite, no fsync", "btrfs", RUNNING)},
    ),
    Row(
        "torn within one 4 KiB block (512-byte tearing allowed)",
        Workload({"f": O8[:4096]}).write("f", 0, N8[:4096]),
        lambda d: letters(d["f"]) == {"O", "N"},
        "YYYYn",
        tear=512,
    ),
    Row(
        "data lost after fsync returned",
        overwrite_synced,
        lambda d: d["f"] != "N8192",
        "nnnnn",
        LAST,
    ),
    Row(
        "f (written first, not fsynced) old while g (fsynced) is new",
        overwrite_two,
        lambda d: d == {"f": "O8192", "g": "M8192"},
        "YYYYY",
        LAST,
    ),
    # append / extend
    Row(
        "append inside the last block: new size, NUL tail",
        append_inside,
        lambda d: d["f"] == "O1000z2000",
        "YYYnn",
    ),
    Row(
        "append of whole blocks: new size, NUL tail",
        append_blocks,
        lambda d: length(d["f"]) == 12288 and d["f"].split("A")[-1].find("z") >= 0,
        "YYYnn",
    ),
    Row(
        "append: foreign bytes",
        append_blocks,
        lambda d: not letters(d["f"]) <= {"O", "A", "z"} or not d["f"].startswith("O4096"),
        "nnnnn",
    ),
    Row(
        "append: a NUL hole before persisted later data",
        append_blocks,
        lambda d: d["f"] == "O4096z4096A4096",
        "YYYYY",
    ),
    Row(
        "NUL tail while the append+fsync is running",
        append_synced,
        lambda d: d["f"].split("A")[-1].find("z") >= 0,
        "Ynnnn",
        1,
        implied={
            column: ("append of whole blocks: new size, NUL tail", column, RUNNING)
            for column in ("ext4-writeback", "ext4-noauto_da_alloc")
        },
    ),
    Row(
        "appended data or size lost after fsync",
        append_synced,
        lambda d: d["f"] != "O4096A8192",
        "nnnnn",
        LAST,
    ),
    Row(
        "appended data or size lost after fdatasync",
        append_datasynced,
        lambda d: d["f"] != "O4096A8192",
        "nnnnn",
        LAST,
    ),
    # new file
    Row("new file zero length", new_file, lambda d: d.get("f") == "", "YYYYY"),
    Row("new file full size, all NULs", new_file, lambda d: d.get("f") == NUL8, "YYYnn"),
    Row(
        "new file with data and NULs",
        new_file,
        lambda d: letters(d.get("f")) == {"N", "z"},
        "YnYnY",
        looser={"xfs": HOLES},
        implied={"ext4-writeback": ("new file with data and NULs", "ext4", WEAKER)},
    ),
    Row(
        "new file shorter than written, not empty",
        new_file,
        lambda d: 0 < length(d.get("f", "")) < 8192,
        "YYYYn",
        looser={"btrfs": PRESSURE},
    ),
    Row(
        "file lost or incomplete after fsync(file), parent dir never fsynced",
        new_file_synced,
        lambda d: d.get("f") != "N8192",
        "nnnnn",
        LAST,
    ),
    Row(
        "d/f unreachable after mkdir d + fsync(d/f) only",
        one_deep,
        lambda d: "d/f" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "d/e/f unreachable after two mkdirs + fsync(d/e/f) only",
        two_deep,
        lambda d: "d/e/f" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "fsync(dir): child name missing",
        child_synced_name,
        lambda d: "d/f" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "fsync(dir): child there but empty or NUL",
        child_synced_name,
        empty_or_nul("d/f"),
        "YYYYY",
        LAST,
    ),
    Row(
        "mkdir d, create d/f, fsync(d): d missing",
        mkdir_synced,
        lambda d: "d" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "mkdir d, create d/f, fsync(d): d/f missing",
        mkdir_synced,
        lambda d: "d/f" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "mkdir d, create d/f, fsync(d): d/f empty or NUL",
        mkdir_synced,
        empty_or_nul("d/f"),
        "YYYYY",
        LAST,
    ),
    # truncate
    Row("O_TRUNC rewrite: zero length before close", rewrite, lambda d: d["f"] == "", "YYYYY"),
    Row(
        "O_TRUNC rewrite: zero length although the first commit came after close",
        rewrite_closed,
        lambda d: d["f"] == "" and "later" in d,
        "nnYYY",
    ),
    Row(
        "O_TRUNC rewrite: full size, NULs (all or part)",
        rewrite,
        lambda d: length(d["f"]) == 8192 and "z" in letters(d["f"]),
        "YYYnn",
        looser={"xfs": HOLES},
        implied={"btrfs": ("new file with data and NULs", "btrfs", EMPTIED)},
    ),
    Row(
        "O_TRUNC rewrite: mixture of old and new bytes",
        rewrite,
        lambda d: letters(d["f"]) >= {"O", "N"},
        "nYnnn",
        reuse=True,
    ),
    Row(
        "ftruncate(0) rewrite: zero length although the first commit came after close",
        ftruncate_closed,
        lambda d: d["f"] == "" and "later" in d,
        "nnYYY",
    ),
    Row(
        "ftruncate(0) rewrite: mixture of old and new bytes",
        ftruncate,
        lambda d: letters(d["f"]) >= {"O", "N"},
        "nYnnn",
        reuse=True,
    ),
    Row(
        "shrink by ftruncate: old size but the tail of the new last block already NUL",
        shrink,
        lambda d: d["f"] == "O5000z3192",
        "YYYYn",
    ),
    Row(
        "extend by ftruncate then overwrite block 0: new data with old size",
        extend_overwrite,
        lambda d: d["f"] == "N4096O4096",
        "YYYYn",
    ),
    # rename order
    Row(
        "A->B then C->A: A holds C but B is missing (content of A lost)",
        chain,
        lambda d: d.get("A") == "N8192" and "B" not in d,
        "nnnnn",
    ),
    Row(
        "C->D (fsync D) durable while the earlier A->B is not",
        pair_synced,
        lambda d: "D" in d and "A" in d,
        "nnnnn",
        looser={"btrfs": LOG_ALONE},
    ),
    Row(
        "A->B, C->A without fsync: both old names gone, B missing",
        chain,
        lambda d: d.get("A") != "O8192" and "C" not in d and "B" not in d,
        "nnnnn",
    ),
    Row(
        "second replace durable while the first is not (W23)",
        two_replaces,
        lambda d: d.get("g") == "M8192" and d.get("f") == "O8192",
        "nnnnn",
    ),
    Row(
        "earlier rename over f not durable after a later fsync of g (W22)",
        replace_then_sync,
        lambda d: d.get("f") == "O8192",
        "nnnnY",
        LAST,
    ),
    Row(
        "the same, f durable under its name but zero length or NUL",
        replace_then_sync,
        empty_or_nul("f"),
        "nnYYY",
        LAST,
        looser={"ext4": FLUSH, "ext4-writeback": FLUSH},
    ),
    # links
    Row("link+unlink: neither name", linked, lambda d: not d, "nnnnn"),
    Row(
        "link+unlink: both names after both returned",
        linked,
        lambda d: d.keys() == {"a", "b"},
        "YYYYY",
        LAST,
    ),
    Row(
        "link lost after fsync(file by old name)",
        linked_synced_old,
        lambda d: "b" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "link+unlink+fsync(file by new name): b missing",
        linked_synced_new,
        lambda d: "b" not in d,
        "nnnnn",
        LAST,
    ),
    Row(
        "link+unlink+fsync(file by new name): a still there",
        linked_synced_new,
        lambda d: "a" in d,
        "nnnnn",
        LAST,
    ),
    # directories
    Row(
        "rename d1/f -> d2/f: neither",
        moved,
        lambda d: not d.keys() & {"d1/f", "d2/f"},
        "nnnnn",
    ),
    Row("rename d1/f -> d2/f: both", moved, lambda d: d.keys() >= {"d1/f", "d2/f"}, "nnnnY", 1),
    Row(
        "rename d1/f -> d2/f, fsync(d2) returned: both",
        moved,
        lambda d: d.keys() >= {"d1/f", "d2/f"},
        "nnnnY",
        LAST,
    ),
    Row("rename lost after fsync(d1)", moved_synced_old, lambda d: "d2/f" not in d, "nnnnn", LAST),
    Row("rename lost after fsync(d2)", moved, lambda d: "d2/f" not in d, "nnnnn", LAST),
    Row(
        "rename d->e, create e/g, fsync(e/g): e/g unreachable",
        directory_moved,
        lambda d: not any(path.endswith("/g") for path in d),
        "nnnnn",
        LAST,
    ),
    Row(
        "... and is it found under the old name d/g",
        directory_moved,
        lambda d: "d/g" in d,
        "nnnnY",
        LAST,
    ),
    Row("unlink(a) undone after fsync(dir)", unlinked, lambda d: "a" in d, "nnnnn", LAST),
    Row(
        "unlink(a) undone after a later fsync of another file",
        unlinked_other,
        lambda d: "a" in d,
        "nnnnY",
        LAST,
    ),
    # WAL
    Row(
        "data new while the fsynced log record is missing",
        wal,
        lambda d: "N" in letters(d["f"]) and d.get("log") != "L4096",
        "nnnnn",
    ),
    Row(
        "log truncated, data old or torn (no fsync of data)",
        wal_truncated,
        lambda d: d.get("log") == "" and "O" in letters(d["f"]),
        "YYYYY",
        LAST,
    ),
    Row(
        "log unlinked, data old or torn (no fsync of data)",
        wal_unlinked,
        lambda d: "log" not in d and "O" in letters(d["f"]),
        "YYYYY",
        LAST,
    ),
    # sync
    Row(
        "data lost after syncfs returned",
        synced_all,
        lambda d: "O" in letters(d["f"]),
        "nnnYn",
        LAST,
    ),
]
CELLS = [
    pytest.param(row, column, id=f"{column}: {row.question}") for row in ROWS for column in COLUMNS
]


@cache
def shown_states(
    workload: Workload, model: str, tear: int, reuse: bool
) -> list[tuple[Shown, Tree, tuple[tuple[int, int], ...]]]:
    rules = get_model(model).with_options(tear=tear, reuse_freed_blocks=reuse or None)
    disk = disk_of(workload.trace, rules)
    found = []
    for state in crash_states(workload.trace, rules):
        tree = disk.tree(state)
        found.append((show(tree), tree, state.points))
    return found


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    """Let go of the states: every test to come would carry them along."""
    yield
    shown_states.cache_clear()


def witness(row: Row, model: str, *, reuse: bool = False) -> tuple[Tree, int] | None:
    """Return a legal tree for which the question is answered with yes, and a crash point."""
    at = len(row.workload) if row.at == LAST else row.at
    for shown, tree, points in shown_states(row.workload, model, row.tear, reuse):
        for first, last in points:
            if (at is None or first <= at <= last) and row.holds(shown):
                return tree, first if at is None else at
    return None


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_row(row: Row, column: str) -> None:
    answer = row.answers[COLUMNS.index(column)]
    found = witness(row, column)
    if answer == "Y":
        assert found, f"{column} was seen to do this, and its model refuses it"
        rules = get_model(column).with_options(tear=row.tear)
        assert rules.allows(row.workload.trace, *found)
    elif column in row.looser or column in row.implied:
        assert found, "the model is as strict as the measurement: take the excuse away"
    else:
        assert not found, f"{column} was never seen to do this, and its model allows it"


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.question) for row in ROWS if "Y" in row.answers]
)
def test_posix_allows_whatever_was_seen(row: Row) -> None:
    found = witness(row, "posix", reuse=row.reuse)
    assert found
    rules = get_model("posix").with_options(tear=row.tear, reuse_freed_blocks=row.reuse or None)
    assert rules.allows(row.workload.trace, *found)


@pytest.mark.parametrize("column", COLUMNS)
def test_models_are_hardly_looser_than_the_measurements(
    column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that allows all of it would pass every other test here."""
    unseen = [row for row in ROWS if row.answers[COLUMNS.index(column)] == "n"]
    looser = [row.question for row in unseen if column in row.looser]
    implied = [row.question for row in unseen if column in row.implied]
    with capsys.disabled():
        print(
            f"\n{column}: of {len(unseen)} cells not seen, {len(looser)} are allowed for caution, "
            f"{len(implied)} because another cell that was seen implies them"
        )
    assert len(looser) <= 0.05 * len(unseen)


def test_an_implied_cell_has_a_witness() -> None:
    answers = {row.question: dict(zip(COLUMNS, row.answers, strict=True)) for row in ROWS}
    for row in ROWS:
        for column, (question, witness_column, why) in row.implied.items():
            assert answers[row.question][column] == "n"
            assert answers[question][witness_column] == "Y"
            assert why


def test_the_table_is_whole() -> None:
    assert len({row.question for row in ROWS}) == len(ROWS) == 75
    assert all(len(row.answers) == len(COLUMNS) for row in ROWS)
