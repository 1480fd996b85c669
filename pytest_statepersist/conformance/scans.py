"""Checks of files as they lie on the disk: damage, leaks, nonces, modes, backups, versions.

Belongs here: what is done to files behind the store's back, and what the files themselves show.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.conformance.base import BaseBench, Change, Content, not_covered, read_tree
from pytest_statepersist.conformance.crashes import CrashChecks
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.leaks import scan_leaks, scan_permissions
from pytest_statepersist.simulator import CrashSimulator
from pytest_statepersist.tamper import Damage, Sweep, check_integrity

__all__ = ["BackupChecks", "DamageChecks", "VersionChecks"]

_KEY = "conformance key"
_STATES = 300
_FLIPS = 24
"""Places in each file of a backup, evenly spread: its figures are as fragile as its values."""


class DamageChecks(CrashChecks):
    """What the files show, and what a load makes of changed ones."""

    def _load_all(self, directory: Path, encrypted: bool) -> Content:
        """Load two known keys; a store that only lists less has not told anything."""
        handle = (
            self.adapter.open_with_key(directory, _KEY)
            if encrypted
            else self.adapter.open(directory)
        )
        store = OpenStore(self.adapter, handle)
        try:
            return {key: store.load(key) for key in ("a", "b")}
        finally:
            store.close()

    def _save_all(self, directory: Path, content: Content, encrypted: bool) -> None:
        if encrypted:
            self.fill_with_key(directory, _KEY, content)
        else:
            self.fill(content, directory)

    def check_damage(self, *kinds: str, encrypted: bool = False) -> None:
        """Load damaged files; fail where one gives what was never saved, or a strange error."""
        directory = self.place()
        self._save_all(directory, {"a": self.value(1), "b": self.value(2)}, encrypted)
        older = read_tree(directory)
        self._save_all(directory, {"a": self.value(3)}, encrypted)
        wanted = {Damage[kind] for kind in kinds}
        report = check_integrity(
            lambda copy: self._load_all(copy, encrypted),
            read_tree(directory),
            # That a value is missing is an error too, though not the most helpful one.
            expect=(*self._told(encrypted), *self.adapter.missing),
            expect_missing=self.adapter.missing,
            older=[older] if Damage.ROLL_BACK in wanted or Damage.SPLICE in wanted else (),
            sweep=Sweep(small=0, flips=256, cuts=32, header=0, splices=6, swaps=6,
                        skip=frozenset(set(Damage) - wanted)),
        )  # fmt: skip
        assert not report.findings, report.explain()
        if not report.refused:
            not_covered("no damage of this kind was ever noticed, or could be done")

    def _told(self, encrypted: bool) -> tuple[type[BaseException], ...]:
        told = (*self.adapter.damage, *(self.adapter.wrong_key if encrypted else ()))
        if Exception in told:
            not_covered(
                f"{self.adapter.name} does not say which exceptions mean damage; set damage= "
                "and wrong_key= to them"
            )
        return told

    def check_damaged_bytes_stay(self) -> None:
        """Flip a byte of each file, let the store meet it, and look for the damaged bytes."""
        content = {"a": self.value(1), "b": self.value(2)}
        met = 0
        for number, name in enumerate(self._files_of(content)):
            directory = self.place(f"damaged-{number}")
            self.fill(content, directory)
            path = directory / name
            if not path.exists():
                continue  # its name is drawn anew in each store
            traces = []
            for bit in (0x04, 0x02):  # twice: the second one must not take the place of the first
                data = path.read_bytes() if path.exists() else b""
                if not data:
                    break
                at = len(data) // 2
                damaged = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
                path.write_bytes(damaged)
                traces.append(damaged[max(0, at - 8) : at + 8])
                met += self._meet(directory, content)
                left = read_tree(directory)
                assert all(any(trace in found for found in left.values()) for trace in traces), (
                    f"{name} was damaged, and after the store met it nothing of the damaged bytes "
                    f"is left in {sorted(left)}; what could have been rescued is gone"
                )
                try:
                    self.fill(content, directory)
                except self.adapter.damage:
                    break  # it waits for somebody to decide
        if not met:
            not_covered("no damage was noticed by the store")

    def _meet(self, directory: Path, content: Content) -> bool:
        """Read and write; say whether the store noticed: by an error, or by showing less."""
        noticed = False
        try:
            noticed = self.content(directory, content) != content
        except self.adapter.damage:
            noticed = True
        try:
            self.fill({"new": self.value(3)}, directory)
        except self.adapter.damage:
            noticed = True
        return noticed

    def _files_of(self, content: Content) -> list[str]:
        directory = self.place("sample")
        self.fill(content, directory)
        return [name for name, data in read_tree(directory).items() if data]

    def check_damage_is_isolated(self) -> None:
        """Damage the file that holds only the second value; the first one must load."""
        directory = self.place()
        self.fill({"a": self.value(1)}, directory)
        first = read_tree(directory)
        self.fill({"b": self.value(2)}, directory)
        own = [name for name, data in read_tree(directory).items() if data and name not in first]
        if len(own) != 1:
            not_covered("the store does not keep each value in a file of its own")
        data = (directory / own[0]).read_bytes()
        (directory / own[0]).write_bytes(data[: len(data) // 2])
        with self.opened(directory) as store:
            with pytest.raises(self.adapter.damage):
                store.load("b")
            assert store.load("a") == self.value(1)
        with self.opened(directory) as store:
            assert store.load("a") == self.value(1)

    # -- modes

    def check_private(self, before: Content, change: Change) -> None:
        """Look at every moment of a change, under umask 022, for a file that others can read."""
        directory = self.place()
        with _umask(0o022):
            if before:
                self.fill(before, directory)
            trees = self._moments(directory, change)
        report = scan_permissions(trees)
        assert not report.findings, report.explain()
        if not report.paths:
            not_covered("no file was seen")

    def _moments(self, directory: Path, change: Change, key: str | None = None) -> list[Tree]:
        simulator = CrashSimulator(**self.settings)
        with simulator.record(directory) as recording:
            opened = (
                self.adapter.open(directory)
                if key is None
                else self.adapter.open_with_key(directory, key)
            )
            store = OpenStore(self.adapter, opened)
            try:
                change(store)
            finally:
                store.close()
        model, deviations = ("kill", 0) if key is None else ("posix", 1)
        states = recording.crash_states(model=model, deviations=deviations, limit=_STATES)
        return [state.tree for state in states]

    def check_private_directories(self) -> None:
        """Look at the modes of all directories that the store made."""
        directory = self.place()
        with _umask(0o022):
            self.fill({"a": self.value(1)}, directory)
        made = [path for path in directory.rglob("*") if path.is_dir()]
        if not made:
            not_covered("the store makes no directory")
        for path in made:
            mode = path.stat().st_mode & 0o777
            assert not mode & 0o077, f"{path.name} has mode {mode:03o}: others can look into it"

    def check_umask(self) -> None:
        """Compare the umask before and after."""
        with _umask(0o027):
            self.fill({"a": self.value(1)})
            with _umask(0o027) as found:
                assert found == 0o027, f"the umask is now {found:03o}; it was 027"

    # -- encryption

    def check_leaks(self) -> None:
        """Look for saved values on every disk that a crash may leave."""
        secret = "canary-" + self.noise(24)
        directory = self.place()
        self.fill_with_key(directory, _KEY, {"a": {"text": secret + "-first"}})
        trees = self._moments(
            directory, lambda store: store.save("a", {"text": secret + "-second"}), _KEY
        )
        report = scan_leaks([*trees, read_tree(directory)], {"the saved text": secret})
        assert not report.findings, report.explain()

    def check_wrong_key(self, harmless: bool = False) -> None:
        """Try a wrong key, and then, where asked, the right one again."""
        directory, content = self.place(), {"a": self.value(1), "b": self.value(2)}
        self.fill_with_key(directory, _KEY, content)
        with pytest.raises(self.adapter.wrong_key):
            self.content_with_key(directory, "another key", content)
        if harmless:
            assert self.content_with_key(directory, _KEY, content) == content

    def check_fresh_nonces(self) -> None:
        """Save one value twice, another one in between, and compare the files byte for byte."""
        directory = self.place()
        states = []
        for number in (1, 2, 1):
            self.fill_with_key(directory, _KEY, {"a": {"text": self.noise(4000 + number)}})
            states.append(read_tree(directory))
        first, between, again = ({d for d in s.values() if len(d) > 2000} for s in states)
        pairs = [(x, y) for x in first - between for y in again - between]
        if not pairs:
            not_covered("the store rewrote no file of that size")
        for x, y in pairs:
            equal = sum(a == b for a, b in zip(x, y, strict=False))
            assert equal < min(len(x), len(y)) // 4, (
                f"{equal} of {len(x)} bytes are the same after the same value was saved again: "
                "the nonce is not fresh, so equal texts show, and with them the key stream"
            )

    def check_key_change(self) -> None:
        """Change the key; the new one opens everything and the old one nothing."""
        directory, content = self.place(), {"a": self.value(1), "b": self.value(2)}
        self.fill_with_key(directory, _KEY, content)
        self.change_key(directory, _KEY, "new key")
        assert self.content_with_key(directory, "new key", content) == content
        with pytest.raises(self.adapter.wrong_key):
            self.content_with_key(directory, _KEY, content)


class BackupChecks(BaseBench):
    """Backups without crashes."""

    def _backed_up(self) -> tuple[Content, Path]:
        content = {"a": self.value(1), "b": self.value(2)}
        self.fill(content)
        destination = self.root / "backup"
        with self.opened() as store:
            self.adapter.backup(store.handle, destination)
        return content, destination

    def check_restore(self, change: Change) -> None:
        """Back up, change, restore, compare."""
        content, backup = self._backed_up()
        with self.opened() as store:
            change(store)
        assert self.content() != content
        with self.opened() as store:
            self.adapter.restore(store.handle, backup)
        assert self.content() == content

    def check_restore_elsewhere(self) -> None:
        """Restore into an empty store in another directory."""
        content, backup = self._backed_up()
        with self.opened("elsewhere") as store:
            self.adapter.restore(store.handle, backup)
        assert self.content("elsewhere") == content
        assert self.content() == content

    def check_damaged_backup(self) -> None:
        """Damage each file of a backup in turn; it must be refused, with the store untouched."""
        _, backup = self._backed_up()
        with self.opened() as store:
            for number, key in enumerate("ab"):
                store.save(key, self.value(7 + number))
            self.adapter.backup(store.handle, self.root / "later")
        expected = self.content()
        files, later = read_tree(backup), read_tree(self.root / "later")
        for number, (how, name, damaged) in enumerate(_damaged_backups(files, later)):
            copy = self.root / f"backup-{number}"
            shutil.copytree(backup, copy)
            if damaged is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(damaged)
            with self.opened() as store:
                try:
                    self.adapter.restore(store.handle, copy)
                except self.adapter.damage:
                    pass
                else:
                    raise AssertionError(f"a backup with {name} {how} was restored")
            assert self.content() == expected, f"a backup with {name} {how} changed the store"
            shutil.rmtree(copy)


def _damaged_backups(
    files: Mapping[str, bytes], later: Mapping[str, bytes]
) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield what was done, to which file, and what it holds then."""
    differ = [name for name in files if later.get(name, files[name]) != files[name]]
    for name, data in files.items():
        yield "missing", name, None
        if not data:
            yield "extended", name, b"x"
            continue
        yield "cut", name, data[: len(data) // 2]
        for at in sorted({len(data) * n // _FLIPS for n in range(_FLIPS)}):
            yield f"flipped at {at}", name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if name in differ and len(differ) > 1:  # else this would be all of the later backup
            yield "from a later backup", name, later[name]


class VersionChecks(BaseBench):
    """Stores of other versions."""

    def check_old_versions(self, write: bool = False) -> None:
        """Open what each old version wrote, and where asked write into it."""
        if not self.adapter.old_versions:
            not_covered("the adapter has no old_versions")
        for version in self.adapter.old_versions:
            written = {"a": self.value(1), "b": self.value(2)}
            directory = self.place(f"version-{version}")
            self.adapter.write_old(directory, version, written)
            expected = {k: self.adapter.expected_of_old(version, v) for k, v in written.items()}
            if write:
                with self.opened(directory) as store:
                    store.save("b", self.value(8))
                    store.save("c", self.value(9))
                expected |= {"b": self.value(8), "c": self.value(9)}
            assert self.content(directory, expected) == expected, f"version {version}"
            assert self.content(directory, expected) == expected, f"version {version}, again"

    def check_newer(self, untouched: bool) -> None:
        """Open what newer code wrote; compare the files where asked."""
        directory = self.place()
        self.adapter.write_newer(directory)
        before = read_tree(directory)
        with pytest.raises(self.adapter.newer):
            self.content(directory, {"a": {}})
        if untouched:
            after = read_tree(directory)
            assert {name: after.get(name) for name in before} == before


@contextmanager
def _umask(mask: int) -> Iterator[int]:
    before = os.umask(mask)
    try:
        yield before
    finally:
        os.umask(before)
