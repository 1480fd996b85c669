"""What a machine did, step by step, as plain data: kept with a failure, and done again later.

Belongs here: `History`, its JSON form, and the two ways to draw: by Hypothesis, written down, or
from what was written down. Rules:

1. A history says which rules ran with which arguments, and what was drawn in them, in words of the
   store: a key, a document, which bit of which file. None of it is Hypothesis' own, so that it
   means the same in every version.
2. A choice among things that are named by chance (ids, temporary files) is kept as a position.
3. What cannot be written down makes a history useless, and it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

from hypothesis import stateful
from hypothesis import strategies as st

from pytest_statepersist.core.crash_state import CrashState
from pytest_statepersist.core.models import get_model
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.states import crash_states as all_crash_states
from pytest_statepersist.core.states import disk_of, window_at
from pytest_statepersist.core.window import bits
from pytest_statepersist.errors import UserError
from pytest_statepersist.strategies import ClockMove, Crash, Recipe, Save, crash_states, damages
from pytest_statepersist.tamper import Damage

__all__ = ["Diverged", "Drawing", "History", "Scripted", "Step", "initialize", "rule"]

VERSION = 1
_FORMAT = "statepersist-history"
_MANY = 2000

T = TypeVar("T")


class Diverged(Exception):
    """The store does something else than it did, so that the history cannot be followed."""


# -- the data


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a rule: its arguments by name, and what was drawn in it, in order.

    ``drawing`` is the argument that draws, "" where there is none.
    """

    rule: str
    arguments: Mapping[str, Any]
    draws: Sequence[Any] = ()
    drawing: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """What a machine did to a store, up to the step that failed."""

    machine: str
    store: str
    steps: tuple[Step, ...]

    def to_json(self) -> str:
        """Return it as JSON text. Raises `UserError` where something cannot be written down."""
        steps = [
            {
                "rule": step.rule,
                "arguments": {name: _plain(value) for name, value in step.arguments.items()},
                "draws": [_plain(value) for value in step.draws],
                "drawing": step.drawing,
            }
            for step in self.steps
        ]
        document = {"format": _FORMAT, "version": VERSION, "machine": self.machine,
                    "store": self.store, "steps": steps}  # fmt: skip
        return json.dumps(document, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> History:
        """Read a history; nothing is run. Raises `UserError` where the text is none."""
        try:
            row = json.loads(text)
            if row["format"] != _FORMAT or row["version"] != VERSION:
                raise UserError(f"this is no history of version {VERSION}: {text[:80]!r}")
            steps = tuple(
                Step(
                    str(each["rule"]),
                    {str(name): _value(value) for name, value in each["arguments"].items()},
                    tuple(_value(value) for value in each["draws"]),
                    str(each["drawing"]),
                )
                for each in row["steps"]
            )
            return cls(str(row["machine"]), str(row["store"]), steps)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"this is no history of a machine: {error!r}") from error

    def __str__(self) -> str:
        return "\n".join(_call(step) for step in self.steps)


@dataclass(frozen=True, slots=True)
class CrashKept:
    """A crash in words that do not depend on how effects are numbered over a whole trace.

    ``missing`` are pairs: an operation, and which of its own effects; ``calls`` are the kinds of
    the operations, so that a changed store is noticed.
    """

    model: str
    point: int
    missing: tuple[tuple[int, int], ...]
    last: int
    calls: tuple[str, ...]

    @classmethod
    def of(cls, crash: Crash) -> CrashKept:
        """Describe a crash."""
        of_operation = crash.disk.effects.of_operation
        missing = [
            (number, nth)
            for number, own in enumerate(of_operation)
            for nth, effect in enumerate(own)
            if effect in crash.state.missing
        ]
        return cls(
            crash.model.name, crash.point, tuple(missing), crash.state.last,
            _calls(crash.disk.trace),
        )  # fmt: skip

    def on(self, trace: Trace) -> Crash:
        """Return the crash on a trace like the one it was made on; raises `Diverged` otherwise."""
        if _calls(trace) != self.calls:
            raise Diverged("the store makes other file-system calls than it made then")
        disk = disk_of(trace, get_model(self.model))
        try:
            gone = frozenset(disk.effects.of_operation[number][nth] for number, nth in self.missing)
        except IndexError:
            raise Diverged("a call of the store has fewer effects than it had then") from None
        state = CrashState(self.last, gone, points=((self.point, self.point),))
        end = disk.effects.first_of(self.last + 1)
        window = window_at(disk, self.point)
        root = window.root()
        forced = [window.ids[bit] for bit in bits(root.present)] if root is not None else []
        if any(effect in gone or effect >= end for effect in forced):
            raise Diverged("what was lost then is forced by a sync call now")
        return Crash(disk, state, self.point)


def _calls(trace: Trace) -> tuple[str, ...]:
    return tuple(type(operation).__name__ for operation in trace.operations)


# -- drawing


class Drawing:
    """What a rule draws from: Hypothesis, with everything written down for the history."""

    scripted = False

    def __init__(self, data: Any, draws: list[Any]) -> None:
        self._data = data
        self.draws = draws

    def draw(self, strategy: st.SearchStrategy[T], label: str = "") -> T:
        """Draw a value that can be written down: JSON, a `Save`, a `ClockMove`."""
        value: T = self._data.draw(strategy, label=label or None)
        self.draws.append(value)
        return value

    def pick(self, options: Sequence[T], label: str = "") -> T:
        """Draw one of several things; its position is written down."""
        value: T = self._data.draw(st.sampled_from(options), label=label or None)
        self.draws.append(options.index(value))
        return value

    def crashes(self, trace: Trace, model: str, since: int = 0) -> Iterator[Crash]:
        """Draw a crash, not before the point ``since``; scripted, perhaps many."""
        crash: Crash = self._data.draw(crash_states(trace, model, since=since), label="crash")
        self.draws.append(CrashKept.of(crash))
        yield crash

    def damage(
        self,
        files: Mapping[str, bytes],
        older: Sequence[Mapping[str, bytes]],
        kinds: Sequence[Damage],
    ) -> Recipe:
        """Draw how some of these files are damaged."""
        strategy = damages(files, older=older, kinds=kinds)
        recipe: Recipe = self._data.draw(strategy, label="damage")
        self.draws.append(recipe)
        return recipe


