"""Interposition and rebinding: everything is reached, everything is put back."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
import sys
import threading
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from os import replace as bound_replace
from typing import Any, NamedTuple

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


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    """Freeze what the process has: only what a test makes is searched, which takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


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


class Holders:
    """What can hold a function, made anew for each test, and what is found there."""

    def __init__(self) -> None:
        call = os.replace

        class Slotted:
            __slots__ = ("call",)

            def __init__(self) -> None:
                self.call = os.replace

        class Plain:
            attribute = os.replace
            wrapped = staticmethod(os.replace)

            def __init__(self) -> None:
                self.call = os.replace

        class Named(NamedTuple):
            call: Any
            text: str

        def with_default(call: Any = os.replace, *, again: Any = os.replace) -> list[Any]:
            return [call, again]

        self.plain = Plain
        self.closure = lambda: call
        self.default = with_default
        self.partial = functools.partial(os.replace)
        self.argument = functools.partial(with_default, os.replace)
        self.slotted, self.instance = Slotted(), Plain()
        self.list: Any = [os.replace]
        self.deque = deque(self.list)
        self.dict = {"k": os.replace}
        self.key: dict[Any, int] = {1: 1, os.replace: 2, 3: 3}
        self.counted = Counter({1: 1, os.replace: 2, 3: 3})
        self.ordered = OrderedDict({1: 1, os.replace: 2, 3: 3})
        self.set = {os.replace}
        self.tuple: Any = [(1, os.replace)]
        self.nested: Any = [(os.replace, (0, (os.replace,)), os.replace)]
        self.named = [Named(os.replace, "a")]
        self.frozen = {"k": frozenset([os.replace])}
        self.alive = [(os.replace, self)]

    def found(self) -> dict[str, list[Any]]:
        """Return what holds the function at every place."""
        (first, (_, (second,)), third) = self.nested[0]
        return {
            "from import": [bound_replace],
            "default arguments": self.default(),
            "closure": [self.closure()],
            "partial": [self.partial.func],
            "partial argument": self.argument(),
            "slot": [self.slotted.call],
            "instance": [self.instance.call, self.instance.attribute, self.instance.wrapped],
            "class": [self.plain.attribute, self.plain.wrapped],
            "list": self.list,
            "deque": list(self.deque),
            "dict": [self.dict["k"]],
            "key": [list(each)[1] for each in (self.key, self.counted, self.ordered)],
            "set": list(self.set),
            "tuple in a list": [self.tuple[0][1]],
            "nested tuple": [first, second, third],
            "named tuple": [self.named[0].call],
            "frozenset": list(self.frozen["k"]),
            "tuple that keeps something alive": [self.alive[0][0]],
        }

    def exactly(self) -> list[Any]:
        """Return the objects that must come back as the same objects, in the same order."""
        return [
            vars(self.plain)["attribute"],
            vars(self.plain)["wrapped"],
            self.default.__defaults__,
            self.argument.args,
            self.tuple[0],
            self.nested[0],
            self.named[0],
            self.frozen["k"],
            *self.key.items(),
            *self.counted.items(),
            *self.ordered.items(),
        ]


def generator(call: Any) -> Any:
    while True:
        yield call


def rebound(pairs: list[tuple[Any, Any]]) -> Rebinding:
    rebinding = Rebinding(pairs)
    rebinding.do()
    return rebinding


def pairs_for(*functions: Any) -> list[tuple[Any, Any]]:
    """Make the pairs in a list that nothing else shares: `undo` rewrites every other holder."""
    return [(function, make_replacement()) for function in functions]


def make_replacement() -> Callable[..., str]:
    return lambda *args, **kwargs: "replaced"


def is_replaced(found: Any) -> bool:
    return isinstance(found, types.FunctionType) and found() == "replaced"


def assert_restored(holders: Holders, before: list[Any]) -> None:
    for name, found in holders.found().items():
        assert all(each is os.replace for each in found), name
    after = holders.exactly()
    assert vars(holders.plain)["attribute"] is os.replace
    assert after == before
    same = [mine is theirs for mine, theirs in zip(after[:8], before[:8], strict=True)]
    assert same == [True] * 8


