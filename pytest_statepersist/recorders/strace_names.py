"""What calls on names, attributes and processes mean.

Belongs here: one function for each such system call, fed by `StraceModel`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pytest_statepersist.core.operations import OUTSIDE
from pytest_statepersist.recorders.acl import ACCESS, mode_of_acl
from pytest_statepersist.recorders.builder import Place
from pytest_statepersist.recorders.labels import labels
from pytest_statepersist.recorders.strace_parser import (
    Call,
    clone_flags,
    descriptor,
    flags,
    members,
    number,
    text,
)
from pytest_statepersist.recorders.strace_tasks import Task

if TYPE_CHECKING:
    from pytest_statepersist.recorders.strace_contents import Handler
    from pytest_statepersist.recorders.strace_model import StraceModel

__all__ = ["NAMES"]

_TIME = re.compile(r"\{tv_sec=(-?\d+), tv_n?u?sec=(\d+)\}")


# -- names ---------------------------------------------------------------------------------


def _rename(model: StraceModel, task: Task, call: Call) -> None:
    old, new = _two_places(model, task, call, "rename")
    how = flags(call.arguments[4]) if call.name == "renameat2" else frozenset()
    if "RENAME_WHITEOUT" in how:
        model.not_known(f"{old.name!r} was renamed with a whiteout", old.name)
        return
    if old.inode is None and old.parent == OUTSIDE:
        if new.parent == OUTSIDE or not old.name:
            return
        old = old._replace(inode=_came_from_outside(model, call, old))
    model.builder.rename(
        old.parent,
        old.name,
        new.parent,
        new.name,
        model.moment,
        exchange="RENAME_EXCHANGE" in how,
    )
    if old.inode is not None:
        model.changed(call, old.inode)


def _came_from_outside(model: StraceModel, call: Call, old: Place) -> int:
    """Make a file known that the recording did not see being made: it counts as written now."""
    content, mode = model.known.arrivals.get(call.end + 1, (b"", 0o644))
    inode = model.builder.adopt(old.name, content, model.moment, mode=mode)
    model.findings.arrivals[call.end + 1] = inode
    return inode


def _two_places(model: StraceModel, task: Task, call: Call, plain: str) -> tuple[Place, Place]:
    a = call.arguments
    if call.name == plain:
        old = model.locate(task, None, text(a[0]), follow=False)
        return old, model.locate(task, None, text(a[1]), follow=False)
    follow = call.name == "linkat" and "AT_SYMLINK_FOLLOW" in flags(a[4])
    old = model.locate(task, a[0], text(a[1]), follow=follow)
    return old, model.locate(task, a[2], text(a[3]), follow=False)


def _link(model: StraceModel, task: Task, call: Call) -> None:
    old, new = _two_places(model, task, call, "link")
    inode = old.inode
    if inode is None:
        if old.parent != OUTSIDE or new.parent == OUTSIDE or not old.name:
            return
        inode = _came_from_outside(model, call, old)
    model.builder.link(inode, new.parent, new.name, model.moment)
    model.changed(call, inode)


def _unlink(model: StraceModel, task: Task, call: Call) -> None:
    place, directory = _named(model, task, call), call.name == "rmdir"
    if call.name == "unlinkat":
        directory = "AT_REMOVEDIR" in flags(call.arguments[2])
    if place.inode is None:
        shown = place.name if place.parent == OUTSIDE else model.shown_path(place)
        if place.parent == OUTSIDE or not model.is_state(shown):
            return
    else:
        model.changed(call, place.inode)
    if directory:
        model.builder.rmdir(place.parent, place.name, model.moment)
    else:
        model.builder.unlink(place.parent, place.name, model.moment)


def _named(model: StraceModel, task: Task, call: Call) -> Place:
    """Return the last component that a call names, whether or not the call has a directory."""
    if call.name.endswith("at"):
        return model.locate(task, call.arguments[0], text(call.arguments[1]), follow=False)
    return model.locate(task, None, text(call.arguments[0]), follow=False)


def _mkdir(model: StraceModel, task: Task, call: Call) -> None:
    place = _named(model, task, call)
    mode = model.mode_of(task, call.arguments[-1])
    model.changed(call, model.builder.mkdir(place.parent, place.name, model.moment, mode=mode))


def _mknod(model: StraceModel, task: Task, call: Call) -> None:
    at = 1 if call.name == "mknod" else 2
    kind, _, mode = call.arguments[at].rpartition("|")
    place = _named(model, task, call)
    if kind in ("", "S_IFREG"):
        made = model.mode_of(task, mode)
        inode = model.builder.create(place.parent, place.name, model.moment, mode=made)
        model.changed(call, inode)
    elif place.parent != OUTSIDE:
        model.not_known(f"{place.name!r} is a {kind}, not a file", place.name)


def _symlink(model: StraceModel, task: Task, call: Call) -> None:
    target = os.fsdecode(text(call.arguments[0]))
    directory = call.arguments[1] if call.name == "symlinkat" else None
    place = model.locate(task, directory, text(call.arguments[-1]), follow=False)
    inode = model.builder.symlink(place.parent, place.name, target, model.moment)
    model.changed(call, inode)


# -- attributes ----------------------------------------------------------------------------


def _attribute_inode(model: StraceModel, task: Task, call: Call) -> int | None:
    """Return the inode of chmod and its family, by descriptor, by path, or by both."""
    a, name = call.arguments, call.name
    if name in ("fchmod", "fchown", "fsetxattr", "fremovexattr"):
        file = model.argument_file(task, call)
        return None if file is None else file.inode
    follow = not name.startswith("l") and not any("NOFOLLOW" in part for part in a[2:])
    if name in ("fchmodat", "fchmodat2", "fchownat", "utimensat", "futimesat"):
        path = b"" if a[1] == "NULL" else text(a[1])
        return model.locate(task, a[0], path, follow=follow).inode
    return model.locate(task, None, text(a[0]), follow=follow).inode


def _chmod(model: StraceModel, task: Task, call: Call) -> None:
    inode = _attribute_inode(model, task, call)
    if inode is not None:
        at = 2 if call.name.startswith("fchmodat") else 1
        mode = number(call.arguments[at]) & 0o7777
        model.builder.set_attributes(inode, model.moment, mode=mode)
        model.changed(call, inode)


def _chown(model: StraceModel, task: Task, call: Call) -> None:
    inode = _attribute_inode(model, task, call)
    at = 2 if call.name == "fchownat" else 1
    owner = number(call.arguments[at]), number(call.arguments[at + 1])
    if inode is not None and min(owner) >= 0:
        model.builder.set_attributes(inode, model.moment, owner=owner)
        model.changed(call, inode)


def _utime(model: StraceModel, task: Task, call: Call) -> None:
    inode = _attribute_inode(model, task, call)
    if inode is None:
        return
    times = call.arguments[2 if call.name in ("utimensat", "futimesat") else 1]
    mtime = model.moment[1]
    if times != "NULL":
        if call.name == "utime":
            found = re.search(r"modtime=(-?\d+)", times)
            mtime = int(found[1]) * 10**9 if found else None
        else:
            second = members(times)[1]
            if "UTIME_OMIT" in second:
                return
            given = _TIME.match(second)
            if given is not None:
                unit = 1 if "nsec" in second else 1000
                mtime = int(given[1]) * 10**9 + int(given[2]) * unit
    model.builder.set_attributes(inode, model.moment, mtime=mtime)
    model.changed(call, inode)


def _xattr(model: StraceModel, task: Task, call: Call) -> None:
    inode = _attribute_inode(model, task, call)
    if inode is not None:
        name = os.fsdecode(text(call.arguments[1]))
        removed = "remove" in call.name
        value = None if removed else text(call.arguments[2])
        mode = mode_of_acl(value) if value is not None and name == ACCESS else None
        xattrs = labels(model.builder, inode, name, value)
        model.builder.set_attributes(inode, model.moment, mode=mode, xattrs=xattrs)
        model.changed(call, inode)


# -- processes -----------------------------------------------------------------------------


def _clone(model: StraceModel, task: Task, call: Call) -> None:
    child = call.result
    if child and child not in model.tasks:
        model.tasks[child] = task.child(model.next_number(), clone_flags(call))


def _execve(model: StraceModel, task: Task, call: Call) -> None:
    program = task.program
    at = 1 if call.name == "execveat" else 0
    if len(call.arguments) > at:
        program = os.path.basename(os.fsdecode(text(call.arguments[at]))) or program
    task.exec(program)
    model.some_unmapped()


def _unshare(model: StraceModel, task: Task, call: Call) -> None:
    task.unshare(flags(call.arguments[0]))


def _chdir(model: StraceModel, task: Task, call: Call) -> None:
    if call.name == "fchdir":
        found = descriptor(call.arguments[0])
        file = model.file_of(task, found)
        if file is not None:
            task.surroundings.cwd = file.inode
        elif found.path is not None:
            task.surroundings.cwd = model.directory_of(os.fsdecode(found.path))
        return
    path = text(call.arguments[0])
    place = model.locate(task, None, path)
    if place.inode is not None:
        task.surroundings.cwd = place.inode
    elif place.parent == OUTSIDE:
        task.surroundings.cwd = place.name


def _umask(model: StraceModel, task: Task, call: Call) -> None:
    task.surroundings.umask = number(call.arguments[0])


def _refuse(model: StraceModel, task: Task, call: Call) -> None:
    if call.name == "io_submit" and model.builder.directory.encode().hex() not in (
        "".join(call.arguments).replace("\\x", "")
    ):
        return
    what = {
        "io_uring_setup": "io_uring, whose operations are no system calls",
        "io_uring_enter": "io_uring, whose operations are no system calls",
        "io_submit": "asynchronous I/O (io_submit), whose end is not seen",
        "chroot": "another root directory, so that its paths mean something else",
        "pivot_root": "another root directory, so that its paths mean something else",
    }[call.name]
    model.not_known(
        f"{task.program} uses {what}; switch it off for this test (most libraries have a "
        "setting or an environment variable)",
        task.program,
    )


NAMES: dict[str, Handler] = {
    name: handler
    for names, handler in (
        ("rename renameat renameat2", _rename),
        ("link linkat", _link),
        ("unlink unlinkat rmdir", _unlink),
        ("mkdir mkdirat", _mkdir),
        ("mknod mknodat", _mknod),
        ("symlink symlinkat", _symlink),
        ("chmod fchmod fchmodat fchmodat2", _chmod),
        ("chown lchown fchown fchownat", _chown),
        ("utimensat utimes futimesat utime", _utime),
        ("setxattr lsetxattr fsetxattr", _xattr),
        ("removexattr lremovexattr fremovexattr", _xattr),
        ("clone clone3 fork vfork", _clone),
        ("execve execveat", _execve),
        ("unshare", _unshare),
        ("chdir fchdir", _chdir),
        ("umask", _umask),
        ("io_uring_setup io_uring_enter io_submit chroot pivot_root", _refuse),
    )
    for name in names.split()
}
"""Names of system calls and what handles them."""
