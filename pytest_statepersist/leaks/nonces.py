"""No nonce twice: a scan over all messages that a store has sealed.

Belongs here: which messages are the same, which are torn copies, and which break the cipher. Rules:

1. One key, one nonce, two different ciphertexts is a finding: for AES-GCM and ChaCha20-Poly1305 it
   gives both plaintexts and the key of the tag away.
2. The same bytes in another crash state are the same message. So is a torn copy: a file that
   differs only in whole 512-byte sectors, each of them zeros, cut off, or those of another file.
   Two messages in one file are two messages.
3. One message proves nothing: a key under which fewer than two were seen is not covered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pytest_statepersist.checked import Check, Checked, CheckedFinding
from pytest_statepersist.core.tree import File, Tree, read_content, size_of
from pytest_statepersist.errors import UserError
from pytest_statepersist.leaks.states import ScanReport, State, labelled

__all__ = ["NonceFinding", "NonceReport", "Sealed", "scan_nonces"]

_SECTOR = 512
_LARGEST = 256 << 20


@dataclass(frozen=True, slots=True)
class Sealed:
    """One sealed message: its nonce, its ciphertext with the tag, and whose key and salt it has.

    ``key`` is any name for the key (never the key itself); ``salt`` is that of its derivation.
    """

    nonce: bytes
    ciphertext: bytes
    key: str = ""
    salt: bytes | None = None


_Nonces: TypeAlias = "Callable[[bytes], Iterable[bytes | Sealed] | bytes | Sealed | None]"


@dataclass(frozen=True, slots=True)
class NonceFinding:
    """One value that was used twice: ``what`` is ``nonce`` or ``salt``; where both uses are."""

    what: str
    value: bytes
    key: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class NonceReport(ScanReport):
    """What a nonce scan has seen: findings, distinct messages, torn copies, unreadable files."""

    findings: tuple[NonceFinding, ...]
    messages: Mapping[str, int]
    salts: int
    torn: int
    unreadable: int
    not_covered: tuple[str, ...]

    @property
    def ok(self) -> bool | None:
        """False with a finding, None where no key had two messages, True otherwise."""
        if self.findings:
            return False
        return True if any(count > 1 for count in self.messages.values()) else None

    def checked(self) -> Checked:
        """Return the result in the shape that every check has."""
        findings = tuple(
            CheckedFinding(
                f"{each.what} used twice",
                f"the {each.what} {each.value.hex()} was used twice: {each.first}, {each.second}",
                f"first in {each.first}, again in {each.second}",
                f"another {each.what} for each message",
            )
            for each in self.findings
        )
        total = sum(self.messages.values())
        coverage = f"{total:,} messages under {len(self.messages)} keys"
        return Checked(Check.NONCES, self.ok, total, coverage, findings, self.not_covered)

    def explain(self) -> str:
        """Say which nonce was used twice and where, and what to do."""
        lines = []
        if self.ok is None:
            lines.append(
                "No verdict on nonces: a repetition needs two messages under one key, and there "
                "were not. Give the states of several saves, and a nonces= that reads them."
            )
        elif self.ok:
            total = sum(self.messages.values())
            lines.append(f"{total:,} messages under {len(self.messages)} keys, no nonce twice.")
        for finding in self.findings:
            key = f" under key {finding.key!r}" if finding.key else ""
            lines.append(f"The {finding.what} {finding.value.hex()} was used twice{key}:")
            lines += [f"  first in  {finding.first}", f"  again in  {finding.second}"]
            if finding.what == "nonce":
                lines.append(
                    "  Whoever has both files can undo the encryption. Draw os.urandom(12) for "
                    "each save, or make the counter durable before the nonce is used."
                )
            else:
                lines.append("  Draw a new salt for each password: os.urandom(16).")
        lines += [f"Not covered: {line}." for line in self.not_covered]
        return "\n".join(lines)


def scan_nonces(states: Iterable[State], nonces: _Nonces | None) -> NonceReport:
    """Look for a nonce that was used for two messages under one key, over all states.

    ``nonces`` gets the content of a file and gives what was sealed in it, one or several:
    `Sealed`, or bare nonces (then the whole file is the ciphertext, and all have one key); nothing
    for other files. A bare nonce that one file gives twice was used twice. Without it nothing is
    covered. Where it can check the tag, it should give only messages that are authentic. What it
    raises on, a torn file for example, counts as unreadable.

    Raises `UserError` where it gives something else.
    """
    if nonces is None:
        return NonceReport((), {}, 0, 0, 0, ("nonces and salts: no nonces= was given",))
    read = _Reader(nonces)
    for label, tree in labelled(states):
        for path, data in _files(tree, read.notes):
            read.file(f"{path!r} of {label}", data)
    findings, torn = read.judge()
    notes = list(dict.fromkeys(read.notes))
    if read.unreadable:
        notes.append(
            f"{len(read.unreadable):,} files that nonces= could not read, for example "
            f"{next(iter(read.unreadable.values()))}"
        )
    if not read.salts:
        notes.append("salts: nonces= gives none (Sealed(salt=…))")
    for key, uses in read.messages.items():
        if len(uses) < 2:
            notes.append(f"key {key!r}: one message only")
    if torn:
        notes.append(f"{torn:,} files taken for torn copies of a message that was seen whole")
    return NonceReport(
        findings=tuple(findings),
        messages={key: len(uses) for key, uses in read.messages.items()},
        salts=len(read.salts),
        torn=torn,
        unreadable=len(read.unreadable),
        not_covered=tuple(notes),
    )


def _files(tree: Tree | Mapping[str, bytes], notes: list[str]) -> Iterator[tuple[str, bytes]]:
    if not isinstance(tree, Tree):
        yield from ((path, bytes(data)) for path, data in tree.items())
        return
    for path, _, node in tree.walk():
        if isinstance(node, File):
            if size_of(node.content) > _LARGEST:
                notes.append(f"{path}: larger than {_LARGEST >> 20} MiB")
            else:
                yield path, read_content(node.content)


@dataclass(slots=True)
class _Use:
    where: str
    data: bytes
    sealed: Sealed


@dataclass(slots=True)
class _Reader:
    """Reads each distinct content once and keeps each distinct message."""

    nonces: _Nonces
    known: set[bytes] = field(default_factory=set)
    messages: dict[str, dict[tuple[bytes, bytes], _Use]] = field(default_factory=dict)
    salts: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    twice: list[NonceFinding] = field(default_factory=list)
    unreadable: dict[bytes, str] = field(default_factory=dict)
    contents: list[tuple[bytes, frozenset[tuple[str, bytes]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def file(self, where: str, data: bytes) -> None:
        """Read one file, unless the same bytes were read before."""
        digest = hashlib.sha256(data).digest()
        if digest in self.known:
            return
        self.known.add(digest)
        try:
            given = self.nonces(data)
            if given is None:
                given = ()
            found = [given] if isinstance(given, bytes | bytearray | Sealed) else list(given)
        except UserError:
            raise
        except Exception as error:
            self.unreadable[digest] = f"{where} ({type(error).__name__}: {error})"
            self.contents.append((data, frozenset()))
            return
        uses = [_sealed(item, data) for item in found]
        self.contents.append((data, frozenset((use.key, use.nonce) for use in uses)))
        for sealed in uses:
            kept = self.messages.setdefault(sealed.key, {})
            kept.setdefault((sealed.nonce, sealed.ciphertext), _Use(where, data, sealed))
            self._salt(sealed, where)
        self._within(where, found, uses)

    def _within(self, where: str, found: list[bytes | Sealed], uses: list[Sealed]) -> None:
        """Find what one file holds twice: no crash makes two places out of one message."""
        seen: dict[tuple[str, bytes], list[Sealed]] = {}
        for use in uses:
            seen.setdefault((use.key, use.nonce), []).append(use)
        bare = not any(isinstance(each, Sealed) for each in found)
        for (key, nonce), same in seen.items():
            if len(same) > 1 and (bare or len({use.ciphertext for use in same}) > 1):
                again = f"the same file, {len(same)} times in all"
                self.twice.append(NonceFinding("nonce", nonce, key, where, again))

    def _salt(self, sealed: Sealed, where: str) -> None:
        if sealed.salt is None:
            return
        key, first = self.salts.setdefault(sealed.salt, (sealed.key, where))
        if key != sealed.key:
            names = f"{key} and {sealed.key}"
            self.twice.append(NonceFinding("salt", sealed.salt, names, first, where))

    def judge(self) -> tuple[list[NonceFinding], int]:
        """Return the findings, and how many files were taken for torn copies."""
        findings, torn = list(dict.fromkeys(self.twice)), 0
        found = {(each.key, each.value) for each in findings if each.what == "nonce"}
        for key, uses in self.messages.items():
            by_nonce: dict[bytes, list[_Use]] = {}
            for use in uses.values():
                by_nonce.setdefault(use.sealed.nonce, []).append(use)
            for nonce, same in by_nonce.items():
                if len(same) < 2 or (key, nonce) in found:
                    continue
                donors = self._donors(key, nonce)
                whole = []
                for use in same:
                    if any(_is_torn(use, other, donors) for other in same if other is not use):
                        torn += 1
                        del uses[use.sealed.nonce, use.sealed.ciphertext]
                    else:
                        whole.append(use)
                for use in whole[1:]:
                    findings.append(NonceFinding("nonce", nonce, key, whole[0].where, use.where))
        return findings, torn

    def _donors(self, key: str, nonce: bytes) -> set[tuple[int, bytes]]:
        """Return the sectors, with their places, of all files without this nonce."""
        return {
            (at, data[at : at + _SECTOR])
            for data, inside in self.contents
            if (key, nonce) not in inside
            for at in range(0, len(data), _SECTOR)
        }


def _is_torn(copy: _Use, whole: _Use, donors: set[tuple[int, bytes]]) -> bool:
    """Say whether a message is another one of which not all reached the disk.

    Where the ciphertexts can be found in the files they must be in the same place, and only what
    lies there is compared: a log that ends earlier is no torn copy of one that says more.
    """
    at = copy.data.find(copy.sealed.ciphertext)
    where = whole.data.find(whole.sealed.ciphertext)
    if at < 0 or where < 0:
        return copy.data != whole.data and _torn(copy.data, whole.data, donors)
    if at != where:
        return False
    end = at + max(len(copy.sealed.ciphertext), len(whole.sealed.ciphertext))
    return _torn(copy.data[:end], whole.data[:end], donors, at)


def _torn(copy: bytes, whole: bytes, donors: set[tuple[int, bytes]], start: int = 0) -> bool:
    """Say whether ``copy`` is ``whole`` with sectors that did not reach the disk.

    The first sector that both have must be common to both: a difference inside it is
    another message, whatever the rest looks like. What comes before ``start`` is not compared;
    where that ends a sector, the nonce is in the one before, and the first one may be lost.
    """
    first = start - start % _SECTOR
    head, its_head = copy[start : first + _SECTOR], whole[start : first + _SECTOR]
    lost = start and start == first and not any(head)
    if not lost and not its_head.startswith(head) and not head.startswith(its_head):
        return False
    for at in range(first, len(copy), _SECTOR):
        skip = max(start - at, 0)
        mine, its = copy[at + skip : at + _SECTOR], whole[at + skip : at + _SECTOR]
        if mine == its[: len(mine)] or not any(mine) or (at, mine) in donors:
            continue
        return False
    return True


def _sealed(item: object, data: bytes) -> Sealed:
    if isinstance(item, Sealed):
        return item
    if isinstance(item, bytes | bytearray):
        if not item:
            raise UserError("nonces= gave an empty nonce; give nothing for a file without one")
        return Sealed(bytes(item), data)
    raise UserError(f"nonces= must give bytes or Sealed, not {type(item).__name__}")