def test_every_holder_is_rewritten_and_put_back() -> None:
    holders = Holders()
    before = holders.exactly()
    rebinding = rebound(pairs_for(os.replace))
    try:
        for name, found in holders.found().items():
            assert all(is_replaced(each) for each in found), name
    finally:
        rebinding.undo()
    assert_restored(holders, before)
    rebinding.undo()
    assert_restored(holders, before)


def test_what_a_holder_keeps_alive_is_not_kept_any_longer() -> None:
    class Held:
        pass

    import weakref

    value: Any = Held()
    ref = weakref.ref(value)
    held = [(os.replace, value)]
    rebinding = rebound(pairs_for(os.replace))
    held.clear()
    value = None
    assert ref() is None
    rebinding.undo()


@pytest.mark.parametrize(
    ("layers", "threads"),
    [((0, 1, 2), False), ((2, 0, 1), True), ((1, 1, 1), False)],
    ids=["upwards", "mixed, each in a thread of its own", "equal"],
)
def test_nested_interpositions_are_undone_exactly(layers: tuple[int, ...], threads: bool) -> None:
    """In whatever order: a bare function of a class was left as a staticmethod once."""
    original = os.replace
    original_open = os.open
    for order in itertools.permutations(range(3)):
        holders = Holders()
        before = holders.exactly()
        log: list[str] = []
        table: Any = {(os, "replace"): traced(log, "a"), (os, "open"): traced(log, "b")}
        made = [Interposition(table, layer=layer, rebind=True) for layer in layers]
        for each in made:
            in_thread(each.install) if threads else each.install()
        assert all(is_wrapped(each) for found in holders.found().values() for each in found)
        meanwhile = [os.replace]
        for number in order:
            in_thread(made[number].uninstall) if threads else made[number].uninstall()
        assert_restored(holders, before)
        assert os.replace is meanwhile[0] is original
        assert os.open is original_open


def in_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def is_wrapped(found: Any) -> bool:
    return isinstance(found, types.FunctionType)


CHANGING = ("recorders/rebind.py", "recorders/interpose.py")
SEARCHING = ("_held_elsewhere", "_namespaces", "_own_containers", "_locals", "_stack", "_is_own")


class Stopped(BaseException):
    """What the handler of a signal raises."""


def stopped_after(lines: int, call: Callable[[], None], *, only: str = "") -> bool:
    """Call it and raise in the midst, at that line of the interposition; false if there was none.

    ``only`` is the one function whose lines count. A signal's handler runs between any two lines.
    This is one, at a place of our choice.
    """
    left = lines

    def trace(frame: types.FrameType, event: str, _: Any) -> Any:
        nonlocal left
        code = frame.f_code
        if code.co_name in SEARCHING or not code.co_filename.endswith(CHANGING):
            return None
        if event == "line" and only in ("", code.co_name):
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Stopped
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Stopped:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_traceback_that_somebody_keeps_is_no_holder() -> None:
    """Its frames are over. `pytest.raises` asks them for their variables, which leaves a copy."""
    gc.unfreeze()

    def target() -> str:
        return "target"

    def fail(bound: Callable[[], str]) -> None:
        raise ValueError(bound.__name__)

    with pytest.raises(ValueError, match="target") as kept:
        fail(target)
    rebinding = rebound(pairs_for(target))
    try:
        assert rebinding.unreached == []
    finally:
        rebinding.undo()
        del kept


@pytest.mark.parametrize("step", ["install", "uninstall"])
def test_a_signal_at_any_line_leaves_nothing_half_way(step: str) -> None:
    original = os.replace
    holders = Holders()
    before = holders.exactly()
    line, stopped = 1, True
    while stopped:
        lower = Interposition({(os, "replace"): traced([], "a")}, layer=0, rebind=True)
        upper = Interposition({(os, "replace"): traced([], "b")}, layer=1, rebind=True)
        upper.install()
        if step == "install":
            stopped = stopped_after(line, lower.install)
        else:
            lower.install()
            stopped = stopped_after(line, lower.uninstall)
        lower.uninstall()
        upper.uninstall()
        assert not lower.installed
        assert os.replace is original
        assert_restored(holders, before)
        line += 1 if os.environ.get("STATEPERSIST_PROFILE") == "soak" else 1 + line // 2
    assert line > 100


