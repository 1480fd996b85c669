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
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_statepersist.bundle import DIRECTORY, Bundle, find, kept, read
from pytest_statepersist.errors import BundleError

__all__ = ["add_arguments", "run"]

_FIXED, _FAILED, _ERROR = "FIXED", "FAILED", "ERROR"


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
    directory = Path.cwd() / DIRECTORY
    paths = [find(given, directory) for given in arguments.bundle] or kept(directory)
    if not paths:
        print(f"no bundles in {DIRECTORY}")
        return 0
    worst = 0
    explored: dict[str, list[str] | None] = {}
    for path in paths:
        status, text, test = _replayed(path, arguments, explored)
        print(f"{status:<6} {path.name.split('.')[0]} {test}{': ' if text else ''}{text}")
        worst = max(worst, {_FIXED: 0, _FAILED: 1, _ERROR: 2}[status])
        if status == _FIXED and not arguments.keep and path.parent == directory:
            with suppress(FileNotFoundError):
                path.unlink()
    return worst


def _replayed(
    path: Path, arguments: argparse.Namespace, explored: dict[str, list[str] | None]
) -> tuple[str, str, str]:
    try:
        bundle = read(path)
    except BundleError as error:
        return _ERROR, str(error), ""
    if not bundle.test:
        return _ERROR, "not made by a test; use replay_bundle()", ""
    document, output = _pytest(f"--statepersist-replay={path}")
    rows = [row for row in document.get("replays", []) if row["bundle"] == bundle.name]
    if not rows:
        return _ERROR, output, bundle.test
    status, text = rows[-1]["status"], rows[-1]["text"]
    if status == _FAILED and not arguments.recovery_only:
        if bundle.test not in explored:
            explored[bundle.test] = _findings(bundle)
        found = explored[bundle.test]
        if found is not None and bundle.name.split("-")[0] not in found:
            return _FIXED, "the save no longer leaves such a disk", bundle.test
    lines = text.splitlines()
    shown = " ".join(line.strip() for line in (lines[:1] if status == _FIXED else lines[:2]))
    return status, shown.removeprefix(f"{status} {bundle.name}: "), bundle.test


def _findings(bundle: Bundle) -> list[str] | None:
    """Return the findings of the test as it is now, ``None`` where it covers less than all."""
    document, _ = _pytest(bundle.test)
    runs = [each for each in document.get("explorations", []) if each["test"] == bundle.test]
    mine = [verdict for run in runs for verdict in run["verdicts"]]
    models = [verdict for verdict in mine if verdict["model"] == bundle.model]
    # An exploration that came before may have ended the test.
    if len(runs) <= bundle.ordinal or not models:
        return None
    if any(not v["complete"] or None in (v["atomic"], v["durable"]) for v in models):
        return None
    return [finding["id"] for run in runs for finding in run["findings"]]


def _pytest(*arguments: str) -> tuple[dict[str, Any], str]:
    """Run pytest in a process of its own; return its report as data, and its last words."""
    with tempfile.TemporaryDirectory(prefix="statepersist-replay-") as scratch:
        target = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pytest", "-q", f"--statepersist-json={target}"]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, errors="replace"
        )
        words = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        try:
            document = json.loads(target.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            document = {}
    return document, words[-1] if words else f"pytest ended with {done.returncode}"
