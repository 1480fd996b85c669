"""Integrity: wrong keys, tampering, roll-back, key change, nonces and leaks.

Belongs here: what somebody else does to the files. Rules:

1. After any damage each key gives its value or an error; a wrong value is a failure, and so is a
   value under a key that has none.
2. The files are put back after each damage: damage is not cumulated.
3. An old valid file is told only by stores that declare `rollback_evident`; to others it is not
   given, and the matrix says so.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.leaks import scan_leaks, scan_nonces, scan_permissions
from pytest_statepersist.machines.base import Held, Lazy, StoreMachine, as_text, content_of
from pytest_statepersist.machines.expected import Worlds
from pytest_statepersist.machines.files import Files, files_of, put_files, write_changes
from pytest_statepersist.machines.history import Drawing, initialize, rule
from pytest_statepersist.machines.lives import Life, Past, put_on_disk
from pytest_statepersist.machines.timeline import timeline
from pytest_statepersist.recorders.python import interposition
from pytest_statepersist.strategies import Crash, documents, keys
from pytest_statepersist.tamper import Damage, Tampering

__all__ = ["IntegrityMachine"]

CANARY = "canary-7f3a9c52d1"
_ROLL_BACKS = (Damage.ROLL_BACK, Damage.ROLL_BACK_ALL)
_DAMAGES = 6
_KINDS = tuple(kind for kind in Damage if kind not in _ROLL_BACKS)


class IntegrityMachine(StoreMachine):
    """Saves secrets, and lets an attacker at the files in between."""

    needs_one_of = ("encryption", "tamper_evident")
    uses = ("rollback_evident", "key_change", "permissions", "delete")

    def __init__(self) -> None:
        super().__init__()
        self.expected = Held()
        self.key = "first password"
        self.opened: OpenStore | None = None
        self.pasts: list[Files] = []
        self.seen: list[tuple[str, Files]] = []

    @classmethod
    def begin(cls) -> None:
        """Put the recorder's replacements in place once for all examples."""
        if cls._crashes():
            interposition().install()

    @classmethod
    def end(cls) -> None:
        """Undo it."""
        if cls._crashes():
            interposition().uninstall()

    @classmethod
    def _crashes(cls) -> bool:
        return cls.store.has("key_change") and cls.store.has("crash_recovery")

    @property
    def now(self) -> OpenStore:
        """The open store."""
        assert self.opened is not None
        return self.opened

    def _open(self, key: str) -> OpenStore:
        if self.can("encryption"):
            return OpenStore(self.adapter, self.adapter.open_with_key(self.directory, key))
        return OpenStore(self.adapter, self.adapter.open(self.directory))

    def _close(self) -> None:
        self.now.close()
        self.opened = None

    @initialize()
    def open(self) -> None:
        """Open a new store."""
        # A careless umask, so that modes are the store's own doing.
        previous = os.umask(0o022)
        self._stack.callback(os.umask, previous)
        self.opened = self._open(self.key)

    @rule(key=keys(), value=documents(max_leaves=3, large=False), number=st.integers(0, 9))
    def save(self, key: str, value: dict[str, Any], number: int) -> None:
        """Save a value with a secret in it; it is there."""
        secret = {**value, "secret": f"{CANARY}-{number}"}
        self.now.save(key, secret)
        self.expected[key] = as_text(secret)
        found = self.now.get(key)
        assert found is not None, f"{key!r} was saved and is missing"
        assert as_text(found) == self.expected[key], f"{key!r} gives {found}, saved was {secret}"
        self._keep_files()

    @precondition(lambda self: self.expected and self.can("delete"))
    @rule(data=st.data())
    def delete(self, data: Drawing) -> None:
        """Delete a value; it is missing then."""
        key = data.pick(sorted(self.expected), label="key")
        self.now.delete(key)
        del self.expected[key]
        found = self.now.get(key)
        assert found is None, f"{key!r} was deleted and still gives {found!r}"
        self._keep_files()

    @rule()
    def reopen(self) -> None:
        """Open again with the right key: everything is there."""
        self._close()
        self.opened = self._open(self.key)
        self._all_is_there()

    @precondition(lambda self: self.expected and self.can("encryption"))
    @rule(wrong=st.sampled_from(["", "wrong", "first passwore", "First password", "0"]))
    def open_with_a_wrong_key(self, wrong: str) -> None:
        """A wrong key opens nothing and harms nothing."""
        self._close()
        self._refused(wrong)
        self.opened = self._open(self.key)
        self._all_is_there()

    @precondition(lambda self: self.expected and self.can("tamper_evident"))
    @rule(data=st.data())
    def tamper(self, data: Drawing) -> None:
        """Damage the files, one damage after the other: what is loaded is right, or an error."""
        self._close()
        files = files_of(self.directory)
        for _ in range(data.draw(st.integers(1, _DAMAGES), label="damages")):
            self._damage(data, files)
        self.opened = self._open(self.key)
        self._all_is_there()

    def _damage(self, data: Drawing, files: Files) -> None:
        evident = self.can("rollback_evident")
        kinds = (*_KINDS, *_ROLL_BACKS) if evident else _KINDS
        older = [past for past in self.pasts if past != files]
        # The head of a file on the tail of its own past is half a roll-back.
        done = data.damage(files, donors := older if evident else [], kinds).on(files, donors)
        if not evident and _is_roll_back(done, older):
            self.happened("roll-back by chance, not given")
            return
        self.happened(f"tampering: {done.damage.value}")
        write_changes(self.directory, done.files)
        self._right_or_told(done)
        put_files(self.directory, files)

    @precondition(lambda self: self.can("key_change"))
    @rule(number=st.integers(0, 3))
    def change_key(self, number: int) -> None:
        """The new key opens everything, the old one nothing."""
        old, new = self.key, f"password number {number}"
        if old == new:
            return
        self.adapter.change_key(self.now.handle, old, new)
        self.key = new
        self.pasts.clear()
        self._close()
        if self.expected:
            self._refused(old)
        self.opened = self._open(new)
        self._all_is_there()

    @precondition(lambda self: self.can("key_change") and self.can("crash_recovery"))
    @precondition(lambda self: self.expected and self.can("durable"))
    @rule(data=st.data(), model=st.sampled_from(["posix", "kill"]))
    def crash_while_the_key_changes(self, data: Drawing, model: str) -> None:
        """After a crash exactly one of two keys opens everything."""
        old, new = self.key, f"{self.key}+"
        life = Life(self.directory, Worlds())
        try:
            with life.rule("change_key", Worlds, Worlds):
                self.adapter.change_key(self.now.handle, old, new)
            past = life.end()
        finally:
            life.give_up()
        for crash in data.crashes(past.trace, model):
            self._recover_from(past, crash, (old, new))

    def _recover_from(self, past: Past, crash: Crash, keys: tuple[str, str]) -> None:
        self.tell(Lazy(lambda: timeline(past, crash)))
        self.now.abandon()
        put_on_disk(self.directory, self.aside, crash.disk, crash.state)
        opens = [key for key in keys if self._opens(key)]
        assert len(opens) == 1, (
            f"after a crash while the key was changed {'both keys' if opens else 'neither key'} "
            "opened everything"
        )
        (self.key,) = opens
        changed = crash.point >= len(past.trace)
        assert not changed or self.key == keys[1], (
            "the change of the key was acknowledged and is lost"
        )
        self.pasts.clear()
        self.opened = self._open(self.key)
        self._all_is_there()

    @precondition(lambda self: self.expected)
    @rule()
    def look_at_the_files(self) -> None:
        """Nothing readable, no nonce twice, nobody else may read."""
        files = files_of(self.directory)
        if self.can("encryption"):
            scan_leaks([("now", files)], {"secret": CANARY}).raise_if_findings()
        if self.can("encryption") and self.adapter.overrides("sealed"):
            nonces = scan_nonces(self.seen, self.adapter.sealed)
            # One message alone repeats nothing, and is no reason to stop.
            if nonces.ok is False:
                nonces.raise_if_findings()
            elif nonces.ok:
                self.happened("nonces compared")
        if self.can("permissions"):
            modes = [
                (path.relative_to(self.directory).as_posix(), path.stat().st_mode)
                for path in self.directory.rglob("*")
                if path.is_file()
            ]
            scan_permissions(modes).raise_if_findings()

    # -- what is asked

    def _keep_files(self) -> None:
        """Remember what an attacker could have copied."""
        files = files_of(self.directory)
        self.pasts = [*self.pasts[-4:], files]
        self.seen.append((f"save {len(self.seen)}", files))

    def _all_is_there(self) -> None:
        found = content_of(self.now, tuple(self.expected.named))
        assert found == self.expected, f"stored is {found}, saved was {self.expected}"

    def _refused(self, key: str) -> None:
        try:
            store = self._open(key)
        except (*self.adapter.wrong_key, *self.adapter.refusal):
            return
        try:
            for name in sorted(self.expected):
                try:
                    found = store.load(name)
                except self.adapter.wrong_key:
                    continue
                raise AssertionError(f"a wrong key opened {name!r}: {found!r}")
        finally:
            store.close()

    def _opens(self, key: str) -> bool:
        try:
            store = self._open(key)
        except self.adapter.wrong_key:
            return False
        try:
            return content_of(store, tuple(self.expected.named)) == self.expected
        except self.adapter.wrong_key:
            return False
        finally:
            store.close()

    def _right_or_told(self, done: Tampering) -> None:
        allowed = (*self.adapter.damage, *self.adapter.missing, *self.adapter.wrong_key)
        try:
            store = self._open(self.key)
        except allowed:
            return
        try:
            for name in sorted(self.expected):
                try:
                    found = as_text(store.load(name))
                except allowed:
                    continue
                assert found == self.expected[name], (
                    f"{done.label}: {name!r} gives {found} without an error, "
                    f"saved was {self.expected[name]}"
                )
            for name in self._listed(store, allowed):
                assert name in self.expected, f"{done.label}: {name!r} appeared without an error"
        finally:
            store.close()

    def _listed(self, store: OpenStore, allowed: tuple[type[BaseException], ...]) -> set[str]:
        """Return the keys that are listed and give a value."""
        if not self.can("list"):
            return set()
        try:
            listed = store.keys()
        except allowed:
            return set()
        found = set()
        for name in listed:
            try:
                store.load(name)
            except allowed:
                continue
            found.add(name)
        return found

    def teardown(self) -> None:
        """Close the store."""
        if self.opened is not None:
            self.opened.close()
        super().teardown()


def _is_roll_back(done: Tampering, older: list[Files]) -> bool:
    """Say whether each changed file is now what it validly was before, or absent as it was."""
    return any(all(past.get(name) == data for name, data in done.files.items()) for past in older)
