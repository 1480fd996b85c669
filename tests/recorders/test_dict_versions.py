"""A dict is called unchanged only by an interpreter that gives it a new number at each change."""

from __future__ import annotations

import ctypes

import pytest

from pytest_statepersist.recorders import dict_versions


@pytest.fixture
def anew() -> None:
    dict_versions.kept.cache_clear()


@pytest.mark.usefixtures("anew")
def test_a_number_that_stays_at_a_change_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dict_versions.kept()
    for wrong in (ctypes.c_uint64(7), Counting()):  # never another one; another one at each look
        dict_versions.kept.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(dict_versions, "version_of", lambda each, wrong=wrong: wrong)
            assert not dict_versions.kept()
    dict_versions.kept.cache_clear()
    assert dict_versions.kept() == right


class Counting:
    looks = 0

    @property
    def value(self) -> int:
        self.looks += 1
        return self.looks
