"""The examples run, agree with what they expected, and cite lines that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from examples import run, sqlite
from examples.example import MODELS, Citation, Example, expect, load, names
from tests.unconfirmed import unconfirmed


@pytest.fixture(scope="module", autouse=True)
def _unconfirmed() -> Iterator[None]:
    with unconfirmed():
        yield


def test_there_are_enough_stores() -> None:
    assert len(names()) >= 10


@pytest.mark.parametrize("name", names())
def test_every_store_is_judged_as_its_source_says(name: str) -> None:
    with run.quiet():
        outcome = run.judge(load(name))
    assert list(outcome.disagreements()) == []
    for model in MODELS:
        verdict = outcome.verdict(model)
        # Two times no is final, however much was left to see.
        assert verdict.complete or (verdict.atomic, verdict.durable) == (False, False)
    # dulwich looks in child processes for hooks that are not there, and may reach C code.
    ran = [text for text in outcome.warnings if "whose syncs only strace sees" in text]
    assert list(outcome.warnings) == (ran if name == "dulwich_commit" else [])


@pytest.mark.parametrize("name", names())
def test_cited_lines_stand_in_the_installed_source(name: str) -> None:
    example = load(name)
    assert set(example.expected) == set(MODELS)
    for citation in example.citations:
        if citation.installed():
            assert citation.actual() == citation.text


def test_a_citation_that_is_wrong_is_noticed() -> None:
    true = load("tinydb_remove").citations[-1]
    assert replace(true, line=true.line + 1).actual() != true.text
    with pytest.raises(LookupError):
        Citation("python", "3.11.7", "sys", 1, "").actual()


def test_a_wrong_expectation_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The canary: an example that expects too much must not pass."""
    hopeful = replace(load("json_dump"), expected=expect(atomic=("xfs",), durable=("kill",)))
    monkeypatch.setattr(run, "load", lambda name: hopeful)
    assert run.main(["json_dump"]) == 1
    out = capsys.readouterr().out
    assert "json_dump on xfs: atomic? expected yes, found no" in out
    assert "Not what the stores' modules expect (1):" in out


def test_the_table_has_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["json_replace_fsync"]) == 0
    heading, row = capsys.readouterr().out.splitlines()[1:3]
    assert len(heading.split()) == len(MODELS) + 2
    assert row.count("yes/no") == len(MODELS) - 1
    assert row.count("yes/yes") == 1


def test_a_package_that_is_missing_is_no_agreement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Example:
        raise ModuleNotFoundError("No module named 'tinydb'")

    monkeypatch.setattr(run, "load", missing)
    assert run.main(["tinydb_insert"]) == 2
    assert "could not be run: tinydb_insert" in capsys.readouterr().out


def test_an_unknown_store_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(["nonsense"])
    assert caught.value.code == 2
    assert "there is no store nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sqlite_memory_journal"])
def test_sqlite_keeps_its_promises_line_by_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdicts of every setting are tested above; here it is the table that they stand in."""
    monkeypatch.setattr(sqlite, "NAMES", (name,))
    assert sqlite.main() == 0
    out = capsys.readouterr().out
    assert re.search(r"a power loss corrupts nothing +no +no\n", out)
    assert re.search(r"a power loss costs no commit +yes +yes\n", out)
    assert re.search(r"a killed program corrupts nothing +no +no\n", out)
    assert "No disagreements between SQLite's documentation and what was found." in out


def test_a_broken_promise_of_sqlite_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("sqlite_memory_journal").module
    monkeypatch.setattr(module, "PROMISE", replace(module.PROMISE, intact=True))
    monkeypatch.setattr(sqlite, "NAMES", ("sqlite_memory_journal",))
    assert sqlite.main() == 1
    assert "DISAGREES" in capsys.readouterr().out


@pytest.mark.parametrize("name", sqlite.NAMES)
def test_what_is_expected_of_sqlite_is_what_it_promises(name: str) -> None:
    module = load(name).module
    promised = module.PROMISE.verdicts()
    differs = tuple(model for model in MODELS if promised[model] != module.EXPECTED[model])
    assert differs == module.PROMISE.not_shown
