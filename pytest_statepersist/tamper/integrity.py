"""Loads damaged files and judges what comes back.

Belongs here: the sweep over the cases of `damage`, the scratch directory, and the report. Rules:

1. Anything that loads without an error and is not the original value is a finding; an error that is
   not one of the expected ones is a finding as well.
2. A load that never noticed a file has not been tested on it: the report says so, and where this
   holds for every file there is no verdict.
3. The user's own files are never touched: directories are written in a scratch place that only
   this sweep uses, and put right again after each load that changed them.
"""

from __future__ import annotations

import inspect
import operator
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from pytest_statepersist.checked import Check, Checked, CheckedFinding
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import BlindSpot, CrashConsistencyError, UserError
from pytest_statepersist.tamper.damage import (
    Damage,
    Group,
    Sweep,
    Tampering,
    cases,
    gaps,
    tampering_of,
)

__all__ = ["IntegrityFinding", "IntegrityReport", "Passing", "Verdict", "check_integrity"]

Files = Mapping[str, bytes]
_Seen = tuple[int, int, int, int]
_Case = tuple[Damage, str, Mapping[str, bytes | None], int, int]
_Show = Callable[[dict[str, bytes | None]], object]
_REMOVING = (Damage.MISSING, Damage.ROLL_BACK_ALL)
_KEPT_PER_DAMAGE = 10
_SAME_SIZE = (Damage.FLIP, Damage.EXTREME, Damage.SWAP_BLOCKS)
_RUNNERS = ("_pytest.", "pytest_timeout")


class Passing(Enum):
    """How a load is given the files."""

    DIRECTORY = "a pathlib.Path of a directory in which they are"
    MAPPING = "a dict of relative path to bytes"


class Verdict(Enum):
    """What went wrong in one case."""

    ACCEPTED = "damaged files were accepted"
    WRONG_ERROR = "damaged files raised an error that does not say so"


@dataclass(frozen=True, slots=True)
class IntegrityFinding:
    """One case that went wrong.

    ``tampering`` is the damage, ``observed`` the value or exception (its repr, shortened),
    ``error`` the exception itself for `Verdict.WRONG_ERROR`.
    """

    verdict: Verdict
    tampering: Tampering
    observed: str
    error: BaseException | None = None

    @property
    def label(self) -> str:
        """What was damaged, in words."""
        return self.tampering.label


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """What a sweep has seen.

    ``cases`` were run; of them ``refused`` raised an expected error, ``unchanged`` gave the
    original value, and ``failed`` are findings. ``findings`` keeps up to ten of each kind of
    damage; ``not_covered`` says what was sampled or not seen at all.
    """

    cases: int
    refused: int
    unchanged: int
    failed: Mapping[tuple[Verdict, Damage], int]
    findings: tuple[IntegrityFinding, ...]
    not_covered: tuple[str, ...]
    untested: tuple[str, ...]
    original: str
    expected: str
    seed: int

    @property
    def ok(self) -> bool | None:
        """False with a finding, None where the load never noticed a file, True otherwise."""
        if self.failed:
            return False
        return True if self.refused and not self.untested else None

    def raise_if_findings(self) -> None:
        """Raise `CrashConsistencyError` with an explanation if there are findings.

        Raises `BlindSpot` where there is no verdict, because nothing was tested.
        """
        __tracebackhide__ = True  # pytest then shows the test's own line
        if self.ok is False:
            raise CrashConsistencyError(self.explain(), self)
        if self.ok is None:
            raise BlindSpot(self.explain(), culprit=", ".join(self.untested))

    def checked(self) -> Checked:
        """Return the result in the shape that every check has: one finding for each damage."""
        findings = []
        for (verdict, damage), count in self.failed.items():
            first = next(
                each
                for each in self.findings
                if (each.verdict, each.tampering.damage) == (verdict, damage)
            )
            text = f"{verdict.value}: {first.label}: {first.observed}"
            findings.append(
                CheckedFinding(verdict.value, text, first.observed, self.expected, count=count)
            )
        return Checked(
            Check.INTEGRITY,
            self.ok,
            self.cases,
            f"{self.cases:,} damaged states, {self.refused:,} refused",
            tuple(findings),
            self.not_covered,
            seed=self.seed,
        )

    def explain(self) -> str:
        """Say what was damaged, what came back, and what to do about it."""
        return "\n".join(_explain(self))


