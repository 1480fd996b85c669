"""Findings as files: writing a bundle, and reading one that may come from anybody.

Belongs here: the versioned JSON form and the directory of bundles. Running a recovery on what a
bundle holds is `replaying`'s. Rules:

1. A bundle is data: reading one executes nothing, and no size in it costs memory.
2. The broken disk is stored as a tree, not only as a set of effects: another version of this
   package may split operations differently, and still shows the same disk.
3. What could reach outside the directory in which it is shown is refused: links that leave it,
   names with slashes, a bundle that is itself a symbolic link.
4. A large file that no effect touches is a size and a digest; nothing pretends to have its bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.trace_json import AbsentData
from pytest_statepersist.core.tree import (
    File,
    Node,
    Symlink,
    Tree,
    read_content,
    size_of,
)
from pytest_statepersist.errors import BundleError, TraceError

__all__ = [
    "DIRECTORY",
    "VERSION",
    "Bundle",
    "absent",
    "bundle_name",
    "drop",
    "dump",
    "find",
    "kept",
    "load",
    "read",
    "stored",
    "test_suffix",
    "write",
]

FORMAT = "statepersist-bundle"
VERSION = 1
DIRECTORY = Path(".statepersist") / "bundles"
"""Where bundles are kept, below the root of the project."""

_NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{6}")
_PREFIX = re.compile(r"[0-9a-f]{4,8}(-[0-9a-f]{0,6})?")
_COMPRESSED_FROM = 64 << 10
_FILE_LIMIT = 64 << 20
TEXT_LIMIT = 256 << 20
_TREE_LIMIT = 256 << 20
_WHOLE = 16 << 20
_TEXT_FIELD = 200_000


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
    """Return a bundle as JSON, compressed where it is large."""
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
    return gzip.compress(data, 6, mtime=0)


def stored(tree: Tree, *traces: Trace) -> Tree:
    """Return a tree for a bundle: files that operations change in whole, up to a bound."""
    changed = {
        getattr(operation, "inode", None) for trace in traces for operation in trace.operations
    }
    nodes: dict[int, Node] = {}
    for number, node in tree.nodes.items():
        if (
            isinstance(node, File)
            and not isinstance(node.content, bytes)
            and number in changed
            and size_of(node.content) <= _WHOLE
        ):
            node = replace(node, content=read_content(node.content))
        nodes[number] = node
    return Tree(nodes)


def write(bundle: Bundle, directory: Path) -> Path:
    """Write a bundle into a directory, which is made, and return its path; never half of one."""
    if not _NAME.fullmatch(bundle.name):
        raise BundleError(f"{bundle.name!r} is not the name of a bundle")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _ignore(directory)
    data = dump(bundle)
    ending = ".json.gz" if data.startswith(b"\x1f\x8b") else ".json"
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        path = directory / f"{bundle.name}{ending}"
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    other = ".json" if ending == ".json.gz" else ".json.gz"
    with suppress(FileNotFoundError):
        os.unlink(directory / f"{bundle.name}{other}")
    return path


def _ignore(directory: Path) -> None:
    """What is kept is for this machine: version control is told so, once."""
    top = directory.parent
    if top.name != DIRECTORY.parent.name:
        return
    with suppress(FileExistsError), open(top / ".gitignore", "x", encoding="ascii") as file:
        file.write("*\n")


# -- the directory


def kept(directory: Path) -> list[Path]:
    """Return the bundles of a directory, sorted by name; none where there is no directory."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names if _NAME.fullmatch(_stem(name)) and "." in name]


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".json")


def find(given: str, directory: Path) -> Path:
    """Return the file of a bundle, given by path, id or the beginning of an id.

    Raises `BundleError` where there is none, or more than one.
    """
    if not _PREFIX.fullmatch(given):
        path = Path(given)
        if not os.path.lexists(path):
            raise BundleError(
                f"there is no bundle {given!r}: give the id that a report names, or a file"
            )
        return path
    found = [path for path in kept(directory) if path.name.startswith(given)]
    if len(found) == 1:
        return found[0]
    if not found:
        names = ", ".join(_stem(path.name) for path in kept(directory)[:10]) or "none"
        raise BundleError(f"there is no bundle {given} in {directory}; there are: {names}")
    names = ", ".join(_stem(path.name) for path in found)
    raise BundleError(f"{given} is the beginning of more than one bundle: {names}")


