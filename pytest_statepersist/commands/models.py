"""List the persistence models, weakest first, with their rules in words."""

from __future__ import annotations

import argparse
import textwrap

from pytest_statepersist.core.models import MODELS
from pytest_statepersist.report.models import rules

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none, or the names of models."""
    parser.add_argument(
        "name", nargs="*", choices=[*MODELS, []], metavar="NAME", help="only these models"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the models; returns 0."""
    for name in arguments.name or MODELS:
        model = MODELS[name]
        print(f"{model.name}: {model.summary}")
        for rule in rules(model):
            print(textwrap.fill(rule, 96, initial_indent="  - ", subsequent_indent="    "))
    return 0
