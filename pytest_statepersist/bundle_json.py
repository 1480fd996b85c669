"""One finding as JSON text: its form, and reading a text that may come from anybody.

Belongs here: `Bundle`, writing one as bytes, and every check of what bytes say. Files and their
directory are `bundle`'s, running a recovery is `replaying`'s. Rules:

1. A bundle is data: reading one executes nothing, and no size in it costs memory: not of the file,
   of what it unpacks to, of what that is parsed to, or of the files that it would fill.
2. The broken disk is stored as a tree, not only as a set of effects: another version of this
   package may split operations differently, and still shows the same disk.
3. What could reach outside the directory in which it is shown is refused: links that leave it, and
   names with slashes, in every tree that a replay shows, the one after the trace included.
4. A large file that no effect touches is a size and a digest; nothing pretends to have its bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.trace_json import AbsentData
from pytest_statepersist.core.tree import (
    ROOT,
    Content,
    Directory,
    File,
    Node,
    Tree,
    digest_of,
    read_content,
    size_of,
)
from pytest_statepersist.errors import BundleError, TraceError

__all__ = [
    "FILE_LIMIT",
    "NAME",
    "TEXT_LIMIT",
    "VERSION",
    "Bundle",
    "absent",
    "bundle_name",
    "check_size",
    "dump",
    "load",
    "stored",
    "test_suffix",
]

FORMAT = "statepersist-bundle"
VERSION = 1
NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{6}")
"""The form of a bundle's name: the finding, and the exploration that came to it."""

FILE_LIMIT = 64 << 20
"""Bytes of a file that is read."""
TEXT_LIMIT = 128 << 20
"""Bytes that it may unpack to."""
_PARTS_LIMIT = 4_000_000
"""Values in the text: an empty list takes 30 times as much memory as its two characters."""
_TREE_LIMIT = 256 << 20
"""Bytes of all files in a tree that is shown; many names may share one content of the text."""
_NAME_LIMIT, _PATH_LIMIT = 255, 4095
"""Bytes of a name and of a path, on Linux."""
_COMPRESSED_FROM = 64 << 10
_WHOLE = 16 << 20
_STORED = 20 << 20
_TEXT_FIELD = 200_000
_SOURCE = 2_000


@dataclass(frozen=True, slots=True)
class Bundle:
    """One finding, with all that is needed to show its disk again and to judge a recovery on it.

    ``disk`` is what recovery saw; ``interrupted`` the disk on which a recovery began that was
    itself interrupted. ``points`` are inclusive spans of crash points of ``trace``; ``last`` its
    last operation with an effect on disk; ``missing`` the effects up to it that are not there.
    """

    name: str
    test: str
    exploration: str
    ordinal: int
    model: str
    kind: str
    cause: str
    text: str
    """The finding as it was reported."""
    before: str
    after: str
    observed: str
    expected: str
    crash_point: int
    deviations: int
    points: tuple[tuple[int, int], ...]
    last: int
    missing: tuple[int, ...]
    step_missing: tuple[int, ...]
    stable: bool
    """False: the finding is that recovery gave another answer after it had been interrupted."""
    package: str
    python: str
    trace: Trace
    disk: Tree
    interrupted: Tree | None = None
    step: Trace | None = None
    """What the interrupted recovery did."""
    sources: tuple[tuple[str, str], ...] = ()
    """The functions of the test as another test would write them; "" for one that cannot be."""
    history: str = ""
    """What a machine did, as the JSON text of its history; "" where no machine made the bundle."""


def absent(tree: Tree) -> list[str]:
    """Return the paths of a tree whose bytes were too large to be kept."""
    return [
        path
        for path, _, node in tree.walk()
        if isinstance(node, File) and isinstance(node.content, AbsentData)
    ]


# -- names


def test_suffix(test: str, exploration: str, ordinal: int) -> str:
    """Return the part of a name that is the same for all findings of one exploration."""
    text = repr((test, exploration, ordinal))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]


def bundle_name(finding: str, test: str, exploration: str, ordinal: int) -> str:
    """Return the short id of a finding of one test: two tests may have the same finding."""
    return f"{finding}-{test_suffix(test, exploration, ordinal)}"


# -- writing


def dump(bundle: Bundle) -> bytes:
    """Return a bundle as JSON, compressed where it is large.

    Raises `BundleError` where it would be refused when it is read again.
    """
    _check_trees(bundle)
    row: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for each in fields(bundle):
        value = getattr(bundle, each.name)
        if isinstance(value, Trace):
            value = json.loads(value.to_json())
        elif isinstance(value, Tree):
            value = json.loads(Trace(value).to_json())
        row[each.name] = value
    data = json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"
    if len(data) < _COMPRESSED_FROM:
        return data
    _check_text(data)
    packed = gzip.compress(data, 6, mtime=0)
    _check_file(packed)
    return packed


