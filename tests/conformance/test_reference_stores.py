"""The reference stores conform: every promise that they declare holds.

The file store's suite runs in every run, the others in the soak profile; tests of all of them are
the sound controls of `tests/mutants`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pytest_statepersist.adapter import StoreAdapter
from pytest_statepersist.concurrency import interposed
from pytest_statepersist.conformance import StoreConformance
from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.machines import reference_stores as stores
from tests.conftest import REASON

SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
soak = pytest.mark.skipif(not SOAK, reason=REASON)


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """What each test would do again: replace the functions of the system."""
    with interposed():
        yield


class Reference(StoreConformance):
    """Complete up to the usual bound in every run; samples beyond it in the soak profile."""

    @pytest.fixture(autouse=True)
    def _complete(self, bench: Bench) -> None:
        if not SOAK:
            bench.settings["samples"] = 0


class ReferenceInSqlite(Reference):
    """Complete up to one deviation; in order where the whole database is written on the way.

    Further the budget would end first, and after minutes for each test: that covers nothing. There
    recovery writes in each of a thousand states, and is not crashed itself.
    """

    in_order = ("first", "several_keys", "several_new_keys", "clean_up")

    @pytest.fixture(autouse=True)
    def _few(self, bench: Bench, request: pytest.FixtureRequest) -> None:
        bench.settings["samples"] = 0
        whole = any(words in request.node.name for words in self.in_order)
        bench.settings |= {"deviations": 0, "recovery_crashes": 0} if whole else {"deviations": 1}


class TestFileStore(Reference):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.FileStoreAdapter()


class TestEncryptedFileStore(Reference):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.EncryptedFileStoreAdapter()


class TestLocalStorage(Reference):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.LocalStorageAdapter()


class TestVault(Reference):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.VaultAdapter()


@soak
class TestConversations(Reference):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.ConversationsAdapter()


@soak
class TestSqliteConversations(ReferenceInSqlite):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.SqliteConversationsAdapter()


class TestDatabase(ReferenceInSqlite):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.DatabaseAdapter()


class TestGroupStore(Reference):
    @pytest.fixture
    def store(self) -> StoreAdapter:
        return stores.GroupStoreAdapter()
