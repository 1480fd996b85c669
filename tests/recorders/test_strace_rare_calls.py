"""System calls that hardly a program makes, each of which once changed a file unseen."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from pytest_statepersist.core import operations as op
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.recorders.strace import StraceRecorder
from tests.needs import needs_strace

libc = ctypes.CDLL(None, use_errno=True)


pytestmark = needs_strace


class _Handle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * 128),
    )


def open_by_handle(path: Path, flags: int) -> int:
    """Open a file as an NFS server or a backup does, without its name; skips where it cannot."""
    handle, mount = _Handle(128), ctypes.c_int()
    if not hasattr(libc, "name_to_handle_at") or libc.name_to_handle_at(
        -100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0
    ):
        pytest.skip("no handles of files on this file system")
    folder = os.open(path.parent, os.O_RDONLY)
    descriptor: int = libc.open_by_handle_at(folder, ctypes.byref(handle), flags)
    os.close(folder)
    if descriptor < 0:
        pytest.skip(f"no right to open a handle: {os.strerror(ctypes.get_errno())}")
    return descriptor


@pytest.mark.parametrize("truncated", [True, False])
def test_a_file_opened_by_its_handle(tmp_path: Path, truncated: bool) -> None:
    """Its O_TRUNC was not seen: the same bytes written again, unsynced, made a sound store."""
    file = tmp_path / "state"
    file.write_bytes(b"old")
    recorder = StraceRecorder(tmp_path)
    with recorder:
        descriptor = open_by_handle(file, os.O_RDWR | (os.O_TRUNC if truncated else 0))
        os.pwrite(descriptor, b"old", 0)
        os.close(descriptor)
        if truncated:
            with pytest.raises(BlindSpot, match="opened by its handle"):
                recorder.stop()
        else:
            assert [type(each) for each in recorder.stop().operations] == [op.Write, op.Close]


@pytest.mark.skipif(not hasattr(libc, "preadv2"), reason="no preadv2 here")
@pytest.mark.parametrize("offset", [-1, 0])
def test_a_read_that_moves_the_position_or_not(tmp_path: Path, offset: int) -> None:
    """With -1 preadv2 reads like readv; the write after it was taken for one at the start."""
    (tmp_path / "state").write_bytes(b"old")
    recorder = StraceRecorder(tmp_path)
    with recorder:
        descriptor = os.open(tmp_path / "state", os.O_RDWR)
        piece = ctypes.create_string_buffer(1)
        vector = (ctypes.c_void_p * 2)(ctypes.addressof(piece), 1)
        assert libc.preadv2(descriptor, vector, 1, ctypes.c_long(offset), 0, 0) == 1
        os.write(descriptor, b"ew")
        os.close(descriptor)
        trace = recorder.stop()
    writes = [each for each in trace.operations if isinstance(each, op.Write)]
    assert [(each.offset, each.data) for each in writes] == [(1 if offset else 0, b"ew")]


def test_what_a_child_acknowledges_is_not_covered(tmp_path: Path) -> None:
    """Its value stays in the child; the recording ended in an IndexError."""
    recorder = StraceRecorder(tmp_path)
    recorder.start()
    child = os.fork()
    if not child:
        recorder.acknowledge("in the child")
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(BlindSpot, match=r"child process.* acknowledge in the parent"):
        recorder.stop()


def test_what_the_parent_acknowledges_for_a_child_counts(tmp_path: Path) -> None:
    recorder = StraceRecorder(tmp_path)
    recorder.start()
    child = os.fork()
    if not child:
        (tmp_path / "state").write_bytes(b"new")
        os._exit(0)
    os.waitpid(child, 0)
    recorder.acknowledge("by the parent")
    trace = recorder.stop()
    assert [each.text for each in trace.acknowledgements] == ["by the parent"]
    assert trace.acknowledgements[0].position == len(trace)