def test_a_signal_while_a_tuple_is_made_anew_for_the_second_time() -> None:
    """Its first version is in the list, the second nowhere: the way back begins at the first."""
    nested = [(os.replace, (0, (os.replace,)), os.replace)]
    (before,) = nested
    number, stopped = 1, True
    while stopped:
        rebinding = Rebinding([(os.replace, make_replacement())])
        stopped = stopped_after(number, rebinding.do, only="_remembered")
        rebinding.undo()
        assert nested[0] is before
        number += 1
    assert number > 20


def test_locals_of_running_and_suspended_code() -> None:
    local = original = os.replace
    del original
    suspended = generator(os.replace)
    assert next(suspended) is os.replace

    async def coroutine() -> tuple[Any, Any]:
        inner = os.replace
        rebinding = rebound(pairs_for(os.replace))
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
    rebound(pairs_for(os.replace)).undo()
    value = None
    assert ref() is None


def test_a_holder_that_cannot_be_rewritten_is_named() -> None:
    lazy = map(os.replace, [])
    rebinding = rebound(pairs_for(os.replace))
    rebinding.undo()
    found = [each for each in rebinding.unreached if each.holder.startswith("map ")]
    assert [each.names for each in found] == [{"replace"}]
    del lazy


def test_a_holder_that_no_search_shows_is_reported() -> None:
    held = [os.fdatasync]
    gc.freeze()
    try:
        rebinding = rebound(pairs_for(os.fdatasync))
        rebinding.undo()
    finally:
        gc.unfreeze()
    assert [each.names for each in rebinding.unreached] == [{"fdatasync"}]
    rebinding = rebound(pairs_for(os.fdatasync))
    assert is_replaced(held[0])
    rebinding.undo()
    assert rebinding.unreached == []


class Made:
    """Holds a replacement that was taken inside, in one place only."""


def test_one_reference_taken_inside_is_given_back() -> None:
    made = Made()
    with Interposition({(os, "replace"): traced([], "a")}, rebind=True):
        made.call = os.replace  # type: ignore[attr-defined]
        assert isinstance(made.call, types.FunctionType)  # type: ignore[attr-defined]
    assert isinstance(made.call, types.BuiltinFunctionType)  # type: ignore[attr-defined]


def named_default(call: Any = os.getlogin, *, other: Any = os.getlogin) -> tuple[Any, Any]:
    return call, other