def drop(
    directory: Path, suffix: str, *, but: Iterable[str], covered: Mapping[str, int]
) -> list[str]:
    """Remove the bundles of one exploration that it no longer finds; return their names.

    ``covered`` has the deviations up to which each model was explored in full: what lies beyond
    cannot be known to be gone. Neither can crashes during recovery, which may be switched off.
    """
    gone, keep = [], set(but)
    for path in kept(directory):
        name = _stem(path.name)
        if not name.endswith(f"-{suffix}") or name in keep:
            continue
        try:
            bundle = read(path)
            if bundle.step is not None or bundle.deviations > covered.get(bundle.model, -1):
                continue
        except BundleError:
            continue  # it cannot be read, so nobody knows what it says
        with suppress(FileNotFoundError):
            path.unlink()
        gone.append(name)
    return gone


# -- reading


def read(path: Path) -> Bundle:
    """Read a bundle from a file; raises `BundleError` where it is not one, or is not allowed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
    except OSError as error:
        if os.path.islink(path):
            raise BundleError(f"{path} is a symbolic link; give the bundle itself") from None
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_FILE_LIMIT + 1)
    try:
        return load(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def load(data: bytes) -> Bundle:
    """Read a bundle from bytes; raises `BundleError` where they are not one."""
    if len(data) > _FILE_LIMIT:
        raise BundleError(f"the bundle is larger than {_FILE_LIMIT >> 20} MiB, so it is not read")
    if data.startswith(b"\x1f\x8b"):
        data = _decompressed(data)
    try:
        document = json.loads(data)
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
    odd = sorted(names ^ document.keys())
    if odd:
        _fail(f"lacks, or has too much, {', '.join(map(repr, odd[:5]))}")
    bundle = _bundle(document)
    _check_links(bundle)
    return bundle


def _decompressed(data: bytes) -> bytes:
    worker = zlib.decompressobj(wbits=31)
    try:
        text = worker.decompress(data, TEXT_LIMIT)
    except zlib.error as error:
        raise BundleError(f"the bundle is not compressed as it says: {error}") from None
    if worker.unconsumed_tail or (not worker.eof and len(text) >= TEXT_LIMIT):
        raise BundleError(
            f"the bundle is larger than {TEXT_LIMIT >> 20} MiB once it is unpacked, so it is not "
            "read"
        )
    if not worker.eof or worker.unused_data:
        raise BundleError("the bundle is cut short, or something follows it")
    return text


def _bundle(row: dict[str, Any]) -> Bundle:
    values: dict[str, Any] = {}
    for key in ("name", "test", "exploration", "model", "kind", "cause", "text", "before"):
        values[key] = _text(row, key)
    for key in ("after", "observed", "expected", "package", "python"):
        values[key] = _text(row, key)
    if not _NAME.fullmatch(values["name"]):
        _fail(f"has a name that no bundle has: {values['name'][:60]!r}")
    _check_test(values["test"])
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
    for tree in (bundle.disk, bundle.interrupted, bundle.trace.base):
        if tree is not None:
            _check_size(tree)
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


def _check_size(tree: Tree) -> None:
    total = 0
    for node in tree.nodes.values():
        if isinstance(node, File) and not isinstance(node.content, AbsentData):
            total += size_of(node.content)
    if total > _TREE_LIMIT:
        _fail(f"holds {total} bytes of files, and more than {_TREE_LIMIT} are not shown")


def _check_links(bundle: Bundle) -> None:
    """A recovery follows links: one that leads out would have it change what is not ours."""
    for tree in (bundle.disk, bundle.interrupted, bundle.trace.base):
        for path, _, node in tree.walk() if tree is not None else ():
            if isinstance(node, Symlink) and not _inside(path, node.target, bundle.trace.directory):
                _fail(f"has a symbolic link that leads out of it: {path!r} -> {node.target!r}")


def _inside(path: str, target: str, directory: str) -> bool:
    if "\0" in target:
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
    raise BundleError(f"the bundle {what}; it is damaged, or was not written by this package")


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


def _span(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        _fail("has a 'points' that is not a list of pairs")
    begin, end = (_number(each, "points") for each in value)
    if begin > end:
        _fail("has a span of crash points that ends before it begins")
    return begin, end
