"""Judge engines written in C, C++ and Rust, recorded with strace, and print one table.

Run it with ``python -m examples.engines`` on Linux, with strace and the extra ``engines``. Belongs
here: what the modules in ``natives`` share, and the runner. Each module states what a careful
reader expects, written before its first run, and, where the run disagreed, which of the two was
wrong. What the recorder cannot know is "not covered", never a guess. Exit codes are those of
`examples.run`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from examples.run import quiet, short, word
from pytest_statepersist import BlindSpot, CrashSimulator, Report

__all__ = ["MODELS", "NOT_COVERED", "Acknowledge", "Expected", "expect", "judge", "main", "names"]

MODELS = ("posix", "ext4", "kill")
SETTINGS = {
    "deviations": 1,
    "samples": 0,
    "budget": 600,
    "repairs": False,
    "recovery_crashes": 0,
}
"""Recoveries of an engine are dear: the bound is small, and each verdict says how far it went."""

Acknowledge = Callable[[object], None]


class Expected(NamedTuple):
    """What is expected under one model; ``None`` is "not covered"."""

    atomic: bool | None
    durable: bool | None


NOT_COVERED: Mapping[str, Expected] = {model: Expected(None, None) for model in MODELS}


def expect(*, atomic: tuple[str, ...], durable: tuple[str, ...]) -> Mapping[str, Expected]:
    """Return a verdict for every model from the models under which the engine holds."""
    return {model: Expected(model in atomic, model in durable) for model in MODELS}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run said about one engine: a report, or why it could not be recorded."""

    name: str
    module: ModuleType
    report: Report | BlindSpot
    seconds: float
    models: Sequence[str] = MODELS

    def found(self, model: str) -> Expected:
        """Return the verdict under one model."""
        if isinstance(self.report, BlindSpot):
            return Expected(None, None)
        verdict = self.report.verdict(model)
        return Expected(verdict.atomic, verdict.durable)

    def disagreements(self) -> list[str]:
        """Return one sentence for each verdict that is not the expected one."""
        return [
            f"{self.name} on {model}: {aspect}? expected {word(wanted)}, found {word(found)}"
            for model in self.models
            for aspect, wanted, found in zip(
                Expected._fields, self.module.EXPECTED[model], self.found(model), strict=True
            )
            if wanted is not found
        ]

    def row(self) -> str:
        """Return the engine's line of the table."""
        cells = []
        for model in MODELS:
            found = self.found(model)
            states = 0
            if isinstance(self.report, Report):
                states = self.report.verdict(model).states
            cells.append(f"{short(found.atomic)}/{short(found.durable)}".rjust(9) + f"{states:>6}")
        return f"{self.name:<20}" + "".join(cells) + f"{self.seconds:>8.1f}"


def names() -> list[str]:
    """Return the names of all engines, sorted."""
    folder = Path(__file__).parent / "natives"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def judge(name: str, *, models: Sequence[str] = MODELS) -> Outcome:
    """Explore one engine; raises `ModuleNotFoundError` where its package is not installed."""
    module = importlib.import_module(f"examples.natives.{name}")
    began = time.perf_counter()
    report: Report | BlindSpot
    try:
        with quiet():
            report = CrashSimulator().explore(
                setup=module.setup,
                workload=module.workload,
                recover=module.recover,
                model=list(models),
                recorder="strace",
                **{**SETTINGS, **getattr(module, "SETTINGS", {})},
            )
    except BlindSpot as blind:
        report = blind
    return Outcome(name, module, report, time.perf_counter() - began, models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named engines, or all of them, and return the exit code."""
    parser = argparse.ArgumentParser(description="Judge engines written in C, C++ and Rust.")
    parser.add_argument("engine", nargs="*", help=f"default: all ({', '.join(names())})")
    chosen = parser.parse_args(arguments).engine or names()
    print("atomic/durable  (? = not covered), crash states checked; time in seconds")
    print(f"{'engine':<20}" + "".join(f"{model:>15}" for model in MODELS) + f"{'time':>8}")
    wrong, missing, reasons = [], [], []
    for name in chosen:
        try:
            outcome = judge(name)
        except ModuleNotFoundError as error:
            print(f"{name:<20} could not be run: {error}", flush=True)
            missing.append(name)
            continue
        print(outcome.row(), flush=True)
        wrong.extend(outcome.disagreements())
        if isinstance(outcome.report, BlindSpot):
            reasons.append(f"{name}: {outcome.report}")
    for line in (*reasons, *wrong):
        print(f"  {line}")
    if missing:
        print("install what is missing with: pip install 'pytest-statepersist[engines]'")
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    # The modules import this one by its name, not as __main__.
    from examples import engines

    sys.exit(engines.main())