def stored(tree: Tree, *traces: Trace) -> Tree:
    """Return a tree for a bundle: files that operations change in whole, up to a bound.

    Where all others together are too much, the largest of them are kept as a size and a digest.
    """
    changed = {
        getattr(operation, "inode", None) for trace in traces for operation in trace.operations
    }
    contents = {n: node.content for n, node in tree.nodes.items() if isinstance(node, File)}
    small = {n: c for n, c in contents.items() if n in changed and size_of(c) <= _WHOLE}
    left = _STORED
    for number, content in sorted(small.items(), key=lambda row: size_of(row[1])):
        left -= size_of(content)
        if left >= 0:
            contents[number] = read_content(content)
    others = {n: c for n, c in contents.items() if n not in changed and isinstance(c, bytes)}
    for number, content in sorted(others.items(), key=lambda row: size_of(row[1])):
        left -= size_of(content)
        if left < 0:
            contents[number] = AbsentData(size_of(content), digest_of(content))
    return _with_contents(tree, contents)


def _with_contents(tree: Tree, contents: dict[int, Content]) -> Tree:
    nodes: dict[int, Node] = dict(tree.nodes)
    for number, content in contents.items():
        node = nodes[number]
        assert isinstance(node, File)
        if node.content is not content:
            nodes[number] = replace(node, content=content)
    return Tree(nodes)


# -- reading


def load(data: bytes) -> Bundle:
    """Read a bundle from bytes; raises `BundleError` where they are not one."""
    _check_file(data)
    if data.startswith(b"\x1f\x8b"):
        data = _decompressed(data)
    _check_text(data)
    try:
        document = json.loads(data, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"the bundle is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError("the file is no bundle: it lacks the mark of one")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise BundleError(
            f"the bundle has version {str(document.get('version'))[:40]}, and this package reads "
            f"version {VERSION}; use the version of the package that wrote it"
        )
    names = {each.name for each in fields(Bundle)} | {"format", "version"}
    document.setdefault("sources", [])  # which came later
    document.setdefault("history", "")  # bundles had none before machines kept theirs
    odd = sorted(names ^ document.keys())
    if odd:
        _fail(f"lacks, or has too much, {', '.join(map(repr, odd[:5]))}")
    return _bundle(document)


def _check_file(data: bytes) -> None:
    if len(data) > FILE_LIMIT:
        raise BundleError(f"the bundle is larger than {FILE_LIMIT >> 20} MiB")