def check_integrity(
    load: Callable[..., object],
    files: Files | Tree,
    *,
    expect: type[BaseException] | tuple[type[BaseException], ...],
    expect_missing: tuple[type[BaseException], ...] = (FileNotFoundError, KeyError),
    older: Files | Tree | Sequence[Files | Tree] = (),
    seed: int = 0,
    sweep: Sweep | None = None,
    passing: Passing = Passing.DIRECTORY,
    accept_original: bool = True,
    same: Callable[[Any, Any], object] = operator.eq,
    unread: Collection[str] = (),
) -> IntegrityReport:
    """Load ``files`` in every damaged form, and report what was not noticed.

    ``load`` gets the files as ``passing`` says and returns the value; on the undamaged files it
    must succeed, and that value (compared by ``same``) is the original. ``expect`` are the errors
    that mean "damaged"; a removed file may also raise ``expect_missing``. ``older`` are earlier
    valid states; a store that cannot know of a roll-back of everything leaves
    `Damage.ROLL_BACK_ALL` out with ``Sweep(skip=…)``. With ``accept_original=False`` a damaged
    file that loads as the original is a finding too. ``unread`` names files that the load is
    known not to read; of any other, damage must be noticed at least once, or there is no verdict.

    A load that never returns, or that allocates what a damaged length asks for, is not stopped:
    run the test under a time limit. Raises `UserError` where the undamaged files do not load,
    give values that differ from each other, or ``expect`` is so wide that nothing could fail.
    """
    expected = _exceptions(expect)
    current = _as_files(files)
    past = _as_states(older)
    sweep = sweep or Sweep()
    with _shower(current, passing) as shower:
        show = shower.shows(Damage.FLIP)
        original = _load_original(lambda: load(show({})), same)
        judge = _Judge(current, original, same, expected, tuple(expect_missing), accept_original)
        run(load, shower, judge, cases(current, older=past, sweep=sweep, seed=seed))
        # A subject that answers from memory, or that the sweep has broken, would show here.
        try:
            again = load(show({}))
        except Exception as error:
            raise UserError(
                f"after the sweep the undamaged files no longer load ({error!r}): the load keeps "
                "state between calls; give one that opens everything anew"
            ) from error
        if not same(again, original):
            raise UserError(
                "after the sweep the undamaged files give another value: the load keeps state "
                "between calls; give one that opens everything anew"
            )
    untested = judge.untested([name for name in sorted(current) if name not in unread])
    notes = [
        f"{name}: the original came back from every change of its bytes, so the load does not "
        "read it, or answers from memory"
        for name in untested
    ] + [f"{name}: known not to be read" for name in sorted(unread)]
    return IntegrityReport(
        cases=judge.run,
        refused=judge.refused,
        unchanged=judge.unchanged_total(),
        failed=dict(judge.failed),
        findings=tuple(judge.findings),
        not_covered=(*notes, *gaps(current, older=past, sweep=sweep)),
        untested=untested,
        original=_short(original),
        expected=" or ".join(kind.__name__ for kind in expected),
        seed=seed,
    )


