"""Fixtures of the clock's tests: a clock, and that everything is put back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pytest_statepersist.clock import (
    StateClock,
)
from tests.clock.common import START, Real, originals


@pytest.fixture
def clock() -> Iterator[StateClock]:
    with StateClock(START) as clock:
        yield clock


@pytest.fixture(autouse=True)
def everything_is_put_back() -> Iterator[None]:
    before = originals()
    yield
    assert originals() == before
    assert abs(time.monotonic() - Real.monotonic()) < 5
