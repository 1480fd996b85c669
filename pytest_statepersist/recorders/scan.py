"""A real directory read into a tree.

Belongs here: `scan`, and `FileSource`, the content of a large file that stays on disk. Rules:

1. No large file is ever held in memory: its pieces are read when somebody asks.
2. Contents that must stay as they are while the directory changes are copied into a ``keep``
   directory first: a reflink where the file system can do it, never a hard link.
3. What a tree cannot hold (a fifo, a socket, a device) is an error that names it, unless the
   caller chose to leave it out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pytest_statepersist.core.tree import (
    LARGE,
    ROOT,
    Content,
    Directory,
    File,
    Node,
    Symlink,
    Tree,
    size_of,
)
from pytest_statepersist.errors import UserError
from pytest_statepersist.recorders import real
from pytest_statepersist.recorders.builder import Identity

__all__ = ["FileSource", "Keep", "Scan", "Seen", "keep_copy", "read_tree", "scan", "survey"]

_CHUNK = 1 << 20


class FileSource:
    """The content of a real file, read a piece at a time; the digest is computed when asked for.

    ``path`` must not change as long as the object is used.
    """

    __slots__ = ("_digest", "owner", "path", "size")

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.owner: object = None
        """What must live as long as this object does."""
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the whole file."""
        if self._digest is None:
            state = hashlib.sha256()
            with real.open(self.path, "rb", buffering=0) as file:
                while chunk := file.read(_CHUNK):
                    state.update(chunk)
            self._digest = state.hexdigest()
        return self._digest

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""
        with real.open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            found = bytearray()
            while len(found) < length and (chunk := file.read(length - len(found))):
                found += chunk
            return bytes(found)

    def __repr__(self) -> str:
        return f"<FileSource {self.path!r}, {self.size} bytes>"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the file system said of one inode when it was scanned; times in nanoseconds."""

    identity: Identity
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, status: os.stat_result) -> Seen:
        """Take the fields from a stat result."""
        identity = (status.st_dev, status.st_ino)
        return cls(identity, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Scan:
    """A tree, and what is real of it: inode number of the tree to what was seen of the file."""

    tree: Tree
    seen: dict[int, Seen]
    ignored: tuple[str, ...] = ()

    @property
    def identities(self) -> dict[Identity, int]:
        """Real device and inode number to inode number of the tree."""
        return {seen.identity: number for number, seen in self.seen.items()}


class Keep:
    """A directory for copies of large files, made when the first is needed.

    It is beside the scanned directory where that is possible, since copies on the same file
    system can be reflinks, and never on a file system in memory. It goes when its last user does.
    """

    def __init__(self, directory: str) -> None:
        self._beside = os.path.dirname(os.path.abspath(directory))
        self._made: str | None = None

    @property
    def path(self) -> str:
        """The directory, which is made at the first use."""
        if self._made is None:
            beside = self._beside if os.access(self._beside, os.W_OK) else None
            self._made = tempfile.mkdtemp(prefix=".statepersist-keep-", dir=beside)
            weakref.finalize(self, shutil.rmtree, self._made, ignore_errors=True)
        return self._made


@dataclass(slots=True)
class _Reader:
    keep: Keep | str | os.PathLike[str] | None
    ignore: Callable[[str], bool] | None
    known: Mapping[Identity, tuple[Seen, Content]]
    xattrs: bool = True
    nodes: dict[int, Node] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    numbers: dict[Identity, int] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def scan(
    directory: str | os.PathLike[str],
    *,
    keep: Keep | str | os.PathLike[str] | None = None,
    ignore: Callable[[str], bool] | None = None,
    known: Mapping[Identity, tuple[Seen, Content]] | None = None,
) -> Scan:
    """Read a directory, without following links, into a `Scan`.

    Files above `LARGE` bytes become a `FileSource`: of the file itself, or of a copy in ``keep``
    (a `Keep`, or a directory that exists).
    ``ignore`` gets relative paths and says what to leave out. A file that is in ``known``, and
    looks the same as then, gets its content from there and is not read. Raises `UserError` for what
    is neither file, directory nor symbolic link, and `OSError` as it comes.
    """
    root = os.fspath(directory)
    reader = _Reader(keep, ignore, known or {})
    status = real.stat(root)
    reader.numbers[(status.st_dev, status.st_ino)] = ROOT
    reader.seen[ROOT] = Seen.of(status)
    _directory(reader, ROOT, root, "", status)
    tree = Tree({number: reader.nodes[number] for number in sorted(reader.nodes)})
    return Scan(tree, reader.seen, tuple(reader.ignored))


def _directory(reader: _Reader, number: int, path: str, below: str, status: os.stat_result) -> None:
    entries: dict[str, int] = {}
    with real.scandir(path) as found:
        names = sorted(entry.name for entry in found)
    for name in names:
        relative = f"{below}{name}"
        if reader.ignore is not None and reader.ignore(relative):
            reader.ignored.append(relative)
        else:
            entries[name] = _entry(reader, f"{path}/{name}", relative)
    mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns
    reader.nodes[number] = Directory(entries, mode, mtime)


def _entry(reader: _Reader, path: str, relative: str) -> int:
    status = real.lstat(path)
    identity = (status.st_dev, status.st_ino)
    known = reader.numbers.get(identity)
    if known is not None:
        return known
    number = reader.numbers[identity] = len(reader.numbers)
    reader.seen[number] = Seen.of(status)
    if stat.S_ISDIR(status.st_mode):
        _directory(reader, number, path, f"{relative}/", status)
    elif stat.S_ISLNK(status.st_mode):
        reader.nodes[number] = Symlink(real.readlink(path))
    elif stat.S_ISREG(status.st_mode):
        seen, content = reader.known.get(identity, (None, b""))
        if seen != reader.seen[number]:
            content = _content(reader, path, number, status.st_size)
        mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        reader.nodes[number] = File(content, mode, mtime, _xattrs(reader, path))
    else:
        kind = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket"}.get(
            stat.S_IFMT(status.st_mode), "a device"
        )
        raise UserError(
            f"{path} is {kind}, which no crash state can hold; usually a running program made it: "
            "put it outside the watched directory, or leave it out with ignore="
        )
    return number


def _content(reader: _Reader, path: str, number: int, size: int) -> Content:
    if size <= LARGE:
        return _whole(path, size)
    if reader.keep is None:
        return FileSource(path, size)
    folder = reader.keep.path if isinstance(reader.keep, Keep) else reader.keep
    source = keep_copy(path, os.path.join(folder, str(number)))
    source.owner = reader.keep
    return source


def _whole(path: str, size: int) -> bytes:
    fd = real.os_open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = real.read(fd, size + 1)
        if len(found) != size:  # else the read that was to give one byte more came to the end
            while more := real.read(fd, LARGE):
                found += more
        return found
    finally:
        real.close(fd)


def keep_copy(path: str, target: str) -> FileSource:
    """Copy a large file on disk, as a reflink where that works, and return the copy as content."""
    with real.open(path, "rb", buffering=0) as source, real.open(target, "xb", buffering=0) as copy:
        try:
            while real.copy_file_range(source.fileno(), copy.fileno(), 1 << 30):
                pass
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            source.seek(0)
            copy.seek(0)
            shutil.copyfileobj(source, copy, _CHUNK)
        return FileSource(target, real.fstat(copy.fileno()).st_size)


def _xattrs(reader: _Reader, path: str) -> tuple[tuple[str, bytes], ...]:
    """Return the attributes that a program can set; ``security.*`` and such are the kernel's."""
    if not reader.xattrs or not hasattr(os, "listxattr"):
        return ()
    try:
        names = [name for name in real.listxattr(path) if name.startswith("user.")]
        return tuple((name, real.getxattr(path, name)) for name in sorted(names))
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            reader.xattrs = False
            return ()
        if error.errno in (errno.EACCES, errno.EPERM):
            return ()
        raise


