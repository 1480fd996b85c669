"""SQLite's own promises beside what the judge finds, setting by setting.

Run it with ``python -m examples.sqlite``. Belongs here: what all SQLite examples do (one
transaction that changes three pages, in the directory's ``app.db``), what SQLite's documentation
promises for each setting, and the table that puts the two side by side. The promises are told in
our own words; ``page`` names the place on sqlite.org. Exit code 0 when each line agrees, or the
module of the setting explains the difference; 1 when one does neither.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from examples.example import MODELS, POWER_LOSS, Expected, expect

SETTINGS = {"deviations": 1, "samples": 0, "repairs": False}
"""One deviation shows all that is known of SQLite; two take four times as long and show no more."""

__all__ = ["NEW", "OLD", "SETTINGS", "Promise", "create", "load", "main", "save"]

Acknowledge = Callable[[object], None]

OLD, NEW = "bread", "bread and milk"
NAMES = (
    "sqlite_default",
    "sqlite_extra",
    "sqlite_wal_full",
    "sqlite_wal_normal",
    "sqlite_off",
    "sqlite_memory_journal",
)


@dataclass(frozen=True, slots=True)
class Promise:
    """What the documentation says of a setting, as yes or no.

    ``intact``: a power loss leaves no corrupt database; ``lasting``: it costs no commit that had
    returned; ``survives_kill``: if only the program dies, neither happens.
    """

    setting: str
    page: str
    says: str
    intact: bool
    lasting: bool
    survives_kill: bool = True
    not_shown: tuple[str, ...] = ()
    """Models under which the finding differs, for the reason that the module gives."""

    def verdicts(self) -> Mapping[str, Expected]:
        """Return the verdict under each model that the promise amounts to.

        A program that dies after its commit has returned has lost nothing in any setting, so
        that only atomicity depends on ``survives_kill``.
        """
        killed = ("kill",) if self.survives_kill else ()
        return expect(
            atomic=MODELS if self.intact else killed,
            durable=MODELS if self.lasting else ("kill",),
        )


def connect(directory: Path, *pragmas: str) -> sqlite3.Connection:
    """Open the database with settings such as ``"synchronous=EXTRA"``."""
    connection = sqlite3.connect(directory / "app.db", isolation_level=None)
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def create(directory: Path, *pragmas: str) -> None:
    """Make the database: a table and an index, on a page each."""
    with closing(connect(directory, *pragmas)) as connection:
        connection.execute("CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT)")
        connection.execute("CREATE INDEX by_text ON note(text)")
        connection.execute("INSERT INTO note VALUES (1, ?)", (OLD,))


def save(directory: Path, acknowledge: Acknowledge, *pragmas: str) -> None:
    """Change table and index in one transaction; it counts as saved when the commit returns."""
    with closing(connect(directory, *pragmas)) as connection:
        connection.execute("UPDATE note SET text = ? WHERE id = 1", (NEW,))
        acknowledge(NEW)


def load(directory: Path) -> object:
    """Open the database, let it recover, and raise where it is not intact."""
    with closing(connect(directory)) as connection:
        (health,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if health != "ok":
            raise sqlite3.DatabaseError(health)
        (text,) = connection.execute("SELECT text FROM note WHERE id = 1").fetchone()
        return text


def main() -> int:
    """Print the table and return the exit code."""
    from examples.example import load as load_example
    from examples.run import judge, quiet, word

    wrong = 0
    for name in NAMES:
        example = load_example(name)
        promise: Promise = example.module.PROMISE
        with quiet():
            outcome = judge(example)
        shown = [model for model in POWER_LOSS if model not in promise.not_shown]
        power = [outcome.verdict(model) for model in shown]
        rows = (
            ("a power loss corrupts nothing", promise.intact, all(v.atomic for v in power)),
            ("a power loss costs no commit", promise.lasting, all(v.durable for v in power)),
            (
                "a killed program corrupts nothing",
                promise.survives_kill,
                bool(outcome.verdict("kill").atomic),
            ),
        )
        print(f"\n{promise.setting}: {promise.says}\n  (sqlite.org/{promise.page})")
        print(f"  {'':<36}{'promised':<12}found")
        for what, promised, found in rows:
            mark = "" if promised is found else "   DISAGREES"
            print(f"  {what:<36}{word(promised):<12}{word(found)}{mark}")
        for model in promise.not_shown:
            print(f"  not shown on {model}: see examples/stores/{name}.py")
        disagreements = list(outcome.disagreements())
        for line in disagreements:
            print(f"  {line}")
        wrong += len(disagreements) + sum(promised is not found for _, promised, found in rows)
    print(f"\n{wrong or 'No'} disagreements between SQLite's documentation and what was found.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
