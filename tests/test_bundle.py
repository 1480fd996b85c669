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
    replay_bundle,
)
from pytest_statepersist import bundle as bundles
from pytest_statepersist.bundle import Bundle
from pytest_statepersist.cli import main
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
        assert bundles.load(bundles.dump(bundle)) == bundle


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
        bundles.load(json.dumps(row).encode())


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("version", 2, "has version 2"),
        ("version", True, "has version True"),
        ("format", "zip", "is no bundle"),
        ("name", "../../../etc/passwd", "name that no bundle has"),
        ("test", "../evil.py::test", "outside the project"),
        ("test", "/tmp/evil.py::test", "outside the project"),
        ("test", "--rootdir=/", "outside the project"),
        ("last", 99, "crash point that its trace"),
        ("points", [[3, 2]], "ends before it begins"),
        ("points", [], "crash point that its trace"),
        ("missing", "all", "not a list"),
        ("text", None, "not a text"),
        ("more", 1, "too much"),
        ("trace", [], "cannot be"),
    ],
)
def test_what_is_not_allowed_is_refused(torn: Path, key: str, value: object, match: str) -> None:
    refused({**json.loads(torn.read_text()), key: value}, match)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../outside", "a/../../outside", "a/..", "/", ".."]
)
def test_links_that_lead_out_are_refused(torn: Path, target: str) -> None:
    bundle = dataclasses.replace(
        bundles.read(torn), disk=Tree.from_mapping({"d/inner": "../store", "link": target})
    )
    with pytest.raises(BundleError, match="leads out of it"):
        bundles.load(bundles.dump(bundle))


def test_links_inside_lead_to_the_present_directory(torn: Path, tmp_path: Path) -> None:
    bundle = bundles.read(torn)
    tree = Tree.from_mapping({"store": b"1", "link": f"{bundle.trace.directory}/store"})
    bundle = bundles.load(bundles.dump(dataclasses.replace(bundle, disk=tree)))
    show_disk(bundle, bundle.disk, tmp_path)
    assert os.readlink(tmp_path / "link") == str(tmp_path / "store")


def test_names_with_slashes_are_refused(torn: Path) -> None:
    row = json.loads(torn.read_text())
    for node in row["disk"]["base"]:
        if node["kind"] == "directory":
            node["entries"]["../out"] = node["entries"].pop("store")
    refused(row, "cannot be")


def test_bombs_and_links_to_bundles_are_refused(torn: Path, tmp_path: Path) -> None:
    # One block that is packed by itself, many times over: cheap to make, dear to unpack.
    packer = zlib.compressobj(9, wbits=31)
    block = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    head, block = block[:10], block[10:]
    with pytest.raises(BundleError, match="once it is unpacked"):
        bundles.load(head + block * ((bundles.TEXT_LIMIT >> 20) + 2))
    with pytest.raises(BundleError, match="cut short"):
        bundles.load(gzip.compress(torn.read_bytes())[:-9])
    with pytest.raises(BundleError, match="not JSON"):
        bundles.load(b"[" * 100_000)
    link = tmp_path / "link.json"
    link.symlink_to(torn)
    with pytest.raises(BundleError, match="symbolic link"):
        bundles.read(link)
    with pytest.raises(BundleError, match="not a regular file"):
        bundles.read(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.text(max_size=5),
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
def test_a_changed_bundle_is_read_or_refused(torn: Path, data: st.DataObject) -> None:
    row = json.loads(torn.read_text())
    path = data.draw(st.sampled_from(list(places(row))[1:]))
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(json_values)
    try:
        found = bundles.load(json.dumps(row).encode())
    except BundleError:
        return
    assert isinstance(found, Bundle)
    assert not any(name.startswith("..") or "/.." in name for name in found.disk.paths())


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), packed=st.booleans())
def test_a_flipped_byte_is_read_or_refused(torn: Path, at: float, byte: int, packed: bool) -> None:
    data = bytearray(torn.read_bytes())
    if packed:
        data = bytearray(gzip.compress(data, mtime=0))
    data[int(at * len(data))] ^= byte
    try:
        bundles.load(bytes(data))
    except BundleError:
        pass
