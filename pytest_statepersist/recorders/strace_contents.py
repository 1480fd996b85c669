"""What calls on files' contents mean: open, read, write, sync, and memory that shows a file.

Belongs here: one function for each such system call, fed by `StraceModel`. Bytes that strace does
not print become an `Unknown` of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.operations import OUTSIDE, Durability
from pytest_statepersist.recorders.builder import FIELDS
from pytest_statepersist.recorders.strace_parser import (
    Call,
    descriptor,
    flags,
    members,
    number,
    text,
)
from pytest_statepersist.recorders.strace_tasks import Mapping, OpenFile, Task

if TYPE_CHECKING:
    from pytest_statepersist.recorders.strace_model import StraceModel

__all__ = ["CONTENTS", "Handler", "durability_of", "now_writable"]

Handler: TypeAlias = "Callable[[StraceModel, Task, Call], None]"

_POINTED = re.compile(r"\[(-?\d+)\]")


# -- files: open and close -----------------------------------------------------------------


def _open(model: StraceModel, task: Task, call: Call) -> None:
    arguments = call.arguments
    if call.name == "creat":
        _opened(model, task, call, None, arguments[0], "O_WRONLY|O_CREAT|O_TRUNC", arguments[1])
    elif call.name == "open":
        mode = arguments[2] if len(arguments) > 2 else "0"
        _opened(model, task, call, None, arguments[0], arguments[1], mode)
    elif call.name == "openat2":
        how = dict(part.partition("=")[::2] for part in members(arguments[2]))
        _opened(model, task, call, arguments[0], arguments[1], how["flags"], how.get("mode", "0"))
    else:
        mode = arguments[3] if len(arguments) > 3 else "0"
        _opened(model, task, call, arguments[0], arguments[1], arguments[2], mode)


def _open_by_handle(model: StraceModel, task: Task, call: Call) -> None:
    """A handle names no path, so which file it opened shows only where something else is done."""
    assert call.result is not None  # it succeeded
    task.descriptors.set(call.result, None)
    if "O_TRUNC" in flags(call.arguments[2]):
        model.not_known(
            f"{task.program} emptied a file that it opened by its handle (open_by_handle_at), and "
            "which one that was is not shown; open it by its name in this test",
            task.program,
        )


def _opened(
    model: StraceModel,
    task: Task,
    call: Call,
    directory: str | None,
    path: str,
    how: str,
    mode: str,
) -> None:
    wanted = flags(how)
    result = call.result
    assert result is not None  # it succeeded
    if "O_TMPFILE" in wanted:
        inode: int | None = model.builder.create(
            OUTSIDE, "", model.moment, mode=model.mode_of(task, mode)
        )
    else:
        inode = _opened_inode(model, task, call, directory, text(path), wanted, mode)
    if inode is None or "O_PATH" in wanted:
        task.descriptors.set(result, None)
        return
    model.builder.opened(inode)
    file = OpenFile(inode, append="O_APPEND" in wanted, durability=durability_of(wanted))
    task.descriptors.set(result, file, close_on_exec="O_CLOEXEC" in wanted)


def _opened_inode(
    model: StraceModel,
    task: Task,
    call: Call,
    directory: str | None,
    path: bytes,
    wanted: frozenset[str],
    mode: str,
) -> int | None:
    follow = "O_NOFOLLOW" not in wanted and not {"O_CREAT", "O_EXCL"} <= wanted
    place = model.locate(task, directory, path, follow=follow)
    inode = place.inode
    shown = place.name if place.parent == OUTSIDE else model.shown_path(place)
    if not model.is_state(shown):
        return None
    if inode is None:
        outside = place.parent == OUTSIDE
        if "O_CREAT" not in wanted or (outside and not _is_regular(shown)):
            return None
        inode = model.builder.create(
            place.parent, place.name, model.moment, mode=model.mode_of(task, mode)
        )
        if outside and "O_EXCL" not in wanted:
            model.findings.presumed.add(inode)
        model.changed(call, inode)
    elif "O_TRUNC" in wanted and model.builder[inode].entries is None:
        model.builder.truncate(inode, 0, model.moment)
        model.changed(call, inode)
    return inode


def _close(model: StraceModel, task: Task, call: Call) -> None:
    task.descriptors.close(_plain_descriptor(call.arguments[0]))


def _close_range(model: StraceModel, task: Task, call: Call) -> None:
    how = flags(call.arguments[2])
    if "CLOSE_RANGE_UNSHARE" in how:
        task.unshare(frozenset({"CLONE_FILES"}))
    first, last = (_plain_descriptor(argument) for argument in call.arguments[:2])
    for held in task.descriptors.within(first, last):
        if "CLOSE_RANGE_CLOEXEC" in how:
            task.descriptors.mark(held, close_on_exec=True)
        else:
            task.descriptors.close(held)


def _dup(model: StraceModel, task: Task, call: Call) -> None:
    result = call.result
    assert result is not None  # it succeeded
    source = descriptor(call.arguments[0])
    if source.number == result:
        return
    close_on_exec = len(call.arguments) > 2 and "O_CLOEXEC" in flags(call.arguments[2])
    file = model.file_of(task, source)
    task.descriptors.set(result, file, close_on_exec=close_on_exec)


def _fcntl(model: StraceModel, task: Task, call: Call) -> None:
    command, result = call.arguments[1], call.result
    assert result is not None  # it succeeded
    source = descriptor(call.arguments[0])
    if command in ("F_DUPFD", "F_DUPFD_CLOEXEC"):
        file = model.file_of(task, source)
        task.descriptors.set(result, file, close_on_exec=command.endswith("CLOEXEC"))
    elif command == "F_SETFD" and source.number is not None:
        marked = "FD_CLOEXEC" in flags(call.arguments[2])
        task.descriptors.mark(source.number, close_on_exec=marked)
    elif command == "F_SETFL":
        changed = model.file_of(task, source)
        if changed is not None:
            changed.append = "O_APPEND" in flags(call.arguments[2])


# -- files: contents -----------------------------------------------------------------------


def _read(model: StraceModel, task: Task, call: Call) -> None:
    file = task.descriptors.get(_plain_descriptor(call.arguments[0]))
    if file is not None and file.position is not None and call.result is not None:
        file.position += call.result


def _read_at(model: StraceModel, task: Task, call: Call) -> None:
    """An offset of -1 is the file's position, which then moves (preadv2(2))."""
    if number(call.arguments[3]) in (-1, (1 << 64) - 1):
        _read(model, task, call)


