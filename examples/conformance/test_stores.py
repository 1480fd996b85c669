"""Each store inherits the suite; what it is known to fail stands in ``xfails.toml``."""

from __future__ import annotations

import pytest

from examples.conformance import stores
from pytest_statepersist.adapter import StoreAdapter
from pytest_statepersist.conformance import StoreConformance


class TestTinydb(StoreConformance):
    xfails = "xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.TinydbAdapter()
