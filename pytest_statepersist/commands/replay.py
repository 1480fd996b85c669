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
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
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
    found = [(path, _read(path)) for path in paths]
    bundles = [bundle for _, bundle in found if isinstance(bundle, Bundle)]
    # Nothing that a bundle was found with may be left out when its test explores again.
    deviations = max([2, *(bundle.deviations for bundle in bundles)])
    explored: dict[str, _Explored] = {}
    known = {(bundle.test, bundle.name.split("-")[0]) for bundle in bundles}
    worst = 0
    for path, bundle in found:
        test = bundle.test if isinstance(bundle, Bundle) else ""
        status, text = _replayed(root, path, bundle, explored)
        if status == _FAILED and not arguments.recovery_only and isinstance(bundle, Bundle):
            if test not in explored:
                explored[test] = _explored(root, test, deviations)
            if explored[test].lacks(bundle, known):
                status, text = _FIXED, _NOT_LEFT
        shown = f"{test}{': ' if text else ''}{text}"
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


@dataclass(frozen=True, slots=True)
class _Explored:
    """What the explorations of a test say now, in order."""

    runs: list[dict[str, Any]]

    def lacks(self, bundle: Bundle, known: Container[tuple[str, str]]) -> bool:
        """Say whether the save is known to leave no such disk any more.

        A finding with the same cause is this one under another name, where no bundle that is
        ``known`` has its id: a function may have been renamed.
        """
        models = [v for run in self.runs for v in run["verdicts"] if v["model"] == bundle.model]
        # An exploration that failed may have ended the test before this one.
        if len(self.runs) <= bundle.ordinal or not models:
            return False
        if any(not v["complete"] or None in (v["atomic"], v["durable"]) for v in models):
            return False
        own = bundle.name.split("-")[0]
        return not any(
            still_there(bundle, each["id"], each["cause"])
            and (each["id"] == own or (bundle.test, each["id"]) not in known)
            for run in self.runs
            for each in run["findings"]
        )


def _explored(root: Path, test: str, deviations: int) -> _Explored:
    document, _ = _pytest(root, test, f"--statepersist-deviations={deviations}")
    return _Explored([run for run in document.get("explorations", []) if run["test"] == test])


def _replayed(
    root: Path, path: Path, bundle: Bundle | str, explored: Mapping[str, _Explored]
) -> tuple[str, str]:
    if isinstance(bundle, str):
        return _ERROR, bundle
    if not bundle.test:
        return _ERROR, "not made by a test; use replay_bundle()"
    if bundle.test in explored and not path.exists():
        return _FIXED, _NOT_LEFT  # its test has just explored again, and removed it
    document, output = _pytest(root, f"--statepersist-replay={path}")
    rows = [row for row in document.get("replays", []) if row["bundle"] == bundle.name]
    if not rows:
        return _ERROR, output
    status, text = rows[-1]["status"], rows[-1]["text"]
    lines = text.splitlines()
    shown = " ".join(line.strip() for line in (lines[:1] if status == _FIXED else lines[:2]))
    return status, shown.removeprefix(f"{status} {bundle.name}: ")


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