class Scripted(Drawing):
    """What a rule draws from when a history is done again; ``is_last`` is its last step."""

    scripted = True

    def __init__(self, kept: Sequence[Any], *, is_last: bool) -> None:
        super().__init__(None, [])
        self._kept = list(kept)
        self.is_last = is_last

    def _next(self, label: str, kind: type | tuple[type, ...] = object) -> Any:
        if not self._kept or not isinstance(self._kept[0], kind):
            raise Diverged(f"the rule draws {label or 'something'} that it did not draw then")
        value = self._kept.pop(0)
        self.draws.append(value)
        return value

    def draw(self, strategy: st.SearchStrategy[T], label: str = "") -> T:
        """Return what was drawn."""
        value: T = self._next(label)
        return value

    def pick(self, options: Sequence[T], label: str = "") -> T:
        """Return what stands where the chosen thing stood."""
        position: int = self._next(label, int)
        if position >= len(options):
            raise Diverged(f"there are {len(options)} to choose from for {label}, not as many")
        return options[position]

    def crashes(self, trace: Trace, model: str, since: int = 0) -> Iterator[Crash]:
        """Yield the crash of then; where the store's calls have changed, every crash there is."""
        kept: CrashKept = self._next("a crash", CrashKept)
        try:
            yield kept.on(trace)
        except Diverged:
            if not self.is_last:
                raise
            chosen = get_model(model)
            disk = disk_of(trace, chosen)
            found = list(all_crash_states(trace, chosen, deviations=2, limit=_MANY + 1))
            for state in found[:_MANY]:
                yield Crash(disk, state, state.points[-1][1])
            if len(found) > _MANY:
                raise Diverged(f"of all crashes only {_MANY} were tried") from None

    def damage(
        self,
        files: Mapping[str, bytes],
        older: Sequence[Mapping[str, bytes]],
        kinds: Sequence[Damage],
    ) -> Recipe:
        """Return how files were damaged."""
        recipe: Recipe = self._next("damage", Recipe)
        return recipe


# -- rules


def rule(**arguments: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a rule of a machine whose calls are written down; otherwise as Hypothesis' ``rule``.

    A rule that takes ``st.data()`` is given a `Drawing`.
    """
    decorate: Callable[..., Callable[..., None]] = stateful.rule(**arguments)
    return lambda function: _marked(decorate(_recorded(function)))


def initialize(**arguments: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a rule that runs first and is written down; otherwise as Hypothesis' ``initialize``."""
    decorate: Callable[..., Callable[..., None]] = stateful.initialize(**arguments)
    return lambda function: _marked(decorate(_recorded(function)))


def _marked(function: Callable[..., None]) -> Callable[..., None]:
    function.__statepersist_rule__ = True  # type: ignore[attr-defined]
    return function


def _recorded(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def step(machine: Any, *positional: Any, **arguments: Any) -> None:
        __tracebackhide__ = True
        machine.run_step(function, positional, arguments)

    return step


# -- JSON


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it; what JSON does not know is marked by the key ``$``."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(each) for each in value]
        case dict() if all(isinstance(key, str) for key in value):
            plain = {key: _plain(each) for key, each in value.items()}
            return {"$": "dict", "value": plain} if "$" in plain else plain
        case Save():
            return {"$": "save", "key": value.key, "value": _plain(value.value)}
        case ClockMove():
            micro = timedelta(microseconds=1)
            return {"$": "clock", "passes": value.passes // micro, "steps": value.steps // micro}
        case Recipe():
            names = [each.name for each in fields(Recipe)]
            return {"$": "damage", **{name: _plain(getattr(value, name)) for name in names}}
        case CrashKept():
            return {
                "$": "crash", "model": value.model, "point": value.point, "last": value.last,
                "missing": [list(pair) for pair in value.missing], "calls": list(value.calls),
            }  # fmt: skip
        case Damage():
            return {"$": "kind", "value": value.value}
        case bytes():
            return {"$": "bytes", "value": value.hex()}
    raise UserError(f"a history cannot hold {value!r}")


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    match plain.get("$"):
        case None:
            return {key: _value(each) for key, each in plain.items()}
        case "dict":
            return {key: _value(each) for key, each in plain["value"].items()}
        case "save":
            return Save(plain["key"], _value(plain["value"]))
        case "clock":
            return ClockMove(*(timedelta(microseconds=plain[n]) for n in ("passes", "steps")))
        case "damage":
            return Recipe(**{name: _value(each) for name, each in plain.items() if name != "$"})
        case "kind":
            return Damage(plain["value"])
        case "bytes":
            return bytes.fromhex(plain["value"])
        case "crash":
            missing = tuple((int(number), int(nth)) for number, nth in plain["missing"])
            return CrashKept(
                plain["model"], int(plain["point"]), missing, int(plain["last"]),
                tuple(plain["calls"]),
            )  # fmt: skip
    raise UserError(f"a history does not know {plain.get('$')!r}")


def _call(step: Step) -> str:
    arguments = [f"{name}={value!r}" for name, value in step.arguments.items()]
    drawn = [repr(value) for value in step.draws if not isinstance(value, CrashKept)]
    return f"{step.rule}({', '.join([*arguments, *drawn])})"
