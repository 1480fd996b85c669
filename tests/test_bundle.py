"""Bundles come back as they were, replay what they hold, and trust nothing that they say."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist import (
    BundleError,
    CrashConsistencyError,
    CrashSimulator,
    Report,
    Tree,
    UserError,
    bundle_json,
    replay_bundle,
)
from pytest_statepersist import bundle as bundles
from pytest_statepersist.bundle_json import Bundle, dump
from pytest_statepersist.bundle_json import load as read_bytes
from pytest_statepersist.cli import main
from pytest_statepersist.core import operations as op
from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.tree import Directory, File, Node
from pytest_statepersist.diagnosing import file_in_project
from pytest_statepersist.replaying import show_disk


def save(directory: Path, value: object) -> None:
    """Without a sync: the name may come before the data."""
    scratch = directory / "scratch"
    scratch.write_text(json.dumps(value))
    scratch.replace(directory / "store")


def load(directory: Path) -> Any:
    return json.loads((directory / "store").read_text())


def explore(place: Path | None) -> Report:
    return CrashSimulator(bundles=place, repairs=False).explore(
        setup=lambda d: save(d, "old"),
        workload=lambda d: save(d, "new"),
        recover=load,
        before="old",
        after="new",
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    place = tmp_path_factory.mktemp("kept") / ".statepersist" / "bundles"
    return explore(place), place


@pytest.fixture(scope="module")
def torn(kept: tuple[Report, Path]) -> Path:
    """The bundle in which the store is there and empty."""
    (finding,) = [f for f in kept[0].findings if f.kind.value == "unrecoverable"]
    return Path(finding.bundle)


# -- writing and reading


def test_each_finding_is_kept_and_read_as_it_was(kept: tuple[Report, Path]) -> None:
    report, place = kept
    assert len(bundles.kept(place)) == len(report.findings) == 2
    assert (place.parent / ".gitignore").read_text() == "*\n"
    for finding in report.findings:
        bundle = bundles.read(Path(finding.bundle))
        assert bundle.disk == finding.tree
        assert bundle.trace == report.trace
        assert bundle.missing == tuple(sorted(finding.failure.state.missing))
        assert (bundle.before, bundle.after) == ("'old'", "'new'")
        assert read_bytes(dump(bundle)) == bundle


def test_the_failure_names_its_bundle(kept: tuple[Report, Path]) -> None:
    assert f"--statepersist-replay {kept[0].findings[0].bundle}" in str(kept[0])
    assert "--statepersist-replay" not in str(explore(None))


def test_a_large_bundle_is_compressed_and_replaces_the_small_one(
    torn: Path, tmp_path: Path
) -> None:
    small = bundles.read(torn)
    large = dataclasses.replace(small, text="\n".join(str(n) for n in range(20_000)))
    first = bundles.write(small, tmp_path)
    second = bundles.write(large, tmp_path)
    assert second.name == f"{first.name}.gz"
    assert bundles.kept(tmp_path) == [second]
    assert bundles.read(second) == large


def test_a_large_file_that_nothing_touches_is_not_kept_and_a_replay_says_so(
    tmp_path: Path,
) -> None:
    def set_up(directory: Path) -> None:
        (directory / "ballast").write_bytes(os.urandom(3 << 20))
        save(directory, "old")

    report = CrashSimulator(bundles=tmp_path, repairs=False).explore(
        setup=set_up, workload=lambda d: save(d, "new"), recover=load, before="old", after="new"
    )
    path = Path(report.findings[0].bundle)
    assert path.stat().st_size < 100_000
    with pytest.raises(BundleError, match="no bytes of ballast"):
        replay_bundle(path, recover=load)


def test_ids_survive_moved_lines_and_another_place(tmp_path: Path) -> None:
    ids = []
    source = Path(__file__).read_text().split("def save")[1].split("def load")[0]
    for name, ahead in (("here", ""), ("there", "# one more line\n\n")):
        root = tmp_path / name
        (root / "app").mkdir(parents=True)
        (root / "pyproject.toml").touch()
        file = root / "app" / "store.py"
        file.write_text(f"import json\nfrom pathlib import Path\n{ahead}def save{source}")
        space: dict[str, Any] = {}
        exec(compile(file.read_text(), str(file), "exec"), space)
        report = CrashSimulator(repairs=False).explore(
            setup=lambda d, s=space: s["save"](d, 1),
            workload=lambda d, s=space: s["save"](d, 2),
            recover=load,
        )
        ids.append([finding.id for finding in report.findings])
        assert file_in_project(str(file)) == "app/store.py"
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0]) == 2


# -- replaying


def test_a_recovery_that_fails_as_it_did(torn: Path) -> None:
    with pytest.raises(CrashConsistencyError, match="JSONDecodeError"):
        replay_bundle(torn, recover=load, before="old", after="new")


def test_a_recovery_that_copes(torn: Path) -> None:
    def careful(directory: Path) -> Any:
        try:
            return load(directory)
        except ValueError:
            return json.loads((directory / "copy").read_text())

    bundle = bundles.read(torn)
    disk = Tree.from_mapping({"store": b"", "copy": b'"new"'})
    mended = dataclasses.replace(bundle, disk=disk)
    path = bundles.write(mended, torn.parent.parent / "mended")
    assert replay_bundle(path, recover=careful, before="old", after="new") == "new"
    # The same recovery on the disk that was found has no copy to go back to.
    with pytest.raises(CrashConsistencyError, match="FileNotFoundError"):
        replay_bundle(torn, recover=careful, before="old", after="new")


def test_what_cannot_be_judged_is_never_fixed(torn: Path) -> None:
    with pytest.raises(BundleError, match="does not fit the test any more"):
        replay_bundle(torn, recover=load, before="old", after="something else")
    with pytest.raises(BundleError, match="cannot tell anything"):
        replay_bundle(torn, recover=lambda d: None)


def test_a_disk_that_names_its_old_place_is_not_judged_elsewhere(torn: Path) -> None:
    bundle = bundles.read(torn)
    trace = dataclasses.replace(bundle.trace, directory="/somewhere/else/state")
    disk = Tree.from_mapping({"store": b'"/somewhere/else/state/x"'})
    path = bundles.write(
        dataclasses.replace(bundle, trace=trace, disk=disk), torn.parent.parent / "elsewhere"
    )
    with pytest.raises(BundleError, match="names the directory in which it was recorded"):
        replay_bundle(path, recover=load)


def test_a_second_crash_is_replayed(tmp_path: Path) -> None:
    def recover(directory: Path) -> Any:
        """Promote a draft; its removal may be durable before its copy is."""
        draft, store = directory / "draft", directory / "store"
        if draft.exists():
            store.write_text(draft.read_text())
            draft.unlink()
        return store.read_text() if store.exists() else None

    report = CrashSimulator(bundles=tmp_path, repairs=False).explore(
        workload=lambda d: (d / "draft").write_text("new"), recover=recover, model="ext4"
    )
    again = [f for f in report.findings if f.failure.step is not None]
    assert again
    for finding in again:
        bundle = bundles.read(Path(finding.bundle))
        assert bundle.step is not None
        with pytest.raises(CrashConsistencyError):
            replay_bundle(finding.bundle, recover=recover)


# -- commands


def test_materialize_and_show(
    torn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "disk"
    assert main(["materialize", str(torn), str(target)]) == 0
    assert (target / "store").read_bytes() == b""
    assert main(["materialize", str(torn), str(target)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["show", str(torn)]) == 0
    shown = capsys.readouterr().out
    assert "missing fsync before rename" in shown
    test = shown.split("lies beside it:")[1]
    test = "\n".join(line[4:] for line in test.splitlines())
    shutil.copy(torn, tmp_path)
    space: dict[str, Any] = {"__file__": str(tmp_path / "test_it.py"), "load": load}
    exec(test, space)
    (name,) = [name for name in space if name.startswith("test_")]
    with pytest.raises(CrashConsistencyError):
        space[name]()


def test_finding_a_bundle_by_the_beginning_of_its_id(kept: tuple[Report, Path]) -> None:
    place = kept[1]
    for path in bundles.kept(place):
        assert bundles.find(path.name[:8], place) == path
        assert bundles.find(str(path), place) == path
    with pytest.raises(UserError, match="there is no bundle"):
        bundles.find("0000", place / "nowhere")


# -- distrust


def refused(row: dict[str, Any], match: str) -> None:
    with pytest.raises(BundleError, match=match):
        read_bytes(json.dumps(row).encode())


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("version", 2, "has version 2"),
        ("version", True, "has version True"),
        ("format", "zip", "is no bundle"),
        ("name", "../../../etc/passwd", "name that no bundle has"),
        ("name", "12345678-abcdef", "not one of its test's"),
        ("test", "../evil.py::test", "outside the project"),
        ("test", "/tmp/evil.py::test", "outside the project"),
        ("test", "--rootdir=/", "outside the project"),
        ("last", 99, "crash point that its trace"),
        ("last", 10**30, "not a whole number"),
        ("last", 1.0, "not a whole number"),
        ("points", [[3, 2]], "ends before it begins"),
        ("points", [], "crash point that its trace"),
        ("missing", "all", "not a list"),
        ("text", None, "not a text"),
        ("more", 1, "too much"),
        ("trace", [], "cannot be"),
        ("stable", 1, "neither true nor false"),
        ("deviations", float("nan"), "not a number of JSON"),
    ],
)
def test_what_is_not_allowed_is_refused(torn: Path, key: str, value: object, match: str) -> None:
    refused({**json.loads(torn.read_text()), key: value}, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5_000, "not JSON"),
        (b"[" + b"[]," * 2_000_001, "more than 4,000,000 values"),
        (b'{"format": "statepersist-bundle", "format": "statepersist-bundle"}', "there twice"),
        (b"\x1f\x8bnothing", "not compressed as it says"),
        (b"\xff\xfe", "not JSON"),
    ],
    ids=["empty", "deep", "long number", "many values", "twice", "gzip", "no text"],
)
def test_bytes_that_are_no_bundle_are_refused(text: bytes, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        read_bytes(text)


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../outside", "a/../../outside", "a/..", "/", "..", "", "x\0y", "\ud800"],
)
def test_links_that_lead_out_are_refused(torn: Path, target: str) -> None:
    bundle = bundles.read(torn)
    disk = Tree.from_mapping({"d/inner": "../store", "link": target})
    with pytest.raises(BundleError, match="leads out of it"):
        dump(dataclasses.replace(bundle, disk=disk))
    row = json.loads(torn.read_text()) | {"disk": json.loads(Trace(disk).to_json())}
    refused(row, "leads out of it")


def test_a_link_that_the_trace_brings_out_is_refused(torn: Path) -> None:
    """A replay shows the disk after the save as well: what the operations make of it counts."""
    row = json.loads(torn.read_text())
    base = Tree.from_mapping({"d/e/inner": "../../store", "store": b"1"})
    inode = base.resolve("d/e")
    assert inode is not None
    for operation in (
        op.Symlink(99, 0, "link", "/etc", path="link"),
        op.Rename(inode, base.resolve("d") or 0, "e", 0, "e", path="e"),
    ):
        trace = Trace(base, (operation,), directory=row["trace"]["directory"])
        row |= {"points": [[1, 1]], "crash_point": 1, "last": 0}
        refused(row | {"trace": json.loads(trace.to_json())}, "leads out of it")


def test_links_inside_lead_to_the_present_directory(torn: Path, tmp_path: Path) -> None:
    bundle = bundles.read(torn)
    tree = Tree.from_mapping({"store": b"1", "link": f"{bundle.trace.directory}/store"})
    bundle = read_bytes(dump(dataclasses.replace(bundle, disk=tree)))
    show_disk(bundle, bundle.disk, tmp_path)
    assert os.readlink(tmp_path / "link") == str(tmp_path / "store")


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".", "", "\0", "\ud800", "é" * 128])
def test_names_that_cannot_be_are_refused(torn: Path, name: str) -> None:
    row = json.loads(torn.read_text())
    for node in row["disk"]["base"]:
        if node["kind"] == "directory":
            node["entries"][name] = node["entries"].pop("store")
    refused(row, "cannot be|too long")


def test_no_tree_is_too_deep_to_be_walked(torn: Path) -> None:
    nodes: dict[int, Node] = {n: Directory({"d": n + 1}) for n in range(5_000)}
    nodes[5_000] = Directory()
    row = json.loads(torn.read_text()) | {"disk": json.loads(Trace(Tree(nodes)).to_json())}
    refused(row, "name that is too long")


def test_a_disk_that_fits_no_directory_here_is_said(torn: Path, tmp_path: Path) -> None:
    path = "/".join(["d" * 203] * 20)
    bundle = dataclasses.replace(bundles.read(torn), disk=Tree.from_mapping({path: b"x"}))
    with pytest.raises(BundleError, match="cannot be shown here"):
        show_disk(bundle, read_bytes(dump(bundle)).disk, tmp_path)


def test_no_file_runs_with_the_rights_of_another(torn: Path, tmp_path: Path) -> None:
    row = json.loads(torn.read_text())
    for node in row["disk"]["base"]:
        if node["kind"] == "file":
            node["mode"] = 0o4755
    refused(row, "rights of its owner")
    # Of extended attributes only those of users are shown.
    bundle = bundles.read(torn)
    labels = (("security.capability", b"\1" * 20), ("user.label", b"x"))
    disk = Tree({0: Directory({"s": 1}), 1: File(b"x", xattrs=labels)})
    show_disk(dataclasses.replace(bundle, disk=disk), disk, tmp_path)
    assert set(os.listxattr(tmp_path / "s")) <= {"user.label"}


def test_what_would_fill_the_disk_is_not_shown(torn: Path) -> None:
    row = json.loads(torn.read_text())
    # One content under many names: each is a file of its own once it is shown.
    nodes: dict[int, Node] = {n: File(b"x" * 1_000_000) for n in range(1, 300)}
    nodes[0] = Directory({str(n): n for n in nodes})
    refused(row | {"disk": json.loads(Trace(Tree(nodes)).to_json())}, "more than .* are not shown")
    # A file that the save makes long takes no byte of the bundle.
    old = read_bytes(json.dumps(row).encode())
    grown = op.Truncate(old.trace.operations[0].inode, 1 << 62, path="scratch")
    trace = old.trace.with_operations((*old.trace.operations, grown))
    bundle = read_bytes(dump(dataclasses.replace(old, trace=trace)))
    path = bundles.write(bundle, torn.parent.parent / "grown")
    with pytest.raises(BundleError, match=r"more than .* are not shown"):
        replay_bundle(path, recover=load)


def test_bombs_and_links_to_bundles_are_refused(torn: Path, tmp_path: Path) -> None:
    # One block that is packed by itself, many times over: cheap to make, dear to unpack.
    packer = zlib.compressobj(9, wbits=31)
    block = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    head, block = block[:10], block[10:]
    with pytest.raises(BundleError, match="once it is unpacked"):
        read_bytes(head + block * ((bundle_json.TEXT_LIMIT >> 20) + 2))
    with pytest.raises(BundleError, match="cut short"):
        read_bytes(gzip.compress(torn.read_bytes())[:-9])
    with pytest.raises(BundleError, match="larger than 64 MiB"):
        read_bytes(b" " * (bundle_json.FILE_LIMIT + 1))
    link = tmp_path / "link.json"
    link.symlink_to(torn)
    with pytest.raises(BundleError, match="symbolic link"):
        bundles.read(link)
    with pytest.raises(BundleError, match="not a regular file"):
        bundles.read(tmp_path)
    with pytest.raises(BundleError, match="cannot be a file"):
        bundles.read(Path("a\0b"))
    renamed = tmp_path / "12345678-abcdef.json"
    shutil.copy(torn, renamed)
    with pytest.raises(BundleError, match="it was renamed"):
        bundles.read(renamed)


def test_what_a_terminal_would_obey_is_shown_as_text(
    torn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundles.read(torn)
    hostile = "\x1b]0;title\x07 \u202egnp.exe \udcff"
    disk = Tree.from_mapping({"store": b"", f"n\x1b[2J{chr(0xDCFF)}": b""})
    path = bundles.write(dataclasses.replace(bundle, text=hostile, disk=disk), tmp_path)
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\udcff"}
    assert r"\x1b]0;title\x07 \u202egnp.exe \udcff" in shown
    with pytest.raises(CrashConsistencyError) as failed:
        replay_bundle(path, recover=load)
    assert "\x1b" not in str(failed.value)
    document = json.loads(path.read_text())
    for place, key in ((document, "version"), (document["trace"], "version")):
        kept, place[key] = place[key], "\x1b[31m\u202e"
        path.write_text(json.dumps(document))
        assert main(["show", str(path)]) == 2
        assert not set("".join(capsys.readouterr())) & {"\x1b", "\u202e"}, key
        place[key] = kept


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 1 << 70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["..", "../out", "/etc", "a/b", "", ".", "x\0", "\ud800", "n" * 300, "store", "scratch"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    for key, inner in children:
        yield from places(inner, (*path, key))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_bundle_is_read_or_refused(
    torn: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One or two values of any kind at any position, names and keys too; then it is shown."""
    row = json.loads(torn.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(row))[1:]))
        inner = row
        for key in path[:-1]:
            inner = inner[key]
        if isinstance(path[-1], str) and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(["../out", "a/b", "x" * 300]))] = inner.pop(path[-1])
        else:
            inner[path[-1]] = data.draw(json_values)
    try:
        found = read_bytes(json.dumps(row).encode())
    except BundleError:
        return
    assert isinstance(found, Bundle)
    place = tmp_path_factory.mktemp("shown")
    for number, tree in enumerate((found.disk, found.trace.base, apply(found.trace))):
        target = place / str(number)
        target.mkdir()
        try:
            show_disk(found, tree, target)
        except BundleError:
            continue
        for each in target.rglob("*"):
            assert each.resolve().is_relative_to(place), f"{each} leads out"
    assert sorted(each.name for each in place.iterdir()) == ["0", "1", "2"]


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), packed=st.booleans())
def test_a_flipped_byte_is_read_or_refused(torn: Path, at: float, byte: int, packed: bool) -> None:
    data = bytearray(torn.read_bytes())
    if packed:
        data = bytearray(gzip.compress(data, mtime=0))
    data[int(at * len(data))] ^= byte
    try:
        read_bytes(bytes(data))
    except BundleError:
        pass


