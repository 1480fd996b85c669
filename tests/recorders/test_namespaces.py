"""Modules that hold a replaced function are found, those too that began to hold it later."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.recorders import dict_versions, namespaces
from pytest_statepersist.recorders.namespaces import namespaces_with
from pytest_statepersist.recorders.rebind import Rebinding

FIRST, SECOND = "a_module_of_this_test", "another_module_of_this_test"


def module(name: str, **values: object) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(values)
    sys.modules[name] = made
    return made


@pytest.fixture(autouse=True)
def gone() -> Iterator[None]:
    yield
    for name in (FIRST, SECOND):
        sys.modules.pop(name, None)


def rebinding() -> Rebinding:
    """One whose replacement nobody else holds: that would be given the original at the end."""
    return Rebinding([(os.replace, lambda *arguments: None)])


def done_before() -> None:
    for _ in range(2):
        each = rebinding()
        each.do()
        each.undo()


def names(wanted: object) -> set[str]:
    return {name for _, name in namespaces_with({id(wanted)})}


@pytest.mark.parametrize("told", [True, False])
def test_every_module_that_holds_it_is_found_once(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "kept", lambda: told)
    thing, other = object(), object()
    old = module(FIRST, a=thing, b=other)
    assert names(thing) == names(other) == {FIRST}
    sys.modules[SECOND] = old
    assert names(thing) == {FIRST}
    module(SECOND, thing=thing)
    assert names(thing) == {FIRST, SECOND}


def test_a_module_that_was_looked_through_for_something_else_is_looked_through_again() -> None:
    names(os.replace)
    thing = object()
    module(FIRST, moves=os.replace, a=thing)
    assert names(thing) == {FIRST}
    assert FIRST in names(os.replace)


def test_what_is_unchanged_is_not_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[dict[str, object]] = []
    monkeypatch.setattr(namespaces, "_looked", {})

    def version_of(each: dict[str, object]) -> object:
        looks.append(each)
        return dict_versions.version_of(each)

    monkeypatch.setattr(namespaces, "version_of", version_of)
    module(FIRST, moves=os.replace)
    for _ in range(2):
        assert FIRST in names(os.replace)
    assert len([each for each in looks if each.get("moves") is os.replace]) == 1


THINGS = [object() for _ in range(2)]
CHANGES = st.tuples(
    st.sampled_from(["set", "set", "delete", "anew", "gone", "alias", "ask", "ask", "fresh"]),
    st.sampled_from([FIRST, SECOND]),
    st.sampled_from("ab"),
    st.integers(0, len(THINGS) - 1),
    st.booleans(),
)


@given(st.lists(CHANGES, min_size=20, max_size=60))
@settings(deadline=None)
def test_what_is_remembered_is_what_a_look_through_everything_finds(
    changes: list[tuple[str, str, str, int, bool]]
) -> None:
    """Modules of their own only: what a process has besides makes a look slow, no more."""
    real, sys.modules = sys.modules, {FIRST: types.ModuleType(FIRST)}
    things = list(THINGS)
    fresh: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespaces, "_looked", {})
        patch.setattr(namespaces, "_asked", set())
        try:
            for change, where, key, which, known in changes:
                there = sys.modules.get(where)
                if change == "anew":
                    sys.modules[where] = types.ModuleType(where)
                elif change == "gone":
                    sys.modules.pop(where, None)
                elif change == "alias" and there is not None:
                    sys.modules["a_third"] = there
                elif change == "fresh":
                    things.append(object())
                    fresh.add(id(things[-1]))
                elif change == "ask":
                    # Those that were made since, as replacements are, or one by itself.
                    wanted = {id(things[which])} if known else {id(things[0]), *fresh}
                    said = namespaces_with(wanted, fresh=fresh, others=fresh)
                    right = {
                        id(vars(each))
                        for each in sys.modules.values()
                        if wanted & set(map(id, vars(each).values()))
                    }
                    assert {id(space) for space, _ in said} == right
                elif there is not None and change == "set":
                    thing = things[which] if known or not fresh else things[-1]
                    setattr(there, key, thing)
                elif there is not None:
                    vars(there).pop(key, None)
        finally:
            sys.modules = real


def test_an_old_module_that_gained_a_name_is_given_the_replacement_and_gets_its_own_back() -> None:
    old = module(FIRST)
    done_before()
    real = os.replace
    vars(old)["moves"] = real
    each = rebinding()
    try:
        each.do()
        assert vars(old)["moves"] is os.replace
        assert "lambda" in repr(os.replace)
        assert not each.unreached
    finally:
        each.undo()
    assert vars(old)["moves"] is os.replace
    assert "built-in" in repr(os.replace)


def test_an_old_module_that_takes_the_replacement_meanwhile_gets_the_original() -> None:
    old = module(FIRST)
    done_before()
    each = rebinding()
    try:
        each.do()
        vars(old)["moves"] = os.replace
        assert "lambda" in repr(vars(old)["moves"])
    finally:
        each.undo()
    assert vars(old)["moves"] is os.replace
    assert "built-in" in repr(os.replace)
