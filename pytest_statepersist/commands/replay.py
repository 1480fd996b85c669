"""Run the kept bundles again and say FIXED, FAILED or ERROR for each.

Each bundle's test is run by pytest on that one disk. Where recovery still fails there, the test
itself is run: if its exploration no longer comes to the finding, the save was repaired, and that is
FIXED too. Bundles that are fixed are removed. Exit codes: 0 if all are fixed, 1 if one still fails,
2 if one could not be judged.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_statepersist.bundle import find, kept, nearest, read
from pytest_statepersist.bundle_json import Bundle
from pytest_statepersist.errors import BundleError
from pytest_statepersist.replaying import still_there
from pytest_statepersist.report.operations import printable

__all__ = ["add_arguments", "run"]

_FIXED, _FAILED, _ERROR = "FIXED", "FAILED", "ERROR"
_NOT_LEFT = "the save no longer leaves such a disk"
_Answer = tuple[str, str]
"""A status, and why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: bundles, or none for all that are kept."""
    parser.add_argument("bundle", nargs="*", metavar="ID", help="only these; left out: all")
    parser.add_argument(
        "--recovery-only",
        action="store_true",
        help="do not explore again where recovery still fails on the disk",
    )
    parser.add_argument("--keep", action="store_true", help="do not remove what is fixed")


def run(arguments: argparse.Namespace) -> int:
    """Replay, print one line a bundle, and return the exit code."""
    directory = nearest(Path.cwd())
    paths = [find(given, directory).absolute() for given in arguments.bundle] or kept(directory)
    if not paths:
        print(f"no bundles in {directory}")
        return 0
    root = directory.parent.parent
    found = {path: _read(path) for path in dict.fromkeys(paths)}
    bundles = {path: each for path, each in found.items() if isinstance(each, Bundle)}
    answers = _replayed(root, bundles)
    if not arguments.recovery_only:
        kept_bytes = {path: path.read_bytes() for path in bundles} if arguments.keep else {}
        answers |= _explored(root, bundles, answers)
        for path, data in kept_bytes.items():
            if not path.exists():  # a test that explores removes what it no longer finds
                path.write_bytes(data)
    worst = 0
    for path, bundle in found.items():
        status, text = answers[path] if isinstance(bundle, Bundle) else (_ERROR, bundle)
        test = bundle.test if isinstance(bundle, Bundle) else ""
        shown = f"{test}{': ' if test and text else ''}{text}"
        print(printable(f"{status:<6} {path.name.split('.')[0]} {shown}"))
        worst = max(worst, {_FIXED: 0, _FAILED: 1, _ERROR: 2}[status])
        if status == _FIXED and not arguments.keep and path.parent == directory:
            with suppress(FileNotFoundError):
                path.unlink()
    return worst


def _read(path: Path) -> Bundle | str:
    try:
        return read(path)
    except BundleError as error:
        return str(error)


# -- the disks


def _replayed(root: Path, bundles: Mapping[Path, Bundle]) -> dict[Path, _Answer]:
    """Run each bundle's test on its disk: one run of pytest has one bundle of each test."""
    rounds: list[dict[str, Path]] = []
    answers: dict[Path, _Answer] = {}
    for path, bundle in bundles.items():
        if not bundle.test:
            answers[path] = _ERROR, "not made by a test; use replay_bundle()"
            continue
        free = next((each for each in rounds if bundle.test not in each), None)
        if free is None:
            rounds.append(free := {})
        free[bundle.test] = path
    for each in rounds:
        together = _judged(root, {path: bundles[path] for path in each.values()})
        for path in each.values():
            # One test that cannot be collected stops a run: then each has one of its own.
            alone = together if len(each) == 1 or together[path][0] != _ERROR else None
            answers[path] = (alone or _judged(root, {path: bundles[path]}))[path]
    return answers


def _judged(root: Path, bundles: Mapping[Path, Bundle]) -> dict[Path, _Answer]:
    document, output = _pytest(root, *(f"--statepersist-replay={path}" for path in bundles))
    rows = {row["bundle"]: row for row in document.get("replays", [])}
    answers = {}
    for path, bundle in bundles.items():
        row = rows.get(bundle.name, {"status": _ERROR, "text": output})
        lines = str(row["text"]).splitlines()
        kept_lines = lines[:1] if row["status"] == _FIXED else lines[:2]
        text = "; ".join(line.strip() for line in kept_lines)
        answers[path] = row["status"], text.removeprefix(f"{row['status']} {bundle.name}: ")
    return answers


# -- the saves


def _explored(
    root: Path, bundles: Mapping[Path, Bundle], answers: Mapping[Path, _Answer]
) -> dict[Path, _Answer]:
    """Explore again where recovery still fails; return what the saves no longer leave."""
    # The history of a machine has been done again with the save as it is now.
    failed = {
        path: bundles[path]
        for path, (status, _) in answers.items()
        if status == _FAILED and not bundles[path].history
    }
    if not failed:
        return {}
    # Nothing that a bundle was found with may be left out.
    deviations = max([2, *(bundle.deviations for bundle in failed.values())])
    tests = list(dict.fromkeys(bundle.test for bundle in failed.values()))
    document, _ = _pytest(root, *tests, f"--statepersist-deviations={deviations}")
    known = {(bundle.test, bundle.name.split("-")[0]) for bundle in bundles.values()}
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in document.get("explorations", []):
        runs.setdefault(run["test"], []).append(run)
    return {
        path: (_FIXED, _NOT_LEFT)
        for path, bundle in failed.items()
        if _lacks(runs.get(bundle.test, []), bundle, known)
    }


def _lacks(
    runs: Sequence[Mapping[str, Any]], bundle: Bundle, known: Container[tuple[str, str]]
) -> bool:
    """Say whether the save is known to leave no such disk any more.

    A finding with the same cause is this one under another name, where no bundle that is ``known``
    has its id: a function may have been renamed.
    """
    models = [v for run in runs for v in run["verdicts"] if v["model"] == bundle.model]
    # An exploration that failed may have ended the test before this one.
    if len(runs) <= bundle.ordinal or not models:
        return False
    if any(not v["complete"] or None in (v["atomic"], v["durable"]) for v in models):
        return False
    own = bundle.name.split("-")[0]
    return not any(
        still_there(bundle, each["id"], each["cause"])
        and (each["id"] == own or (bundle.test, each["id"]) not in known)
        for run in runs
        for each in run["findings"]
    )


# -- pytest


def _pytest(root: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run pytest in a process of its own; return its report as data, and its last words.

    Test ids and bundles are relative to the root of the project, wherever this is called.
    """
    with tempfile.TemporaryDirectory(prefix="statepersist-replay-") as scratch:
        target = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={root}"]
        done = subprocess.run(
            [*command, f"--statepersist-json={target}", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
        )
        words = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        try:
            document = json.loads(target.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            document = {}
    return document, words[-1] if words else f"pytest ended with {done.returncode}"