def test_a_bundle_from_elsewhere_writes_nowhere_else(
    torn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.loads(torn.read_text())
    for node in row["disk"]["base"]:
        if node["kind"] == "directory":
            node["entries"]["../out"] = node["entries"].pop("store")
    hostile = tmp_path / "hostile.json"
    hostile.write_text(json.dumps(row))
    assert main(["materialize", str(hostile), str(tmp_path / "disk")]) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["hostile.json"]
    full, link = tmp_path / "full", tmp_path / "link"
    full.mkdir()
    (full / "mine").write_text("stays")
    link.symlink_to(full)
    for target, match in ((full, "not empty"), (link, "symbolic link"), (full / "mine", "filled")):
        assert main(["materialize", str(torn), str(target)]) == 2
        assert match in capsys.readouterr().err
    assert [each.name for each in full.iterdir()] == ["mine"]


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    """A store with a link of its own that leads out: its bundles could never be shown."""
    report = CrashSimulator(bundles=tmp_path, repairs=False).explore(
        setup=lambda d: (os.symlink("/etc/hostname", d / "host"), save(d, "old")),
        workload=lambda d: save(d, "new"),
        recover=load,
    )
    assert report.findings
    assert not any(finding.bundle for finding in report.findings)
    assert all("is not kept" in warning for warning in report.warnings)
    assert not bundles.kept(tmp_path)


def test_many_files_are_kept_as_digests_beyond_a_bound() -> None:
    nodes: dict[int, Node] = {n: File(bytes([n]) * 900_000) for n in range(1, 31)}
    nodes[0] = Directory({str(n): n for n in nodes})
    changed = Trace(Tree(nodes), (op.Write(30, 0, b"x", path="30"),))
    kept = bundle_json.stored(Tree(nodes), changed)
    absent = bundle_json.absent(kept)
    assert 5 < len(absent) < 20
    assert "30" not in absent
    assert kept["30"] == nodes[30]
