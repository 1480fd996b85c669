"""Blocks D and E: one `Case` for each durable operation of app state, conversations and vault.

Each looks at what a new process is shown, through the public methods; random ids are left out of
the comparison. Everything that holds a database closes it, as an app does.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from pytest_statepersist.reference.atomic import write_atomic
from pytest_statepersist.reference.cipher import KdfCost
from pytest_statepersist.reference.clock import ManualClock, ManualScheduler
from pytest_statepersist.reference.conversation_json import JsonConversations
from pytest_statepersist.reference.conversation_sqlite import SqliteConversations
from pytest_statepersist.reference.conversations import (
    Conversations,
    delete_all_data,
)
from pytest_statepersist.reference.database import Database
from pytest_statepersist.reference.database_rows import (
    AppMessage,
    AppSession,
    ChangeKind,
    ProofStatus,
    SnapshotKind,
)
from pytest_statepersist.reference.errors import DamagedData, WrongPassword
from pytest_statepersist.reference.local_storage import LocalStorage
from pytest_statepersist.reference.migrations import SCHEMA_VERSION
from pytest_statepersist.reference.recovery import AutoSave, Decision, LiveState, StateRecovery
from pytest_statepersist.reference.retention import Retention
from pytest_statepersist.reference.storage_keys import UI, UiState
from pytest_statepersist.reference.vault import Vault
from tests.reference.durable_case import Case, killed_before_the_last_sync

START = datetime(2025, 6, 1, 12, tzinfo=UTC)
TINY = KdfCost(memory_kib=8, iterations=1, lanes=1)
CANARY = "canary-9b3e of the vault"
FIXTURES = Path(__file__).parents[2] / "fixtures/database"
RANDOM_ID = re.compile(r"[0-9a-f]{32}")


# ---- local storage --------------------------------------------------------------------


def local(directory: Path) -> LocalStorage:
    return LocalStorage(directory / "local")


def local_filled(directory: Path) -> None:
    storage = local(directory)
    storage.set("a", 1)
    storage.set("b", [2])


def local_damaged(directory: Path) -> None:
    local_filled(directory)
    path = directory / "local"
    write_atomic(path, path.read_bytes().replace(b"[2]", b"[3]"))


def local_look(directory: Path) -> object:
    storage = local(directory)
    return {name: storage.get(name) for name in storage.names()}, storage.damage.lines


# ---- database -------------------------------------------------------------------------


def database(directory: Path, clock: ManualClock | None = None) -> Database:
    return Database(directory / "app.sqlite", clock=clock or ManualClock(START))


def in_database(change: Callable[[Database], object]) -> Callable[[Path], None]:
    def workload(directory: Path) -> None:
        with database(directory) as opened:
            change(opened)

    return workload


def app_session(name: str = "s", title: str = "old") -> AppSession:
    return AppSession.build(
        id=name, title=title, model="m", provider="p", created_at=START, updated_at=START
    )


def app_message(text: str, sequence: int = 0, session: str = "s") -> AppMessage:
    return AppMessage.build(
        id=f"{session}-{sequence}",
        session_id=session,
        sequence=sequence,
        role="user",
        content=text,
        created_at=START,
    )


def fill(opened: Database) -> None:
    opened.create_session("old", model="m", session_id="s")
    opened.add_message("s", "user", "hello")
    opened.add_snapshot({}, kind=SnapshotKind.AUTO, trigger=None, summary=None)
    opened.add_recording("s", "r", duration=3, events=[])
    opened.add_proof("s", "1 = 1")


filled_database = in_database(fill)


def rows(directory: Path) -> object:
    """Every row of every table, without the random ids; the database checked first."""
    with database(directory) as opened:
        opened.check()
        tables = opened.file.query("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            name: [RANDOM_ID.sub("*", repr(tuple(row))) for row in _content(opened, name)]
            for name in sorted(str(row[0]) for row in tables)
            if not name.startswith("sqlite_")
        }


def _content(opened: Database, table: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in opened.file.query(f"SELECT * FROM {table} ORDER BY rowid")]


def old_database(version: int) -> Callable[[Path], None]:
    def setup(directory: Path) -> None:
        # As an app's own file: SQLite gives its log and journal the mode that the database has.
        write_atomic(directory / "app.sqlite", (FIXTURES / f"v{version}.sqlite").read_bytes())

    return setup


def schema_and_rows(directory: Path) -> object:
    """Read without migrating, since opening would always show the newest version."""

    with closing(sqlite3.connect(directory / "app.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (version,) = connection.execute("SELECT version FROM schema_version").fetchone()
        (count,) = connection.execute("SELECT count(*) FROM messages").fetchone()
        names = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
        return version, count, names


def migrating(directory: Path, acknowledge: Callable[[object], None]) -> None:
    with database(directory) as opened:
        acknowledge("opened")
        opened.check()


def whole_version(found: object, acknowledged: Sequence[object]) -> bool:
    """A version between has its own schema as a whole, and every message; opened is the last."""
    assert isinstance(found, tuple)
    return found == schema_of(SCHEMA_VERSION if acknowledged else found[0])


@cache
def schema_of(version: int) -> object:
    with tempfile.TemporaryDirectory() as name:
        old_database(version)(Path(name))
        return schema_and_rows(Path(name))


def old_rows(directory: Path) -> None:
    long_ago = ManualClock(START - timedelta(days=100))
    with database(directory, long_ago) as opened:
        fill(opened)
        opened.record_event("start")


def retention(directory: Path) -> None:
    with database(directory) as opened:
        Retention(opened).run()


DATABASE: dict[str, Callable[[Database], object]] = {
    "transaction": lambda d: _two_in_one(d),
    "create_session": lambda d: d.create_session("new", model="m", session_id="n"),
    "update_session": lambda d: d.update_session("s", title="new", archived=True),
    "delete_session": lambda d: d.delete_session("s"),
    "branch_session": lambda d: d.branch_session("s", at=0, name="b"),
    "import_session": lambda d: d.import_session(
        app_session("i"), [app_message("x", 0, "i"), app_message("y", 1, "i")]
    ),
    "merge_session": lambda d: d.merge_session(
        app_session("i"), [app_message("x", 0, "i"), app_message("y", 1, "i")]
    ),
    "add_message": lambda d: d.add_message("s", "user", "again", prompt_tokens=3, cost=0.5),
    "add_snapshot": lambda d: d.add_snapshot(
        {"x": 1}, kind=SnapshotKind.MANUAL, trigger=None, summary=None
    ),
    "star_snapshot": lambda d: d.star_snapshot(d.snapshots()[0].id),
    "delete_snapshot": lambda d: d.delete_snapshot(d.snapshots()[0].id),
    "add_recording": lambda d: d.add_recording("s", "new", duration=1, events=[1]),
    "delete_recording": lambda d: d.delete_recording(d.recordings()[0].id),
    "record_event": lambda d: d.record_event("click", session_id="s"),
    "add_file_change": lambda d: d.add_file_change("s", "f", change=ChangeKind.CREATED, diff="+"),
    "add_proof": lambda d: d.add_proof("s", "2 = 2"),
    "update_proof": lambda d: d.update_proof(
        d.proofs("s")[0].id, status=ProofStatus.PROVED, state={"by": "rfl"}
    ),
}


def _two_in_one(opened: Database) -> None:
    with opened.transaction():
        opened.update_session("s", title="new")
        opened.add_message("s", "user", "with the title")


# ---- recovery -------------------------------------------------------------------------


@contextmanager
def app(directory: Path, live: LiveState) -> Iterator[tuple[AutoSave, StateRecovery]]:
    clock, storage = ManualClock(START), LocalStorage(directory / "local")
    with database(directory, clock) as opened:
        scheduler = ManualScheduler(clock)
        auto = AutoSave(storage, opened, lambda: live, scheduler=scheduler, clock=clock)
        yield auto, StateRecovery(storage, opened, clock=clock)


def live_state(*texts: str) -> LiveState:
    messages = tuple(app_message(text, number) for number, text in enumerate(texts))
    return LiveState(session=app_session(), messages=messages, ui=UiState(last_view=texts[-1]))


OLD, NEW = live_state("one"), live_state("one", "two")


def crashed(directory: Path) -> None:
    """The app died, and its record holds what the database has never seen."""
    with app(directory, OLD) as (auto, _):
        auto.save()


def next_start(directory: Path) -> object:
    """What the user sees who takes every offer: restored or not, the messages, the view."""
    with app(directory, OLD) as (_, recovery):
        state = recovery.start(lambda offer: Decision.RESTORE)
        said = [message.content for message in state.live.messages]
        return state.restored, said, state.live.ui.last_view


def second_start(directory: Path) -> object:
    """The same for the start after that: what was restored must have been kept."""
    first = next_start(directory)
    again = next_start(directory)
    assert isinstance(first, tuple)
    assert again == (False, *first[1:])
    return first


def what_a_start_would_show(directory: Path) -> object:
    """The same as `next_start`, of an offer that nobody takes."""
    with app(directory, OLD) as (auto, recovery):
        offer = recovery.pending()
        if offer is not None:
            said = [message.content for message in offer.state.messages]
            return True, said, offer.state.ui.last_view
        last = auto.database.last_session()
        messages = auto.database.messages(last.id) if last else []
        return False, [each.content for each in messages], auto.storage.get(UI).last_view


def saving(directory: Path) -> None:
    with app(directory, NEW) as (auto, _):
        auto.save()


def stopping(directory: Path, acknowledge: Callable[[object], None]) -> None:
    with app(directory, NEW) as (auto, _):
        auto.start()
        auto.stop()
        acknowledge("stopped")


def stopped(found: object, acknowledged: Sequence[object]) -> bool:
    """Between the two the record is still old, and the database has more: both are shown."""
    clean = (False, ["one", "two"], "two")
    if acknowledged:
        return found == clean
    return found in ((True, ["one"], "one"), (True, ["one", "two"], "one"), clean)


def closing_the_window(directory: Path) -> None:
    with app(directory, NEW) as (auto, _):
        auto.start()
        auto.close()


def restoring(directory: Path) -> None:
    with app(directory, OLD) as (_, recovery):
        offer = recovery.pending()
        assert offer is not None
        recovery.restore(offer)


def starting(decision: Decision) -> Callable[[Path], None]:
    def workload(directory: Path) -> None:
        with app(directory, OLD) as (_, recovery):
            recovery.start(lambda offer: decision)

    return workload


def discarding(directory: Path) -> None:
    with app(directory, OLD) as (_, recovery):
        recovery.discard()


def too_late(directory: Path) -> None:
    """Looking an hour later removes the record."""
    storage = LocalStorage(directory / "local")
    with database(directory) as opened:
        clock = ManualClock(START + timedelta(hours=1))
        assert StateRecovery(storage, opened, clock=clock).pending() is None


# ---- conversations --------------------------------------------------------------------


@contextmanager
def chats(directory: Path, backend: str, name: str = "c") -> Iterator[Conversations]:
    path = directory / f"{name}.{backend}"
    storage = JsonConversations(path) if backend == "json" else SqliteConversations(path)
    with Conversations(storage, clock=ManualClock(START)) as opened:
        yield opened


def said(directory: Path, backend: str, name: str = "c") -> object:
    with chats(directory, backend, name) as opened:
        found = {
            info.id: [message.content for message in opened.load_session(info.id).messages]
            for info in opened.list_sessions()
        }
        assert opened.storage.damaged() == {}
        return found


def conversation_cases(backend: str) -> list[Case]:
    def chat(store: Conversations, name: str, *texts: str) -> None:
        session = store.create_session(name, session_id=name)
        for text in texts:
            session.send(text)
        session.save()

    def setup(directory: Path) -> None:
        with chats(directory, backend) as store:
            chat(store, "a", CANARY)
            chat(store, "b", "one")
            (directory / "all").write_text(store.export_all())
        with chats(directory, backend, "other") as store:
            chat(store, "x", "one")
            chat(store, "y", "two")
            (directory / "one").write_text(store.load_session("x").export())
            (directory / "two").write_text(store.export_all())
        with chats(directory, backend, "other") as store:
            store.to_vault("y", vault(directory))

    def change(work: Callable[[Conversations, Path], object]) -> Callable[[Path], None]:
        def workload(directory: Path) -> None:
            with chats(directory, backend) as store:
                work(store, directory)

        return workload

    def resume(store: Conversations, directory: Path) -> None:
        session = store.load_session("a")
        session.send("two")
        session.save()

    def sync(store: Conversations, directory: Path) -> None:
        with chats(directory, backend, "other") as other:
            report = store.sync_with(other)
            if report.unreadable:  # the report is how a sync tells
                raise DamagedData(", ".join(report.unreadable))

    works: dict[str, Callable[[Conversations, Path], object]] = {
        "Session.save": resume,
        "Conversations.delete_session": lambda s, d: s.delete_session("a"),
        "Conversations.clean_up": lambda s, d: s.clean_up(-timedelta(days=1)),
        "Conversations.delete_all": lambda s, d: s.delete_all(),
        "Conversations.import_session": lambda s, d: s.import_session((d / "one").read_text()),
        "Conversations.import_all": lambda s, d: s.import_all((d / "two").read_text()),
        "Conversations.sync_with": sync,
        "Conversations.from_vault": lambda s, d: s.from_vault("session/y", vault(d)),
        "delete_all_data": lambda s, d: delete_all_data(s, vault(d)),
    }
    look = lambda directory: said(directory, backend)  # noqa: E731
    return [
        *(
            Case(
                f"{name}-{backend}", setup, change(work), look, sqlite=backend == "sqlite",
                # What cannot be read is reported and left out; the others are brought together.
                item_by_item=work is sync,
            )
            for name, work in works.items()
        ),
        Case(
            f"Conversations.sync_with-{backend}-other",
            setup,
            change(sync),
            lambda directory: said(directory, backend, "other"),
            sqlite=backend == "sqlite",
            item_by_item=True,
        ),
        Case(
            f"Conversations.to_vault-{backend}",
            setup,
            change(lambda s, d: s.to_vault("a", vault(d))),
            vault_look,
            sqlite=backend == "sqlite",
        ),
        Case(
            f"delete_all_data-{backend}-vault",
            setup,
            change(lambda s, d: delete_all_data(s, vault(d))),
            vault_look,
            sqlite=backend == "sqlite",
        ),
    ]  # fmt: skip


# ---- vault ----------------------------------------------------------------------------


def vault(directory: Path, password: str = "old") -> Vault:
    return Vault(directory / "vault", password=password, cost=TINY, clock=ManualClock(START))


def vault_filled(directory: Path) -> None:
    opened = vault(directory)
    opened.store(CANARY, {"secret": CANARY}, tags=(CANARY,))
    opened.store("b", 2)


def with_exported_key(directory: Path) -> None:
    vault_filled(directory)
    (directory / "key").write_text(vault(directory).export_key())


def vault_look(directory: Path) -> object:
    """The password that opens it, and all that is in it then."""
    found = []
    for password in ("old", "new"):
        try:
            opened = vault(directory, password)
        except WrongPassword:
            continue
        found.append((password, {i.key: str(opened.retrieve(i.key)) for i in opened.list()}))
    assert len(found) == 1, "both passwords open it, or none"
    return found[0]


def set_what_is_there(storage: LocalStorage) -> None:
    """Set what a process that was killed before its last sync has set already."""
    theirs = LocalStorage(storage.path)
    with killed_before_the_last_sync():
        theirs.set("a", 5)
    storage.set("a", 5)


LOCAL: dict[str, tuple[Callable[[Path], object], Callable[[LocalStorage], object]]] = {
    "set": (local_filled, lambda s: s.set("a", "new")),
    "set-again": (local_filled, set_what_is_there),
    "remove": (local_filled, lambda s: s.remove("a")),
    "clear": (local_filled, lambda s: s.clear()),
    "discard_damaged": (local_damaged, lambda s: s.discard_damaged()),
    "import_all": (
        local_filled,
        lambda s: s.import_all({"sidepanel.b": 3, "sidepanel.c": 4}),
    ),
}

VAULT: dict[str, Callable[[Vault], object]] = {
    "store": lambda v: v.store("c", CANARY),
    "store-again": lambda v: v.store(CANARY, [CANARY]),
    "delete": lambda v: v.delete(CANARY),
    "change_password": lambda v: v.change_password("new", current="old", cost=TINY),
    "delete_all": lambda v: v.delete_all(),
}


def on_local(work: Callable[[LocalStorage], object]) -> Callable[[Path], object]:
    return lambda directory: work(local(directory))


def on_vault(work: Callable[[Vault], object]) -> Callable[[Path], object]:
    return lambda directory: work(vault(directory))


CASES = [
    *(
        Case(f"LocalStorage.{name}", setup, on_local(work), local_look)
        for name, (setup, work) in LOCAL.items()
    ),
    *(
        Case(f"Database.{name}", filled_database, in_database(work), rows, sqlite=True)
        for name, work in DATABASE.items()
    ),
    *(
        Case(
            f"migrate-{v}", old_database(v), migrating, schema_and_rows,
            invariant=whole_version, sqlite=True,
        )
        for v in (1, 2, 3)
    ),
    Case("Retention.run", old_rows, retention, rows, sqlite=True),
    *(
        Case(
            name, crashed, work, look, invariant=invariant, sqlite=True,
            peek=what_a_start_would_show,
        )
        for name, work, look, invariant in (
            ("AutoSave.save", saving, second_start, None),
            ("AutoSave.stop", stopping, second_start, stopped),
            ("AutoSave.close", closing_the_window, second_start, None),
            ("StateRecovery.restore", restoring, next_start, None),
            ("StateRecovery.start-restore", starting(Decision.RESTORE), next_start, None),
            ("StateRecovery.start-discard", starting(Decision.DISCARD), next_start, None),
            ("StateRecovery.discard", discarding, next_start, None),
            ("StateRecovery.pending", too_late, next_start, None),
        )
    ),
    *conversation_cases("json"),
    *conversation_cases("sqlite"),
    *(
        Case(f"Vault.{name}", vault_filled, on_vault(work), vault_look, encrypted=True)
        for name, work in VAULT.items()
    ),
    Case(
        "Vault.import_key",
        with_exported_key,
        lambda d: Vault.import_key(
            d / "vault", (d / "key").read_text(), password="new", cost=TINY
        ),
        vault_look,
        encrypted=True,
    ),
]  # fmt: skip
