"""What the search for repairs costs, beside the exploration that it repairs.

A trace of 52 operations: thirteen saves of a small JSON store without a single sync. The search has
to run recovery at most 500 times more than the exploration did, and to end within 5 seconds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator

MODELS = ["posix", "ext4", "xfs", "btrfs"]


def workload(directory: Path) -> None:
    for number in range(13):
        temporary = directory / "state.json.tmp"
        temporary.write_text(json.dumps({"n": number}))
        os.replace(temporary, directory / "state.json")


def explore(**options: Any) -> Any:
    return CrashSimulator().explore(
        setup=lambda d: (d / "state.json").write_text(json.dumps({"n": -1})),
        workload=workload,
        recover=lambda d: json.loads((d / "state.json").read_text()),
        model=MODELS,
        **options,
    )


def test_exploration_alone(benchmark: Any) -> None:
    report = benchmark.pedantic(explore, kwargs={"repairs": False}, rounds=3)
    assert report.findings


def test_exploration_with_repairs(benchmark: Any) -> None:
    report = benchmark.pedantic(explore, rounds=3)
    assert report.repairs
    assert report.repair_runs <= 500


@pytest.mark.parametrize("model", MODELS)
def test_redundant_syncs(benchmark: Any, model: str) -> None:
    def save(directory: Path) -> None:
        for number in range(5):
            with open(directory / "t", "w") as file:
                file.write(str(number))
                file.flush()
                os.fsync(file.fileno())
            os.replace(directory / "t", directory / "s")
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    report = benchmark.pedantic(
        lambda: CrashSimulator().explore(
            setup=lambda d: (d / "s").write_text("-1"),
            workload=save,
            recover=lambda d: int((d / "s").read_text()),
            invariant=lambda value, acknowledged: value in range(-1, 5),
            model=model,
            redundant_syncs=True,
        ),
        rounds=3,
    )
    assert report.redundant_syncs[0].reason == ""
