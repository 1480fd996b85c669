"""Engines written in C, C++ and Rust are judged as their modules say; what is unknown is said."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from examples import engines
from pytest_statepersist import BlindSpot
from tests.needs import needs_strace

pytestmark = needs_strace


SLOW = {"diskcache_set", "duckdb_update", "parquet_write", "rocksdb_put"}
"""Thousands of states: all models in the soak run and in ``python -m examples.engines`` only."""


def judged(name: str, models: tuple[str, ...] = engines.MODELS) -> engines.Outcome:
    try:
        return engines.judge(name, models=models)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error}; the extra 'engines' installs it")


def test_there_are_enough_engines() -> None:
    assert len(engines.names()) >= 6


@pytest.mark.parametrize("name", engines.names())
def test_every_engine_is_judged_as_its_module_says(name: str) -> None:
    whole = name not in SLOW or os.environ.get("STATEPERSIST_PROFILE") == "soak"
    assert judged(name, engines.MODELS if whole else ("kill",)).disagreements() == []


def test_a_writable_map_is_not_covered_and_named() -> None:
    report = judged("lmdb_writemap").report
    assert isinstance(report, BlindSpot)
    assert report.culprit == "data.mdb"


def test_a_wrong_expectation_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The canary: LMDB is durable, so expecting otherwise must not pass."""
    module: ModuleType = judged("lmdb_put").module
    wrong = engines.expect(atomic=engines.MODELS, durable=())
    monkeypatch.setattr(module, "EXPECTED", wrong)
    assert engines.main(["lmdb_put"]) == 1
    assert "lmdb_put on posix: durable? expected no, found yes" in capsys.readouterr().out


def test_an_engine_that_is_missing_is_no_agreement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> engines.Outcome:
        raise ModuleNotFoundError("No module named 'lmdb'")

    monkeypatch.setattr(engines, "judge", missing)
    assert engines.main(["lmdb_put"]) == 2
    assert "pip install 'pytest-statepersist[engines]'" in capsys.readouterr().out
