"""The suite itself: names are frozen, each promise is said, weak stores fail, lists only shrink."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import hypothesis  # noqa: F401  (each inner run would import it anew, for its summary)
import pytest

from pytest_statepersist.adapter import Capabilities, StoreAdapter, Value
from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import choice_of, needs_of
from pytest_statepersist.conformance.suite import GROUPS, all_test_ids, names_of

pytest_plugins = ["pytester"]

GOLDEN = Path(__file__).parent.parent.parent / "fixtures" / "conformance" / "test-ids.txt"
PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "conformance.md"

STORE = """
import json
import pytest
from pytest_statepersist.adapter import Capabilities, StoreAdapter
from pytest_statepersist.conformance import StoreConformance

class NotesAdapter(StoreAdapter):
    capabilities = Capabilities(crash_recovery=True)
    def open(self, directory):
        return directory
    def save(self, store, key, value):
        if "/" in key or key in ("", ".", "..") or len(key) > 200:
            raise ValueError(key)
        (store / key).write_text(json.dumps(value))
    def load(self, store, key):
        return json.loads((store / key).read_text())
    def delete(self, store, key):
        (store / key).unlink()
    def keys(self, store):
        return [path.name for path in store.iterdir()]

class TestNotes(StoreConformance):
    {extra}
    @pytest.fixture
    def store(self):
        return NotesAdapter
"""


def ids() -> list[str]:
    return [f"{group}::{name}" for group, cls in GROUPS.items() for name in names_of(cls)]


def test_ids_are_frozen() -> None:
    """Names may be added at any time; none is ever changed or taken away."""
    assert ids() == GOLDEN.read_text().splitlines()
    assert len(all_test_ids()) >= 60


def test_each_test_says_its_promise_in_one_sentence_and_is_documented() -> None:
    page = PAGE.read_text()
    for group in GROUPS.values():
        for name in names_of(group):
            doc = vars(group)[name].__doc__
            assert doc, f"{name} has no docstring"
            assert doc.endswith("."), name
            assert "\n" not in doc, name
            test = vars(group)[name]
            needed = (", ".join(needs_of(test)), " or ".join(choice_of(test)))
            needs = ", and ".join(filter(None, needed))
            row = f"| `{name}` | {doc} | {needs} |\n"
            assert row in page, f"{PAGE.name} does not have {row}"


def test_a_weak_store_fails_where_it_is_weak(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(STORE.replace("{extra}", ""))
    result = pytester.runpytest("-k", "overwrite_is_old_or_new or round_trip or saved_value")
    result.assert_outcomes(passed=2, failed=1, deselected=len(ids()) - 3)


UNLISTED = """
import json
import pytest
from pytest_statepersist.adapter import Capabilities, StoreAdapter
from pytest_statepersist.conformance import StoreConformance

class CacheAdapter(StoreAdapter):
    capabilities = Capabilities(list=False)
    def open(self, directory):
        return directory
    def path(self, store, key):
        if len(key) > 100:
            raise ValueError(key)
        return store / key.encode().hex().ljust(1, "_")
    def save(self, store, key, value):
        self.path(store, key).write_text(json.dumps(value))
    def load(self, store, key):
        return json.loads(self.path(store, key).read_text())
    def delete(self, store, key):
        {delete}

class TestCache(StoreConformance):
    @pytest.fixture
    def store(self):
        return CacheAdapter
