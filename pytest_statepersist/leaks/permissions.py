"""No moment at which others can read a secret: a scan over modes as they were, one after another.

Belongs here: what counts as a moment and which modes are too wide. Rules:

1. An empty file counts: who opens it then can read everything that is written later.
2. The directory above the state is not trusted: in a test it is private, in production it may not
   be. Directories inside the state count only if asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pytest_statepersist.checked import Check, Checked, CheckedFinding
from pytest_statepersist.core.tree import Directory, File, Tree
from pytest_statepersist.errors import UserError
from pytest_statepersist.leaks.states import ScanReport

__all__ = ["ModeEvent", "PermissionFinding", "PermissionReport", "scan_permissions"]


@dataclass(frozen=True, slots=True)
class ModeEvent:
    """From here on ``path`` has these permission bits; ``where`` says who did it (file:line)."""

    path: str
    mode: int
    where: str = ""


@dataclass(frozen=True, slots=True)
class PermissionFinding:
    """A moment at which a path was open to others: its mode, and the number or place of it."""

    path: str
    mode: int
    excess: int
    moment: str


@dataclass(frozen=True, slots=True)
class PermissionReport(ScanReport):
    """What a permission scan has seen: findings, moments, and how many secret paths."""

    findings: tuple[PermissionFinding, ...]
    moments: int
    paths: int
    allowed: int
    not_covered: tuple[str, ...]

    @property
    def ok(self) -> bool | None:
        """False with a finding, None where no secret path was seen, True otherwise."""
        if self.findings:
            return False
        return True if self.paths else None

    def checked(self) -> Checked:
        """Return the result in the shape that every check has."""
        findings = tuple(
            CheckedFinding(
                "open to others",
                f"{each.path!r} had mode {each.mode:04o} ({each.moment})",
                f"mode {each.mode:04o}",
                f"at most {self.allowed:04o}",
            )
            for each in self.findings
        )
        coverage = f"{self.paths} paths at {self.moments:,} moments"
        return Checked(
            Check.PERMISSIONS, self.ok, self.moments, coverage, findings, self.not_covered
        )

    def explain(self) -> str:
        """Say what was open when, and what to do."""
        lines = []
        if self.ok is None:
            lines.append(
                "No verdict on permissions: no file that counts as secret was seen. Check secret=, "
                "and that the moments are those of a save."
            )
        elif self.ok:
            lines.append(f"{self.paths} secret files private in all of {self.moments:,} moments.")
        for finding in self.findings:
            lines.append(
                f"{finding.path!r} had mode {finding.mode:04o} ({_who(finding.excess)}) at "
                f"{finding.moment}; at most {self.allowed:04o} is allowed."
            )
        if self.findings:
            lines.append(
                "Give the mode when the file is made, os.open(path, flags, 0o600): a chmod "
                "afterwards leaves a moment in which others can open the file, and keep it open."
            )
        lines += [f"Not covered: {line}." for line in self.not_covered]
        return "\n".join(lines)


def scan_permissions(
    moments: Iterable[Tree | ModeEvent | tuple[str, int]],
    *,
    secret: Callable[[str], bool] | Iterable[str] = ("*",),
    allowed: int = 0o600,
    trust_directories: bool = False,
) -> PermissionReport:
    """Look for a moment at which a secret file is open to anyone but its owner.

    ``moments`` are trees, one after another, or the modes that paths were given: `ModeEvent` or
    (path, mode). ``secret`` is a function of the path, or patterns as of `fnmatch` (all files
    unless told, temporaries included); ``allowed`` are the bits that are fine. With
    ``trust_directories`` a file below a directory that keeps others out is fine too; trees only.
    The umask of the test counts: under 077 even careless code makes private files, so run under
    022. Raises `UserError` for anything that is no moment.
    """
    if isinstance(secret, str):
        secret = (secret,)
    is_secret = secret if callable(secret) else _matching(tuple(secret))
    findings: dict[tuple[str, int], PermissionFinding] = {}
    paths: set[str] = set()
    count = 0
    for moment in moments:
        for path, mode, where in _modes(moment, count, trust_directories):
            if is_secret(path):
                paths.add(path)
                excess = mode & 0o777 & ~allowed
                if excess:
                    found = PermissionFinding(path, mode & 0o777, excess, where)
                    findings.setdefault((path, mode & 0o777), found)
        count += 1
    notes = ["access control lists, and what a privileged user may do"]
    return PermissionReport(tuple(findings.values()), count, len(paths), allowed, tuple(notes))


def _modes(moment: object, number: int, trust_directories: bool) -> Iterator[tuple[str, int, str]]:
    if isinstance(moment, Tree):
        kept_out: list[tuple[str, int]] = []
        for path, _, node in moment.walk():
            if isinstance(node, Directory):
                kept_out.append((path + "/", node.mode))
            elif isinstance(node, File):
                mode = node.mode
                if trust_directories:
                    for above, its in kept_out:
                        if path.startswith(above):
                            mode &= 0o700 | _passing(its)
                yield path, mode, f"moment {number}"
        return
    if isinstance(moment, ModeEvent):
        yield moment.path, moment.mode, moment.where or f"moment {number}"
    elif isinstance(moment, tuple) and len(moment) == 2 and isinstance(moment[1], int):
        yield str(moment[0]), moment[1], f"moment {number}"
    elif isinstance(moment, Mapping):
        raise UserError("a mapping of path to bytes has no modes; give Trees or ModeEvents")
    else:
        raise UserError(f"{moment!r} is no moment: give a Tree, a ModeEvent or (path, mode)")


def _passing(directory_mode: int) -> int:
    """Return the bits of group and others that a directory lets through."""
    return (0o070 if directory_mode & 0o010 else 0) | (0o007 if directory_mode & 0o001 else 0)


def _who(excess: int) -> str:
    words = []
    for bits, who in ((0o070, "the group"), (0o007, "everybody")):
        can = [
            verb
            for verb, bit in (("read", 0o044), ("write", 0o022), ("execute", 0o011))
            if excess & bits & bit
        ]
        if can:
            words.append(f"{who} can {' and '.join(can)}")
    return ", ".join(words) or "more than allowed for the owner"


def _matching(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda path: any(fnmatchcase(path, pattern) for pattern in patterns)
