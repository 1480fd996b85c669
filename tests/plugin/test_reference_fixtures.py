"""Each part of the reference implementation is a fixture, listed with its one line, and works."""

from __future__ import annotations

import re

import pytest

PARTS = [
    "app_database",
    "app_recovery",
    "backup_schedule",
    "component_registry",
    "conversation_store",
    "event_log",
    "file_store",
    "group_snapshot_store",
    "invite_book",
    "local_storage",
    "messenger",
    "nightly_retention",
    "reference_clock",
    "remote_store",
    "replica",
    "vault",
]


def test_each_part_is_listed_with_its_line(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_subprocess("--fixtures", "-q").stdout.str()
    for name in PARTS:
        found = re.search(rf"^{name}( \[session scope\])? -- .*\n(.*)", shown, re.M)
        line = found[2] if found else ""
        assert line.strip(), f"pytest --fixtures does not explain {name}"


def test_each_part_opens_saves_and_closes(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:randomly -W error")
    pytester.makepyfile(
        """
        from datetime import timedelta

        import pytest
        from hypothesis import HealthCheck, given, settings, strategies as st

        quick = settings(max_examples=3, deadline=None)


        @quick
        @given(text=st.text(max_size=5))
        def test_vault(vault, text):
            opened = vault()
            opened.store("key", text)
            assert opened.retrieve("key") == text


        @quick
        @given(value=st.integers(0, 9))
        def test_local_storage(local_storage, value):
            storage = local_storage()
            storage.set("anything", value)
            assert storage.get("anything") == value


        def test_file_store(file_store, backup_schedule, tmp_path):
            store = file_store()
            backup_schedule(store)
            store.save_all()


        def test_registry(component_registry):
            assert list(component_registry().ids()) == []


        def test_database(app_database, local_storage, app_recovery, nightly_retention,
                          reference_clock):
            database = app_database(clock=reference_clock)
            app_recovery(local_storage(), database)
            job, scheduler = nightly_retention(database, reference_clock)
            before = reference_clock.now()
            scheduler.advance(86_400)
            assert reference_clock.now() - before == timedelta(days=1)


        @pytest.mark.parametrize("backend", ["json", "sqlite"])
        def test_conversations(conversation_store, backend):
            conversations = conversation_store(backend=backend)
            session = conversations.create_session("Plans")
            session.send("hello")
            assert conversations.load_session(session.save()).messages


        def test_groups(group_snapshot_store, event_log, invite_book, messenger, replica):
            group_snapshot_store()
            invite_book()
            log = event_log()
            log.append(b"one")
            assert messenger("Ada").channels() == ()
            assert replica("ada")


        def test_remote(remote_store):
            pytest.importorskip("fsspec")
            assert list(remote_store().list()) == []
        """
    )
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=9)
