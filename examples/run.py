"""Judge real stores under every model and print one table.

Run it with ``python -m examples.run`` (``make demo`` does). Each store is recorded once, every
crash that a model allows is recovered from, and the verdicts are compared with what the store's
module expected from its source before it was ever run. Exit code 0 when they all agree, 1 when one
does not (each is named with the finding behind it), 2 when a store could not be run.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from examples.example import MODELS, Example, Expected, load, names
from pytest_statepersist import CrashSimulator, Verdict

__all__ = ["Outcome", "judge", "main", "quiet"]

HEADINGS = {"ext4-writeback": "writeback", "ext4-noauto_da_alloc": "noauto_da"}
"""Shorter column headings, where a model's name is long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run said about one store, beside what was expected. ``seconds`` is wall time.

    The report itself is not kept: its exceptions hold on to files that a store left open.
    """

    example: Example
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]
    seconds: float

    def verdict(self, model: str) -> Verdict:
        """Return what the run said under one model."""
        return next(verdict for verdict in self.verdicts if verdict.model == model)

    def disagreements(self) -> Iterable[str]:
        """Yield one sentence for each verdict that is not the expected one."""
        for model in MODELS:
            verdict, expected = self.verdict(model), self.example.expected[model]
            for aspect in Expected._fields:
                found, wanted = getattr(verdict, aspect), getattr(expected, aspect)
                if found is not wanted:
                    yield (
                        f"{self.example.name} on {model}: {aspect}? expected {word(wanted)}, "
                        f"found {word(found)}"
                    )


def judge(example: Example, *, models: Sequence[str] = MODELS) -> Outcome:
    """Explore one store under the given models."""
    began = time.perf_counter()
    report = CrashSimulator().explore(
        setup=example.setup,
        workload=example.workload,
        recover=example.recover,
        model=list(models),
        **{"repairs": False, **example.settings},
    )
    seconds = time.perf_counter() - began
    return Outcome(example, report.verdicts, report.warnings, seconds)


def word(answer: bool | None) -> str:
    """Return an answer as the table shows it."""
    return {True: "yes", False: "no", None: "not covered"}[answer]


def row(outcome: Outcome) -> str:
    """Return a store's line of the table."""
    cells = []
    for model in MODELS:
        verdict = outcome.verdict(model)
        answers = f"{short(verdict.atomic)}/{short(verdict.durable)}"
        cells.append(f"{answers:>8}{verdict.states:>6}")
    return f"{outcome.example.name:<27}" + "".join(cells) + f"{outcome.seconds:>8.1f}"


def short(answer: bool | None) -> str:
    """Return an answer as it fits into a cell; "?" is "not covered"."""
    return "?" if answer is None else word(answer)


def heading() -> str:
    """Return the first line of the table."""
    return f"{'store':<27}" + "".join(f"{HEADINGS.get(m, m):>14}" for m in MODELS) + f"{'time':>8}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named examples, or all of them, and return the exit code."""
    parser = argparse.ArgumentParser(description="Judge real stores under every model.")
    parser.add_argument("store", nargs="*", help=f"default: all of them ({', '.join(names())})")
    chosen = parser.parse_args(arguments).store or names()
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"there is no store {', '.join(unknown)}; choose from {', '.join(names())}")
    print(
        "Is it atomic? / Is it durable?  (? = not covered), crash states checked; time in seconds"
    )
    print(heading(), flush=True)
    outcomes, unusable = [], []
    for name in chosen:
        try:
            example = load(name)
        except ModuleNotFoundError as error:
            print(f"{name:<27} could not be run: {error}", flush=True)
            unusable.append(name)
            continue
        with quiet():
            outcome = judge(example)
        print(row(outcome), flush=True)
        outcomes.append(outcome)
    disagreements = [line for outcome in outcomes for line in outcome.disagreements()]
    print(summary(outcomes, disagreements, unusable))
    if unusable:
        return 2
    return 1 if disagreements else 0


@contextmanager
def quiet() -> Iterator[None]:
    """Keep stores from reporting, hundreds of times, what they met on a damaged disk.

    Some log it; one whose constructor raised complains a second time when it is collected.
    """
    hook = sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = hook
        logging.disable(logging.NOTSET)


def summary(
    outcomes: Sequence[Outcome], disagreements: Sequence[str], unusable: Sequence[str]
) -> str:
    """Return the lines under the table."""
    states = sum(outcome.verdict(model).states for outcome in outcomes for model in MODELS)
    seconds = sum(outcome.seconds for outcome in outcomes)
    lines = ["", f"{len(outcomes)} stores, {states:,} crash states, {seconds:.1f} s"]
    if unusable:
        lines.append(
            f"could not be run: {', '.join(unusable)}; "
            "install them with: pip install 'pytest-statepersist[examples]'"
        )
    if disagreements:
        lines.append(f"Not what the stores' modules expect ({len(disagreements)}):")
        lines.extend(f"  {line}" for line in disagreements)
    elif outcomes:
        lines.append("Every verdict is what was expected from the store's source.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
