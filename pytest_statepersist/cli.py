"""The command line: ``statepersist COMMAND …``.

Belongs here: the list of commands, and what every one of them does alike. Rules:

1. A command is a module of `commands` with ``add_arguments(parser)`` and ``run(arguments)``, which
   returns the exit code; only the one that is called is imported.
2. Exit codes: 0 is sound, 1 is "there are findings, or something was not covered", 2 is "could not
   run". What is not covered is never 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from pytest_statepersist.errors import StatePersistError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "check": "run a program under every legal crash and say what is lost",
    "faults": "let each call of a program fail and say what is lost",
    "materialize": "write the broken disk of a bundle into an empty directory",
    "models": "list the persistence models with their rules in words",
    "replay": "run the kept bundles again: FIXED, FAILED or ERROR for each",
    "show": "explain a bundle, or print a recorded trace as a table",
}
"""Every command with its one line of help; each is the module of that name in `commands`."""

COULD_NOT_RUN = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; exits itself for ``--help`` and usage errors."""
    parser = argparse.ArgumentParser(
        prog="statepersist",
        description="Find what a crash can lose or corrupt of what a program saved.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
        + "\n\n'statepersist COMMAND --help' says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…")
    chosen = parser.parse_args(arguments)
    module = import_module(f"pytest_statepersist.commands.{chosen.command}")
    command = argparse.ArgumentParser(
        prog=f"statepersist {chosen.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    try:
        return int(module.run(command.parse_args(chosen.arguments)))
    except StatePersistError as error:
        # It may quote what came from elsewhere; only the way of an error loads what this needs.
        from pytest_statepersist.report.operations import printable

        print(printable(f"statepersist {chosen.command}: {error}"), file=sys.stderr)
        return COULD_NOT_RUN
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return COULD_NOT_RUN


def _version() -> str:
    try:
        return metadata.version("pytest-statepersist")
    except metadata.PackageNotFoundError:
        return "unknown: the package is not installed"