"""


def test_a_store_that_lists_no_keys_is_asked_for_those_it_was_told(
    pytester: pytest.Pytester,
) -> None:
    """A sound one passes what needs no list; one whose deletions do not last is caught."""
    pytester.makepyfile(UNLISTED.replace("{delete}", "self.path(store, key).unlink()"))
    result = pytester.runpytest("-rs", "-k", " or ".join(names_of(GROUPS["round_trip"])))
    outcomes = result.parseoutcomes()
    assert not {"failed", "errors"} & set(outcomes)
    assert outcomes["passed"] >= len(names_of(GROUPS["round_trip"])) - 1
    result.stdout.no_fnmatch_line("*lists no keys*")
    pytester.makepyfile(
        UNLISTED.replace("{delete}", "self.path(store, key).rename(store / 'later')").replace(
            "        return directory\n",
            "        for path in directory.glob('later'):\n"
            "            path.rename(self.path(directory, 'gone'))\n"
            "        return directory\n",
        )
    )
    result = pytester.runpytest("-k", "deleted_key_is_gone")
    result.assert_outcomes(failed=1, deselected=len(ids()) - 1)
    result.stdout.fnmatch_lines(["*assert {'gone': *"])


class ThreadsAdapter(StoreAdapter):
    """Keeps one dictionary for each directory, and refuses all threads but some."""

    capabilities = Capabilities(concurrent_writers=True)

    def __init__(self, serves: tuple[int, ...], keeps: bool = True) -> None:
        self.serves, self.keeps = serves, keeps
        self.values: dict[Path, dict[str, Value]] = {}

    def open(self, directory: Path) -> dict[str, Value]:
        return self.values.setdefault(directory, {})

    def save(self, store: dict[str, Value], key: str, value: Value) -> None:
        if key[0] == "t" and int(key[1]) not in self.serves:
            raise ValueError("another thread")
        if self.keeps or key != "t1-3":
            store[key] = value

    def load(self, store: dict[str, Value], key: str) -> Value:
        return store[key]

    def keys(self, store: dict[str, Value]) -> list[str]:
        return list(store)

    def close(self, store: object) -> None:
        pass


def test_a_store_that_refuses_every_other_thread_is_not_covered(tmp_path: Path) -> None:
    """One that serves some of them and refuses others fails, and so does one that forgets."""
    Bench(ThreadsAdapter((0, 1, 2, 3)), tmp_path / "sound").check_threads()
    with pytest.raises(pytest.skip.Exception, match=r"not covered: .* refuses other threads"):
        Bench(ThreadsAdapter(()), tmp_path / "none").check_threads()
    with pytest.raises(AssertionError, match="a thread met ValueError"):
        Bench(ThreadsAdapter((1, 2)), tmp_path / "some").check_threads()
    with pytest.raises(AssertionError):
        Bench(ThreadsAdapter((0, 1, 2, 3), keeps=False), tmp_path / "forgets").check_threads()


class BoundedAdapter(StoreAdapter):
    """A file for each value, and a bound on their sum; wrong in one of three ways, or in none."""

    capabilities = Capabilities(quota=True)

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def open_with_quota(self, directory: Path, quota: int) -> tuple[Path, int]:
        return directory, quota

    def save(self, store: tuple[Path, int], key: str, value: Value) -> None:
        directory, quota = store
        text, path = json.dumps(value), directory / key
        if self.wrong == "makes room first":
            path.unlink(missing_ok=True)
        used = sum(len(each.read_text()) for each in directory.iterdir() if each != path)
        if self.wrong == "counts the new one only":
            used = 0
        if used + len(text) > quota:
            raise OSError(errno.EDQUOT, "quota exceeded")
        path.write_text(text)

    def load(self, store: tuple[Path, int], key: str) -> Value:
        return dict(json.loads((store[0] / key).read_text()))

    def delete(self, store: tuple[Path, int], key: str) -> None:
        if self.wrong == "frees nothing":
            (store[0] / key).rename(store[0] / f"{key}.deleted")
        else:
            (store[0] / key).unlink()

    def keys(self, store: tuple[Path, int]) -> list[str]:
        return [path.name for path in store[0].iterdir() if path.suffix != ".deleted"]


def test_a_quota_is_kept_and_a_refusal_harms_nothing(tmp_path: Path) -> None:
    """The sound store passes all three tests; each broken one fails the one that is meant."""
    checks = (Bench.check_quota, Bench.check_quota_overwrite, Bench.check_quota_is_freed)
    caught = {
        (wrong, check.__name__)
        for wrong in ("", "counts the new one only", "makes room first", "frees nothing")
        for check in checks
        if _fails(check, Bench(BoundedAdapter(wrong), tmp_path / wrong / check.__name__))
    }
    assert caught == {
        ("counts the new one only", "check_quota"),
        ("counts the new one only", "check_quota_is_freed"),
        ("makes room first", "check_quota_overwrite"),
        ("frees nothing", "check_quota_is_freed"),
    }


class RowsAdapter(StoreAdapter):
    """A table in SQLite; the silent one takes its errors for success."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent

    def open(self, directory: Path) -> sqlite3.Connection:
        store = sqlite3.connect(directory / "rows.db")
        store.execute("CREATE TABLE IF NOT EXISTS t (k TEXT PRIMARY KEY, v TEXT)")
        return store

    def save(self, store: sqlite3.Connection, key: str, value: Value) -> None:
        try:
            with store:
                store.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (key, json.dumps(value)))
        except sqlite3.Error:
            if not self.silent:
                raise

    def load(self, store: sqlite3.Connection, key: str) -> Value:
        return dict(json.loads(dict(store.execute("SELECT k, v FROM t").fetchall())[key]))

    def keys(self, store: sqlite3.Connection) -> list[str]:
        return [key for (key,) in store.execute("SELECT k FROM t").fetchall()]


