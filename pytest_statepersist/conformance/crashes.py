"""Checks by crashes: a change recorded, every disk that a crash may leave recovered from.

Belongs here: the way from a change of a store to a verdict of `CrashSimulator`. Values before,
between and after the changes come from a `Shadow`, not from the store itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.conformance.base import (
    BaseBench,
    Change,
    Content,
    Shadow,
    not_covered,
)
from pytest_statepersist.errors import BlindSpot
from pytest_statepersist.explorer.outcome import Kind
from pytest_statepersist.findings import Report, Verdict
from pytest_statepersist.simulator import CrashSimulator

__all__ = ["CrashChecks"]

_UNUSABLE = {Kind.UNRECOVERABLE, Kind.HANG}


class CrashChecks(BaseBench):
    """What a crash at any moment leaves."""

    def explore(self, **arguments: Any) -> Report:
        """Run `CrashSimulator.explore`; what no recorder could see is not covered."""
        try:
            return CrashSimulator(**self.settings).explore(**arguments)
        except BlindSpot as error:
            not_covered(f"the recorder has a blind spot: {error}")

    def explore_changes(self, before: Content, changes: tuple[Change, ...], model: str) -> Report:
        """Crash these changes of a store that holds ``before``; each is acknowledged on return."""
        contents = [before]
        for change in changes:
            shadow = Shadow(contents[-1])
            change(shadow)
            contents.append(shadow.values)
        known = {key: value for content in contents for key, value in content.items()}

        def setup(directory: Path) -> None:
            if before:
                self.fill(before, directory)

        def workload(directory: Path, acknowledge: Callable[[Any], None]) -> None:
            with self.opened(directory) as store:
                for change, content in zip(changes, contents[1:], strict=True):
                    change(store)
                    if self.adapter.has("durable"):
                        acknowledge(content)

        return self.explore(
            setup=setup,
            workload=workload,
            recover=lambda directory: self.content(directory, known),
            before=before,
            after=contents[-1],
            **({"model": model} if model else {}),
        )

    def check_atomic(self, before: Content, *changes: Change, model: str = "") -> None:
        """Fail where a crash leaves neither the state before a change nor the one after it."""
        report = self.explore_changes(before, changes, model)
        _judge(report, lambda verdict: verdict.atomic)

    def check_durable(self, before: Content, *changes: Change) -> None:
        """Fail where a crash takes back what was acknowledged, by a return or by `close`."""
        if not (self.adapter.has("durable") or self.adapter.has("durable_on_close")):
            not_covered(f"{self.adapter.name} declares neither durable nor durable_on_close")
        report = self.explore_changes(before, changes, "")
        _judge(report, lambda verdict: verdict.durable)

    def check_usable_after_crash(
        self, before: Content, change: Change, keys: set[str] | None = None
    ) -> None:
        """Fail where after a crash the store does not open, or does not take and give a value."""
        fresh = self.value(77)
        shadow = Shadow(before)
        change(shadow)
        known = {**before, **shadow.values, "after": fresh}

        def recover(directory: Path) -> Content:
            found = self.content(directory, known)
            found.pop("after", None)
            with self.opened(directory) as store:
                store.save("after", fresh)
                listed = set(store.keys()) if keys is not None else set()
            again = self.content(directory, known)
            assert again.pop("after", None) == fresh, "a value saved after the crash is not there"
            assert again == found, "a save after the crash changed other values"
            assert not listed - (keys or set()), (
                f"listed as keys: {sorted(listed - (keys or set()))}"
            )
            return found

        def workload(directory: Path) -> None:
            with self.opened(directory) as store:
                change(store)

        report = self.explore(
            setup=lambda directory: self.fill(before, directory) if before else None,
            workload=workload,
            recover=recover,
            before=before,
            after=shadow.values,
            recovery_crashes=0,
        )
        unusable = any(_UNUSABLE & {finding.kind, *finding.kinds} for finding in report.findings)
        assert not unusable, str(report)
        if report.verdicts and not report.verdicts[0].complete:
            not_covered(report.verdicts[0].reason or report.verdicts[0].coverage)

    # -- keys, clean-ups, backups, migrations

    def check_key_change_under_crashes(self) -> None:
        """Crash a change of key; whichever key opens must open everything."""
        content = {"a": self.value(1), "b": self.value(2)}
        old, new = "old password", "new password"

        def recover(directory: Path) -> Any:
            for key in (new, old):
                try:
                    found = self.content_with_key(directory, key, content)
                except self.adapter.wrong_key:
                    continue
                assert found == content, f"{key!r} opens, and shows {found!r}"
                return key
            raise AssertionError("neither the old nor the new key opens the store")

        report = self.explore(
            setup=lambda directory: self.fill_with_key(directory, old, content),
            workload=lambda directory: self.change_key(directory, old, new),
            recover=recover,
            before=old,
            after=new,
        )
        _judge(report, lambda verdict: verdict.atomic and verdict.durable)

    def content_with_key(self, directory: Path, key: str, known: Content) -> Content:
        """Return everything that a key opens; ``known`` as in `content`."""
        store = OpenStore(self.adapter, self.adapter.open_with_key(directory, key))
        try:
            return self.read(store, known)
        finally:
            store.close()

    def fill_with_key(self, directory: Path, key: str, content: Content) -> None:
        """Save all of this under a key, and close."""
        store = OpenStore(self.adapter, self.adapter.open_with_key(directory, key))
        try:
            for name, value in content.items():
                store.save(name, value)
        finally:
            store.close()

    def change_key(self, directory: Path, old: str, new: str) -> None:
        """Open with the old key, change it, and close."""
        store = OpenStore(self.adapter, self.adapter.open_with_key(directory, old))
        try:
            self.adapter.change_key(store.handle, old, new)
        finally:
            store.close()

    def check_clean_up_under_crashes(self) -> None:
        """Crash a clean-up of two old snapshots; both go or none, and a young one stays."""

        def setup(directory: Path) -> None:
            self.add_snapshots(directory, {"a": 2 * self.limit, "b": 3 * self.limit,
                                           "young": timedelta(0)})  # fmt: skip

        report = self.explore(
            setup=setup,
            workload=self.clean_up,
            recover=lambda directory: len(self.snapshot_ids(directory)),
            before=3,
            after=1,
        )
        _judge(report, lambda verdict: verdict.atomic and verdict.durable)

    @property
    def limit(self) -> timedelta:
        """How old a snapshot may become."""
        return self.adapter.max_age

    now = datetime(2031, 5, 5, 12, tzinfo=UTC)
    """The moment of the clean-up."""

    def _at(self, moment: datetime) -> _Standing:
        return _Standing(moment)

    def add_snapshots(self, directory: Path, ages: dict[str, timedelta]) -> dict[str, str]:
        """Take snapshots that have these ages at the moment of the clean-up; return their ids."""
        ids: dict[str, str] = {}
        for name, age in ages.items():
            handle = self.adapter.open_with_clock(directory, self._at(self.now - age))
            try:
                self.adapter.save(handle, "state", self.value(len(ids)))
                ids[name] = self.adapter.snapshot(handle, name)
            finally:
                self.adapter.close(handle)
        return ids

    def snapshot_ids(self, directory: Path) -> set[str]:
        """Return the ids of all snapshots."""
        handle = self.adapter.open_with_clock(directory, self._at(self.now))
        try:
            return set(self.adapter.snapshots(handle))
        finally:
            self.adapter.close(handle)

    def clean_up(self, directory: Path) -> None:
        """Open at the moment of the clean-up, clean up, and close."""
        handle = self.adapter.open_with_clock(directory, self._at(self.now))
        try:
            self.adapter.clean_up(handle)
        finally:
            self.adapter.close(handle)

    def kept_after(
        self,
        ages: dict[str, timedelta],
        starred: set[str] = frozenset(),  # type: ignore[assignment]
        unstarred: set[str] = frozenset(),  # type: ignore[assignment]
        times: int = 1,
    ) -> set[str]:
        """Return which of these snapshots a clean-up leaves."""
        directory = self.place()
        ids = self.add_snapshots(directory, ages)
        handle = self.adapter.open_with_clock(directory, self._at(self.now))
        try:
            for name in starred | unstarred:
                self.adapter.star(handle, ids[name], True)
            for name in unstarred:
                self.adapter.star(handle, ids[name], False)
        finally:
            self.adapter.close(handle)
        assert self.snapshot_ids(directory) == set(ids.values())
        for _ in range(times):
            self.clean_up(directory)
        left = self.snapshot_ids(directory)
        return {name for name, found in ids.items() if found in left}

    def check_backup_under_crashes(self, durable: bool = False) -> None:
        """Crash a backup; it then restores everything, or it is none."""
        content = {"a": self.value(1), "b": self.value(2)}

        def back_up(directory: Path) -> None:
            with self.opened(directory / "store") as store:
                self.adapter.backup(store.handle, directory / "backup")

        def setup(directory: Path) -> None:
            (directory / "store").mkdir(mode=0o700)
            self.fill(content, directory / "store")

        def recover(directory: Path) -> Any:
            (directory / "elsewhere").mkdir(mode=0o700, exist_ok=True)
            with self.opened(directory / "elsewhere") as store:
                if found := self.read(store, content):
                    # An earlier run of this recovery was cut short.
                    return "restored" if found == content else found
                if not (directory / "backup").exists():
                    return "none"
                try:
                    self.adapter.restore(store.handle, directory / "backup")
                except self.adapter.damage:
                    return "none"
                found = self.read(store, content)
                return "restored" if found == content else found

        report = self.explore(
            setup=setup, workload=back_up, recover=recover, before="none", after="restored",
            recovery_crashes=0,
        )  # fmt: skip
        _judge(report, lambda verdict: verdict.durable if durable else verdict.atomic)

    def check_restore_under_crashes(self) -> None:
        """Crash a restore; the store holds what it held, or what the backup holds."""
        old = {"a": self.value(1), "b": self.value(2)}
        present = {"a": self.value(5), "later": self.value(6)}

        def setup(directory: Path) -> None:
            (directory / "store").mkdir(mode=0o700)
            with self.opened(directory / "store") as store:
                for key, value in old.items():
                    store.save(key, value)
                self.adapter.backup(store.handle, directory / "backup")
                store.save("a", present["a"])
                store.save("later", present["later"])
                if self.adapter.has("delete"):
                    store.delete("b")

        if not self.adapter.has("delete"):
            present["b"] = old["b"]

        def restore(directory: Path) -> None:
            with self.opened(directory / "store") as store:
                self.adapter.restore(store.handle, directory / "backup")

        report = self.explore(
            setup=setup,
            workload=restore,
            recover=lambda directory: self.content(directory / "store", {**old, **present}),
            before=present,
            after=old,
        )
        _judge(report, lambda verdict: verdict.atomic and verdict.durable)

    def check_migration_under_crashes(self) -> None:
        """Crash the opening and migrating of each old version; every value must be there after."""
        for version in self.adapter.old_versions:
            written = {"a": self.value(1), "b": self.value(2)}
            expected = {k: self.adapter.expected_of_old(version, v) for k, v in written.items()}

            def setup(directory: Path, version: int = version, written: Content = written) -> None:
                self.adapter.write_old(directory, version, written)

            def migrate(directory: Path) -> None:
                with self.opened(directory) as store:
                    self.adapter.migrate(store.handle)

            seen: list[bool] = []

            def recover(
                directory: Path, expected: Content = expected, seen: list[bool] = seen
            ) -> Content:
                seen.append(True)
                return self.content(directory, expected)

            # Before and after give the same answer, so the verdict would be "not covered"; here
            # the question is only whether any crash gives another one.
            report = self.explore(
                setup=setup, workload=migrate, recover=recover, before=expected, after=expected
            )
            assert not report.findings, str(report)
            if not seen or not report.trace.operations:
                not_covered("migrating changes nothing on the disk")


class _Standing:
    """A wall clock that stands still."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        return self._moment

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        """Return at once."""


def _judge(report: Report, question: Callable[[Verdict], bool | None]) -> None:
    for verdict in report.verdicts:
        if question(verdict) is False:
            raise AssertionError(str(report))
    for verdict in report.verdicts:
        if question(verdict) is None:
            not_covered(verdict.reason or verdict.coverage or "the exploration was not complete")
