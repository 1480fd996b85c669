"""What a workload says to have saved, and what it does with that value afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator
from pytest_statepersist.arguments import as_it_is_now

Acknowledge = Callable[[Any], None]


def save(path: Path, value: Any, *, directory: bool = True) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if directory:
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def load(directory: Path) -> Any:
    return json.loads((directory / "state").read_text())


def nothing(directory: Path) -> None:
    save(directory / "state", [])


@pytest.mark.parametrize("sound", [True, False])
def test_a_batch_that_is_emptied_after_it_was_acknowledged(sound: bool) -> None:
    """The invariant was asked about two empty lists, which nothing can lose."""

    def in_batches(directory: Path, acknowledge: Acknowledge) -> None:
        stored: list[int] = []
        batch: list[int] = []
        for number in range(2):
            batch.append(number)
            stored += batch
            save(directory / "state", stored, directory=sound)
            acknowledge(batch)
            batch.clear()

    def all_there(found: list[int], acknowledged: tuple[list[int], ...]) -> bool:
        return all(number in found for batch in acknowledged for number in batch)

    report = CrashSimulator().explore(
        setup=nothing, workload=in_batches, recover=load, invariant=all_there, model="ext4"
    )
    verdict = report.verdict("ext4")
    assert (verdict.atomic, verdict.durable, verdict.asked) == (True, sound, True)


@pytest.mark.parametrize("sound", [True, False])
def test_a_list_that_grows_after_it_was_acknowledged(sound: bool) -> None:
    """Each state before the last save was a finding: the list had grown by then."""

    def one_by_one(directory: Path, acknowledge: Acknowledge) -> None:
        stored: list[int] = []
        for number in range(2):
            stored.append(number)
            save(directory / "state", stored, directory=sound or number < 1)
            acknowledge(stored)

    report = CrashSimulator().explore(
        setup=nothing, workload=one_by_one, recover=load, before=[], model="ext4"
    )
    verdict = report.verdict("ext4")
    assert (verdict.atomic, verdict.durable) == (True, sound)


def test_what_was_before_is_what_it_was_when_it_was_given() -> None:
    state = {"score": 1}

    def score(directory: Path) -> None:
        state["score"] += 1
        save(directory / "state", state)

    report = CrashSimulator().explore(
        setup=lambda d: save(d / "state", {"score": 1}),
        workload=score,
        recover=load,
        before=state,
        after={"score": 2},
    )
    assert report.safe


def test_what_cannot_be_copied_or_is_itself_alone_stays_what_it_is() -> None:
    class Owner:
        def __del__(self) -> None:
            """An object that frees something: a copy would free it twice."""

    for value in (object(), Owner(), (each for each in ()), CrashSimulator, "text", None):
        assert as_it_is_now(value) is value
    batch = {"values": [1, 2]}
    kept = as_it_is_now(batch)
    batch["values"].clear()
    assert kept == {"values": [1, 2]}