def _lseek(model: StraceModel, task: Task, call: Call) -> None:
    file = model.argument_file(task, call)
    if file is not None:
        file.position = call.result


def _write(model: StraceModel, task: Task, call: Call) -> None:
    file = model.argument_file(task, call)
    if file is None:
        return
    vector = call.name in ("writev", "pwritev", "pwritev2")
    length = call.result
    assert length is not None  # it succeeded
    data = None
    if not call.arguments[1].endswith("..."):
        data = (_vector if vector else text)(call.arguments[1])[:length]
    how = flags(call.arguments[4]) if call.name == "pwritev2" else frozenset()
    durability = file.durability
    if "RWF_SYNC" in how:
        durability = Durability.FULL
    elif "RWF_DSYNC" in how and durability is Durability.NONE:
        durability = Durability.DATA
    given = number(call.arguments[3]) if call.name.startswith("p") else -1
    append = file.append or "RWF_APPEND" in how
    if given >= 0:
        offset = model.builder[file.inode].size if append else given
    else:
        found = model.position(call, file, append=append)
        if found is None:
            return
        offset = found
        file.position = offset + length
    if data is None:
        data = model.unknown(call, file.inode, offset, length, None)
    model.put(call, file, offset, data, durability)


def _move(
    model: StraceModel,
    call: Call,
    source: OpenFile | None,
    source_offset: int | None,
    target: OpenFile | None,
    target_offset: int | None,
) -> None:
    """Record bytes that went from file to file inside the kernel.

    Without an offset the file's position is used, and moved once both are known: the two files
    may be one.
    """
    length = call.result or 0
    taken = source_offset
    if taken is None and source is not None:
        taken = source.position
    if target is not None and length:
        put = target_offset
        if put is None:
            put = model.position(call, target, append=target.append)
        if put is not None:
            origin = None if source is None or taken is None else (source.inode, taken)
            data = model.unknown(call, target.inode, put, length, origin)
            model.put(call, target, put, data)
            if target_offset is None:
                target.position = put + length
    if source is not None and source_offset is None and taken is not None:
        source.position = taken + length


def _sendfile(model: StraceModel, task: Task, call: Call) -> None:
    target, source = (model.argument_file(task, call, index) for index in (0, 1))
    _move(model, call, source, _pointed(call.arguments[2]), target, None)


def _copy_file_range(model: StraceModel, task: Task, call: Call) -> None:
    source, target = (model.argument_file(task, call, index) for index in (0, 2))
    offsets = _pointed(call.arguments[1]), _pointed(call.arguments[3])
    _move(model, call, source, offsets[0], target, offsets[1])