def count_searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry with each search of the heap."""
    searches: list[int] = []
    search = Rebinding._replace

    def counted(self: Rebinding, *arguments: Any) -> None:
        searches.append(1)
        search(self, *arguments)

    monkeypatch.setattr(Rebinding, "_replace", counted)
    return searches


@pytest.mark.parametrize("taken", ["never", "before", "inside"])
def test_default_arguments_that_were_found_once_need_no_search(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.unfreeze()  # it is found by a search once
    first, keywords = id(named_default.__defaults__), named_default.__kwdefaults__
    interposition = Interposition({(os, "getlogin"): traced([], "a")}, rebind=True)
    with interposition:
        pass  # the search
    if taken == "never":
        gc.freeze()
    searches = count_searches(monkeypatch)
    held = [named_default.__defaults__] if taken == "before" else []
    with interposition:
        assert named_default() == (os.getlogin, os.getlogin)
        if taken == "inside":
            held.append(named_default.__defaults__)
    assert named_default() == (os.getlogin, os.getlogin)
    assert named_default.__kwdefaults__ is keywords
    assert id(named_default.__defaults__) == first
    assert all(each == (os.getlogin,) for each in held)
    assert bool(searches) is (taken != "never")


def test_a_function_that_wraps_one_and_was_found_once_needs_no_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.unfreeze()

    def wrapper() -> Any:
        return None

    functools.update_wrapper(wrapper, os.getlogin)
    interposition = Interposition({(os, "getlogin"): traced([], "a")}, rebind=True)
    with interposition:
        assert vars(wrapper)["__wrapped__"] is os.getlogin
    searches = count_searches(monkeypatch)
    with interposition:
        assert vars(wrapper)["__wrapped__"] is os.getlogin
    assert vars(wrapper)["__wrapped__"] is os.getlogin
    assert isinstance(os.getlogin, types.BuiltinFunctionType)
    assert not searches


TABLE: dict[str, Any] = {}


def test_a_table_in_a_module_that_was_found_once_needs_no_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.unfreeze()
    monkeypatch.setitem(TABLE, "call", os.getlogin)
    interposition = Interposition({(os, "getlogin"): traced([], "a")}, rebind=True)
    with interposition:
        assert TABLE["call"] is os.getlogin
    searches = count_searches(monkeypatch)
    with interposition:
        assert TABLE["call"] is os.getlogin
    assert TABLE["call"] is os.getlogin
    assert isinstance(os.getlogin, types.BuiltinFunctionType)
    assert not searches


def test_attributes_of_a_class_that_were_found_once_need_no_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.unfreeze()

    class Bound:
        bare = os.getlogin
        wrapped = staticmethod(os.getlogin)

    wrapped = id(vars(Bound)["wrapped"])
    interposition = Interposition({(os, "getlogin"): traced([], "a")}, rebind=True)
    with interposition:
        assert Bound().bare is Bound.wrapped is os.getlogin
    searches = count_searches(monkeypatch)
    for _ in range(2):
        with interposition:
            assert Bound().bare is Bound.wrapped is os.getlogin
        assert vars(Bound)["bare"] is os.getlogin
        assert id(vars(Bound)["wrapped"]) == wrapped
    assert not searches
    held = vars(Bound)["wrapped"]
    made = Made()
    made.wrapped = [held]  # type: ignore[attr-defined]
    del held
    with interposition:
        assert made.wrapped[0].__func__ is os.getlogin  # type: ignore[attr-defined]
    assert made.wrapped == [vars(Bound)["wrapped"]]  # type: ignore[attr-defined]
    assert id(vars(Bound)["wrapped"]) == wrapped
    assert searches


def test_a_class_that_only_its_own_parts_hold_needs_no_search(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.Kind = type("Kind", (), {})

    class Watched(module.Kind):  # type: ignore[misc]
        pass

    searches = count_searches(monkeypatch)
    table = {(module, "Kind"): lambda _: Watched}
    monkeypatch.setitem(sys.modules, "subject", module)
    with Interposition(table, rebind=True):
        assert module.Kind is Watched
    assert not searches
    made = Made()
    made.kinds = [module.Kind]  # type: ignore[attr-defined]
    with Interposition(table, rebind=True):
        assert made.kinds == [Watched]  # type: ignore[attr-defined]
    assert made.kinds == [module.Kind]  # type: ignore[attr-defined]
    assert searches


def test_a_class_that_is_replaced_twice_needs_no_search(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outer one has counted its parts before the inner one made a subclass of its class."""
    module.Kind = type("Kind", (), {})
    monkeypatch.setitem(sys.modules, "subject", module)
    table = {(module, "Kind"): lambda original: type("Watched", (original,), {})}
    searches = count_searches(monkeypatch)
    first = id(module.Kind)  # a local variable would be rewritten
    with Interposition(table, rebind=True):
        with Interposition(table, rebind=True):
            assert [each.__name__ for each in module.Kind.__mro__[:3]] == [*2 * ["Watched"], "Kind"]
        assert [each.__name__ for each in module.Kind.__mro__[:2]] == ["Watched", "Kind"]
    assert id(module.Kind) == first
    assert not searches


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
    rebinding = rebound(pairs_for(os.replace))
    rebinding.undo()
    done.set()
    thread.join()
    assert [each.names for each in rebinding.unreached if "'call'" in each.holder]


def test_nothing_of_a_plain_process_is_out_of_reach() -> None:
    import shutil
    import tempfile

    assert shutil
    assert tempfile
    gc.unfreeze()
    gc.collect()  # the frames of exceptions that were caught before
    functions = [os.replace, os.open, os.write, os.unlink, os.fsync, open, os.stat]
    rebinding = rebound(pairs_for(*functions))
    rebinding.undo()
    assert [each for each in rebinding.unreached if not each.hidden] == []
    assert {name for each in rebinding.unreached for name in each.names} <= {"open", "stat"}
