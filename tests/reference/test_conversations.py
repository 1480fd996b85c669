"""Conversations: the same tests for both backends, then what each has of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference import conversation_json, conversations
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversation_records import SessionStatus
from pytest_statepersist.reference.conversation_sqlite import SqliteConversations
from pytest_statepersist.reference.conversation_storage import ConversationStorage
from pytest_statepersist.reference.conversations import (
    Conversations,
    RecommendedLimitWarning,
    Session,
)
from pytest_statepersist.reference.errors import (
    ConflictError,
    DamagedData,
    IntegrityError,
    InvalidId,
    NewerVersion,
    NotFound,
    StorageError,
    ValidationError,
)
from tests.reference.kill_points import each_kill_point, tree

START = datetime(2025, 6, 1, 12, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[2]
BACKENDS: dict[str, Callable[[Path], ConversationStorage]] = {
    "sqlite": lambda root: SqliteConversations(root / "conversations.sqlite"),
    "json": lambda root: JsonConversations(root / "conversations"),
}
Open = Callable[..., Conversations]


@pytest.fixture(autouse=True)
def no_real_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here processes die and disks refuse, but the power stays on: a sync may cost nothing."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=BACKENDS)
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, closing: ExitStack
) -> Open:
    def open_(place: str = "device") -> Conversations:
        store = Conversations(BACKENDS[request.param](tmp_path / place), clock=clock)
        return closing.enter_context(store)

    return open_


def talk(store: Conversations, title: str = "Planning", *texts: str) -> Session:
    session = store.create_session(title)
    for number, text in enumerate(texts or ("Let us plan Q1", "Sure.")):
        session.send(text, role="assistant" if number % 2 else "user")
    session.save()
    return session


# -- create, send, save, load ------------------------------------------------------------


def test_a_session_lives_in_memory_until_it_is_saved(open_store: Open) -> None:
    store = open_store()
    session = store.create_session("Ideas", max_context_messages=30)
    session.send("First")
    assert session.unsaved
    assert store.list_sessions() == ()
    with pytest.raises(NotFound, match="was it saved"):
        store.load_session(session.id)
    assert session.save() == session.id
    assert not session.unsaved
    assert [info.id for info in store.list_sessions()] == [session.id]


def test_what_was_saved_comes_back_and_goes_on(open_store: Open, clock: ManualClock) -> None:
    session = talk(open_store())
    clock.advance(3600)
    again = open_store().load_session(session.id)
    assert again.messages == session.messages
    assert [item.role for item in again.messages] == ["user", "assistant"]
    again.send("Back — ü 🎉 \x00 end")
    again.save()
    third = open_store().load_session(session.id)
    assert third.messages == again.messages
    assert third.revision == 2
    assert third.info.updated_at == START + timedelta(hours=1)
    assert third.info.created_at == START


def test_parents_users_and_statuses(open_store: Open) -> None:
    store = open_store()
    parent = talk(store, "Project")
    sprint = store.create_session("Sprint 1", parent_session_id=parent.id, user_id="ada")
    sprint.update(status=SessionStatus.ARCHIVED)
    sprint.save()
    again = open_store().load_session(sprint.id)
    assert (again.parent_session_id, again.user_id, again.status) == (parent.id, "ada", "archived")
    again.update(title="Sprint one", status=SessionStatus.CLOSED)
    assert again.unsaved
    again.save()
    store = open_store()

    def ids(**wanted: Any) -> list[str]:
        return [info.id for info in store.list_sessions(**wanted)]

    assert ids(parent_session_id=parent.id) == [sprint.id]
    assert ids(user_id="ada") == [sprint.id]
    assert ids(user_id="local") == [parent.id]
    assert ids(status=SessionStatus.CLOSED) == [sprint.id]
    assert ids(status=SessionStatus.ARCHIVED) == []
    store.delete_session(parent.id)
    assert store.load_session(sprint.id).parent_session_id == parent.id  # children stay
    with pytest.raises(ValidationError, match="id"):
        again.update(id="other")


def test_lists_are_lazy_ordered_and_paged(
    open_store: Open, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    sessions = []
    for title in "abcde":
        sessions.append(talk(store, title))
        clock.advance(1)
    sessions[1].send("newest")
    sessions[1].save()
    infos = store.list_sessions()
    assert [info.title for info in infos] == ["b", "e", "d", "c", "a"]
    assert infos[0].message_count == 3
    assert infos[0].size_bytes > 100
    assert [info.title for info in store.list_sessions(limit=2, offset=1)] == ["e", "d"]
    assert store.list_sessions(offset=9) == ()
    with pytest.raises(ValidationError, match="negative"):
        store.list_sessions(limit=-1)


def test_messages_are_paged_from_the_newest(open_store: Open) -> None:
    store = open_store()
    session = talk(store, "t", *[str(n) for n in range(50)])

    def texts(messages: Any) -> list[str]:
        return [item.content for item in messages]

    for pages in (session.get_messages, lambda *page: store.messages(session.id, *page)):
        assert texts(pages(3)) == ["47", "48", "49"]
        assert texts(pages(3, 3)) == ["44", "45", "46"]
        assert texts(pages(5, 48)) == ["0", "1"]
        assert texts(pages(5, 99)) == []
        assert texts(pages(0)) == []
        assert len(pages()) == 50
        with pytest.raises(ValidationError):
            pages(1, -1)
    with pytest.raises(NotFound):
        store.messages("nobody")


def test_the_context_is_limited_and_the_session_is_not(open_store: Open) -> None:
    store = open_store()
    session = store.create_session("Limited", max_context_messages=3)
    for n in range(10):
        session.send(str(n))
    session.save()
    again = open_store().load_session(session.id)
    assert [item.content for item in again.context()] == ["7", "8", "9"]
    assert len(again.messages) == 10
    again.update(max_context_messages=None)
    assert len(again.context()) == 10


def test_an_unchanged_session_is_not_written_again(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    session = talk(store)
    monkeypatch.setattr(store.storage, "save", lambda changes: pytest.fail("written again"))
    session.save()


@settings(max_examples=15, deadline=None)
@given(
    backend=st.sampled_from(sorted(BACKENDS)),
    turns=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), max_size=30),
            st.sampled_from(["user", "assistant", "system"]),
            st.booleans(),
        ),
        max_size=8,
    ),
)
def test_any_conversation_comes_back(
    tmp_path_factory: pytest.TempPathFactory, backend: str, turns: list[tuple[str, str, bool]]
) -> None:
    root = tmp_path_factory.mktemp("store")
    with Conversations(BACKENDS[backend](root), clock=ManualClock(START)) as store:
        session = store.create_session("t")
        for content, role, save in turns:
            session.send(content, role=role)
            if save:
                session.save()
        session.save()
    with Conversations(BACKENDS[backend](root)) as store:
        again = store.load_session(session.id)
        assert again.messages == session.messages
        assert again.export() == session.export()


# -- deleting ----------------------------------------------------------------------------


def test_delete_and_its_errors(open_store: Open) -> None:
    store = open_store()
    gone, stays = talk(store, "gone"), talk(store, "stays")
    store.delete_session(gone.id)
    for call in (store.delete_session, store.load_session):
        with pytest.raises(NotFound, match=gone.id):
            call(gone.id)
    assert [info.id for info in open_store().list_sessions()] == [stays.id]


@pytest.mark.parametrize(
    ("age", "goes"), [(timedelta(days=365), False), (timedelta(days=365, microseconds=1), True)]
)
def test_clean_up_is_exact_and_all_or_nothing(
    open_store: Open, clock: ManualClock, age: timedelta, goes: bool
) -> None:
    store = open_store()
    old = {talk(store).id, talk(store).id}
    clock.set(START + age)
    young = talk(store)
    dry = store.clean_up(timedelta(days=365), dry_run=True)
    assert len(store.list_sessions()) == 3
    done = store.clean_up(timedelta(days=365))
    assert set(dry) == set(done) == (old if goes else set())
    left = {info.id for info in open_store().list_sessions()}
    assert left == ({young.id} if goes else old | {young.id})


def test_an_age_beyond_the_calendar_is_that_of_nothing(open_store: Open) -> None:
    store = open_store()
    session = talk(store)
    assert store.clean_up(timedelta.max) == ()
    assert store.clean_up(timedelta.min, dry_run=True) == (session.id,)


def test_no_backend_takes_a_name_that_the_other_one_cannot(open_store: Open) -> None:
    """It could not be synced into a directory, whose index has that name."""
    for name in ("index", "Index"):
        with pytest.raises(InvalidId, match="index"):
            open_store().create_session("t", session_id=name)


CANARY = "canary-7f3a-never-to-be-seen-again"


def test_delete_all_leaves_no_file_and_no_canary(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    for n in range(20):
        talk(store, f"{CANARY} {n}", CANARY * 20)
    store.list_sessions()
    session = store.load_session(store.list_sessions()[0].id)
    session.send(CANARY)
    session.save()
    assert any(CANARY.encode() in data for data in tree(tmp_path).values())
    if isinstance(store.storage, JsonConversations):
        leftover = store.storage.path / f".{session.id}.json.0123456789abcdef.tmp~"
        leftover.write_text(CANARY)
        (store.storage.path / "broken.json").write_text(CANARY)
    store.delete_all()
    assert store.list_sessions() == ()
    for name, data in tree(tmp_path).items():
        assert CANARY.encode() not in data, name
    if isinstance(store.storage, JsonConversations):
        assert list(store.storage.path.iterdir()) == []
    assert talk(store).save()  # and the store is as good as new
    store.delete_all()
    store.delete_all()


def test_deleting_one_leaves_none_of_its_text(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    gone, stays = talk(store, CANARY, CANARY * 100), talk(store, "stays")
    store.list_sessions()
    store.delete_session(gone.id)
    for name, data in tree(tmp_path).items():
        assert CANARY.encode() not in data, name
    assert [info.id for info in store.list_sessions()] == [stays.id]


# -- two writers -------------------------------------------------------------------------


def test_the_second_of_two_writers_gets_a_conflict_and_loses_nothing(open_store: Open) -> None:
    first, second = open_store(), open_store()
    session = talk(first)
    theirs = second.load_session(session.id)
    theirs.send("theirs")
    theirs.save()
    session.send("ours")
    with pytest.raises(ConflictError, match="somebody else"):
        session.save()
    assert session.unsaved
    with pytest.raises(ConflictError):
        session.save()  # asking again does not make it right
    session.save(overwrite=True)
    assert [item.content for item in first.load_session(session.id).messages][-1] == "ours"
    first.delete_session(session.id)
    session.send("more")
    with pytest.raises(ConflictError, match="nothing is stored"):
        session.save()
    clash = first.create_session("same id", session_id=talk(first).id)
    with pytest.raises(ConflictError):
        clash.save()


def test_a_save_that_failed_can_be_repeated_whatever_reached_the_disk(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    session = talk(store)
    save = store.storage.save

    def written_but_failed(changes: Any) -> None:
        save(changes)
        raise StorageError("disk", OSError(5, "Input/output error"))

    def failed(changes: Any) -> None:
        raise StorageError("disk", OSError(28, "No space left on device"))

    for failing in (written_but_failed, failed, written_but_failed):
        session.send("again")
        with monkeypatch.context() as patch:
            patch.setattr(store.storage, "save", failing)
            with pytest.raises(StorageError):
                session.save()
        assert session.unsaved
    session.save()
    assert open_store().load_session(session.id).messages == session.messages
    assert len(session.messages) == 5


def test_processes_save_side_by_side(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    talk(store)
    kind = type(store.storage)
    path = store.storage.path if kind is JsonConversations else store.storage.file.path  # type: ignore[attr-defined]
    program = textwrap.dedent(f"""
        import sys
        from {kind.__module__} import {kind.__name__}
        from pytest_statepersist.reference.conversations import Conversations
        with Conversations({kind.__name__}(sys.argv[1])) as store:
            for _ in range(8):
                session = store.create_session("theirs")
                session.send("x")
                session.save()
                store.list_sessions()
    """)
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT)
    for _ in range(8):
        talk(store, "ours")
        store.list_sessions()
    assert child.wait(30) == 0
    titles = [info.title for info in store.list_sessions()]
    assert (titles.count("ours"), titles.count("theirs")) == (8, 8)


# -- limits ------------------------------------------------------------------------------


def test_sessions_beyond_the_recommended_limits_are_warned_about_once(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (conversations.RECOMMENDED_MESSAGES, conversations.RECOMMENDED_BYTES) == (
        10_000,
        10_000_000,
    )
    monkeypatch.setattr(conversations, "RECOMMENDED_MESSAGES", 3)
    monkeypatch.setattr(conversations, "RECOMMENDED_BYTES", 100)
    store = open_store()
    session = store.create_session("t")
    for _ in range(3):
        session.send("x")
    with pytest.warns(RecommendedLimitWarning, match="4 messages"):
        session.send("one too many")
    session.send("no second warning")
    session.save()
    again = store.load_session(session.id)
    with pytest.warns(RecommendedLimitWarning):
        again.send("x")
    large = store.create_session("large")
    large.send("x" * 100)
    with pytest.warns(RecommendedLimitWarning, match="101 bytes"):
        large.send("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large.save()
        store.create_session("fine").send("x")


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["../x", "", "a/b", ".hidden", "a\0b", "x" * 200, "con"])
def test_ids_that_cannot_be_file_names_are_refused(open_store: Open, bad: str) -> None:
    store = open_store()
    with pytest.raises(InvalidId):
        store.create_session("t", session_id=bad)
    for call in (store.load_session, store.delete_session):
        with pytest.raises(InvalidId):
            call(bad)
    with pytest.raises(InvalidId):
        store.create_session("t", parent_session_id=bad)


def test_bad_values_are_refused_with_their_field(open_store: Open) -> None:
    store = open_store()
    session = store.create_session("t")
    with pytest.raises(ValidationError, match=r"Message\.content"):
        session.send("\ud800")
    with pytest.raises(ValidationError, match=r"Message\.role"):
        session.send("x", role="")
    with pytest.raises(ValidationError, match="title"):
        store.create_session(7)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="max_context"):
        store.create_session("t", max_context_messages=-1)
    assert session.messages == ()


def test_a_storage_error_has_its_cause(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file is in the way")
    with pytest.raises(StorageError, match="blocked") as caught:
        open_store("blocked/store")
    assert isinstance(caught.value.cause, OSError)


# -- JSON directory ----------------------------------------------------------------------


@pytest.fixture
def json_store(tmp_path: Path, clock: ManualClock) -> Conversations:
    return Conversations(JsonConversations(tmp_path / "c"), clock=clock)


def index_of(tmp_path: Path) -> Path:
    return tmp_path / "c" / "index.json"


def age_files(tmp_path: Path) -> None:
    """Give the session files times that the index may trust."""
    for path in (tmp_path / "c").glob("session_*.json"):
        os.utime(path, ns=(10**18, 10**18))


def test_the_file_has_the_documented_form(json_store: Conversations, tmp_path: Path) -> None:
    session = talk(json_store)
    plain = json.loads((tmp_path / "c" / f"{session.id}.json").read_bytes())
    assert plain["format"] == "conversation"
    assert plain["userId"] == "local"
    assert plain["createdAt"] == "2025-06-01T12:00:00.000000Z"
    assert plain["messageCount"] == 2
    assert set(plain["messages"][0]) == {"id", "role", "content", "timestamp"}
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "c" / f"{session.id}.json").stat().st_mode & 0o777 == 0o600


def test_a_list_reads_the_index_and_not_the_sessions(
    json_store: Conversations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {talk(json_store).id for _ in range(5)}
    age_files(tmp_path)
    json_store.list_sessions()
    opened: list[str] = []
    original = conversation_json.read_bounded

    def spy(path: Any, *args: Any, **kwargs: Any) -> bytes:
        opened.append(Path(path).name)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(conversation_json, "read_bounded", spy)
    assert {info.id for info in json_store.list_sessions()} == ids
    assert opened == ["index.json"]
    talk(json_store)
    opened.clear()
    assert len(json_store.list_sessions()) == 6
    assert len(opened) == 2  # the index and the one new file


@pytest.mark.parametrize("damage", ["gone", "empty", "NUL", "torn", "other", "forged"])
def test_a_lost_or_damaged_index_is_rebuilt(
    json_store: Conversations, tmp_path: Path, damage: str
) -> None:
    ids = {talk(json_store).id for _ in range(3)}
    age_files(tmp_path)
    json_store.list_sessions()
    index = index_of(tmp_path)
    raw = index.read_bytes()
    if damage == "gone":
        index.unlink()
    else:
        index.write_bytes(
            {
                "empty": b"",
                "NUL": bytes(len(raw)),
                "torn": raw[: len(raw) // 2],
                "other": b'{"a": [1, 2]}',
                "forged": raw.replace(b"Planning", b"Plamming"),
            }[damage]
        )
    infos = json_store.list_sessions()
    assert {info.id for info in infos} == ids
    assert {info.title for info in infos} == {"Planning"}
    age_files(tmp_path)
    json_store.list_sessions()
    assert len(index.read_bytes()) == len(raw)


def test_a_stale_index_is_noticed(json_store: Conversations, tmp_path: Path) -> None:
    session, other = talk(json_store, "one"), talk(json_store, "two")
    age_files(tmp_path)
    json_store.list_sessions()
    stale = index_of(tmp_path).read_bytes()
    session.send("more")
    session.save()
    json_store.delete_session(other.id)
    third = talk(json_store, "three")
    index_of(tmp_path).write_bytes(stale)  # an index from before a crash
    infos = {info.id: info.message_count for info in json_store.list_sessions()}
    assert infos == {session.id: 3, third.id: 2}


def test_two_saves_within_one_tick_of_the_clock_are_told_apart(
    json_store: Conversations, tmp_path: Path
) -> None:
    """Same size, same times: only looking again helps, so fresh files are looked at again."""
    session = talk(json_store, "aaa")
    json_store.list_sessions()
    assert session.id not in index_of(tmp_path).read_text()
    path = tmp_path / "c" / f"{session.id}.json"
    old = path.stat()
    session.update(title="bbb")
    session.save()
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert json_store.list_sessions()[0].title == "bbb"


def test_an_index_that_cannot_be_written_costs_nothing_but_time(
    json_store: Conversations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session = talk(json_store)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert [info.id for info in json_store.list_sessions()] == [session.id]
    assert [path.name for path in (tmp_path / "c").iterdir()] == [f"{session.id}.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format":"conversation"}', bytes(500), b"\xff\xfe"],
    ids=["empty", "cut", "list", "bare", "NUL", "binary"],
)
def test_a_damaged_session_is_named_and_the_others_are_listed(
    json_store: Conversations, tmp_path: Path, content: bytes
) -> None:
    good, bad = talk(json_store, "good"), talk(json_store, "bad")
    path = tmp_path / "c" / f"{bad.id}.json"
    path.write_bytes(content)
    assert [info.id for info in json_store.list_sessions()] == [good.id]
    assert set(json_store.storage.damaged()) == {bad.id}
    with pytest.raises(DamagedData, match=bad.id):
        json_store.load_session(bad.id)
    with pytest.raises(DamagedData):
        json_store.export_all()  # never a backup that silently lacks something
    assert path.read_bytes() == content
    bad.send("still in memory")
    with pytest.raises(DamagedData):
        bad.save()
    bad.save(overwrite=True)
    assert json_store.load_session(bad.id).messages == bad.messages
    json_store.delete_session(bad.id)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    root = tmp_path_factory.mktemp("c")
    store = Conversations(JsonConversations(root / "c"), clock=ManualClock(START))
    session = talk(store)
    path = root / "c" / f"{session.id}.json"
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] ^= flip
    path.write_bytes(raw)
    try:
        again = store.load_session(session.id)
    except (DamagedData, NewerVersion):
        return
    # What the digest does not cover: the counters of revisions. The content is the same.
    assert again.messages == session.messages
    assert again.title == session.title


def test_a_renamed_file_is_not_another_session(json_store: Conversations, tmp_path: Path) -> None:
    session = talk(json_store)
    (tmp_path / "c" / f"{session.id}.json").rename(tmp_path / "c" / "other.json")
    with pytest.raises(DamagedData, match="renamed"):
        json_store.load_session("other")
    assert json_store.list_sessions() == ()


def test_names_that_are_not_ours_are_left_alone(json_store: Conversations, tmp_path: Path) -> None:
    (tmp_path / "c" / "my notes.json").write_text("{}")
    (tmp_path / "c" / "folder.json").mkdir()
    session = talk(json_store)
    assert [info.id for info in json_store.list_sessions()] == [session.id]
    assert json_store.storage.damaged() == {}
    json_store.delete_all()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"my notes.json", "folder.json"}


def test_a_killed_save_leaves_the_old_or_the_new_session(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    seen = set()

    def make() -> Callable[[], object]:
        root = tmp_path / str(len(os.listdir(tmp_path)))
        state["root"] = root
        store = Conversations(JsonConversations(root / "c"), clock=ManualClock(START))
        session = talk(store)
        session.send("third")
        state["id"] = session.id
        return session.save

    def after() -> None:
        store = Conversations(JsonConversations(state["root"] / "c"))
        assert len(store.list_sessions()) == 1
        seen.add(len(store.load_session(state["id"]).messages))
        names = {path.name for path in (state["root"] / "c").iterdir()}
        assert names == {f"{state['id']}.json", "index.json"}

    assert each_kill_point(make, after) > 4
    assert seen == {2, 3}


def test_a_killed_delete_all_deletes_all_or_nothing(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    seen = set()

    def make() -> Callable[[], object]:
        root = tmp_path / str(len(os.listdir(tmp_path)))
        state["root"] = root
        store = Conversations(JsonConversations(root / "c"), clock=ManualClock(START))
        for _ in range(3):
            talk(store)
        store.list_sessions()
        return store.delete_all

    def after() -> None:
        store = Conversations(JsonConversations(state["root"] / "c"))
        left = len(store.list_sessions())
        seen.add(left)
        if left == 0:
            assert {path.name for path in (state["root"] / "c").iterdir()} <= {"index.json"}

    assert each_kill_point(make, after) > 8
    assert seen == {0, 3}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "unlink"])
def test_a_disk_that_fails_in_delete_all_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = Conversations(JsonConversations(tmp_path / "c"), clock=ManualClock(START))
    original = getattr(os, call)
    nth = 0
    while True:
        store.delete_all()
        for _ in range(2):
            talk(store)
        calls = 0

        def fail(*args: Any, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                store.delete_all()
            except StorageError:
                # all or nothing, whichever: finish, and nothing may stay locked
                assert len(store.list_sessions()) in (0, 2)
                store.delete_all()
        assert store.list_sessions() == ()
        if calls <= nth:
            break
        nth += 1
    assert nth >= 1


def test_a_killed_process_has_lost_nothing_that_was_saved(open_store: Open) -> None:
    store = open_store()
    session = talk(store)
    kind = type(store.storage)
    path = store.storage.path if kind is JsonConversations else store.storage.file.path  # type: ignore[attr-defined]
    program = textwrap.dedent(f"""
        import os, sys
        from {kind.__module__} import {kind.__name__}
        from pytest_statepersist.reference.conversations import Conversations
        store = Conversations({kind.__name__}(sys.argv[1]))
        session = store.load_session(sys.argv[2])
        session.send("third")
        session.save()
        session.send("never saved")
        os._exit(9)
    """)
    child = subprocess.run(
        [sys.executable, "-c", program, str(path), session.id], cwd=ROOT, check=False, timeout=30
    )
    assert child.returncode == 9
    assert [item.content for item in store.load_session(session.id).messages][2:] == ["third"]


# -- SQLite ------------------------------------------------------------------------------


@pytest.fixture
def sqlite_store(tmp_path: Path, clock: ManualClock) -> Iterator[Conversations]:
    with Conversations(SqliteConversations(tmp_path / "c.sqlite"), clock=clock) as store:
        yield store


def _file(store: Conversations) -> Any:
    return store.storage.file  # type: ignore[attr-defined]


def test_sqlite_writes_only_the_messages_that_changed(sqlite_store: Conversations) -> None:
    session = talk(sqlite_store, "t", *[str(n) for n in range(20)])
    before = _file(sqlite_store).query("SELECT rowid, id FROM messages ORDER BY position")
    changes = _file(sqlite_store).query("SELECT total_changes()")[0][0]
    session.send("new")
    session.save()
    after = _file(sqlite_store).query("SELECT rowid, id FROM messages ORDER BY position")
    assert [tuple(row) for row in after[:20]] == [tuple(row) for row in before]
    assert _file(sqlite_store).query("SELECT total_changes()")[0][0] - changes == 2


def test_sqlite_notices_a_changed_text(sqlite_store: Conversations) -> None:
    session, other = talk(sqlite_store), talk(sqlite_store)
    _file(sqlite_store).execute(
        "UPDATE messages SET content = 'Let us plan Q2' WHERE session_id = ? AND position = 0",
        (session.id,),
    )
    with pytest.raises(IntegrityError, match=session.id):
        sqlite_store.load_session(session.id)
    assert sqlite_store.load_session(other.id)
    _file(sqlite_store).execute("UPDATE sessions SET ancestors = '{' ")
    with pytest.raises(DamagedData):
        sqlite_store.load_session(other.id)


def test_sqlite_overwrites_what_it_deletes(sqlite_store: Conversations) -> None:
    assert _file(sqlite_store).query("PRAGMA secure_delete")[0][0] == 1
    assert _file(sqlite_store).query("PRAGMA synchronous")[0][0] == 2
