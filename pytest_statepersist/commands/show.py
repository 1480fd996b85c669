"""Print a recorded trace as a readable table.

A trace is what 'statepersist check --trace FILE' and Trace.to_json() write.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_statepersist.core.operations import Trace
from pytest_statepersist.errors import UserError
from pytest_statepersist.report.trace import table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: the file of the trace."""
    parser.add_argument("trace", metavar="TRACE.json", type=Path, help="a file that holds a trace")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; returns 0, raises `UserError` where the file holds no trace."""
    try:
        text = arguments.trace.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{arguments.trace} cannot be read as a trace: {error}") from None
    print("\n".join(table(Trace.from_json(text))))
    return 0
