"""Findings that a team has accepted for now: read, compared with a run, and written.

Belongs here: the file of a baseline, JSON or TOML by its ending. Nothing is hidden by it: an
accepted finding is still reported, it only does not fail; one that is gone is named, so that it can
be taken out.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_statepersist.errors import UserError

__all__ = ["Accepted", "read_baseline", "updated", "vanished", "write_baseline"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """One accepted finding: its id, why it is accepted, and the test that finds it ("": any)."""

    id: str
    note: str = ""
    test: str = ""
    text: str = ""
    """The finding in words, for readers of the file."""


def read_baseline(path: Path) -> tuple[Accepted, ...]:
    """Read a baseline; raises `UserError` where the file is missing or not of the form."""
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except FileNotFoundError:
        raise UserError(
            f"the baseline {path} does not exist; make it with --statepersist-write-baseline"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the baseline {path} cannot be read: {error}") from None
    rows = data.get("findings") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise UserError(f"the baseline {path} has no list 'findings'")
    return tuple(_accepted(row, path) for row in rows)


def _accepted(row: object, path: Path) -> Accepted:
    known = ("id", "note", "test", "text")
    if (
        not isinstance(row, dict)
        or not row.get("id")
        or set(row) - set(known)
        or not all(isinstance(value, str) for value in row.values())
    ):
        raise UserError(
            f"the baseline {path} has an entry that is not one: {str(row)[:80]}; an entry has an "
            "'id' and may have a 'note', 'test' and 'text'"
        )
    return Accepted(**row)


def vanished(
    accepted: Iterable[Accepted], explorations: Iterable[Mapping[str, Any]], passed: set[str]
) -> list[Accepted]:
    """Return what is accepted although it is no longer there, as far as this run can tell.

    That is: the test that found it passed, each of its explorations was complete, and none found
    it. Where no test is named, every exploration of the run counts.
    """
    runs = list(explorations)
    gone = []
    for each in accepted:
        mine = [run for run in runs if not each.test or run.get("test") == each.test]
        sure = bool(mine) and all(
            run.get("test") in passed and all(v["complete"] for v in run["verdicts"])
            for run in mine
        )
        if sure and not any(f["id"] == each.id for run in mine for f in run["findings"]):
            gone.append(each)
    return gone


def updated(
    accepted: Iterable[Accepted], explorations: Iterable[Mapping[str, Any]]
) -> tuple[Accepted, ...]:
    """Return a baseline that accepts what a run found; notes, and tests that did not run, stay."""
    runs, old = list(explorations), list(accepted)
    notes = {each.id: each.note for each in old}
    ran = {run.get("test", "") for run in runs}
    found = {(a.id, a.test): a for a in old if a.test and a.test not in ran}
    for run in runs:
        for finding in run["findings"]:
            test = str(run.get("test", ""))
            entry = Accepted(finding["id"], notes.get(finding["id"], ""), test, finding["cause"])
            found[entry.id, test] = entry
    return tuple(sorted(found.values(), key=lambda a: (a.test, a.id)))


def write_baseline(path: Path, accepted: Iterable[Accepted]) -> None:
    """Write a baseline as JSON, or as TOML where the file's name says so."""
    rows = [{"id": a.id, "note": a.note, "test": a.test, "text": a.text} for a in accepted]
    if path.suffix == ".toml":
        # A string of JSON is a string of TOML as well, as long as it has no astral escapes.
        lines = [
            "\n".join(["[[findings]]", *(f"{k} = {_toml(v)}" for k, v in row.items())])
            for row in rows
        ]
        text = "\n\n".join(lines) + "\n" if lines else "findings = []\n"
    else:
        text = json.dumps({"findings": rows}, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
