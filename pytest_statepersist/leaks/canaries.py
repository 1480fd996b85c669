"""No plaintext on the disk: a scan for canaries in every form that `encodings` knows.

Belongs here: which parts of which states are looked at, and the report. A canary is a secret that
the test has saved, made up so that it cannot occur by chance. It must not be in any file of any
state, temporaries and journals included, nor in a name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pytest_statepersist.checked import Check, Checked, CheckedFinding
from pytest_statepersist.core.tree import Content, read_content, size_of
from pytest_statepersist.errors import UserError
from pytest_statepersist.leaks.encodings import Needle, needles, unpack
from pytest_statepersist.leaks.states import ScanReport, State, labelled, parts_of

__all__ = ["LeakFinding", "LeakReport", "scan_leaks"]

_SHORTEST = 8
_WINDOW = 16 << 20
_DEPTH = 4
_SPACE = re.compile(
    rb"[A-Za-z0-9+/_=-]\r?\n[ \t]*[A-Za-z0-9+/_=-]|[0-9a-fA-F]{2}[ :][0-9a-fA-F]{2}"
    rb"|[A-Za-z0-9+/_=-]\\[rn/]"  # as JSON writes line breaks, and some of it slashes
)
_ESCAPED = re.compile(rb"\\[rn/]")
_NEVER = (
    "encrypted, LZ4, Brotli and Snappy contents, raw deflate without a header, and text in "
    "Base32, Base85, quoted-printable, or character by character as numbers"
)


@dataclass(frozen=True, slots=True)
class LeakFinding:
    """One canary in one place: ``state`` names the first state in which it was seen.

    ``inside`` are the streams that had to be opened, outermost first (``gzip at 12``); ``offset``
    is the place in the innermost one. ``states`` counts the states that show the same.
    """

    canary: str
    form: str
    path: str
    part: str
    offset: int
    inside: tuple[str, ...]
    state: str
    states: int = 1


@dataclass(frozen=True, slots=True)
class LeakReport(ScanReport):
    """What a leak scan has seen: findings, how much was read, and what could not be."""

    findings: tuple[LeakFinding, ...]
    canaries: int
    states: int
    parts: int
    streams: int
    not_covered: tuple[str, ...]

    @property
    def ok(self) -> bool | None:
        """False with a finding, None where no file was given, True otherwise."""
        if self.findings:
            return False
        return True if self.parts else None

    def checked(self) -> Checked:
        """Return the result in the shape that every check has."""
        findings = tuple(
            CheckedFinding(
                "leak",
                f"{each.canary}: {each.form} in the {each.part} {each.path!r} ({each.state})",
                f"{each.form} at byte {each.offset}",
                "no plaintext on the disk",
                count=each.states,
            )
            for each in self.findings
        )
        coverage = f"{self.canaries} canaries, {self.parts:,} files, {self.states:,} states"
        return Checked(
            Check.LEAKS, self.ok, self.states, coverage, findings, self.not_covered
        )

    def explain(self) -> str:
        """Say which secret was found where, and what to do."""
        lines = []
        if self.ok is None:
            lines.append("No verdict: no state had a file, so there was nothing to scan.")
        elif self.ok:
            lines.append(
                f"{self.canaries} canaries in none of {self.parts:,} files, {self.states:,} states."
            )
        else:
            lines.append("Plaintext is on the disk that should never be there:")
        for finding in self.findings:
            where = "".join(f", inside {stream}" for stream in finding.inside)
            lines.append(
                f"  {finding.canary}: {finding.form} in the {finding.part} {finding.path!r} at "
                f"byte {finding.offset}{where} ({finding.state}; {finding.states} in all)"
            )
        if self.findings:
            lines.append(
                "Encrypt before the first write, temporaries and journals included: what was once "
                "on the disk stays there after it is deleted. Look at the writer of the path above."
            )
        lines += [f"Not covered: {line}." for line in self.not_covered]
        return "\n".join(lines)


def scan_leaks(
    states: Iterable[State],
    canaries: Mapping[str, str | bytes] | Iterable[str | bytes],
    *,
    limit: int = 64 << 20,
) -> LeakReport:
    """Look for canaries in every file and name of every state.

    Found are plain, UTF-16, UTF-32, Latin-1, hexadecimal, Base64 (every alignment, also URL-safe),
    JSON-escaped and percent-encoded forms, also with line breaks in the coded ones, and all of them
    inside zlib, gzip, bzip2, xz, lzma, zstd streams and zip members, nested up to four deep.
    ``canaries`` are secrets of at least 8 bytes, with labels to be named by in findings (never
    the secret itself); ``limit`` bounds, in bytes, what is unpacked from one part.

    Raises `UserError` for a canary that is too short, or where there is none.
    """
    wanted = _needles(canaries)
    scan = _Scan(wanted, limit)
    count = 0
    for label, tree in labelled(states):
        count += 1
        for path, part, content in parts_of(tree):
            scan.name(label, path)
            if part != "directory":
                scan.part(label, path, part, content)
    notes = [
        *scan.notes,
        *(f"{name}: cannot be read here" for name in sorted(scan.missing)),
        _NEVER,
    ]
    return LeakReport(
        findings=tuple(scan.findings()),
        canaries=len({needle.canary for needle in wanted}),
        states=count,
        parts=scan.parts,
        streams=scan.streams,
        not_covered=tuple(dict.fromkeys(notes)),
    )


def _needles(canaries: Mapping[str, str | bytes] | Iterable[str | bytes]) -> list[Needle]:
    if isinstance(canaries, str | bytes):
        raise UserError("give a list of canaries, also where it is one: ['the secret']")
    if isinstance(canaries, Mapping):
        pairs = list(canaries.items())
    else:
        pairs = [(f"canary {number}", canary) for number, canary in enumerate(canaries)]
    if not pairs:
        raise UserError("there is no canary to look for, so the scan could not find anything")
    found: list[Needle] = []
    for label, canary in pairs:
        data = canary.encode() if isinstance(canary, str) else bytes(canary)
        if len(data) < _SHORTEST:
            raise UserError(
                f"{label} has {len(data)} bytes; use at least {_SHORTEST} that cannot occur by "
                "chance, else a finding says nothing"
            )
        found += needles(label, data)
    return found


@dataclass(frozen=True, slots=True)
class _Hit:
    needle: Needle
    offset: int
    inside: tuple[str, ...]


class _Scan:
    """Remembers what it has read: crash states share almost all of their contents."""

    def __init__(self, wanted: list[Needle], limit: int) -> None:
        self._wanted = wanted
        self._longest = max(len(needle.data) for needle in wanted)
        self._limit = limit
        self._known: dict[bytes, tuple[_Hit, ...]] = {}
        self._names: set[str] = set()
        self._found: dict[tuple[str, str, str, str, tuple[str, ...]], LeakFinding] = {}
        self._seen_in: dict[tuple[str, str, str, str, tuple[str, ...]], set[str]] = {}
        self.missing: set[str] = set()
        self.notes: list[str] = []
        self.parts = 0
        self.streams = 0

    def findings(self) -> Iterator[LeakFinding]:
        """Yield the findings with the number of states that show each."""
        for key, first in self._found.items():
            yield LeakFinding(
                first.canary, first.form, first.path, first.part, first.offset, first.inside,
                first.state, len(self._seen_in[key]),
            )  # fmt: skip

    def name(self, state: str, path: str) -> None:
        """Scan a path; its content is another matter."""
        if path not in self._names:
            data = os.fsencode(path)
            hits = tuple(self._search(data, ()))
            if not hits:
                self._names.add(path)
                return
            self._keep(state, path, "name of", hits)

    def part(self, state: str, path: str, part: str, content: Content) -> None:
        """Scan a content, in windows where it is large."""
        self.parts += 1
        size = size_of(content)
        step = _WINDOW - self._longest
        if size > _WINDOW:
            self.notes.append(
                f"{path}: {size:,} bytes were read in windows of 16 MiB, so a stream that crosses "
                "from one to the next was unpacked only up to there"
            )
        for start in range(0, max(size, 1), step):
            data = read_content(content, start, _WINDOW)
            key = hashlib.sha256(data).digest()
            hits = self._known.get(key)
            if hits is None:
                hits = self._known[key] = tuple(self._deep(data, (), path, [self._limit]))
            self._keep(state, path, part, hits, start)
            if start + _WINDOW >= size:
                break

    def _keep(
        self, state: str, path: str, part: str, hits: tuple[_Hit, ...], base: int = 0
    ) -> None:
        for hit in hits:
            key = path, part, hit.needle.canary, hit.needle.form, hit.inside
            offset = hit.offset + (0 if hit.inside else base)
            if key not in self._found:
                self._found[key] = LeakFinding(
                    hit.needle.canary, hit.needle.form, path, part, offset, hit.inside, state
                )
            self._seen_in.setdefault(key, set()).add(state)

    def _search(self, data: bytes, inside: tuple[str, ...]) -> Iterator[_Hit]:
        for needle in self._wanted:
            at = data.find(needle.data)
            if at >= 0:
                yield _Hit(needle, at, inside)

    def _deep(
        self, data: bytes, inside: tuple[str, ...], path: str, budget: list[int]
    ) -> Iterator[_Hit]:
        here = list(self._search(data, inside))
        yield from here
        if _SPACE.search(data):
            # Coded text is often broken into lines or pairs: look again without the breaks.
            known = {hit.needle for hit in here}
            joined = _ESCAPED.sub(lambda m: b"/" if m[0] == b"\\/" else b"", data)
            joined = joined.translate(None, b" \t\r\n:")
            for hit in self._search(joined, (*inside, "text without its spaces")):
                if hit.needle not in known and hit.needle.form not in ("plain", "JSON-escaped"):
                    yield hit
            if len(inside) < _DEPTH:
                yield from self._streams(joined, (*inside, "text without its spaces"), path, budget)
        if len(inside) >= _DEPTH:
            return
        yield from self._streams(data, inside, path, budget)

    def _streams(
        self, data: bytes, inside: tuple[str, ...], path: str, budget: list[int]
    ) -> Iterator[_Hit]:
        for found in unpack(data, limit=max(budget[0], 1), missing=self.missing):
            self.streams += 1
            budget[0] -= len(found.data)
            if found.cut or budget[0] <= 0:
                self.notes.append(
                    f"{path}: more is packed inside than the limit of {self._limit:,}"
                )
            # What is only coded was searched for in its coded form; look for streams within.
            coded = found.how in ("Base64", "hex")
            deeper = (*inside, f"{found.how} at {found.offset}")
            each = self._streams if coded else self._deep
            if len(deeper) <= _DEPTH:
                yield from each(found.data, deeper, path, budget)
            if budget[0] <= 0:
                return