class _Judge:
    """Counts the cases and keeps the findings."""

    def __init__(
        self,
        files: Files,
        original: object,
        same: Callable[[Any, Any], object],
        expected: tuple[type[BaseException], ...],
        expected_missing: tuple[type[BaseException], ...],
        accept_original: bool,
    ) -> None:
        self.files = files
        self.original = original
        self.same = same
        self.expected = expected
        self.expected_missing = expected_missing
        self.accept_original = accept_original
        self.run = 0
        self.refused = 0
        self.unchanged: Counter[tuple[str, Damage]] = Counter()
        self.noticed: set[str] = set()
        self.failed: Counter[tuple[Verdict, Damage]] = Counter()
        self.findings: list[IntegrityFinding] = []

    def unchanged_total(self) -> int:
        """Return how many damaged states gave the original value."""
        return sum(self.unchanged.values())

    def untested(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the files of which no change of bytes was ever noticed."""
        changed = {name for name, damage in self.unchanged if damage in _SAME_SIZE}
        return tuple(name for name in names if name in changed and name not in self.noticed)

    def loaded(self, value: object, case: _Case) -> None:
        """Judge a load that returned."""
        damage, name = case[0], case[1]
        if self.same(value, self.original):
            self.unchanged[name, damage] += 1
            if self.accept_original:
                return
        elif damage in _SAME_SIZE:
            self.noticed.add(name)
        self._find(Verdict.ACCEPTED, case, _short(value), None)

    def raised(self, error: BaseException, case: _Case) -> None:
        """Judge a load that raised something else than the expected."""
        damage, name = case[0], case[1]
        if damage in _SAME_SIZE:
            self.noticed.add(name)
        if damage is Damage.MISSING and isinstance(error, self.expected_missing):
            self.refused += 1
            return
        self._find(Verdict.WRONG_ERROR, case, _short(error), error)

    def _find(
        self, verdict: Verdict, case: _Case, observed: str, error: BaseException | None
    ) -> None:
        key = verdict, case[0]
        self.failed[key] += 1
        if self.failed[key] <= _KEPT_PER_DAMAGE:
            if error is not None:
                error.__traceback__ = None  # it would keep the frames of the load alive
            tampering = tampering_of(*case, self.files)
            self.findings.append(IntegrityFinding(verdict, tampering, observed, error))


def run(
    load: Callable[..., object], shower: _Shower, judge: _Judge, groups: Iterator[Group]
) -> None:
    """Run every case; this is the hot loop, so it only counts what went right."""
    expected = judge.expected
    for damage, name, made in groups:
        count = refused = 0
        show = shower.shows(damage)
        for changed, a, b in made:
            count += 1
            try:
                value = load(show(changed))
            except expected:
                refused += 1
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                # The test runner's own outcomes (skip, timeout) are not the subject's answer.
                if any(kind.__module__.startswith(_RUNNERS) for kind in type(error).__mro__):
                    raise
                judge.raised(error, (damage, name, changed, a, b))
            else:
                judge.loaded(value, (damage, name, changed, a, b))
        judge.run += count
        judge.refused += refused
        if refused and damage in _SAME_SIZE:
            judge.noticed.add(name)


# --- giving the files to the load ---------------------------------------------------------------


class _Shower(Protocol):
    """Turns the changes of a case into what the load is given."""

    def shows(self, damage: Damage) -> _Show:
        """Return the function that does so for one kind of damage."""


class _Mapping:
    """Shows a case as a new dict."""

    def __init__(self, files: Files) -> None:
        self._files: dict[str, bytes | None] = {**files}

    def shows(self, damage: Damage) -> _Show:
        """Return the union with the files, and without what is removed where that can be."""
        return self._without if damage in _REMOVING else self._files.__or__

    def _without(self, changed: dict[str, bytes | None]) -> object:
        return {name: data for name, data in (self._files | changed).items() if data is not None}


@contextmanager
def _shower(files: dict[str, bytes], passing: Passing) -> Iterator[_Shower]:
    if passing is Passing.MAPPING:
        yield _Mapping(files)
    else:
        with _Scratch.make(files) as scratch:
            yield scratch


class _Scratch:
    """A directory that shows the files, with what the present case changes."""

    def __init__(self, path: Path, files: dict[str, bytes]) -> None:
        self.path = path
        self._files = files
        self._shown: dict[str, _Seen] = {}
        self._changed: tuple[str, ...] = ()
        self._clock = 1_000_000_000_000_000_000

    @classmethod
    @contextmanager
    def make(cls, files: dict[str, bytes]) -> Iterator[_Scratch]:
        """Make the directory in memory where there is such a place; it goes away at the end."""
        memory = "/dev/shm"
        place = memory if os.access(memory, os.W_OK | os.X_OK) else None
        root = Path(tempfile.mkdtemp(prefix="statepersist-tamper-", dir=place))
        try:
            yield cls(root / "state", files)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def shows(self, damage: Damage) -> _Show:
        """Return `show`, which is the same for every kind of damage."""
        return self.show

    def show(self, changed: dict[str, bytes | None]) -> Path:
        """Make the directory hold exactly the files with these changes, and return it."""
        if not self._shown or self._found() != self._shown:
            self._rebuild()
        for name in self._changed:
            self._write(name, self._files.get(name))
        for name, data in changed.items():
            self._write(name, data)
        self._changed = tuple(changed)
        return self.path

    def _rebuild(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)
        self._shown = {}
        for name, data in self._files.items():
            self._write(name, data)
        self._changed = ()

    def _write(self, name: str, data: bytes | None) -> None:
        path = self.path / name
        if data is None:
            path.unlink(missing_ok=True)
            self._shown.pop(name, None)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb", closefd=True) as file:
            file.write(data)
        # A time of our own, new for each write: a later write by the load shows, however soon,
        # and a subject that caches by time does not take a damaged file for the one it knows.
        self._clock += 1_000_000_000
        os.utime(path, ns=(self._clock, self._clock))
        found = os.stat(path)
        self._shown[name] = _seen(found)

    def _found(self) -> dict[str, _Seen]:
        found: dict[str, _Seen] = {}
        stack = [(os.fspath(self.path), "")]
        while stack:
            directory, prefix = stack.pop()
            try:
                entries = list(os.scandir(directory))
            except OSError:
                return {}
            if prefix and not entries:
                return {}  # an empty directory is nobody's file: build anew
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                name = prefix + entry.name
                if stat.S_ISDIR(info.st_mode):
                    stack.append((entry.path, name + "/"))
                else:
                    found[name] = _seen(info)
        return found


def _seen(info: os.stat_result) -> _Seen:
    return info.st_ino, info.st_size, info.st_mode, info.st_mtime_ns


# --- arguments ------------------------------------------------------------------------------------


def _as_files(files: Files | Tree) -> dict[str, bytes]:
    if isinstance(files, Tree):
        return {path: files.read(path) for path in files.paths()}
    if not isinstance(files, Mapping):
        raise UserError(
            f"files must be a mapping of relative path to bytes, or a Tree, not "
            f"{type(files).__name__}"
        )
    for name, data in files.items():
        parts = str(name).split("/")
        if not isinstance(name, str) or ".." in parts or "" in parts or "\0" in name:
            raise UserError(f"{name!r} is not a relative path inside a directory")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise UserError(f"{name!r} must be bytes, not {type(data).__name__}")
    return {name: bytes(data) for name, data in files.items()}


def _as_states(older: Files | Tree | Sequence[Files | Tree]) -> list[dict[str, bytes]]:
    if isinstance(older, Tree | Mapping):
        return [_as_files(older)]
    return [_as_files(state) for state in older]


def _exceptions(
    expect: type[BaseException] | tuple[type[BaseException], ...],
) -> tuple[type[BaseException], ...]:
    kinds = expect if isinstance(expect, tuple) else (expect,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise UserError(f"expect must be exception types, not {kind!r}")
        if kind in (BaseException, Exception):
            raise UserError(
                f"expect={kind.__name__} would take every crash of the load for a good answer; "
                "name the error that the store raises for damaged files"
            )
    if not kinds:
        raise UserError("expect names no exception, so every refusal would be a finding")
    return kinds


def _load_original(give: Callable[[], object], same: Callable[[Any, Any], object]) -> object:
    try:
        original, again = give(), give()
    except Exception as error:
        raise UserError(
            f"the undamaged files do not load: {type(error).__name__}: {error}; check that the "
            "files are complete and that the load is given what it expects (passing=…)"
        ) from error
    if inspect.isawaitable(original):
        for value in (original, again):
            if inspect.iscoroutine(value):
                value.close()
        raise UserError(
            "the load is asynchronous; give load=lambda files: asyncio.run(your_load(files))"
        )
    if not same(again, original):
        raise UserError(
            "two loads of the same undamaged files give values that are not equal, so damage "
            "could not be told; give same=, a function that compares two values"
        )
    return original


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # a repr of half-loaded state may fail: that is no verdict
        text = f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= 300 else text[:297] + "..."


# --- prose ----------------------------------------------------------------------------------------

_ADVICE = {
    Damage.ROLL_BACK: "Bind each file to the state it belongs to (a version or digest kept in an "
    "authenticated index); where roll-back is no threat, Sweep(skip={Damage.ROLL_BACK}).",
    Damage.ROLL_BACK_ALL: "Only knowledge from outside the directory can tell (a counter or digest "
    "that the caller keeps); without it, leave this kind out: Sweep(skip={Damage.ROLL_BACK_ALL}).",
    Damage.SWAP_NAMES: "Authenticate the file's name or id with its content (as associated data).",
    Damage.SPLICE: "Authenticate the whole file with one tag, not each part alone.",
    Damage.SWAP_BLOCKS: "Authenticate the order of the blocks, or the whole file with one tag.",
    Damage.EXTEND: "Check the length: what follows the last expected byte is damage too.",
    Damage.TRUNCATE: "Store the length or a checksum, and check it before use.",
    Damage.MISSING: "A file that should be there and is not is damage, not a first start.",
    Damage.EMPTY: "An empty file is damage, not an empty state.",
}


def _explain(report: IntegrityReport) -> Iterator[str]:
    failed = sum(report.failed.values())
    if report.ok is None:
        yield (
            f"No verdict after {report.cases:,} damaged states: whatever was done to "
            f"{', '.join(report.untested) or 'the files'}, the original came back. The load may "
            "not read it, or answer from memory. Give a load that opens everything anew from what "
            "it is given, or name the file in unread=."
        )
    elif failed:
        yield f"Damage went unnoticed or unnamed in {failed:,} of {report.cases:,} damaged states."
    else:
        yield (
            f"{report.cases:,} damaged states: {report.refused:,} refused, {report.unchanged:,} "
            "loaded as the original."
        )
    for (verdict, damage), count in sorted(
        report.failed.items(), key=lambda item: (item[0][0].name, item[0][1].name)
    ):
        first = next(
            f for f in report.findings if f.verdict is verdict and f.tampering.damage is damage
        )
        yield f"\n{count:,} x {damage.value}. For example: {first.label}"
        if verdict is Verdict.ACCEPTED:
            yield f"    the load returned  {first.observed}"
            yield f"    instead of raising {report.expected}; what was saved is {report.original}"
            yield "    " + _ADVICE.get(
                damage,
                "Check a checksum (accidents) or a keyed tag (attackers) over every byte first.",
            )
        else:
            yield f"    the load raised    {first.observed}"
            yield f"    instead of         {report.expected}"
            yield (
                "    Check the bytes before they are parsed, and turn what parsing raises into "
                "that error."
            )
    for line in report.not_covered:
        yield f"\nNot covered: {line}."