def _ftruncate(model: StraceModel, task: Task, call: Call) -> None:
    file = model.argument_file(task, call)
    if file is not None:
        file.written = True
        _resize(model, call, file.inode, number(call.arguments[1]))


def _truncate(model: StraceModel, task: Task, call: Call) -> None:
    inode = model.locate(task, None, text(call.arguments[0])).inode
    if inode is not None:
        _resize(model, call, inode, number(call.arguments[1]))


def _resize(model: StraceModel, call: Call, inode: int, size: int) -> None:
    model.builder.truncate(inode, size, model.moment)
    model.changed(call, inode)


def _fallocate(model: StraceModel, task: Task, call: Call) -> None:
    file = model.argument_file(task, call)
    if file is None:
        return
    how = flags(call.arguments[1])
    offset, length = number(call.arguments[2]), number(call.arguments[3])
    size = model.builder[file.inode].size
    end = offset + length
    file.written = True
    if how & {"FALLOC_FL_COLLAPSE_RANGE", "FALLOC_FL_INSERT_RANGE"}:
        path = model.builder[file.inode].path
        model.not_known(f"fallocate moved a part of {path!r}, which no model knows", path)
        return
    if how & {"FALLOC_FL_PUNCH_HOLE", "FALLOC_FL_ZERO_RANGE"} and offset < size:
        zeroed = min(end, size) - offset
        model.builder.zero_range(file.inode, offset, zeroed, model.moment)
    if not how & {"FALLOC_FL_PUNCH_HOLE"}:
        grown = end if end > size and "FALLOC_FL_KEEP_SIZE" not in how else None
        model.builder.allocate(file.inode, model.moment, size=grown)
    model.changed(call, file.inode)


def _clone_file(model: StraceModel, task: Task, call: Call) -> None:
    file = model.argument_file(task, call)
    if file is not None and call.arguments[1] in ("FICLONE", "FICLONERANGE"):
        path = model.builder[file.inode].path
        model.not_known(f"{path!r} was made a clone of another file", path)
    elif file is not None and "ATOMIC_WRITE" in call.arguments[1]:
        path = model.builder[file.inode].path
        model.not_known(f"{path!r} was written atomically by F2FS", path)


# -- syncs ---------------------------------------------------------------------------------


def _fsync(model: StraceModel, task: Task, call: Call) -> None:
    file = model.argument_file(task, call)
    if file is not None:
        only_data = call.name == "fdatasync"
        failed = bool(call.error)
        model.builder.fsync(file.inode, model.moment, data_only=only_data, failed=failed)
        model.changed(call, file.inode)


def _sync(model: StraceModel, task: Task, call: Call) -> None:
    if call.name == "syncfs" and model.argument_file(task, call) is None:
        return  # whether it was about the file system of the directory is not known
    if call.error:
        # Since Linux 5.8 syncfs tells of pages that could not be written (syncfs(2)): they count as
        # clean from then on, as after an fsync that failed, whichever file they are of.
        for inode in _written(model):
            model.builder.fsync(inode, model.moment, failed=True)
            model.changed(call, inode)
        return
    model.builder.sync_all(model.moment)
    model.changed(call, 0)
    for inode in model.mapped:
        model.synced_map(call, inode)


def _written(model: StraceModel) -> list[int]:
    """Return the files inside whose content was changed so far, the first one first."""
    kinds = (op.Write, op.Truncate, op.Allocate, op.ZeroRange)
    found = dict.fromkeys(row[FIELDS] for row in model.builder.entries() if row[0] in kinds)
    known = model.builder.inodes
    return [number for number in found if number in known and known[number].inside]


def _msync(model: StraceModel, task: Task, call: Call) -> None:
    if call.error or "MS_SYNC" not in flags(call.arguments[2]):
        return
    address, length = number(call.arguments[0]), number(call.arguments[1])
    for mapping in task.memory.maps:
        begin = max(address, mapping.address)
        end = min(address + length, mapping.address + mapping.length)
        if mapping.shared and begin < end:
            offset = mapping.offset + begin - mapping.address
            inode = mapping.file.inode
            model.builder.sync_range(inode, offset, end - begin, model.moment)
            model.changed(call, inode, synced=(offset, offset + end - begin))


# -- memory --------------------------------------------------------------------------------


