"""Each part of the reference implementation is a fixture, listed with its one line, and works."""

from __future__ import annotations

import re

import pytest

PARTS = [
    "app_autosave",
    "app_database",
    "app_recovery",
    "atomic_file",
    "backup_schedule",
    "component_registry",
    "conversation_store",
    "envelope_key",
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
    "state_serializer",
    "state_snapshot",
    "user_identity",
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


        @quick
        @given(text=st.text(max_size=5))
        def test_files(atomic_file, state_serializer, text):
            for name in ("json", "compact-json", "gzip-json", "zstd-json", "binary"):
                format = state_serializer(name)
                path = atomic_file(format.dumps([text]))
                assert format.loads(path.read_bytes()) == [text]


        def test_file_store(file_store, backup_schedule, tmp_path):
            store = file_store()
            backup_schedule(store)
            store.save_all()


        def test_registry(component_registry, state_snapshot):
            assert list(component_registry().ids()) == []
            made = state_snapshot("fetch")
            assert type(made).from_json(made.to_json()) == made


        def test_database(app_database, local_storage, app_recovery, nightly_retention,
                          reference_clock):
            database = app_database(clock=reference_clock)
            app_recovery(local_storage(), database)
            job, scheduler = nightly_retention(database, reference_clock)
            before = reference_clock.now()
            scheduler.advance(86_400)
            assert reference_clock.now() - before == timedelta(days=1)


        def test_autosave(app_database, local_storage, app_autosave):
            from pytest_statepersist.reference.recovery import LiveState

            storage = local_storage()
            job, scheduler = app_autosave(storage, app_database(), lambda: LiveState(balance=1.5))
            job.start()
            scheduler.advance(30)
            assert "crash.recovery" in storage
            job.stop()
            assert "crash.recovery" not in storage


        def test_envelopes_and_identity(envelope_key, user_identity):
            from pytest_statepersist.reference.envelope import Purpose

            place = {"purpose": Purpose.EXPORT, "context": b""}
            for key in (envelope_key(), envelope_key("word")):
                assert key.open(key.seal(b"text", **place), **place) == b"text"
            assert user_identity("Ada").display_name == "Ada"


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
    result.assert_outcomes(passed=12)
