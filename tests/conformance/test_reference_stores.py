"""The reference stores conform: every promise that they declare holds."""

from __future__ import annotations

import pytest

from pytest_statepersist.adapter import StoreAdapter
from pytest_statepersist.conformance import StoreConformance
from pytest_statepersist.machines import reference_stores as stores


class TestFileStore(StoreConformance):
    xfails = "reference_xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.FileStoreAdapter()


class TestEncryptedFileStore(StoreConformance):
    xfails = "reference_xfails.toml"

    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.EncryptedFileStoreAdapter()


class TestLocalStorage(StoreConformance):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.LocalStorageAdapter()


class TestVault(StoreConformance):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.VaultAdapter()


class TestDatabase(StoreConformance):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.DatabaseAdapter()


class TestGroupStore(StoreConformance):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.GroupStoreAdapter()
