"""Workloads for the tests of the core: `Workload`, and small random traces.

`traces` is a Hypothesis strategy for what a program could really have done.
"""

from __future__ import annotations

from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.by_hand import TraceByHand
from pytest_statepersist.core.tree import OUTSIDE, ROOT

B = 4096
Content = bytes | str | None


class Workload(TraceByHand):
    """A trace by hand, with the ways in which programs save."""

    def save(self, path: str, data: bytes, *, temporary: str = "t", sync: bool = True) -> Workload:
        """Replace a file the right way; without ``sync`` the way that most programs do it."""
        self.create(temporary, data)
        if sync:
            self.fsync(temporary)
        self.rename(temporary, path)
        return self.fsync(path.rpartition("/")[0]) if sync else self


KINDS = (
    ["create"] * 3
    + ["write"] * 4
    + ["append"] * 2
    + ["rename"] * 4
    + ["unlink"] * 2
    + ["truncate"] * 2
    + ["fsync"] * 4
    + ["fsync directory"] * 2
    + ["link", "mkdir", "rmdir", "symlink", "chmod", "exchange", "zero", "allocate", "mtime"]
    + ["fdatasync", "msync", "sync", "O_SYNC", "O_DSYNC", "close", "failed", "nameless", "outside"]
)


NAMES = (
    ["create"] * 4
    + ["rename"] * 6
    + ["fsync"] * 6
    + ["unlink", "fsync directory", "mkdir", "mkdir", "exchange", "link", "failed", "sync"]
)
"""Kinds that change and sync names: little data, so that longer workloads can be listed."""


@st.composite
def traces(draw: st.DrawFn, *, scale: int = 1, most: int = 5, kinds: list[str] = KINDS) -> op.Trace:
    """A workload that could have run; sizes are divided by ``scale``, for torn sectors."""
    base: dict[str, Content] = {}
    block = B // scale
    for path, sizes in (("f", (2 * block, block + 500 // scale)), ("d/g", (block,)), ("e", ())):
        if draw(st.booleans()):
            base[path] = b"O" * draw(st.sampled_from(sizes)) if sizes else None
    w = Workload(base)
    letters = iter("NMLKJIHG")

    def data() -> bytes:
        length = draw(st.sampled_from([block, 700 // scale, block + 300 // scale, 2 * block]))
        return next(letters).encode() * length

    for _ in range(draw(st.integers(1, most))):
        files = sorted(w.sizes)
        inside = {place: inode for place, inode in w.names.items() if place[0] != OUTSIDE}
        reachable = {path: w.inode(path) for path in _paths(w)}
        named = {path: inode for path, inode in reachable.items() if inode in w.sizes}
        folders = {p: i for p, i in reachable.items() if i in w.directories}
        free = [
            path
            for folder in ("", *folders)
            for path in [f"{folder}/{name}".lstrip("/") for name in "fgtn"]
            if path.count("/") < 3 and path not in reachable
        ]
        kind = draw(st.sampled_from(kinds))
        if kind in ("create", "symlink", "mkdir", "nameless") or not files:
            if not free:
                continue
            path = draw(st.sampled_from(free))
            if kind == "mkdir":
                w.mkdir(path)
            elif kind == "symlink":
                w.symlink(path, "x")
            else:
                w.create("" if kind == "nameless" else path)
            continue
        inode = draw(st.sampled_from(files))
        size = w.sizes[inode]
        match kind:
            case "write" | "O_SYNC" | "O_DSYNC":
                offset = draw(st.sampled_from([0, block, 1000 // scale, size]))
                durability = {"write": op.Durability.NONE, "O_SYNC": op.Durability.FULL}.get(
                    kind, op.Durability.DATA
                )
                w.write(inode, offset, data(), durability)
            case "append":
                w.append(inode, data())
            case "truncate":
                w.truncate(inode, draw(st.sampled_from([0, 500 // scale, block, 5000 // scale])))
            case "allocate":
                grown = draw(st.sampled_from([None, size + block]))
                w.sizes[inode] = grown or size
                w.add(op.Allocate(inode, grown))
            case "zero":
                w.add(op.ZeroRange(inode, draw(st.sampled_from([0, 100])), block))
            case "chmod":
                everything = [*files, *w.directories]
                w.chmod(draw(st.sampled_from(everything)), draw(st.sampled_from([0o600, 0o700])))
            case "mtime":
                w.add(op.SetAttributes(inode, mtime=5))
            case "fsync":
                w.fsync(inode)
            case "fdatasync":
                w.fdatasync(inode)
            case "failed":
                w.add(op.Fsync(inode, failed=True))
            case "msync":
                w.msync(inode, draw(st.sampled_from([0, block])), block)
            case "sync":
                w.sync()
            case "close":
                w.close(inode)
            case "fsync directory":
                w.fsync(draw(st.sampled_from(["", *folders])))
            case "link" if free and inode in inside.values():
                w.link(inode, draw(st.sampled_from(free)))
            case "unlink" if named:
                w.unlink(draw(st.sampled_from(sorted(named))))
            case "rmdir":
                empty = [
                    p for p, i in folders.items() if not any(parent == i for parent, _ in w.names)
                ]
                if empty:
                    w.rmdir(draw(st.sampled_from(empty)))
            case "outside" if named and free:
                if draw(st.booleans()):
                    w.rename(draw(st.sampled_from(sorted(named))), f"/x{len(w)}")
                else:
                    w.create(f"/x{len(w)}").rename(f"/x{len(w) - 1}", draw(st.sampled_from(free)))
            case "exchange" if len(reachable) > 1:
                one, two = draw(st.permutations(sorted(reachable)))[:2]
                nested = one.startswith(two + "/") or two.startswith(one + "/")
                if not nested and w.inode(one) != w.inode(two):
                    w.rename(one, two, exchange=True)
            case "rename" if reachable:
                old = draw(st.sampled_from(sorted(reachable)))
                targets = [*free, *named] if old not in folders else free
                targets = [p for p in targets if p != old and not p.startswith(old + "/")]
                if targets:
                    new = draw(st.sampled_from(targets))
                    if named.get(new) != reachable[old]:
                        w.rename(old, new)
            case _:
                pass
    return w.trace


def _paths(w: Workload) -> list[str]:
    found, waiting = [], [("", ROOT)]
    while waiting:
        prefix, folder = waiting.pop()
        for (parent, name), inode in sorted(w.names.items()):
            if parent == folder:
                found.append(prefix + name)
                if inode in w.directories:
                    waiting.append((f"{prefix}{name}/", inode))
    return found
