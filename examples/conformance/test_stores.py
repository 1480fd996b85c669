"""Each store inherits the suite; what it is known to fail stands in ``xfails.toml``."""

from __future__ import annotations

import pytest

from examples.conformance import stores
from pytest_statepersist.adapter import StoreAdapter
from pytest_statepersist.conformance import StoreConformance


class TestShelve(StoreConformance):
    xfails = "xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.ShelveAdapter()


class TestSemidbm(StoreConformance):
    xfails = "xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.SemidbmAdapter()


class TestDiskcache(StoreConformance):
    xfails = "xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.DiskcacheAdapter()


class TestSqlite(StoreConformance):
    xfails = "xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.SqliteAdapter()


class TestTinydb(StoreConformance):
    xfails = "xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.TinydbAdapter()


class TestZodb(StoreConformance):
    xfails = "xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.ZodbAdapter()
