"""Write `fixtures/database/v1.sqlite` … `v4.sqlite`: what the code of each version left behind.

Run once per new schema version, as ``python tests/reference/make_database_fixtures.py``; files
that exist are never written again, because an old version's file must stay what it was.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pytest_statepersist.reference.migrations import APP_MIGRATIONS, migrate

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "database"

ROWS_SINCE: dict[int, tuple[str, ...]] = {
    1: (
        "INSERT INTO sessions (id, title, created_at, updated_at, model, prompt_tokens, cost) "
        "VALUES ('s1', 'Züge nach Bern', '2024-01-15T10:00:00.000000Z', "
        "'2024-01-15T14:30:00.000000Z', 'm-large', 12, 0.25)",
        "INSERT INTO sessions (id, title, created_at, updated_at, model, is_archived) "
        "VALUES ('s2', '', '2024-01-16T10:00:00.000000Z', '2024-01-16T10:00:00.000000Z', "
        "'m-small', 1)",
        "INSERT INTO messages (id, session_id, role, content, created_at, prompt_tokens, "
        "tool_calls, sequence) VALUES ('a', 's1', 'user', 'When is the next train?', "
        "'2024-01-15T10:01:00.000000Z', 12, NULL, 0)",
        "INSERT INTO messages (id, session_id, role, content, created_at, tool_calls, sequence) "
        "VALUES ('b', 's1', 'assistant', 'At 12:04.', '2024-01-15T10:01:02.000000Z', "
        '\'[{"name":"timetable","to":"Bern"}]\', 1)',
        "INSERT INTO snapshots (id, timestamp, type, trigger, description, size_bytes, "
        "state_json, summary_json) VALUES ('n1', '2024-01-15T12:00:00.000000Z', 'manual', "
        '\'{"by":"user"}\', \'before lunch\', 14, \'{"view":"chat"}\', \'{"messages":2}\')',
    ),
    2: (
        "INSERT INTO sessions (id, title, created_at, updated_at, model, branch_name, "
        "parent_session_id, branch_point) VALUES ('s3', 'By bus', '2024-02-01T09:00:00.000000Z', "
        "'2024-02-01T09:00:00.000000Z', 'm-large', 'bus', 's1', 0)",
    ),
    3: (
        "INSERT INTO analytics (timestamp, event_type, session_id, prompt_tokens, cost) "
        "VALUES ('2024-03-01T00:00:00.000000Z', 'completion', 's1', 12, 0.25)",
    ),
    4: (
        "UPDATE snapshots SET starred = 1 WHERE id = 'n1'",
        "INSERT INTO recordings (id, session_id, title, created_at, duration, events_json) "
        "VALUES ('r1', 's1', 'demo', '2024-04-01T00:00:00.000000Z', 1500, '[{\"t\":0}]')",
        "INSERT INTO file_changes (id, session_id, path, change, diff, created_at) "
        "VALUES ('f1', 's1', 'a.txt', 'modified', '-1 +1', '2024-04-01T00:00:00.000000Z')",
        "INSERT INTO proofs (id, session_id, statement, status, state_json, created_at, "
        "updated_at) VALUES ('p1', 's1', '1 + 1 = 2', 'proved', '{}', "
        "'2024-04-01T00:00:00.000000Z', '2024-04-01T00:00:00.000000Z')",
    ),
}


def write(path: Path, version: int) -> None:
    """Create the database of one version at a new path."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size=1024")
        connection.execute("PRAGMA foreign_keys=ON")
        for step in range(1, version + 1):
            migrate(connection, APP_MIGRATIONS, target=step)
            for statement in ROWS_SINCE[step]:
                connection.execute(statement)


if __name__ == "__main__":
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for number in ROWS_SINCE:
        goal = FIXTURES / f"v{number}.sqlite"
        if not goal.exists():
            write(goal, number)
            print(goal)
