"""Atomic files: old or new, private from the first instant, synced, and no rubbish left."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_statepersist import CrashSimulator, raises
from pytest_statepersist.reference import atomic
from pytest_statepersist.reference.atomic import (
    create_temporary,
    fsync_directory,
    is_temporary,
    make_directory,
    read_bounded,
    remove_durably,
    remove_temporaries,
    temporary_name,
    write_atomic,
)
from pytest_statepersist.reference.errors import DamagedData, NotFound, StorageError
from tests.reference.kill_points import counting, each_kill_point, tree

POSIX = pytest.mark.skipif(os.name == "nt", reason="modes and links are POSIX here")


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert tree(tmp_path) == {"f": b"new"}


@POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_hold_from_the_first_instant(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    really_open, really_mkdir = os.open, os.mkdir

    def watched_open(path: str, flags: int, *args: int, **kwargs: int) -> int:
        descriptor = really_open(path, flags, *args, **kwargs)
        if flags & os.O_CREAT:
            seen.append(("file", stat.S_IMODE(os.fstat(descriptor).st_mode)))
        return descriptor

    def watched_mkdir(path: str, *args: int) -> None:
        really_mkdir(path, *args)
        seen.append(("directory", stat.S_IMODE(os.stat(path).st_mode)))

    def no_chmod(*args: object) -> None:
        raise AssertionError("permissions must not be repaired afterwards")

    monkeypatch.setattr(os, "open", watched_open)
    monkeypatch.setattr(os, "mkdir", watched_mkdir)
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, no_chmod)
    before = os.umask(umask)
    try:
        make_directory(tmp_path / "a" / "b")
        write_atomic(tmp_path / "a" / "b" / "f", b"x")
    finally:
        os.umask(before)
    assert seen == [("directory", 0o700), ("directory", 0o700), ("file", 0o600)]


@POSIX
def test_syncs_the_data_before_the_rename_and_the_name_after_it(tmp_path: Path) -> None:
    with counting() as counter:
        write_atomic(tmp_path / "f", b"x")
    kinds = [call.split("(")[0] for call in counter.log]
    assert kinds == ["open", "write", "fsync", "replace", "open", "fsync"]


@POSIX
def test_new_directories_are_synced_in_their_parents(tmp_path: Path) -> None:
    with counting() as counter:
        make_directory(tmp_path / "a" / "b")
    made = [call for call in counter.log if not call.startswith("fsync")]
    assert made == [
        f"open({tmp_path.parent})",  # whoever made tmp_path may have been killed
        f"mkdir({tmp_path / 'a'})",
        f"open({tmp_path})",
        f"mkdir({tmp_path / 'a' / 'b'})",
        f"open({tmp_path / 'a'})",
    ]
    assert len(counter.log) == 8


def test_a_directory_whose_maker_was_killed_is_synced_before_anything_is_made_in_it(
    tmp_path: Path,
) -> None:
    """The chain was cut short between the first name and its sync: the next call makes up for it.

    Else all that is saved below would go with that name when the power fails.
    """

    def workload(directory: Path) -> None:
        os.mkdir(directory / "a")  # and killed
        make_directory(directory / "a" / "b")
        write_atomic(directory / "a" / "b" / "f", b"saved")

    CrashSimulator(repairs=False).check(
        workload=workload,
        recover=lambda directory: (directory / "a/b/f").read_bytes(),
        before=raises(FileNotFoundError),
        after=b"saved",
    )


def test_what_may_not_be_read_nor_written_need_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the directory of all homes: nobody like us has made anything there."""

    def refuse(path: Path) -> None:
        if Path(path) == tmp_path.parent:
            raise StorageError(path, error) from error
        really(path)

    really, error = atomic.fsync_directory, PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(atomic, "fsync_directory", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    make_directory(tmp_path / "a")
    assert (tmp_path / "a").is_dir()
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    with pytest.raises(StorageError):
        make_directory(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_make_directory_accepts_an_existing_one_and_refuses_a_file(tmp_path: Path) -> None:
    make_directory(tmp_path / "a")
    make_directory(tmp_path / "a")
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StorageError):
        make_directory(tmp_path / "f")
    with pytest.raises(StorageError):
        make_directory(tmp_path / "f" / "below")


def test_a_kill_at_any_call_leaves_old_or_new(tmp_path: Path) -> None:
    root = tmp_path / "d"

    def make():  # type: ignore[no-untyped-def]
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        (root / "f").write_bytes(b"old")
        return lambda: write_atomic(root / "f", b"new")

    seen = set()

    def after() -> None:
        remove_temporaries(root)
        assert list(tree(root)) == ["f"]
        seen.add(tree(root)["f"])

    assert each_kill_point(make, after) >= 5
    assert seen == {b"old", b"new"}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_keeps_the_old_content_and_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    write_atomic(tmp_path / "f", b"old")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(StorageError) as caught:
            write_atomic(tmp_path / "f", b"new")
    assert caught.value.errno == code
    assert tree(tmp_path) == {"f": b"old"}


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: really(fd, bytes(data[:3])))
    write_atomic(tmp_path / "f", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_an_interrupt_cleans_up_and_passes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_atomic(tmp_path / "f", b"x")
        assert tree(tmp_path) == {}


@given(st.text(min_size=1).filter(lambda s: "/" not in s and "\0" not in s))
def test_only_temporaries_look_like_temporaries(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    temporary = temporary_name(name)
    assert is_temporary(temporary)
    assert len(temporary.encode()) <= 255
    assert is_temporary(f"dir/{temporary}")
    assert not is_temporary(temporary + "x")
    assert not is_temporary(f"{name}.json")


def test_left_over_temporaries_are_removed_and_nothing_else(tmp_path: Path) -> None:
    left = create_temporary(tmp_path / "f", b"half")
    keep = [tmp_path / name for name in ("f", ".f.tmp~", ".hidden", "x.tmp", ".f.12.tmp~")]
    for path in keep:
        path.write_bytes(b"")
    directory = tmp_path / temporary_name("d")
    directory.mkdir()
    assert remove_temporaries(tmp_path) == (left,)
    assert sorted(tmp_path.iterdir()) == sorted([*keep, directory])
    assert remove_temporaries(tmp_path / "absent") == ()


def test_remove_durably(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"x")
    with counting() as counter:
        remove_durably(tmp_path / "f")
    assert tree(tmp_path) == {}
    if os.name != "nt":
        assert [c.split("(")[0] for c in counter.log] == ["unlink", "open", "fsync"]
    with pytest.raises(NotFound):
        remove_durably(tmp_path / "f")
    remove_durably(tmp_path / "f", missing_ok=True)


@POSIX
def test_a_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "f").symlink_to("elsewhere")
    write_atomic(tmp_path / "f", b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert not (tmp_path / "f").is_symlink()


def test_read_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(DamagedData, match="more than 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(NotFound):
        read_bounded(tmp_path / "absent", 5)
    with pytest.raises((DamagedData, StorageError)):
        read_bounded(tmp_path, 5)


@POSIX
def test_read_bounded_refuses_pipes_and_links(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedData, match="regular"):
        read_bounded(tmp_path / "pipe", 5)
    (tmp_path / "link").symlink_to("f")
    with pytest.raises(DamagedData, match="symbolic link"):
        read_bounded(tmp_path / "link", 5, follow_symlinks=False)


def test_a_missing_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        write_atomic(tmp_path / "absent" / "f", b"x")
    with pytest.raises(StorageError, match="absent"):
        fsync_directory(tmp_path / "absent")
