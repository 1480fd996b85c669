"""Interposition and rebinding: everything is reached, everything is put back."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import types
from collections import deque
from collections.abc import Callable
from os import replace as bound_replace
from typing import Any

import pytest

from pytest_statepersist.recorders.interpose import Interposition
from pytest_statepersist.recorders.rebind import Rebinding


def traced(log: list[str], name: str) -> Callable[[Any], Any]:
    def factory(original: Any) -> Any:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            return original(*args, **kwargs)

        return replacement

    return factory


@pytest.fixture
def module() -> types.ModuleType:
    made = types.ModuleType("subject")
    made.call = lambda: "real"  # type: ignore[attr-defined]
    made.__dict__["other"] = made.call
    return made


def test_one_unit_is_installed_and_undone(module: Any) -> None:
    log: list[str] = []
    original = module.call
    table = {
        (module, "call"): traced(log, "a"),
        (module, "other"): traced(log, "a"),
        (module, "missing"): traced(log, "x"),
    }
    with Interposition(table) as interposition:
        assert module.call is module.other
        assert module.call() == "real"
        with interposition:
            assert module.call() == "real"
        assert interposition.installed
        assert module.call() == "real"
    assert log == ["a"] * 3
    assert module.call is module.other is original
    assert not hasattr(module, "missing")
    interposition.uninstall()
    assert not interposition.installed


@pytest.mark.parametrize("undo_lower_first", [True, False])
@pytest.mark.parametrize("install_lower_first", [True, False])
def test_layers(module: Any, install_lower_first: bool, undo_lower_first: bool) -> None:
    log: list[str] = []
    original = module.call
    lower = Interposition({(module, "call"): traced(log, "lower")}, layer=0)
    upper = Interposition({(module, "call"): traced(log, "upper")}, layer=1)
    for each in (lower, upper) if install_lower_first else (upper, lower):
        each.install()
    module.call()
    assert log == ["upper", "lower"]
    first, second = (lower, upper) if undo_lower_first else (upper, lower)
    first.uninstall()
    log.clear()
    module.call()
    assert log == ["upper" if undo_lower_first else "lower"]
    second.uninstall()
    assert module.call is original


def test_what_another_put_on_top_is_left_alone(module: Any) -> None:
    log: list[str] = []

    def foreign() -> str:
        return "foreign"

    with Interposition({(module, "call"): traced(log, "a")}):
        module.call = foreign
    assert module.call is foreign


def test_a_factory_that_fails_leaves_nothing_behind(module: Any) -> None:
    original = module.call

    def broken(_: Any) -> Any:
        raise RuntimeError

    table = {(module, "call"): traced([], "a"), (module, "other"): broken}
    module.other = lambda: None
    interposition = Interposition(table)
    with pytest.raises(RuntimeError):
        interposition.install()
    assert module.call is original
    assert not interposition.installed


class Slotted:
    __slots__ = ("call",)

    def __init__(self) -> None:
        self.call = os.replace


class Plain:
    attribute = os.replace
    wrapped = staticmethod(os.replace)

    def __init__(self) -> None:
        self.call = os.replace


def with_default(call: Any = os.replace, *, again: Any = os.replace) -> list[Any]:
    return [call, again]


def closure() -> Callable[[], Any]:
    call = os.replace
    return lambda: call


def generator(call: Any) -> Any:
    while True:
        yield call


HOLDERS: dict[str, tuple[Any, Callable[[Any], list[Any]]]] = {
    "from import": (None, lambda _: [bound_replace]),
    "default arguments": (with_default, lambda held: held()),
    "closure": (closure(), lambda held: [held()]),
    "partial": (functools.partial(os.replace), lambda held: [held.func]),
    "partial argument": (functools.partial(with_default, os.replace), lambda held: held()),
    "slot": (Slotted(), lambda held: [held.call]),
    "instance": (Plain(), lambda held: [held.call, held.attribute, held.wrapped]),
    "class": (Plain, lambda held: [held.attribute, held.wrapped]),
    "list": ([os.replace], list),
    "deque": (deque([os.replace]), list),
    "dict": ({"k": os.replace}, lambda held: [held["k"]]),
    "key": ({os.replace: 1}, list),
    "set": ({os.replace}, list),
    "tuple in a list": ([(1, os.replace)], lambda held: [held[0][1]]),
    "nested tuple": ([((os.replace,),)], lambda held: [held[0][0][0]]),
    "frozenset": ({"k": frozenset([os.replace])}, lambda held: list(held["k"])),
}


def pairs_for(*functions: Any) -> list[tuple[Any, Any]]:
    """Make the pairs in a list that nothing else shares: `undo` rewrites every other holder."""
    return [(function, make_replacement()) for function in functions]


def make_replacement() -> Callable[..., str]:
    return lambda *args, **kwargs: "replaced"


def is_replaced(found: Any) -> bool:
    return isinstance(found, types.FunctionType) and found() == "replaced"


@pytest.mark.parametrize("name", HOLDERS)
def test_every_holder_is_rewritten_and_put_back(name: str) -> None:
    held, look = HOLDERS[name]
    original: Any = os.replace
    rebinding = Rebinding(pairs_for(original))
    original = None
    try:
        assert all(is_replaced(found) for found in look(held))
    finally:
        rebinding.undo()
    original = os.replace
    assert all(found is original for found in look(held))
    assert vars(Plain)["attribute"] is original


def test_locals_of_running_and_suspended_code() -> None:
    local = original = os.replace
    del original
    suspended = generator(os.replace)
    assert next(suspended) is os.replace

    async def coroutine() -> tuple[Any, Any]:
        inner = os.replace
        rebinding = Rebinding(pairs_for(os.replace))
        try:
            await asyncio.sleep(0)
            return inner, next(suspended)
        finally:
            rebinding.undo()

    assert all(is_replaced(found) for found in asyncio.run(coroutine()))
    assert local is os.replace
    assert next(suspended) is os.replace


def test_the_search_keeps_no_local_alive() -> None:
    class Held:
        pass

    import weakref

    value: Any = Held()
    ref = weakref.ref(value)
    Rebinding(pairs_for(os.replace)).undo()
    value = None
    assert ref() is None


def test_a_holder_that_cannot_be_rewritten_is_named() -> None:
    lazy = map(os.replace, [])
    rebinding = Rebinding(pairs_for(os.replace))
    rebinding.undo()
    found = [each for each in rebinding.unreached if each.holder.startswith("map ")]
    assert [each.names for each in found] == [{"replace"}]
    del lazy


def test_a_holder_that_no_search_shows_is_reported() -> None:
    held = [os.fdatasync]
    gc.freeze()
    try:
        rebinding = Rebinding(pairs_for(os.fdatasync))
        rebinding.undo()
    finally:
        gc.unfreeze()
    assert [each.names for each in rebinding.unreached] == [{"fdatasync"}]
    rebinding = Rebinding(pairs_for(os.fdatasync))
    assert is_replaced(held[0])
    rebinding.undo()
    assert rebinding.unreached == []


def test_a_local_of_another_thread_is_named() -> None:
    ready, done = threading.Event(), threading.Event()

    def work() -> None:
        call = os.replace
        ready.set()
        done.wait()
        assert call

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    rebinding = Rebinding(pairs_for(os.replace))
    rebinding.undo()
    done.set()
    thread.join()
    assert [each.names for each in rebinding.unreached if "'call'" in each.holder]


def test_nothing_of_a_plain_process_is_out_of_reach() -> None:
    import shutil
    import tempfile

    assert shutil
    assert tempfile
    functions = [os.replace, os.open, os.write, os.unlink, os.fsync, open, os.stat]
    rebinding = Rebinding(pairs_for(*functions))
    rebinding.undo()
    assert [each for each in rebinding.unreached if not each.hidden] == []
    assert {name for each in rebinding.unreached for name in each.names} <= {"open", "stat"}
