"""Modules that hold a replaced function are found, those too that a quick look passes over."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator

import pytest

from pytest_statepersist.recorders import namespaces
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
        namespaces._holding.discard(name)


def rebinding() -> Rebinding:
    """One whose replacement nobody else holds: that would be given the original at the end."""
    return Rebinding([(os.replace, lambda *arguments: None)])


def done_before() -> None:
    for _ in range(2):
        each = rebinding()
        each.do()
        each.undo()


def names(wanted: object, roots: object = None, *, everywhere: bool = False) -> set[str]:
    roots = wanted if roots is None else roots
    found, _ = namespaces_with({id(wanted)}, [id(roots)], everywhere=everywhere)
    return {name for _, name in found}


def test_what_was_never_asked_for_is_looked_for_everywhere() -> None:
    thing, other = object(), object()
    module(FIRST, a=thing, b=other)
    assert names(thing) == {FIRST}
    assert names(other) == {FIRST}
    assert namespaces_with({id(thing)}, [id(thing)])[1] is False
    assert namespaces_with({id(thing)}, [id(thing), id(object)])[1] is True


def test_a_new_module_is_looked_through_and_an_old_one_that_gained_a_name_only_when_asked() -> None:
    thing = object()
    old = module(FIRST)
    assert names(thing) == set()
    module(SECOND, thing=thing)
    vars(old)["thing"] = thing
    assert names(thing) == {SECOND}
    assert names(thing, everywhere=True) == {FIRST, SECOND}
    assert names(thing) == {FIRST, SECOND}


def test_a_module_in_the_place_of_another_is_new() -> None:
    thing = object()
    before = module(FIRST)
    assert names(thing) == set()
    module(FIRST, thing=thing)
    assert names(thing) == {FIRST}
    del before


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
