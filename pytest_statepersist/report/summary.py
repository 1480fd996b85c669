"""The summary section and GitHub's annotations, from reports as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["check_annotations", "check_lines", "check_text", "github_annotations", "summary_lines"]


def summary_lines(explorations: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the summary, in the order of the tests."""
    for each in explorations:
        for verdict in each["verdicts"]:
            yield f"{each['name']}: {verdict['text']}"
        for finding in each["findings"]:
            note = finding.get("accepted")
            accepted = "" if note is None else f" (accepted{': ' if note else ''}{note})"
            replay = f"; --statepersist-replay {finding['bundle']}" if finding.get("bundle") else ""
            yield f"  {finding['text']}{accepted}{replay}"
        for warning in each["warnings"]:
            yield f"  warning: {warning}"


def check_text(check: dict[str, Any]) -> str:
    """Return one check that is no exploration in a line: what was checked, and what came of it."""
    word = {True: "ok", False: "NO", None: "not covered"}[check["ok"]]
    count = len(check["findings"])
    found = f", {count} finding{'s' if count > 1 else ''}" if count else ""
    return f"{check['check']}: {word}{found} ({check['coverage']})"


def check_lines(checks: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the summary for faults, kills and the like; equal ones only once.

    A test under Hypothesis runs the same check many times.
    """
    blocks: dict[tuple[str, ...], int] = {}
    for each in checks:
        head, *rest = _check_block(each)
        key = (head, *rest)
        blocks[key] = blocks.get(key, 0) + 1
    for (head, *rest), times in blocks.items():
        yield f"{head}, {times} times" if times > 1 else head
        yield from rest


def _check_block(check: dict[str, Any]) -> Iterator[str]:
    yield f"{check['name']}: {check_text(check)}"
    for finding in check["findings"]:
        cases = f" (in {finding['count']} cases)" if finding["count"] > 1 else ""
        yield f"  {finding['text']}{cases}"
    yield from (f"  not covered: {text}" for text in check["not_covered"])
    yield from (f"  warning: {text}" for text in check["warnings"])


def check_annotations(checks: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield workflow commands for the findings of such checks, at their lines where known."""
    for each in checks:
        for finding in each["findings"]:
            where = ""
            if finding["file"]:
                path = _in_repository(finding["file"])
                where = f" file={_property(path)},line={finding['line']},"
            title = _property(f"{each['check']}: {finding['kind']}")
            text = (
                f"{each['name']}: {finding['text']}; observed {finding['observed']}, "
                f"expected {finding['expected']}"
            )
            yield f"::error{where or ' '}title={title}::{_message(text)}"


def github_annotations(explorations: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield workflow commands that show each finding at its line in a pull request."""
    for each in explorations:
        for finding in each["findings"]:
            where = ""
            if finding["file"]:
                path = _in_repository(finding["file"])
                where = f" file={_property(path)},line={finding['line']},"
            title = _property(f"{finding['kind']}: {finding['cause']}")
            text = (
                f"{each['name']}: recovery {finding['observed']}, expected {finding['expected']} "
                f"(allowed by {', '.join(finding['models'])})"
            )
            level = "error" if finding.get("accepted") is None else "notice"
            yield f"::{level}{where or ' '}title={title}::{_message(text)}"


def _in_repository(path: str) -> str:
    """Return a path as GitHub knows it: from the root of the repository, not from here."""
    root = os.environ.get("GITHUB_WORKSPACE")
    inside = os.path.relpath(path, root) if root else os.pardir
    return os.path.relpath(path) if inside.startswith(os.pardir) else inside


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