def read_tree(directory: str | os.PathLike[str]) -> Tree:
    """Return a real directory as a tree; what happens to it later does not change that.

    Files above 1 MiB are copied aside. Raises `UserError` for what is no directory, and for what no
    tree can hold (a fifo, a socket, a device).
    """
    if not os.path.isdir(directory):
        raise UserError(f"{os.fspath(directory)} is not a directory: Tree.read() takes one")
    return scan(directory, keep=Keep(os.fspath(directory))).tree


def survey(
    directory: str | os.PathLike[str], tree: Tree, *, ignore: Callable[[str], bool] | None = None
) -> Scan:
    """Look at a directory whose tree is known already, without reading contents.

    Raises `UserError` where names or sizes differ from the tree's.
    """
    root = os.fspath(directory)
    seen = {ROOT: Seen.of(real.stat(root))}
    for path, number, node in tree.walk():
        try:
            seen[number] = Seen.of(real.lstat(f"{root}/{path}"))
        except OSError as error:
            raise UserError(f"{path!r} of the given base tree is not in {root}: {error}") from error
        if isinstance(node, File) and seen[number].size != size_of(node.content):
            raise UserError(
                f"{path!r} of the given base tree has {size_of(node.content)} bytes, and "
                f"{seen[number].size} in {root}: it is not the tree of this directory"
            )
    return Scan(tree, seen)