def test_errors_reach_the_calls_inside_sqlite(tmp_path: Path) -> None:
    def check(bench: Bench) -> None:
        bench.check_faults(errno.EIO, lambda store: store.save("key", bench.value(2)))

    assert not _fails(check, Bench(RowsAdapter(silent=False), tmp_path / "told"))
    assert _fails(check, Bench(RowsAdapter(silent=True), tmp_path / "silent"))


def _fails(check: Callable[[Bench], None], bench: Bench) -> bool:
    try:
        check(bench)
    except AssertionError:
        return True
    return False


class KeepsWhatItRefusesAdapter(ThreadsAdapter):
    capabilities = Capabilities(list=False)

    def save(self, store: dict[str, Value], key: str, value: Value) -> None:
        store[key] = value
        raise ValueError(key)


def test_a_refused_key_must_leave_nothing_where_none_is_listed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'a/b' was refused, and loads as"):
        Bench(KeepsWhatItRefusesAdapter(()), tmp_path).check_keys(("a/b",))


def test_a_list_makes_it_pass_and_only_shrinks(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(STORE.replace("{extra}", 'xfails = "known.toml"'))
    known = pytester.path / "known.toml"
    only = ("-k", "overwrite_is_old_or_new or saved_value_is_loaded")
    known.write_text('[TestNotes]\ntest_an_overwrite_is_old_or_new = "written in place"\n')
    pytester.runpytest(*only).assert_outcomes(passed=1, xfailed=1, deselected=len(ids()) - 2)
    known.write_text('[TestNotes]\ntest_a_saved_value_is_loaded_equal = "not true any more"\n')
    result = pytester.runpytest(*only)
    result.assert_outcomes(failed=2, deselected=len(ids()) - 2)
    result.stdout.fnmatch_lines(["*XPASS(strict)*not true any more*"])
    known.write_text('[TestNotes]\ntest_a_wrong_key_is_refused = "no such promise"\n')
    result = pytester.runpytest("-k", "wrong_key_is_refused")
    result.assert_outcomes(errors=1, deselected=len(ids()) - 1)
    result.stdout.fnmatch_lines(["*listed as failing, but Notes does not declare encryption*"])


def test_the_matrix_says_which_promise_is_known_to_fail(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        STORE.replace("{extra}", 'xfails = "known.toml"').replace("crash_recovery", "durable")
    )
    known = '[TestNotes]\ntest_an_overwrite_survives = "never synced"\n'
    (pytester.path / "known.toml").write_text(known)
    result = pytester.runpytest("-k", "overwrite_survives")
    result.assert_outcomes(xfailed=1, deselected=len(ids()) - 1)
    result.stdout.re_match_lines([r"durable +known$"])


def test_the_ini_setting_does_the_same(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(STORE.replace("{extra}", ""))
    pytester.makeini("[pytest]\nstatepersist_xfails = known.toml\n")
    (pytester.path / "known.toml").write_text('[TestNotes]\ntest_an_overwrite_is_old_or_new = "x"')
    result = pytester.runpytest("-k", "overwrite_is_old_or_new")
    result.assert_outcomes(xfailed=1, deselected=len(ids()) - 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[TestNotes]\ntest_no_such = "x"', "no test of it"),
        ('[TestNotes]\ntest_many_keys = ""', "needs its reason"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_list_that_cannot_be_is_refused(pytester: pytest.Pytester, text: str, words: str) -> None:
    pytester.makepyfile(STORE.replace("{extra}", 'xfails = "known.toml"'))
    (pytester.path / "known.toml").write_text(text)
    result = pytester.runpytest("-k", "saved_value_is_loaded")
    result.assert_outcomes(errors=1, deselected=len(ids()) - 1)
    result.stdout.fnmatch_lines([f"*{words}*"])


def test_what_is_not_declared_is_skipped_with_the_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(STORE.replace("{extra}", ""))
    result = pytester.runpytest("-rs", "-k", "wrong_key_is_refused or first_save_survives")
    result.assert_outcomes(skipped=2, deselected=len(ids()) - 2)
    for words in (
        "Notes does not declare encryption",
        "Notes does not declare durable or durable_on_close",
    ):
        result.stdout.fnmatch_lines([f"*{words}*"])


def test_a_suite_without_a_store_says_what_to_do(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from pytest_statepersist.conformance import StoreConformance\n"
        "class TestNothing(StoreConformance): pass\n"
    )
    result = pytester.runpytest("-k", "saved_value_is_loaded")
    result.assert_outcomes(errors=1, deselected=len(ids()) - 1)
    result.stdout.fnmatch_lines(["*TestNothing has to override the fixture `store`*"])
