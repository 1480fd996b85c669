"""The examples run, agree with what they expected, and cite lines that exist."""

from __future__ import annotations

import pytest

from examples import run
from examples.example import MODELS, expect, load, names


def test_there_are_enough_stores() -> None:
    assert len(names()) >= 10


@pytest.mark.parametrize("name", names())
def test_every_store_is_judged_as_its_source_says(name: str) -> None:
    outcome = run.judge(load(name))
    assert list(outcome.disagreements()) == []


@pytest.mark.parametrize("name", names())
def test_cited_lines_stand_in_the_installed_source(name: str) -> None:
    for citation in load(name).citations:
        if citation.installed():
            assert citation.actual() == citation.text


def test_a_wrong_expectation_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The canary: an example that expects too much must not pass."""
    example = load("json_dump")
    example.expected = expect(atomic=MODELS, durable=("kill",))  # type: ignore[misc]
