"""What is shown on disk is the state that was asked for, in whatever order states come."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.models import MODELS
from pytest_statepersist.core.states import crash_states, disk_of
from pytest_statepersist.core.tree import File, Tree, read_content, size_of
from pytest_statepersist.explorer.materialise import Materialiser
from pytest_statepersist.recorders.scan import scan

KINDS = ["create", "write", "truncate", "rename", "unlink", "link", "fsync", "mkdir", "mode"]
BASE = Tree.from_mapping({"f": b"O" * 5000, "d/g": b"old", "link": "f"})


@st.composite
def traces(draw: st.DrawFn) -> op.Trace:
    """Short traces that are possible: every name and inode exists when it is used."""
    names = {(0, "f"): BASE.resolve("f"), (BASE.resolve("d"), "g"): BASE.resolve("d/g")}
    directories = [0, BASE.resolve("d")]
    sizes = {BASE.resolve("f"): 5000, BASE.resolve("d/g"): 3}
    operations: list[op.Operation] = []
    number = 100
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(KINDS))
        place = (draw(st.sampled_from(directories)), draw(st.sampled_from("abf")))
        known = draw(st.sampled_from(sorted(names))) if names else None
        if kind == "create" and place not in names:
            number += 1
            operations.append(op.Create(number, *place, time=len(operations) + 1000))
            names[place], sizes[number] = number, 0
        elif kind == "mkdir" and place not in names:
            number += 1
            operations.append(op.Mkdir(number, *place))
            names[place] = number
            directories.append(number)
        elif known is None:
            continue
        elif kind == "fsync":
            operations.append(op.Fsync(draw(st.sampled_from([0, names[known]]))))
        elif names[known] in directories:
            continue
        elif kind == "write":
            offset = draw(st.sampled_from([0, 100, 4096, sizes[names[known]]]))
            data = bytes([draw(st.integers(65, 90))]) * draw(st.sampled_from([1, 300, 9000]))
            operations.append(op.Write(names[known], offset, data, time=len(operations) + 1000))
            sizes[names[known]] = max(sizes[names[known]], offset + len(data))
        elif kind == "truncate":
            size = draw(st.sampled_from([0, 10, 4096, 6000]))
            operations.append(op.Truncate(names[known], size))
            sizes[names[known]] = size
        elif kind == "mode":
            operations.append(
                op.SetAttributes(
                    names[known],
                    mode=draw(st.sampled_from([0o600, 0o640])),
                    mtime=draw(st.sampled_from([None, 5])),
                    xattrs=draw(st.sampled_from([(), (("user.a", b"1"),), (("user.a", None),)])),
                )
            )
        elif kind == "unlink":
            operations.append(op.Unlink(names.pop(known), *known))
        elif kind == "link" and place not in names:
            operations.append(op.Link(names[known], *place))
            names[place] = names[known]
        elif (
            kind == "rename"
            and names.get(place) not in directories
            and names.get(place) != names[known]
        ):
            inode = names.pop(known)
            operations.append(op.Rename(inode, *known, *place, replaced=names.get(place)))
            names[place] = inode
    return op.Trace(BASE, tuple(operations))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK):
        return tmp_path_factory.mktemp("shown")
    return tmp_path_factory.mktemp("shown")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    trace=traces(),
    choices=st.lists(
        st.tuples(st.sampled_from(sorted(MODELS)), st.integers(0), st.booleans()), max_size=12
    ),
    sole=st.booleans(),
)
def test_any_state_after_any_other(
    scratch: Path, trace: op.Trace, choices: list[tuple[str, int, bool]], sole: bool
) -> None:
    root = scratch / str(len(list(scratch.iterdir())))
    (root / "state").mkdir(parents=True)
    (root / "aside").mkdir()
    directory = str(root / "state")
    shown = Materialiser(directory, str(root / "aside"), trace, present=False, sole=sole)
    disks = {name: disk_of(trace, MODELS[name]) for name in {name for name, _, _ in choices}}
    states = {name: list(crash_states(trace, MODELS[name], limit=200)) for name in disks}
    for name, number, damage in choices:
        state = states[name][number % len(states[name])]
        shown.show(disks[name], state)
        wanted = disks[name].tree(state)
        found = scan(root / "state").tree
        assert wanted.differences(found) == []
        for path, inode, node in wanted.walk():
            if isinstance(node, File) and node.mtime is not None:
                assert os.stat(root / "state" / path).st_mtime_ns == node.mtime, inode
        if damage and "f" in wanted and isinstance(wanted["f"], File):
            (root / "state" / "f").write_bytes(b"damaged")
            with suppress(OSError):  # some file systems have no extended attributes
                os.setxattr(root / "state" / "f", "user.b", b"damaged")
            shown.heal({"f"})
            assert wanted.differences(scan(root / "state").tree) == []
    shown.close()


def test_what_a_recovery_changed_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "aside").mkdir()
    trace = op.Trace(BASE)
    disk = disk_of(trace, MODELS["posix"])
    shown = Materialiser(str(tmp_path / "state"), str(tmp_path / "aside"), trace, present=False)
    state = disk.in_order(-1)
    shown.show(disk, state)
    root = tmp_path / "state"
    (root / "f").write_bytes(b"damaged")
    (root / "new").mkdir()
    (root / "new" / "file").write_bytes(b"x")
    os.rename(root / "d", root / "moved")
    os.unlink(root / "link")
    shown.heal({"f", "new", "d", "moved", "link"})
    assert BASE.differences(scan(root).tree) == []


def test_a_large_file_is_moved_aside_and_patched_in_place(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "aside").mkdir()
    big = os.urandom(3 << 20)
    (tmp_path / "state" / "big").write_bytes(big)
    base = scan(tmp_path / "state", keep=None).tree
    inode = base.resolve("big")
    assert inode is not None
    trace = op.Trace(
        base,
        (
            op.Write(inode, 4096, b"N" * 8192),
            op.Truncate(inode, 1 << 20),
            op.Rename(inode, 0, "big", 0, "moved"),
        ),
    )
    disk = disk_of(trace, MODELS["posix"])
    (tmp_path / "copy").mkdir()
    shown = Materialiser(str(tmp_path / "copy"), str(tmp_path / "aside"), trace, present=False)
    for state in crash_states(trace, MODELS["posix"]):
        shown.show(disk, state)
        (path,) = (tmp_path / "copy").iterdir()
        expected = disk.tree(state)[path.name].content
        assert path.stat().st_size == size_of(expected)
        assert path.read_bytes() == read_content(expected)


def test_a_changed_file_with_two_names_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "aside").mkdir()
    inode = BASE.resolve("f")
    assert inode is not None
    trace = op.Trace(BASE, (op.Link(inode, 0, "g"),))
    disk = disk_of(trace, MODELS["posix"])
    shown = Materialiser(str(tmp_path / "state"), str(tmp_path / "aside"), trace, present=False)
    state = disk.in_order(0)
    shown.show(disk, state)
    (tmp_path / "state" / "g").write_bytes(b"damaged")
    shown.heal({"g"})
    assert disk.tree(state).differences(scan(tmp_path / "state").tree) == []
