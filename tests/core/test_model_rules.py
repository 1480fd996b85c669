"""Each rule of the models on a workload of its own: who may show a tree, and who must not.

The workloads come from the measurements (docs/explanation/models.md): what was seen on a file
system must be allowed by its model; the rules that forbid must hold where they were declared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import MODELS, Model, SyncCall
from pytest_statepersist.core.moves import lost_moves
from pytest_statepersist.core.states import crash_states, disk_of
from tests.core.showing import Shown, letters, show
from tests.core.traces import Workload

POSIX = MODELS["posix"]
GHOSTS = POSIX.with_options(reuse_freed_blocks=True, names_return=True)
EXT4, WRITEBACK, NOAUTO = (
    MODELS[name] for name in ("ext4", "ext4-writeback", "ext4-noauto_da_alloc")
)
XFS, BTRFS, KILL = MODELS["xfs"], MODELS["btrfs"], MODELS["kill"]
EXT4S = (EXT4, WRITEBACK, NOAUTO)
JOURNALLED = (*EXT4S, XFS)
NAMED = (*JOURNALLED, BTRFS)
ANY = -2
END = -1
O8, N8, M8 = b"O" * 8192, b"N" * 8192, b"M" * 8192
O4, N4, M4 = b"O" * 4096, b"N" * 4096, b"M" * 4096
DATA, FULL = op.Durability.DATA, op.Durability.FULL


def may(workload: Workload, model: Model, holds: Callable[[Shown], bool], at: int = ANY) -> bool:
    """Say whether a crash, at one point or at any, may leave a tree for which this holds."""
    disk = disk_of(workload.trace, model)
    at = len(workload) if at == END else at
    for state in crash_states(workload.trace, model):
        if at == ANY or any(first <= at <= last for first, last in state.points):
            tree = disk.tree(state)
            if holds(show(tree)):
                assert model.allows(workload.trace, tree, None if at == ANY else at)
                return True
    return False


@dataclass(frozen=True)
class Case:
    name: str
    workload: Workload
    holds: Callable[[Shown], bool]
    at: int
    allowed: tuple[Model, ...]
    refused: tuple[Model, ...]


def base(**files: bytes) -> Workload:
    return Workload({name.replace("_", "/"): data for name, data in files.items()})


CASES = [
    # what a shrink leaves behind the new end
    Case(
        "shrink and append: the tail is the old one",
        base(f=O8).truncate("f", 5000).append("f", b"A" * 6000),
        lambda d: d["f"] == "O8192A2808",
        ANY,
        (POSIX, WRITEBACK, XFS, BTRFS),
        (EXT4, NOAUTO),
    ),
    Case(
        "shrink and extend: the tail is the old one",
        base(f=O8).truncate("f", 5000).truncate("f", 16384),
        lambda d: d["f"] == "O8192z8192",
        ANY,
        (POSIX, WRITEBACK, BTRFS),
        (EXT4, NOAUTO),
    ),
    Case(
        "new data under an old size",
        base(f=b"O" * 1000).truncate("f", 8192).write("f", 0, N8),
        lambda d: d["f"] == "N1000",
        ANY,
        (POSIX, *JOURNALLED),
        (BTRFS,),
    ),
    Case(
        "a whole cleared block never shows what was there before it was cleared",
        base(f=O8).truncate("f", 0).truncate("f", 8192),
        lambda d: letters(d["f"]) == {"O", "z"},
        ANY,
        (),
        (POSIX, EXT4, NOAUTO, XFS, BTRFS),
    ),
    # what fdatasync is worth
    Case(
        "fdatasync does not persist a rename of the same file",
        base().create("t", N8).rename("t", "n").fdatasync("n"),
        lambda d: d == {"t": "N8192"},
        END,
        (POSIX, *JOURNALLED),
        (BTRFS,),
    ),
    Case(
        "fdatasync persists the creation with the data",
        base().create("t", N8).fdatasync("t"),
        lambda d: d != {"t": "N8192"},
        END,
        (POSIX,),
        NAMED,
    ),
    # synchronous writes and msync: their own range
    Case(
        "O_DSYNC: an earlier write to the same file is lost",
        base(f=O8).write("f", 4096, M4).write("f", 0, N4, DATA),
        lambda d: d["f"] == "N4096O4096",
        END,
        (POSIX, *NAMED),
        (),
    ),
    Case(
        "O_SYNC: an earlier write to the same file is lost",
        base(f=O8).write("f", 4096, M4).write("f", 0, N4, FULL),
        lambda d: d["f"] == "N4096O4096",
        END,
        (POSIX, *NAMED),
        (),
    ),
    Case(
        "O_DSYNC: its own bytes, with the size that they need",
        base(f=O4).write("f", 4096, N4, DATA),
        lambda d: d["f"] != "O4096N4096",
        END,
        (),
        (POSIX, *NAMED),
    ),
    Case(
        "O_DSYNC overwrite: an earlier rename is lost",
        base(f=O4, a=M4).rename("a", "b").write("f", 0, N4, DATA),
        lambda d: "a" in d,
        END,
        (POSIX, *NAMED),
        (),
    ),
    Case(
        "msync: its range and no more",
        base(f=O8).write("f", 0, N8).msync("f", 0, 4096),
        lambda d: d["f"] == "N4096O4096",
        END,
        (POSIX, *NAMED),
        (),
    ),
    Case(
        "msync: its range is there",
        base(f=O8).write("f", 0, N8).msync("f", 0, 4096),
        lambda d: not d["f"].startswith("N"),
        END,
        (),
        (POSIX, *NAMED),
    ),
    # how far back a sync reaches
    Case(
        "fsync of a file that did not change forces nothing",
        base(g=M4, a=O4).rename("a", "c").fsync("g"),
        lambda d: "a" in d,
        END,
        (POSIX, *NAMED),
        (),
    ),
    Case(
        "fsync reaches to the file's last change, not to the call",
        base(a=O4, b=N4).rename("a", "x").rename("b", "a").rename("x", "b").fsync("a"),
        lambda d: d == {"x": "O4096", "a": "N4096"},
        END,
        (POSIX, *JOURNALLED),
        (),
    ),
    Case(
        "fsync of any directory commits everything on ext4",
        base(a=O4, d_x=O4).rename("a", "c").fsync("d"),
        lambda d: "a" in d,
        END,
        (POSIX, XFS, BTRFS),
        EXT4S,
    ),
    Case(
        "fsync of a changed directory commits what came before on xfs",
        base(a=O4, d_x=O4).rename("a", "c").create("d/y").fsync("d"),
        lambda d: "a" in d,
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "fsync of a file in a new directory: the directory",
        base().mkdir("d").create("d/f", N8).fsync("d/f"),
        lambda d: "d" not in d,
        END,
        (POSIX,),
        NAMED,
    ),
    Case(
        "close forces nothing",
        base().create("f", N8).close("f"),
        lambda d: d.get("f") == "",
        END,
        (POSIX, *NAMED),
        (KILL,),
    ),
    Case(
        "a failed fsync forces nothing",
        base(f=O8).write("f", 0, N8).add(op.Fsync(1, failed=True)),
        lambda d: d["f"] == "O8192",
        END,
        (POSIX, *NAMED),
        (KILL,),
    ),
    Case(
        "a second fsync after one that failed: what was dirty then is not written",
        base(f=O8).write("f", 0, N8).add(op.Fsync(1, failed=True)).fsync("f"),
        lambda d: d["f"] == "O8192",
        END,
        (POSIX, *NAMED),
        (KILL,),
    ),
    Case(
        "sync after an fsync that failed: what was dirty then is not written",
        base(f=O8).write("f", 0, N8).add(op.Fsync(1, failed=True)).add(op.SyncAll()),
        lambda d: d["f"] == "O8192",
        END,
        (POSIX, *NAMED),
        (KILL,),
    ),
    Case(
        "written again after an fsync that failed, then synced: it is there",
        base(f=O8).write("f", 0, N8).add(op.Fsync(1, failed=True)).write("f", 0, M8).fsync("f"),
        lambda d: d["f"] != "M8192",
        END,
        (),
        (POSIX, *NAMED, KILL),
    ),
    Case(
        "one byte of a page written again takes the whole page along, and no other",
        base(f=O8)
        .write("f", 0, N8)
        .add(op.Fsync(1, failed=True))
        .write("f", 4095, b"N")
        .fsync("f"),
        lambda d: d["f"] == "N4096O4096",
        END,
        (POSIX, *NAMED),
        (KILL,),
    ),
    Case(
        "one byte of a page written again: the rest of that page is there",
        base(f=O8)
        .write("f", 0, N8)
        .add(op.Fsync(1, failed=True))
        .write("f", 4095, b"N")
        .fsync("f"),
        lambda d: d["f"].startswith("O"),
        END,
        (),
        (POSIX, *NAMED, KILL),
    ),
    Case(
        "growing bytes written again after an fsync that failed: their size is there too",
        base(f=b"O" * 10)
        .write("f", 0, b"N" * 20)
        .add(op.Fsync(1, failed=True))
        .write("f", 0, b"N" * 20)
        .fsync("f"),
        lambda d: d["f"] != "N20",
        END,
        (),
        (POSIX, *NAMED, KILL),
    ),
    Case(
        "another page written again after an fsync that failed does not bring the size back",
        base(f=O4)
        .write("f", 4096, N4)
        .add(op.Fsync(1, failed=True))
        .write("f", 0, M4)
        .fsync("f"),
        lambda d: d["f"] == "M4096",
        END,
        (POSIX, *NAMED),
        (KILL,),
    ),
    Case(
        "growing bytes written again, then sync: as with fsync",
        base(f=b"O" * 10)
        .write("f", 0, b"N" * 20)
        .add(op.Fsync(1, failed=True))
        .add(op.SyncAll())
        .write("f", 0, b"N" * 20)
        .fsync("f"),
        lambda d: d["f"] != "N20",
        END,
        (),
        (POSIX, *NAMED, KILL),
    ),
    Case(
        "an fsync of another file fails: this one's is believed",
        base(f=O8, g=O8)
        .write("f", 0, N8)
        .write("g", 0, N8)
        .add(op.Fsync(2, failed=True))
        .fsync("f"),
        lambda d: d["f"] != "N8192",
        END,
        (),
        (POSIX, *NAMED, KILL),
    ),
    Case(
        "what was synced before stays, whatever fails later",
        base(f=O8).write("f", 0, N8).fsync("f").add(op.Fsync(1, failed=True)),
        lambda d: d["f"] != "N8192",
        END,
        (),
        (POSIX, *NAMED, KILL),
    ),
    # allocation when a file replaces another, or is closed after it was emptied
    Case(
        "rename to a free name does not wait for the size",
        base().create("t", N8).rename("t", "n"),
        lambda d: d.get("n") == "",
        ANY,
        (POSIX, *NAMED),
        (),
    ),
    Case(
        "truncate, write, close, rename another: empty with the other rename",
        base(f=O8, a=M4).truncate("f", 0).write("f", 0, N8).close("f").rename("a", "b"),
        lambda d: d["f"] == "" and "b" in d,
        ANY,
        (POSIX, NOAUTO, XFS, BTRFS),
        (EXT4, WRITEBACK),
    ),
    Case(
        "the same without the close",
        base(f=O8, a=M4).truncate("f", 0).write("f", 0, N8).rename("a", "b"),
        lambda d: d["f"] == "" and "b" in d,
        ANY,
        (POSIX, *NAMED),
        (),
    ),
    # blocks that were freed in memory only
    Case(
        "emptied and rewritten: new bytes under the old size",
        base(f=O8).truncate("f", 0).write("f", 0, N8),
        lambda d: d["f"] == "O4096N4096",
        ANY,
        (GHOSTS, WRITEBACK),
        (POSIX, EXT4, NOAUTO, XFS, BTRFS),
    ),
    Case(
        "unlinked: another file's bytes, zeros behind them, while the name is still there",
        base(f=O8).unlink("f").create("g", b"N" * 1000),
        lambda d: d.get("f") == "N1000z3096O4096",
        ANY,
        (GHOSTS, WRITEBACK),
        (POSIX, EXT4, NOAUTO, XFS, BTRFS),
    ),
    Case(
        "what was durable before the block was freed has a block of its own",
        base(f=O8).create("t", N8).fsync("t").rename("t", "f"),
        lambda d: "f" in d and letters(d["f"]) == {"O", "N"},
        ANY,
        (),
        (GHOSTS, WRITEBACK),
    ),
    # sync and syncfs
    Case(
        "sync forces nothing in posix",
        base(f=O8).write("f", 0, N8).create("x").sync(),
        lambda d: d == {"f": "O8192"},
        END,
        (POSIX,),
        (*NAMED, POSIX.with_options(sync=SyncCall.EVERYTHING)),
    ),
    Case(
        "xfs: sync after overwrites that a sync of another file logged",
        base(f=O8, g=O8).write("f", 0, N8).write("g", 0, M8).fsync("g").sync(),
        lambda d: d["f"] == "O8192",
        END,
        (POSIX, XFS),
        (*EXT4S, BTRFS),
    ),
    Case(
        "xfs: what one sync left out the next one takes, with metadata to write",
        base(f=O8, g=O8).write("f", 0, N8).sync().create("x").sync(),
        lambda d: d["f"] != "N8192",
        END,
        (POSIX,),
        NAMED,
    ),
    Case(
        "xfs: the same after an fsynced rename",
        base(f=O8, a=M4).write("f", 0, N8).rename("a", "b").fsync("b").sync(),
        lambda d: d["f"] == "O8192",
        END,
        (POSIX, XFS),
        (*EXT4S, BTRFS),
    ),
    # the log of btrfs
    Case(
        "a file without the one created before it, while fsync is running",
        base().create("A", N4).create("B", M4).fsync("B"),
        lambda d: "B" in d and "A" not in d,
        4,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "a log in progress holds what it needs as well, out of order",
        base(n=O4, x=M4).rename("x", "y").unlink("n").create("n").fsync("n"),
        lambda d: d == {"x": "M4096", "n": ""},
        3,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "a truncation undone by a sync of another file",
        base(f=O8).truncate("f", 0).create("g", M4).fsync("g"),
        lambda d: d["f"] == "O8192",
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "an entry of a file synced earlier goes with the next sync of anything",
        base(n=N4, b=M4, g=O4, d_c=O4)
        .fsync("n")
        .rename("b", "a")
        .unlink("d/c")
        .rename("n", "m")
        .write("g", 0, N4)
        .fsync("g"),
        lambda d: d.keys() == {"b", "m", "g", "d", "d/c"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "the same, never synced before: in order",
        base(n=N4, b=M4, g=O4, d_c=O4)
        .rename("b", "a")
        .unlink("d/c")
        .rename("n", "m")
        .write("g", 0, N4)
        .fsync("g"),
        lambda d: "b" in d and "m" in d,
        END,
        (POSIX,),
        NAMED,
    ),
    Case(
        "a log forgets an entry whose name was taken over",
        base(a=O4, b=O4).create("n", N4).fsync("n").rename("a", "n").write("b", 0, M4).fsync("b"),
        lambda d: d == {"a": "O4096", "b": "M4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "f and t both gone",
        base(g=O4)
        .create("f", N4)
        .fsync("f")
        .create("t", M4)
        .rename("t", "f")
        .write("g", 0, N4)
        .fsync("g"),
        lambda d: d == {"g": "N4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "not so if t was synced before the rename",
        base(g=O4)
        .create("f", N4)
        .fsync("f")
        .create("t", M4)
        .fsync("t")
        .rename("t", "f")
        .write("g", 0, N4)
        .fsync("g"),
        lambda d: "f" not in d,
        END,
        (POSIX,),
        NAMED,
    ),
    Case(
        "a name that a file had when it was synced is back",
        base(g=O4)
        .create("t", N4)
        .fsync("t")
        .rename("t", "f")
        .create("t", M4)
        .fsync("t")
        .rename("t", "f")
        .write("g", 0, N4)
        .fsync("g"),
        lambda d: d.get("f") == "M4096" and d.get("t") == "N4096",
        END,
        (GHOSTS, BTRFS),
        (POSIX, *JOURNALLED),
    ),
    # what takes a name over is synced, and the unsynced file that was renamed away is lost
    Case(
        "a rename is lost although another file took the old name over and was synced",
        base().create("n", M4).rename("n", "m").create("n", N4).fsync("n"),
        lambda d: d == {"n": "N4096"},
        END,
        (GHOSTS, POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "the same over an existing file, which is old again",
        base(f=O4).create("t", M4).rename("t", "f").create("t", N4).fdatasync("t"),
        lambda d: d == {"f": "O4096", "t": "N4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "the same while the sync is running",
        base(f=O4).create("t", M4).rename("t", "f").create("t", N4).fsync("t"),
        lambda d: d == {"f": "O4096", "t": "N4096"},
        5,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "the same twice, into another directory, and by a rename",
        base(d_x=O4).create("t", M4).rename("t", "a").create("t", M4).rename("t", "d/b")
        .create("u", N4).rename("u", "t").fsync("t"),
        lambda d: d == {"d": "/", "d/x": "O4096", "t": "N4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "the same with directories, whose log comes with a file in the second",
        base().mkdir("x").create("x/f", M4).rename("x", "y").mkdir("x").create("x/f", N4)
        .fsync("x/f"),
        lambda d: d == {"x": "/", "x/f": "N4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "a file that was synced before its rename is not lost by that",
        base().create("t", M4).fsync("t").rename("t", "n").create("t", N4).fsync("t"),
        lambda d: "n" not in d and d.get("t") == "N4096",
        END,
        (),
        (POSIX, *NAMED),
    ),
    Case(
        "a file that was there at the start is not lost by that",
        base(t=M4).rename("t", "n").create("t", N4).fsync("t"),
        lambda d: "n" not in d and d.get("t") == "N4096",
        END,
        (),
        (POSIX, *NAMED),
    ),
    # what took over a name that a synced file had goes into the log with it
    Case(
        "a rename that took the synced file's old name overtakes what came before",
        base(d_x=O4, s=O4, g=M4).unlink("d/x").rename("s", "t").rename("g", "s").fsync("t"),
        lambda d: d == {"d": "/", "d/x": "O4096", "s": "M4096", "t": "O4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "so does a new file there, under the name that it has by then",
        base(d_x=O4, s=O4).unlink("d/x").rename("s", "t").create("s").rename("s", "n").fsync("t"),
        lambda d: d == {"d": "/", "d/x": "O4096", "n": "", "t": "O4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "one by one: what took over the name of that file as well",
        base(d_x=O4, s=O4, g=M4, f=N4).unlink("d/x").rename("s", "t").rename("g", "s")
        .rename("f", "g").fsync("t"),
        lambda d: d == {"d": "/", "d/x": "O4096", "g": "N4096", "s": "M4096", "t": "O4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "what happened in the directory of a renamed file goes into the log with it",
        base(d_x=O4, s=O4, g=M4).unlink("d/x").rename("s", "t").rename("g", "h").fsync("t"),
        lambda d: d == {"d": "/", "d/x": "O4096", "h": "M4096", "t": "O4096"},
        END,
        (POSIX, BTRFS),
        JOURNALLED,
    ),
    Case(
        "nothing goes with a file that lost no name",
        base(d_x=O4, s=O4, g=M4).unlink("d/x").rename("g", "h").write("s", 0, N4).fsync("s"),
        lambda d: d == {"d": "/", "d/x": "O4096", "h": "M4096", "s": "N4096"},
        END,
        (POSIX,),
        NAMED,
    ),
    Case(
        "a write that is synced takes all of its file along, before what was done earlier",
        base(d_x=O4, f=O8).unlink("d/x").truncate("f", 0).write("f", 0, M8)
        .write("f", 0, b"N" * 700, DATA),
        lambda d: d == {"d": "/", "d/x": "O4096", "f": "N700M7492"},
        3,
        (POSIX, BTRFS),
        (EXT4, NOAUTO, XFS),
    ),
    Case(
        "a directory stays while what is durable in it needs it",
        base(g=O4).mkdir("d").create("d/x").fsync("d/x").rename("d", "e").create("g2").fsync("g2"),
        lambda d: "d/x" not in d and "e/x" not in d,
        END,
        (POSIX,),
        NAMED,
    ),
    # names
    Case(
        "a swap in one directory is seen whole or not at all",
        base(a=O4, b=N4).rename("a", "b", exchange=True),
        lambda d: d not in ({"a": "O4096", "b": "N4096"}, {"a": "N4096", "b": "O4096"}),
        ANY,
        (),
        (POSIX, *NAMED),
    ),
    Case(
        "a swap across directories may be half done where such renames are",
        base(d_a=O4, e_b=N4).rename("d/a", "e/b", exchange=True),
        lambda d: d.get("d/a") == d.get("e/b"),
        ANY,
        (POSIX,),
        NAMED,
    ),
    Case(
        "a directory never has two names",
        base(d_x=O4, e_y=N4).rename("d", "e/d").fsync("e"),
        lambda d: ("d" in d) == ("e/d" in d),
        ANY,
        (),
        (POSIX, *NAMED),
    ),
    Case(
        "a file moved in from outside is not durable by that",
        base().create("/tmp/t", N4).rename("/tmp/t", "f").fsync(""),
        lambda d: d.get("f") == "",
        END,
        (POSIX, *NAMED),
        (KILL,),
    ),
    Case(
        "what happens outside orders nothing inside",
        base().create("/t").rename("/t", "f").create("/t").rename("/t", "g"),
        lambda d: d == {"g": ""},
        ANY,
        (POSIX,),
        NAMED,
    ),
    Case(
        "files without a name do not wait for each other",
        base().create("").create("").link(2, "b").write(2, 0, N4).link(1, "a"),
        lambda d: d == {"a": ""},
        ANY,
        (POSIX,),
        JOURNALLED,
    ),
    Case(
        "a process that dies loses nothing that returned",
        base(f=O4).write("f", 0, N4).rename("f", "g"),
        lambda d: d != {"g": "N4096"},
        END,
        (),
        (KILL,),
    ),
    Case(
        "a process that dies inside a write leaves a part of it",
        base(f=O8).write("f", 0, N8),
        lambda d: d["f"] == "N4096O4096",
        0,
        (KILL,),
        (),
    ),
]
QUESTIONS = [
    pytest.param(case, model, answer, id=f"{case.name}: {model}")
    for case in CASES
    for answer, models in ((True, case.allowed), (False, case.refused))
    for model in models
]


@pytest.mark.parametrize(("case", "model", "answer"), QUESTIONS)
def test_rule(case: Case, model: Model, answer: bool) -> None:
    assert may(case.workload, model, case.holds, case.at) is answer


def modes(workload: Workload, model: Model, at: int) -> set[tuple[str, int]]:
    disk = disk_of(workload.trace, model)
    found = set()
    for state in crash_states(workload.trace, model):
        if any(first <= at <= last for first, last in state.points):
            for path, _, node in disk.tree(state).walk():
                found.add((path, getattr(node, "mode", 0)))
    return found


def test_a_mode_is_metadata_like_a_name() -> None:
    workload = base(f=O4).chmod("f", 0o600).rename("f", "g")
    assert ("g", 0o644) in modes(workload, POSIX, 2)
    for model in NAMED:
        assert ("g", 0o644) not in modes(workload, model, 2), model


def test_o_sync_persists_a_mode_and_o_dsync_does_not() -> None:
    for model in (POSIX, *NAMED):
        full = base(f=O4).chmod("f", 0o600).write("f", 0, N4, FULL)
        assert ("f", 0o644) not in modes(full, model, 2), model
    for model in (POSIX, *JOURNALLED):
        data = base(f=O4).chmod("f", 0o600).write("f", 0, N4, DATA)
        assert ("f", 0o644) in modes(data, model, 2), model


def test_a_tail_is_torn_by_sectors() -> None:
    workload = base(f=O4).truncate("f", 1000)
    torn = lambda d: d["f"] == "O1000z24O3072"  # noqa: E731
    assert may(workload, POSIX.with_options(tear=512), torn)
    assert not may(workload, POSIX, torn)
    assert not may(workload, BTRFS.with_options(tear=512), torn)


def test_directories_that_change_places_are_walked_up_to_the_root() -> None:
    """One that was synced moves out of its parent, which then moves into it."""
    workload = base().mkdir("p").mkdir("p/a").fsync("p/a").rename("p/a", "a").rename("p", "a/p")
    assert lost_moves(workload.fsync("a/p").trace) == frozenset()
