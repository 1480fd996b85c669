"""Write the broken disk of a bundle into an empty directory, for poking at by hand.

The directory is made if it does not exist; one that holds anything is refused.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pytest_statepersist.bundle import find, nearest, read
from pytest_statepersist.errors import UserError
from pytest_statepersist.replaying import show_disk
from pytest_statepersist.report.operations import printable

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: the bundle and the directory."""
    parser.add_argument("bundle", metavar="ID", help="id of a kept bundle, or a file")
    parser.add_argument("directory", metavar="DIR", type=Path, help="an empty directory")


def run(arguments: argparse.Namespace) -> int:
    """Write the disk; returns 0, raises `UserError` where the directory is not empty."""
    bundle = read(find(arguments.bundle, nearest(Path.cwd())))
    directory: Path = arguments.directory
    if directory.is_symlink():
        raise UserError(f"{directory} is a symbolic link; give the directory itself")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        occupied = bool(os.listdir(directory))
    except OSError as error:
        raise UserError(f"{directory} cannot be filled: {error.strerror}") from None
    if occupied:
        raise UserError(f"{directory} is not empty; give a directory that holds nothing")
    show_disk(bundle, bundle.disk, directory.resolve())
    print(printable(f"{directory}: the disk on which recovery {bundle.observed}"))
    return 0
