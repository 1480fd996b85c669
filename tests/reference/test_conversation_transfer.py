"""Export, import and sync: conversations on more than one machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversation_records import KEPT_ANCESTORS, SessionRecord
from pytest_statepersist.reference.conversation_sqlite import SqliteConversations
from pytest_statepersist.reference.conversation_storage import Change, ConversationStorage
from pytest_statepersist.reference.conversation_sync import merge
from pytest_statepersist.reference.conversations import Conversations, Session
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    IntegrityError,
    NewerVersion,
    NotFound,
    StorageError,
    ValidationError,
)

START = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here processes die and disks refuse, but the power stays on: a sync may cost nothing."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def device(tmp_path: Path, clock: ManualClock) -> Iterator[Callable[[str], Conversations]]:
    with ExitStack() as stack:

        def make(name: str) -> Conversations:
            kind = SqliteConversations if name.startswith("sqlite") else JsonConversations
            return stack.enter_context(Conversations(kind(tmp_path / name), clock=clock))

        yield make


def talk(store: Conversations, *texts: str, title: str = "Planning") -> Session:
    session = store.create_session(title)
    for text in texts or ("one",):
        session.send(text)
    session.save()
    return session


def contents(store: Conversations) -> dict[str, SessionRecord]:
    return {info.id: store.storage.load(info.id) for info in store.list_sessions()}


# -- export and import -------------------------------------------------------------------


def test_an_export_is_the_documented_json(device: Callable[[str], Conversations]) -> None:
    session = talk(device("a"), "Let's plan Q1", title="Strategic Planning")
    plain = json.loads(session.export("json"))
    assert plain["title"] == "Strategic Planning"
    assert plain["messages"][0]["content"] == "Let's plan Q1"
    assert plain["messageCount"] == 1
    assert plain["revision"] == 1


def test_markdown_and_text_are_for_reading(device: Callable[[str], Conversations]) -> None:
    store = device("a")
    session = store.create_session("Trains\n# to Bern")
    session.send("When?\nToday.")
    session.send("12:04", role="assistant")
    session.save()
    markdown = session.export("markdown")
    assert markdown.startswith("# Trains # to Bern\n\n- id: session_")
    assert "## user, 2025-06-01T12:00:00.000000Z\n\nWhen?\nToday.\n" in markdown
    assert "## assistant, " in markdown
    text = session.export("txt")
    assert "[2025-06-01T12:00:00.000000Z] user: When?\n    Today.\n" in text
    assert "assistant: 12:04\n" in text
    with pytest.raises(ValidationError, match="pdf"):
        session.export("pdf")


def test_an_export_needs_a_saved_state(device: Callable[[str], Conversations]) -> None:
    session = talk(device("a"))
    session.send("not saved")
    with pytest.raises(ValidationError, match="unsaved"):
        session.export()


@pytest.mark.parametrize(("source", "target"), [("a", "sqlite"), ("sqlite", "a"), ("a", "b")])
def test_an_import_on_another_machine_gives_an_equal_session(
    device: Callable[[str], Conversations], clock: ManualClock, source: str, target: str
) -> None:
    session = talk(device(source), "one", "zwei ü", "三 🎉")
    session.send("four")
    session.save()
    clock.advance(86_400)
    there = device(target)
    imported = there.import_session(session.export())
    again = there.load_session(session.id)
    assert imported.export() == again.export() == session.export()
    assert again.info == imported.info == session.info
    assert contents(there)[session.id] == contents(device(source))[session.id]
    there.import_session(session.export())  # twice is once
    again.send("continuing on a different device")
    again.save()
    back = device(source).import_session(again.export())  # it descends from ours: no conflict
    assert back.messages == again.messages
    older = device(source).import_session(session.export())  # and an old export changes nothing
    assert older.messages == again.messages


def test_an_import_of_a_session_that_changed_here_too_asks_first(
    device: Callable[[str], Conversations],
) -> None:
    here, there = device("a"), device("b")
    session = talk(here)
    copy = there.import_session(session.export())
    copy.send("theirs")
    copy.save()
    session.send("ours")
    session.save()
    with pytest.raises(ConflictError, match="merge_changes"):
        here.import_session(copy.export())
    assert here.load_session(session.id).messages == session.messages
    merged = here.import_session(copy.export(), merge_changes=True)
    assert {item.content for item in merged.messages} == {"one", "ours", "theirs"}


def test_export_all_and_import_all(device: Callable[[str], Conversations]) -> None:
    here, there = device("a"), device("sqlite")
    for n in range(5):
        talk(here, str(n), title=f"t{n}")
    export = here.export_all()
    assert export == here.export_all()
    ids = there.import_all(export)
    assert contents(there) == contents(here)
    assert set(ids) == set(contents(here))
    assert there.export_all() == export
    assert device("b").import_all(device("c").export_all()) == ()


def test_import_all_is_all_or_nothing(device: Callable[[str], Conversations]) -> None:
    here, there = device("a"), device("b")
    session = talk(here)
    there.import_all(here.export_all())
    ours = there.load_session(session.id)
    ours.send("changed there")
    ours.save()
    session.send("changed here")
    session.save()
    talk(here, title="new")
    before = contents(there)
    with pytest.raises(ConflictError):
        there.import_all(here.export_all())
    assert contents(there) == before
    there.import_all(here.export_all(), merge_changes=True)
    assert len(contents(there)) == 2


def broken(export: str, **changes: Any) -> str:
    plain = json.loads(export)
    plain.update(changes)
    return json.dumps({name: value for name, value in plain.items() if value is not ...})


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"version": 2}, NewerVersion, "version 2"),
        ({"version": 0}, DamagedData, "never existed"),
        ({"format": "notes"}, DamagedData, "conversation"),
        ({"title": "edited"}, IntegrityError, "edited"),
        ({"title": ...}, ValidationError, "title"),
        ({"messages": ...}, IntegrityError, "messages"),
        ({"messageCount": 7}, IntegrityError, "says 7"),
        ({"status": "gone"}, ValidationError, "status"),
        ({"createdAt": "2025-01-01T00:00:00"}, ValidationError, "createdAt"),
        ({"id": "../etc"}, Exception, "id"),
        ({"surprise": 1}, ValidationError, "surprise"),
    ],
)
def test_a_bad_export_is_refused_with_its_reason(
    device: Callable[[str], Conversations],
    changes: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    session = talk(device("a"))
    there = device("b")
    with pytest.raises(error, match=match):
        there.import_session(broken(session.export(), **changes))
    assert there.list_sessions() == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format":"conversations"}', b"\xff"])
def test_what_is_no_export_is_refused(
    device: Callable[[str], Conversations], text: str | bytes
) -> None:
    store = device("a")
    for import_ in (store.import_session, store.import_all):
        with pytest.raises(DamagedData):
            import_(text)


# -- sync --------------------------------------------------------------------------------


def test_sync_is_a_union(device: Callable[[str], Conversations]) -> None:
    here, there = device("sqlite"), device("json")
    mine, theirs = talk(here, "mine"), talk(there, "theirs")
    report = here.sync_with(there)
    assert (report.to_first, report.to_second) == ((theirs.id,), (mine.id,))
    assert report.conflicts == report.unreadable == ()
    assert contents(here) == contents(there)
    assert set(contents(here)) == {mine.id, theirs.id}
    again = here.sync_with(there)
    assert (again.to_first, again.to_second, again.conflicts) == ((), (), ())


def test_the_newer_revision_replaces_the_one_it_descends_from(
    device: Callable[[str], Conversations], clock: ManualClock
) -> None:
    here, there = device("a"), device("b")
    session = talk(here)
    here.sync_with(there)
    for n in range(KEPT_ANCESTORS // 20):
        session.send(str(n))
        session.save()
    clock.set(START - timedelta(days=400))  # even if this machine's clock was set back
    session.update(title="renamed")
    session.save()
    report = there.sync_with(here)
    assert report.to_first == (session.id,)
    assert report.to_second == report.conflicts == ()
    assert contents(there) == contents(here)
    assert there.load_session(session.id).title == "renamed"


def test_two_changes_are_a_conflict_that_keeps_both_and_is_reported(
    device: Callable[[str], Conversations], clock: ManualClock
) -> None:
    here, there = device("a"), device("b")
    session = talk(here)
    here.sync_with(there)
    theirs = there.load_session(session.id)
    clock.advance(1)
    session.send("ours")
    session.update(title="our title")
    session.save()
    clock.advance(1)
    theirs.send("theirs")
    theirs.save()
    report = here.sync_with(there)
    (conflict,) = report.conflicts
    assert conflict.session_id == session.id
    assert conflict.fields == ("title", "messages")
    assert contents(here) == contents(there)
    merged = here.load_session(session.id)
    assert [item.content for item in merged.messages] == ["one", "ours", "theirs"]
    # They spoke later, but the title was changed by us: a later message does not undo that.
    assert merged.title == "our title"
    assert merged.revision == 3
    assert contents(here)[session.id].revision_id == conflict.merged
    assert here.sync_with(there).conflicts == ()


def test_a_deletion_on_one_side_comes_back(device: Callable[[str], Conversations]) -> None:
    here, there = device("a"), device("b")
    session = talk(here)
    here.sync_with(there)
    here.delete_session(session.id)
    assert here.sync_with(there).to_first == (session.id,)


def test_a_damaged_copy_is_left_alone_and_reported(
    device: Callable[[str], Conversations], tmp_path: Path
) -> None:
    here, there = device("a"), device("b")
    bad, good = talk(here), talk(here)
    here.sync_with(there)
    path = tmp_path / "a" / f"{bad.id}.json"
    path.write_bytes(b"{")
    new = talk(there)
    report = here.sync_with(there)
    assert report.unreadable == (bad.id,)
    assert report.to_first == (new.id,)
    assert path.read_bytes() == b"{"
    assert set(contents(here)) == {good.id, new.id}


def test_a_sync_cut_short_between_the_stores_is_finished_by_the_next(
    device: Callable[[str], Conversations], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = device("a"), device("sqlite")
    talk(here, "mine")
    talk(there, "theirs")

    def fail(changes: Any) -> None:
        raise StorageError("disk", OSError(5, "Input/output error"))

    with monkeypatch.context() as patch:
        patch.setattr(there.storage, "save", fail)
        with pytest.raises(StorageError):
            here.sync_with(there)
    assert len(here.list_sessions()) == 2
    assert len(there.list_sessions()) == 1
    report = here.sync_with(there)
    assert report.to_first == ()
    assert contents(here) == contents(there)


def test_a_change_during_the_sync_is_not_overwritten(
    device: Callable[[str], Conversations], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = device("a"), device("b")
    session = talk(here)
    here.sync_with(there)
    newer = there.load_session(session.id)
    newer.send("newer")
    newer.save()
    save = here.storage.save

    def interfering(changes: Any) -> None:
        session.send("meanwhile")
        with monkeypatch.context() as patch:
            patch.setattr(here.storage, "save", save)
            session.save()
        save(changes)

    with monkeypatch.context() as patch:
        patch.setattr(here.storage, "save", interfering)
        with pytest.raises(ConflictError):
            here.sync_with(there)
    assert here.load_session(session.id).messages[-1].content == "meanwhile"
    assert len(here.sync_with(there).conflicts) == 1


# Three copies; each step changes one of them or syncs two. In the end they are made to meet.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2), st.integers(0, 1)),
        st.tuples(st.just("rename"), st.integers(0, 2), st.integers(0, 1)),
        st.tuples(st.just("create"), st.integers(0, 2), st.integers(0, 0)),
        st.tuples(st.just("jump"), st.integers(-5, 5), st.integers(0, 0)),
        st.tuples(st.just("sync"), st.integers(0, 2), st.integers(0, 2)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_any_number_of_copies_converge_and_no_message_is_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    root = tmp_path_factory.mktemp("devices")
    clocks = [ManualClock(START) for _ in range(3)]
    with ExitStack() as stack:
        stores = [
            stack.enter_context(Conversations(JsonConversations(root / str(n)), clock=clocks[n]))
            for n in range(3)
        ]
        sent: set[str] = set()
        for number, (what, one, other) in enumerate(steps):
            if what == "jump":
                clocks[abs(one) % 3].set(START + timedelta(seconds=one))
            elif what == "sync":
                if one != other:
                    stores[one].sync_with(stores[other])
                    assert contents(stores[one]) == contents(stores[other])
            elif what == "create":
                session = stores[one].create_session("new", session_id=f"s{number}")
                session.save()
            else:
                ids = sorted(info.id for info in stores[one].list_sessions())
                if ids:
                    session = stores[one].load_session(ids[other % len(ids)])
                    if what == "send":
                        session.send(f"message {number}")
                        sent.add(f"message {number}")
                    else:
                        session.update(title=f"title {number}")
                    session.save()
        for one, other in [(0, 1), (1, 2), (0, 1), (0, 2)]:
            stores[one].sync_with(stores[other])
        first, second, third = (contents(store) for store in stores)
        assert first == second == third
        kept = {item.content for record in first.values() for item in record.messages}
        assert kept == sent
        for one, other in [(0, 1), (1, 2), (2, 0)]:
            report = stores[one].sync_with(stores[other])
            assert report.to_first == report.to_second == report.conflicts == ()


@settings(max_examples=40, deadline=None)
@given(
    edits=st.lists(
        st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=4), min_size=3, max_size=3
    )
)
def test_what_a_merge_says_does_not_depend_on_the_order(
    edits: list[list[tuple[bool, int]]],
) -> None:
    clock = ManualClock(START)
    kept: dict[str, SessionRecord] = {}

    class Memory(ConversationStorage):
        def save(self, changes: Sequence[Change]) -> None:
            for change in changes:
                kept[change.record.id] = change.record

        def load(self, session_id: str) -> SessionRecord:
            return base

    store = Conversations(Memory(), clock=clock)  # type: ignore[abstract]
    store.create_session("t", session_id="s").save()
    base = kept["s"]
    copies: list[SessionRecord] = []
    for number, changes in enumerate(edits):
        session = store.load_session("s")
        for sends, value in changes:
            clock.set(START + timedelta(seconds=value))
            if sends:
                session.send(f"{number} {value}")
            else:
                session.update(title=f"{number} {value}")
            session.save()
        copies.append(kept["s"] if changes else base)

    def content(record: SessionRecord) -> Any:
        return record.content(), record.revision_id

    a, b, c = copies
    assert content(merge(a, b)[0]) == content(merge(b, a)[0])
    left = merge(merge(a, b)[0], c)[0]
    right = merge(a, merge(b, c)[0])[0]
    assert content(left) == content(right)
    assert merge(left, a) == (left, None)
    assert merge(left, left) == (left, None)


def test_nothing_stored_is_nothing_found(device: Callable[[str], Conversations]) -> None:
    with pytest.raises(NotFound):
        device("a").load_session("session_x")