def _mmap(model: StraceModel, task: Task, call: Call) -> None:
    how = flags(call.arguments[3])
    assert call.result is not None  # it succeeded
    length = number(call.arguments[1])
    if "MAP_FIXED" in how:
        _forget_maps(model, task, call.result, length)
    if not task.descriptors.within(0, 1 << 31) or "MAP_ANONYMOUS" in how:
        return
    file = model.argument_file(task, call, 4)
    if file is None:
        return
    shared = bool(how & {"MAP_SHARED", "MAP_SHARED_VALIDATE"})
    writable = shared and "PROT_WRITE" in flags(call.arguments[2])
    offset = number(call.arguments[5])
    mapping = Mapping(call.result, length, offset, file, shared, writable)
    file.references += 1
    task.memory.maps.append(mapping)
    if writable:
        now_writable(model, mapping)


def now_writable(model: StraceModel, mapping: Mapping) -> None:
    """Note that memory which shows a file can be written to from here on."""
    mapping.writable = True
    mapping.file.written = True
    model.now_mapped(mapping.file.inode)


def _mprotect(model: StraceModel, task: Task, call: Call) -> None:
    if "PROT_WRITE" not in flags(call.arguments[2]):
        return
    address, length = number(call.arguments[0]), number(call.arguments[1])
    for mapping in task.memory.maps:
        overlaps = address < mapping.address + mapping.length
        if mapping.shared and overlaps and mapping.address < address + length:
            now_writable(model, mapping)


def _munmap(model: StraceModel, task: Task, call: Call) -> None:
    _forget_maps(model, task, number(call.arguments[0]), number(call.arguments[1]))


def _mremap(model: StraceModel, task: Task, call: Call) -> None:
    address = number(call.arguments[0])
    for mapping in task.memory.maps:
        if mapping.address == address and call.result is not None:
            mapping.address, mapping.length = call.result, number(call.arguments[2])


def _forget_maps(model: StraceModel, task: Task, address: int, length: int) -> None:
    """Drop the maps of a range; one that is cut in two is kept whole, which only adds doubt."""
    for mapping in list(task.memory.maps):
        inside = address <= mapping.address
        if inside and mapping.address + mapping.length <= address + _pages(length):
            task.memory.maps.remove(mapping)
            task.descriptors.release(mapping.file)
    model.some_unmapped()


def _plain_descriptor(argument: str) -> int:
    return int(argument.partition("<")[0], 0)


def _pages(length: int) -> int:
    return -(-length // 4096) * 4096


def _pointed(argument: str) -> int | None:
    """Decode ``[10]`` or ``[10] => [15]``: an offset that the kernel was given by address."""
    found = _POINTED.match(argument)
    return None if found is None else int(found[1])


def _vector(argument: str) -> bytes:
    pieces = []
    for part in members(argument):
        base = members(part)[0].partition("=")[2]
        pieces.append(b"" if base == "NULL" else text(base))
    return b"".join(pieces)


def durability_of(wanted: frozenset[str]) -> Durability:
    """Return what a write through a descriptor opened with these flags promises."""
    if wanted & {"O_SYNC", "__O_SYNC"}:
        return Durability.FULL
    return Durability.DATA if "O_DSYNC" in wanted else Durability.NONE


def _is_regular(path: str) -> bool:
    """Say whether a path outside may be a file: device nodes and pipes are left alone."""
    return not path.startswith(("/dev/", "/proc/", "/sys/")) or path.startswith("/dev/shm/")


CONTENTS: dict[str, Handler] = {
    name: handler
    for names, handler in (
        ("open openat openat2 creat", _open),
        ("open_by_handle_at", _open_by_handle),
        ("close", _close),
        ("close_range", _close_range),
        ("dup dup2 dup3", _dup),
        ("fcntl fcntl64", _fcntl),
        ("read readv", _read),
        ("preadv2", _read_at),
        ("lseek", _lseek),
        ("write writev pwrite64 pwritev pwritev2", _write),
        ("sendfile sendfile64", _sendfile),
        ("copy_file_range splice", _copy_file_range),
        ("ftruncate ftruncate64", _ftruncate),
        ("truncate truncate64", _truncate),
        ("fallocate", _fallocate),
        ("ioctl", _clone_file),
        ("fsync fdatasync", _fsync),
        ("sync syncfs", _sync),
        ("msync", _msync),
        ("mmap mmap2", _mmap),
        ("mprotect pkey_mprotect", _mprotect),
        ("munmap", _munmap),
        ("mremap", _mremap),
    )
    for name in names.split()
}
"""Names of system calls and what handles them."""