def _check_text(data: bytes) -> None:
    """Bound what parsing costs before it begins."""
    if len(data) > TEXT_LIMIT:
        raise BundleError(f"the bundle is larger than {TEXT_LIMIT >> 20} MiB once it is unpacked")
    parts = data.count(b",") + data.count(b"[") + data.count(b"{")
    if parts > _PARTS_LIMIT:
        raise BundleError(f"the bundle has more than {_PARTS_LIMIT:,} values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two values of one key would be read differently by different readers."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _decompressed(data: bytes) -> bytes:
    worker = zlib.decompressobj(wbits=31)
    try:
        text = worker.decompress(data, TEXT_LIMIT)
    except zlib.error as error:
        raise BundleError(f"the bundle is not compressed as it says: {error}") from None
    if worker.unconsumed_tail or (not worker.eof and len(text) >= TEXT_LIMIT):
        raise BundleError(f"the bundle is larger than {TEXT_LIMIT >> 20} MiB once it is unpacked")
    if not worker.eof or worker.unused_data:
        raise BundleError("the bundle is cut short, or something follows it")
    return text


def _bundle(row: dict[str, Any]) -> Bundle:
    values: dict[str, Any] = {}
    for key in ("name", "test", "exploration", "model", "kind", "cause", "text", "before"):
        values[key] = _text(row, key)
    for key in ("after", "observed", "expected", "package", "python", "history"):
        values[key] = _text(row, key)
    if not NAME.fullmatch(values["name"]):
        _fail(f"has a name that no bundle has: {values['name'][:60]!r}")
    _check_test(values["test"])
    values["sources"] = tuple(_source(each) for each in _list(row, "sources"))
    for key in ("missing", "step_missing"):
        values[key] = tuple(_number(each, key) for each in _list(row, key))
    values["points"] = tuple(_span(each) for each in _list(row, "points"))
    values["ordinal"] = _number(row["ordinal"], "ordinal")
    values["deviations"] = _number(row["deviations"], "deviations")
    values["crash_point"] = _number(row["crash_point"], "crash_point")
    values["last"] = _number(row["last"], "last", least=-1)
    if type(row["stable"]) is not bool:
        _fail("has a 'stable' that is neither true nor false")
    values["stable"] = row["stable"]
    try:
        values["trace"] = _trace(row["trace"])
        values["disk"] = _trace(row["disk"]).base
        values["step"] = None if row["step"] is None else _trace(row["step"])
        interrupted = row["interrupted"]
        values["interrupted"] = None if interrupted is None else _trace(interrupted).base
    except TraceError as error:
        raise BundleError(f"what the bundle holds cannot be: {error}") from None
    bundle = Bundle(**values)
    length = len(bundle.trace)
    ends = [end for _, end in bundle.points]
    if not ends or max(ends) > length or bundle.crash_point > length or bundle.last >= length:
        _fail("names a crash point that its trace does not have")
    if (bundle.step is None) is not (bundle.interrupted is None) or (
        not bundle.stable and bundle.step is None
    ):
        _fail("has half of a crash during recovery")
    if not bundle.name.endswith(f"-{test_suffix(bundle.test, bundle.exploration, bundle.ordinal)}"):
        _fail(f"has the name {bundle.name}, which is not one of its test's")
    _check_trees(bundle)
    return bundle


def _trace(row: Any) -> Trace:
    try:
        return Trace.from_json(json.dumps(row))
    except (RecursionError, MemoryError, OverflowError) as error:
        raise TraceError(f"it cannot be applied: {type(error).__name__}") from None


def _check_test(test: str) -> None:
    """A node id becomes an argument of pytest: it must stay inside the project."""
    path = test.split("::", 1)[0]
    parts = re.split(r"[/\\]", path)
    if (
        os.path.isabs(path)
        or ".." in parts
        or "\0" in test
        or test.startswith(("-", "@"))
        or ":" in path
        or any(ord(character) < 32 for character in test)
    ):
        _fail(f"names a test outside the project: {test[:80]!r}")


def _check_trees(bundle: Bundle) -> None:
    if not _can_be_named(bundle.trace.directory):
        _fail("was recorded in a directory that no file system could hold")
    for tree in (bundle.disk, bundle.interrupted, bundle.trace.base):
        if tree is not None:
            _check_names(tree, bundle.trace.directory)
            check_size(tree)
    # A replay shows it as well, unless it is too large.
    _check_names(apply(bundle.trace), bundle.trace.directory)


def check_size(tree: Tree) -> None:
    """Raise `BundleError` for a tree whose files are too large to be shown."""
    contents = [node.content for node in tree.nodes.values() if isinstance(node, File)]
    total = sum(size_of(each) for each in contents if not isinstance(each, AbsentData))
    if total > _TREE_LIMIT:
        _fail(f"holds {total} bytes of files, and more than {_TREE_LIMIT} are not shown")


def _check_names(tree: Tree, directory: str) -> None:
    """Refuse what would reach out of the tree, and what no file system could hold."""
    waiting = [(ROOT, "")]
    while waiting:
        number, prefix = waiting.pop()
        folder = tree.nodes[number]
        assert isinstance(folder, Directory)
        for name, child in folder.entries.items():
            _check_name(prefix, name)
            path, node = f"{prefix}{name}", tree.nodes[child]
            if isinstance(node, Directory):
                waiting.append((child, f"{path}/"))
            elif isinstance(node, File):
                _check_attributes(path, node)
            elif not _inside(path, node.target, directory):
                # A recovery follows links: one that leads out has it change what is not ours.
                _fail(f"has a symbolic link that leads out of it: {path!r} -> {node.target!r}")


def _check_name(prefix: str, name: str) -> None:
    if not _can_be_named(name) or name in (".", "..") or "/" in name:
        _fail(f"has a name that cannot be one: {name[:80]!r}")
    length = len(name.encode("utf-8", "surrogateescape"))
    if length > _NAME_LIMIT or len(prefix) + length > _PATH_LIMIT:
        _fail(f"has a name that is too long: {name[:80]!r}")


def _check_attributes(path: str, node: File) -> None:
    if node.mode & (stat.S_ISUID | stat.S_ISGID):
        _fail(f"has a program that would run with the rights of its owner or group: {path!r}")
    if not all(_can_be_named(name) for name, _ in node.xattrs):
        _fail(f"has an extended attribute of {path!r} with a name that cannot be one")


def _can_be_named(text: str) -> bool:
    """Say whether a text can be given to the system at all."""
    try:
        return "\0" not in text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:
        return False


def _inside(path: str, target: str, directory: str) -> bool:
    if not target or not _can_be_named(target):
        return False
    if os.path.isabs(target):
        # A link into the directory of that time is turned into one into the present directory.
        if not os.path.isabs(directory) or not f"{target}/".startswith(f"{directory}/"):
            return False
        return ".." not in target.split("/")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return ".." not in parts[up:] and up <= path.count("/")


def _fail(what: str) -> NoReturn:
    raise BundleError(f"the bundle {what}; it is damaged, or not one that is safe to show")


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or len(value) > _TEXT_FIELD:
        _fail(f"has a {key!r} that is not a text of bounded length")
    return value


def _list(row: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(row[key], list):
        _fail(f"has a {key!r} that is not a list")
    found: list[Any] = row[key]
    return found


def _number(value: Any, key: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 1 << 53:
        _fail(f"has a {key!r} that is not a whole number from {least}")
    return int(value)


def _source(value: Any) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        _fail("has a 'sources' that is not a list of pairs")
    for each in value:
        if not isinstance(each, str) or len(each) >= _SOURCE or not each.isprintable():
            _fail("has a 'sources' that is not made of short lines")
    return str(value[0]), str(value[1])


def _span(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        _fail("has a 'points' that is not a list of pairs")
    begin, end = (_number(each, "points") for each in value)
    if begin > end:
        _fail("has a span of crash points that ends before it begins")
    return begin, end
