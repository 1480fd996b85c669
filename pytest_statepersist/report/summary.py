"""The summary section and GitHub's annotations, from reports as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["github_annotations", "summary_lines"]


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


def github_annotations(explorations: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield workflow commands that show each finding at its line in a pull request."""
    for each in explorations:
        for finding in each["findings"]:
            where = ""
            if finding["file"]:
                path = os.path.relpath(finding["file"])
                where = f" file={_property(path)},line={finding['line']},"
            title = _property(f"{finding['kind']}: {finding['cause']}")
            text = (
                f"{each['name']}: recovery {finding['observed']}, expected {finding['expected']} "
                f"(allowed by {', '.join(finding['models'])})"
            )
            level = "error" if finding.get("accepted") is None else "notice"
            yield f"::{level}{where or ' '}title={title}::{_message(text)}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
