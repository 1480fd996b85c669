"""The JSON form of a trace.

Belongs here: writing and reading it, version 1. Rules:

1. Reading trusts nothing: a text that is not of the form, or whose trace contradicts itself, is a
   `TraceError`. Nothing in it is executed, and no size in it costs memory. What has a default may
   be left out, so that a text can be written by hand; what is unknown is refused.
2. Each content is stored once, in base64; a large one as its size and digest only. A trace that was
   read back can be explored as far as nobody asks for such bytes.
3. Names are text with surrogate escapes, as `os.fsdecode` gives them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, NoReturn

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.tree import (
    Content,
    Directory,
    File,
    Node,
    Symlink,
    Tree,
    digest_of,
)
from pytest_statepersist.errors import TraceError

__all__ = ["VERSION", "AbsentData", "dump", "load"]

FORMAT = "statepersist-trace"
VERSION = 1
_BIG = 1 << 63

_OPERATIONS: dict[str, type[Any]] = {
    cls.__name__.lower(): cls
    for cls in (
        op.Create,
        op.Mkdir,
        op.Symlink,
        op.Link,
        op.Unlink,
        op.Rmdir,
        op.Rename,
        op.Write,
        op.Truncate,
        op.Allocate,
        op.ZeroRange,
        op.SetAttributes,
        op.Fsync,
        op.SyncRange,
        op.SyncAll,
        op.Close,
    )
}


@dataclass(frozen=True, slots=True)
class AbsentData:
    """A large content of which only size and digest are known."""

    size: int
    digest: str

    def read(self, offset: int, length: int) -> bytes:
        """Raise `TraceError`: the bytes were not stored."""
        raise TraceError(
            f"the bytes of a large file ({self.size} bytes) are not in the JSON form of the trace; "
            "record again to explore states that show them"
        )


# -- writing ---------------------------------------------------------------------------------------


class _Writer:
    def __init__(self) -> None:
        self.blobs: list[str] = []
        self.sites: list[list[object]] = []
        self._blob_numbers: dict[bytes, int] = {}
        self._site_numbers: dict[op.Site, int] = {}

    def blob(self, data: bytes) -> int:
        number = self._blob_numbers.get(data)
        if number is None:
            number = self._blob_numbers[data] = len(self.blobs)
            self.blobs.append(base64.b64encode(data).decode("ascii"))
        return number

    def content(self, content: Content) -> object:
        if isinstance(content, bytes):
            return self.blob(content)
        return {"size": content.size, "digest": digest_of(content)}

    def site(self, site: op.Site | None) -> int | None:
        if site is None:
            return None
        number = self._site_numbers.get(site)
        if number is None:
            number = self._site_numbers[site] = len(self.sites)
            self.sites.append([site.file, site.line, site.function])
        return number

    def node(self, number: int, node: Node) -> dict[str, object]:
        if isinstance(node, File):
            xattrs = [[name, self.blob(value)] for name, value in node.xattrs]
            content = self.content(node.content)
            return {
                "inode": number,
                "kind": "file",
                "content": content,
                "mode": node.mode,
                "mtime": node.mtime,
                "xattrs": xattrs,
            }
        if isinstance(node, Directory):
            return {
                "inode": number,
                "kind": "directory",
                "entries": dict(node.entries),
                "mode": node.mode,
                "mtime": node.mtime,
            }
        return {"inode": number, "kind": "symlink", "target": node.target}

    def operation(self, operation: op.Operation) -> dict[str, object]:
        row: dict[str, object] = {"op": type(operation).__name__.lower()}
        for each in fields(operation):
            value = getattr(operation, each.name)
            if each.name == "site":
                value = self.site(value)
            elif each.name == "data":
                value = self.blob(value)
            elif each.name == "durability":
                value = value.value
            elif each.name == "xattrs":
                value = [[name, None if data is None else self.blob(data)] for name, data in value]
            elif each.name == "owner" and value is not None:
                value = list(value)
            row[each.name] = value
        return row


def dump(trace: op.Trace) -> str:
    """Return the JSON text of a trace: ASCII, one line."""
    writer = _Writer()
    nodes = [writer.node(number, node) for number, node in sorted(trace.base.nodes.items())]
    operations = [writer.operation(operation) for operation in trace.operations]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "recorder": trace.recorder,
        "directory": trace.directory,
        "base": nodes,
        "operations": operations,
        "acknowledgements": [[each.position, each.text] for each in trace.acknowledgements],
        "sites": writer.sites,
        "blobs": writer.blobs,
    }
    return json.dumps(document, separators=(",", ":"))


# -- reading ---------------------------------------------------------------------------------------


def load(text: str) -> op.Trace:
    """Read a trace from its JSON text; raises `TraceError` where it is not valid."""
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"the trace is not JSON: {error}") from error
    found = _object(document, "the trace", _DOCUMENT, _DOCUMENT_DEFAULTS)
    if found["format"] != FORMAT:
        _fail("the trace", f"has the format {found['format']!r} instead of {FORMAT!r}")
    if found["version"] != VERSION:
        raise TraceError(
            f"the trace has version {repr(found['version'])[:40]}, and this package reads version "
            f"{VERSION}; use the version of the package that wrote it, or record again"
        )
    trace = _Reader(found).trace()
    apply(trace)
    return trace


_DOCUMENT = {"format", "version", "base", "operations"}
_DOCUMENT_DEFAULTS: dict[str, Any] = {
    "recorder": "python",
    "directory": "",
    "acknowledgements": [],
    "sites": [],
    "blobs": [],
}


class _Reader:
    """Turns the checked outer object into a trace."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._blobs = [self._decode(each) for each in _list(document["blobs"], "blobs")]
        self._sites = [self._read_site(each) for each in _list(document["sites"], "sites")]
        self._readers: dict[str, Callable[[Any, str], Any]] = {
            "site": self._site,
            "path": _text,
            "name": _text,
            "new_name": _text,
            "target": _text,
            "time": _optional(_signed),
            "mtime": _optional(_signed),
            "task": _natural,
            "inode": _natural,
            "parent": _directory_number,
            "new_parent": _directory_number,
            "replaced": _optional(_natural),
            "exchange": _flag,
            "data_only": _flag,
            "failed": _flag,
            "unordered": _flag,
            "mode": _mode,
            "offset": _natural,
            "length": _natural,
            "size": _natural,
            "data": self._blob,
            "durability": _durability,
            "owner": _optional(_owner),
            "xattrs": self._xattrs,
        }

    def trace(self) -> op.Trace:
        document = self._document
        rows = _list(document["operations"], "operations")
        operations = tuple(self._operation(row, index) for index, row in enumerate(rows))
        marks = []
        for row in _list(document["acknowledgements"], "acknowledgements"):
            position, text = _row(row, 2, "an acknowledgement")
            position = _natural(position, "the position of an acknowledgement")
            if position > len(operations):
                _fail("an acknowledgement", "is behind the last operation")
            marks.append(op.Acknowledgement(position, _text(text, "an acknowledgement")))
        return op.Trace(
            base=self._base(),
            operations=operations,
            acknowledgements=tuple(marks),
            directory=_text(document["directory"], "directory"),
            recorder=_text(document["recorder"], "recorder"),
        )

    def _base(self) -> Tree:
        nodes: dict[int, Node] = {}
        for row in _list(self._document["base"], "base"):
            kind = row.get("kind") if isinstance(row, dict) else None
            number = _natural(row.get("inode") if isinstance(row, dict) else None, "an inode")
            where = f"inode {number} of the base"
            if number in nodes:
                _fail(where, "is there twice")
            nodes[number] = self._node(row, kind, where)
        tree = Tree(nodes)
        _no_cycles(tree)
        return tree

    def _node(self, row: Any, kind: object, where: str) -> Node:
        if kind == "file":
            known: dict[str, Any] = {"mode": File().mode, "mtime": None, "xattrs": []}
            found = _object(row, where, {"inode", "kind", "content"}, known)
            xattrs = []
            for each in _list(found["xattrs"], where):
                name, value = _row(each, 2, where)
                xattrs.append((_text(name, where), self._blob(value, where)))
            return File(
                self._content(found["content"], where),
                _mode(found["mode"], where, required=True),
                _optional(_signed)(found["mtime"], where),
                tuple(xattrs),
            )
        if kind == "directory":
            known = {"entries": {}, "mode": Directory().mode, "mtime": None}
            found = _object(row, where, {"inode", "kind"}, known)
            if not isinstance(found["entries"], dict):
                _fail(where, "has entries that are not an object")
            entries = {}
            for name, child in found["entries"].items():
                if name in ("", ".", "..") or "/" in name or "\0" in name:
                    _fail(where, f"has an entry named {name!r}")
                entries[name] = _natural(child, where)
            return Directory(
                entries,
                _mode(found["mode"], where, required=True),
                _optional(_signed)(found["mtime"], where),
            )
        if kind != "symlink":
            _fail(where, f"has the unknown kind {kind!r}")
        found = _object(row, where, {"inode", "kind", "target"})
        return Symlink(_text(found["target"], where))

    def _operation(self, row: Any, index: int) -> op.Operation:
        where = f"operation {index}"
        name = row.get("op") if isinstance(row, dict) else None
        cls = _OPERATIONS.get(name) if isinstance(name, str) else None
        if cls is None:
            _fail(where, f"has the unknown kind {name!r}")
        names = [each.name for each in fields(cls)]
        optional = {each.name for each in fields(cls) if each.default is not MISSING}
        found = _object(row, where, {"op", *names} - optional, dict.fromkeys(optional))
        values: dict[str, Any] = {}
        for each in names:
            if each not in row:
                continue
            value = found[each]
            if each == "size" and cls is op.Allocate and value is None:
                values[each] = None
            elif each == "mode" and cls is not op.SetAttributes:
                values[each] = _mode(value, where, required=True)
            else:
                values[each] = self._readers[each](value, f"{each} of {where}")
        made: op.Operation = cls(**values)
        return made

    def _decode(self, text: object) -> bytes:
        try:
            return base64.b64decode(_text(text, "a blob"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise TraceError(f"a blob of the trace is not base64: {error}") from error

    def _read_site(self, row: Any) -> op.Site:
        file, line, function = _row(row, 3, "a site")
        return op.Site(
            _text(file, "a site"), _natural(line, "the line of a site"), _text(function, "a site")
        )

    def _site(self, number: Any, where: str) -> op.Site | None:
        return None if number is None else self._sites[_index(number, self._sites, where)]

    def _blob(self, number: Any, where: str) -> bytes:
        return self._blobs[_index(number, self._blobs, where)]

    def _content(self, value: Any, where: str) -> Content:
        if not isinstance(value, dict):
            return self._blob(value, where)
        found = _object(value, where, {"size", "digest"})
        digest = _text(found["digest"], where)
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            _fail(where, "has a digest that is not a SHA-256")
        return AbsentData(_natural(found["size"], where), digest)

    def _xattrs(self, value: Any, where: str) -> tuple[tuple[str, bytes | None], ...]:
        found = []
        for each in _list(value, where):
            name, data = _row(each, 2, where)
            found.append((_text(name, where), None if data is None else self._blob(data, where)))
        return tuple(found)


def _no_cycles(tree: Tree) -> None:
    """A directory that is reached twice would make walks endless, or wrong."""
    waiting, seen = [0], {0}
    while waiting:
        node = tree.nodes[waiting.pop()]
        if isinstance(node, Directory):
            for name, child in node.entries.items():
                if isinstance(tree.nodes[child], Directory):
                    if child in seen:
                        _fail(f"the base has directory inode {child}", f"twice, once as {name!r}")
                    seen.add(child)
                    waiting.append(child)


def _fail(where: str, what: str) -> NoReturn:
    raise TraceError(f"{where} {what}; the trace is damaged, or was not written by this package")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _object(
    value: Any, where: str, keys: set[str], defaults: dict[str, Any] | None = None
) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(where, "is not an object")
    whole = {**(defaults or {}), **value}
    wanted = keys.union(defaults or ())
    if whole.keys() != wanted:
        odd = sorted(whole.keys() ^ wanted)
        _fail(where, f"lacks, or has too much, {', '.join(map(repr, odd))}")
    return whole


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        _fail(where, "is not a list")
    return value


def _row(value: Any, length: int, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        _fail(where, f"is not a list of {length}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        _fail(where, "is not text")
    return value


def _signed(value: Any, where: str) -> int:
    if type(value) is not int or not -_BIG <= value < _BIG:
        _fail(where, "is not a whole number of 64 bits")
    return value


def _natural(value: Any, where: str) -> int:
    if _signed(value, where) < 0:
        _fail(where, "is negative")
    return int(value)


def _directory_number(value: Any, where: str) -> int:
    return op.OUTSIDE if value == op.OUTSIDE else _natural(value, where)


def _flag(value: Any, where: str) -> bool:
    if type(value) is not bool:
        _fail(where, "is neither true nor false")
    return value


def _mode(value: Any, where: str, *, required: bool = False) -> Any:
    if value is None and not required:
        return None
    if _natural(value, where) > 0o7777:
        _fail(where, "is not a mode")
    return value


def _durability(value: Any, where: str) -> op.Durability:
    try:
        return op.Durability(value)
    except ValueError:
        _fail(where, f"is the unknown {value!r}")


def _owner(value: Any, where: str) -> tuple[int, int]:
    user, group = _row(value, 2, where)
    return _natural(user, where), _natural(group, where)


def _optional(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, where: None if value is None else read(value, where)


def _index(number: Any, items: list[Any], where: str) -> int:
    if _natural(number, where) >= len(items):
        _fail(where, f"points to number {number}, which is not there")
    return int(number)
