"""Modules that hold a replaced function are found, those too that began to hold it later."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator

import pytest

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


def test_every_module_that_holds_it_is_found_once() -> None:
    thing, other = object(), object()
    old = module(FIRST, a=thing, b=other)
    assert names(thing) == names(other) == {FIRST}
    sys.modules[SECOND] = old
    assert names(thing) == {FIRST}
    module(SECOND, thing=thing)
    assert names(thing) == {FIRST, SECOND}


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
