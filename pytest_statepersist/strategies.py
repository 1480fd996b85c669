"""Hypothesis strategies for everything that a store meets: values, names, histories, crashes.

Belongs here: drawing, and nothing that judges. Rules:

1. What is drawn shrinks to what a reader grasps first: the empty document, the key "a", the crash
   with the fewest effects lost, at the end of what was recorded.
2. Every drawn crash state is legal under its model, since `core` makes it.
3. Importing this registers the reference implementation's items, clocks and persistence models
   with Hypothesis, so that `st.from_type` knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pytest_statepersist.clock import StateClock
from pytest_statepersist.core.crash_state import CrashState, Disk
from pytest_statepersist.core.effects import Kind
from pytest_statepersist.core.models import MODELS, Model, get_models
from pytest_statepersist.core.operations import Fsync, SyncAll, SyncRange, Trace
from pytest_statepersist.core.states import disk_of, window_at
from pytest_statepersist.core.window import Choice, Window, bits
from pytest_statepersist.reference.clock import ManualClock
from pytest_statepersist.reference.items import (
    Conversation,
    FocusChain,
    FocusItem,
    FocusStatus,
    Message,
    Role,
    Session,
    SessionStatus,
)
from pytest_statepersist.simulator import Recording
from pytest_statepersist.snapshots import MadeSnapshot, SnapshotFactory, SnapshotKind
from pytest_statepersist.tamper import Damage, Tampering

__all__ = [
    "ClockMove",
    "Crash",
    "Recipe",
    "Save",
    "clock_moves",
    "clocks",
    "crash_states",
    "damages",
    "documents",
    "histories",
    "hostile_names",
    "json_values",
    "keys",
    "snapshots",
    "tamperings",
]

_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_HOSTILE = (
    "", ".", "..", "../outside", "a/b", "/absolute", "a\\b", "C:\\x", "con", "NUL.txt", "aux.",
    ".hidden", ".lock", "a.tmp", "a~", "a b", " a", "a ", "a.", "-rf", "~", "$HOME", "%2e%2e",
    "a\nb", "a\tb", "a\0b", "é", "e\u0301", "\u202egnp.exe", "😀", "Key", "key", "KEY", "index",
    "index.json", "a" * 128, "a" * 200, "b" * 255, "c" * 1000, "__proto__", "null", "*", "?",
    "'; DROP TABLE x; --",
)  # fmt: skip
_DEVICES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)))
)
_SMALLEST_BLOCK = 16
_SYNCS = (Fsync, SyncRange, SyncAll)
_NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)


# -- values and names


def json_values(*, max_leaves: int = 12) -> st.SearchStrategy[Any]:
    """Draw any JSON value; integers have at most 53 bits and floats are finite."""
    return st.recursive(_LEAVES, _nested, max_leaves=max_leaves)


def documents(*, max_leaves: int = 12, large: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a JSON object, now and then a ``large`` one: of several blocks, or deeply nested."""
    small = st.dictionaries(st.text(max_size=8), json_values(max_leaves=max_leaves), max_size=4)
    if not large:
        return small
    return st.one_of(small, _large_documents())


def keys() -> st.SearchStrategy[str]:
    """Draw a key that any store takes: letters, digits, ``_`` and ``-``, few of them.

    No names of devices, which careful stores refuse: Hypothesis tries words that it finds in the
    code, and would find them there.
    """
    return st.sampled_from(["a", "b", "c"]) | st.text(_PLAIN, min_size=1, max_size=12).filter(
        lambda key: key[0] != "-" and key.lower() not in _DEVICES
    )


def hostile_names() -> st.SearchStrategy[str]:
    """Draw a name that stores get wrong: path tricks, reserved, long, invisible, look-alikes."""
    return st.sampled_from(_HOSTILE) | st.text(min_size=1, max_size=20)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**53), max_value=2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.text(max_size=8)
    return st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4)


@st.composite
def _large_documents(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        size = draw(st.sampled_from([4096, 9000, 20_000]))
        letter = draw(st.sampled_from("ab"))
        return {"text": letter * size}
    value: Any = draw(_LEAVES)
    for _ in range(draw(st.integers(min_value=10, max_value=40))):
        value = [value] if draw(st.booleans()) else {"in": value}
    return {"deep": value}


# -- histories


@dataclass(frozen=True, slots=True)
class Save:
    """One step of a history: a key gets a value, or loses it where that is ``None``."""

    key: str
    value: dict[str, Any] | None


@st.composite
def histories(
    draw: st.DrawFn, *, max_size: int = 8, deletions: bool = True, large: bool = False
) -> tuple[Save, ...]:
    """Draw saves and deletions in a row; only what is there is deleted."""
    there: set[str] = set()
    steps = []
    for _ in range(draw(st.integers(min_value=0, max_value=max_size))):
        if deletions and there and draw(st.booleans()):
            key = draw(st.sampled_from(sorted(there)))
            there.discard(key)
            steps.append(Save(key, None))
        else:
            key = draw(keys())
            there.add(key)
            steps.append(Save(key, draw(documents(max_leaves=4, large=large))))
    return tuple(steps)


# -- crashes


@dataclass(frozen=True, slots=True)
class Crash:
    """One crash of a recording: at which crash point, under which model, and what is on disk."""

    disk: Disk
    state: CrashState
    point: int

    @property
    def model(self) -> Model:
        """The persistence model that allows the state."""
        return self.disk.model

    @property
    def lost(self) -> tuple[int, ...]:
        """Return the operations that had begun and miss an effect, in order."""
        effects = self.disk.effects
        found = {effects.effects[index].operation for index in self.state.missing}
        return tuple(sorted(number for number in found if number < self.point))

    def __repr__(self) -> str:
        lost = f", lost of {list(self.lost)}" if self.lost else ", nothing lost"
        return (
            f"<crash under {self.model.name} at {self.point} of {len(self.disk.trace)} "
            f"operations{lost}>"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@st.composite
def crash_states(
    draw: st.DrawFn,
    recording: Recording | Trace,
    model: str | Model = "posix",
    *,
    at: int | None = None,
    since: int = 0,
) -> Crash:
    """Draw one legal crash of a recording (or trace); shrinks to the fewest lost effects.

    ``at`` fixes the crash point, ``since`` is the first one that may be drawn. Not drawn are names
    that a log brings back, and freed blocks that show other bytes (`core.states.roots` has them).
    Raises `UserError` for a crash point that the trace does not have.
    """
    trace = recording if isinstance(recording, Trace) else recording.trace
    (chosen,) = get_models(model)
    disk = disk_of(trace, chosen)
    point = draw(_crash_points(trace, since)) if at is None else at
    window = window_at(disk, point)
    state = draw(_lost(window))
    return Crash(disk, state, point)


def _crash_points(trace: Trace, since: int) -> st.SearchStrategy[int]:
    """The end first; then just before each sync, where much can be lost; then anywhere.

    Counted from the end, so that a shorter trace that ends alike shrinks to the same crash.
    """
    end = len(trace)
    since = min(since, end)
    before_syncs = [n for n in range(since, end) if isinstance(trace.operations[n], _SYNCS)]
    return st.one_of(
        st.just(end),
        st.sampled_from(before_syncs[::-1] or [end]),
        st.integers(min_value=0, max_value=end - since).map(lambda back: end - back),
    )


@st.composite
def _lost(draw: st.DrawFn, window: Window) -> CrashState:
    root = window.root()
    assert root is not None, "a window without choices decided has always a state"
    everything = (1 << len(window.ids)) - 1
    # The operation under way has done nothing yet, unless it is drawn.
    under_way = window.of_operation.get(window.last, 0) if window.since <= window.last else 0
    free = list(bits(everything & ~root.present))
    absent = 0
    for bit in bits(under_way):
        absent |= window.up[bit]
    if not free:
        return _state(root, absent & ~root.present)
    effects = window.disk.effects.effects
    match draw(st.sampled_from(_WAYS)):
        case "operations":
            # Whole operations are lost, and what cannot be there without them.
            # The latest first: hardly anything needs it, so that one loss stays one loss.
            numbers = sorted({window.operation[bit] for bit in free}, reverse=True)
            for number in draw(st.lists(st.sampled_from(numbers), max_size=3, unique=True)):
                for bit in bits(window.of_operation[number] & ~root.present):
                    absent |= window.up[bit]
        case "names":
            # Each name by itself was changed or was not; what the files hold is there.
            for bit in free:
                if effects[window.ids[bit]].kind is Kind.ENTRY and draw(st.booleans()):
                    absent |= window.up[bit]
        case "under way":
            done = draw(st.sampled_from(list(bits(under_way)) or free))
            absent = everything & ~window.down[done] & under_way
        case "effects":
            some = st.lists(st.sampled_from(free), min_size=1, max_size=3, unique=True)
            for bit in draw(some):
                absent |= window.up[bit]
        case "all":
            # Nothing is there that no sync forced: what was only acknowledged shows.
            absent = everything
        case _:
            # All that no sync forced is lost but these, and what they need.
            kept = 0
            for bit in draw(st.lists(st.sampled_from(free), max_size=2, unique=True)):
                kept |= window.down[bit]
            absent = everything & ~kept
    return _state(root, _some_put_back(draw, window, _closed(root, absent)))


_WAYS = ("nothing", "operations", "names", "under way", "effects", "all but some", "all")


def _some_put_back(draw: st.DrawFn, window: Window, absent: int) -> int:
    """Draw for each lost operation whether it is there after all: shrinking needs this."""
    lost = sorted({window.operation[bit] for bit in bits(absent)}, reverse=True)
    if not 1 < len(lost) <= _FEW:
        return absent
    for number in lost:
        own = [bit for bit in bits(absent) if window.operation[bit] == number]
        if own and draw(_ONE_IN_EIGHT) == 0:
            for bit in own:
                absent &= ~window.down[bit]
    return absent


_FEW = 12
_ONE_IN_EIGHT = st.integers(min_value=0, max_value=7)


def _state(root: Choice, absent: int) -> CrashState:
    return Choice(root.window, root.present, _closed(root, absent)).state()


def _closed(root: Choice, absent: int) -> int:
    """Close what is absent upwards, and take back what must be present."""
    window = root.window
    closed = 0
    for bit in bits(absent & ~root.present):
        if not window.up[bit] & root.present:
            closed |= window.up[bit]
    return closed


# -- time


@dataclass(frozen=True, slots=True)
class ClockMove:
    """One thing that happens to a clock: time passes, or the wall clock is set by so much."""

    passes: timedelta = timedelta(0)
    steps: timedelta = timedelta(0)

    def apply(self, clock: StateClock) -> None:
        """Do it."""
        if self.passes:
            clock.advance(self.passes)
        if self.steps:
            clock.step(self.steps)


def clock_moves(
    *, limits: Sequence[timedelta] = (timedelta(days=30),), misbehaving: bool = True
) -> st.SearchStrategy[ClockMove]:
    """Draw what happens to a clock; the ``limits`` of a policy are hit exactly, and just missed."""
    near = [limit + d for limit in limits for d in (_NONE, _TICK, -_TICK) if limit + d > _NONE]
    far = [2 * limit for limit in limits]
    some = st.sampled_from([*near, *far, timedelta(seconds=1), timedelta(days=1)])
    passing = some.map(lambda by: ClockMove(passes=by))
    if not misbehaving:
        return passing
    setting = st.builds(lambda by, back: ClockMove(steps=-by if back else by), some, st.booleans())
    return passing | setting


@st.composite
def clocks(draw: st.DrawFn) -> StateClock:
    """Draw a clock at a moment near the start of 2026, or where calendars are unusual."""
    start = draw(st.sampled_from(_STARTS) | _moments())
    zone = draw(st.sampled_from(("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns")))
    return StateClock(start, zone=zone)


_NONE = timedelta(0)
_TICK = timedelta(microseconds=1)
_STARTS = (
    _NOON,
    datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC),
    datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC),
)


def _moments() -> st.SearchStrategy[datetime]:
    naive = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2099, 1, 1))
    return naive.map(lambda moment: moment.replace(tzinfo=UTC))


# -- damage


@dataclass(frozen=True, slots=True)
class Recipe:
    """How files are damaged, apart from their bytes: the same can be done to a later version.

    ``name`` is the file, ``at`` the offset of the damage; what else is used depends on ``damage``.
    ``donor`` is a file, ``past`` an index of the older states, -1 for the present one.
    """

    damage: Damage
    name: str
    at: int = 0
    number: int = 0
    """A bit to flip, or the size of a block."""
    other: int = 0
    """The second block that is exchanged."""
    field: bytes = b""
    """Bytes that are written or appended; empty for an extension by the file itself."""
    donor: str = ""
    past: int = -1

    def on(
        self, files: Mapping[str, bytes], older: Sequence[Mapping[str, bytes]] = ()
    ) -> Tampering:
        """Return the damaged state of these files; raises `LookupError` where one is not there."""
        changed, what = self._done(files, older)
        return Tampering(f"{self.name}: {what}", self.damage, changed)

    def _done(self, files: Mapping[str, bytes], older: Sequence[Mapping[str, bytes]]) -> Changed:
        name, data, at = self.name, files[self.name], self.at
        match self.damage:
            case Damage.MISSING:
                return {name: None}, "removed"
            case Damage.EMPTY:
                return {name: b""}, f"emptied (it had {len(data)} bytes)"
            case Damage.EXTEND:
                tail = self.field or data
                return {name: data + tail}, f"{len(tail)} bytes appended"
            case Damage.ROLL_BACK:
                return {name: older[self.past][name]}, "replaced by an older valid version"
            case Damage.ROLL_BACK_ALL:
                old = older[self.past]
                changed = {each: old.get(each) for each in sorted({*files, *old})}
                return changed, "and all others replaced by an older valid state"
            case Damage.SWAP_NAMES:
                return {name: files[self.donor], self.donor: data}, f"exchanged with {self.donor}"
            case Damage.FLIP:
                flipped = data[:at] + bytes([data[at] ^ (1 << self.number)]) + data[at + 1 :]
                return {name: flipped}, f"bit {self.number} of byte {at} (of {len(data)}) flipped"
            case Damage.TRUNCATE:
                return {name: data[:at]}, f"cut off after {at} of {len(data)} bytes"
            case Damage.EXTREME:
                changed_field = data[:at] + self.field + data[at + len(self.field) :]
                return {name: changed_field}, f"bytes from {at} set to {self.field.hex(' ')}"
            case Damage.SWAP_BLOCKS:
                size, one, two = self.number, at, self.other
                count = len(data) // size
                blocks = [data[n * size : (n + 1) * size] for n in range(count)]
                blocks[one], blocks[two] = blocks[two], blocks[one]
                mixed = b"".join(blocks) + data[count * size :]
                return {name: mixed}, f"{size}-byte blocks {one} and {two} exchanged"
            case _:
                donor = (files if self.past < 0 else older[self.past])[self.donor]
                return {name: data[:at] + donor[at:]}, f"its bytes up to {at}, then another's"


Changed = tuple[dict[str, bytes | None], str]


def tamperings(
    files: Mapping[str, bytes],
    *,
    older: Sequence[Mapping[str, bytes]] = (),
    kinds: Sequence[Damage] = tuple(Damage),
) -> st.SearchStrategy[Tampering]:
    """Draw one damaged state of these files; each differs from them.

    ``older`` are earlier valid states, for splices and roll-backs. Kinds that cannot be made from
    these files are not drawn. Raises nothing; an assumption fails where no kind is possible.
    """
    return damages(files, older=older, kinds=kinds).map(lambda recipe: recipe.on(files, older))


@st.composite
def damages(
    draw: st.DrawFn,
    files: Mapping[str, bytes],
    *,
    older: Sequence[Mapping[str, bytes]] = (),
    kinds: Sequence[Damage] = tuple(Damage),
) -> Recipe:
    """Draw how to damage these files, as `tamperings` does, without doing it."""
    from hypothesis import assume

    names = sorted(name for name, data in files.items() if data) or sorted(files)
    assume(bool(names))
    name = draw(st.sampled_from(names))
    # What cannot be made is not drawn: a failed assumption would end a whole history.
    possible = [kind for kind in kinds if _is_possible(kind, name, files, older)]
    assume(bool(possible))
    damage = draw(st.sampled_from([*(kind for kind in possible if kind is Damage.FLIP), *possible]))
    recipe = _recipe(draw, damage, name, files, older)
    changed = recipe.on(files, older).files
    assume(any(files.get(each) != data for each, data in changed.items()))
    return recipe


def _is_possible(
    damage: Damage, name: str, files: Mapping[str, bytes], older: Sequence[Mapping[str, bytes]]
) -> bool:
    data = files[name]
    exchangeable = any(each != name and files[each] != data for each in files)
    match damage:
        case Damage.MISSING | Damage.EXTEND:
            return True
        case Damage.ROLL_BACK:
            return any(name in old and old[name] != data for old in older)
        case Damage.ROLL_BACK_ALL:
            return any(dict(old) != dict(files) for old in older)
        case Damage.SWAP_NAMES:
            return exchangeable
        case Damage.SWAP_BLOCKS:
            return len(data) >= 2 * _SMALLEST_BLOCK
        case Damage.SPLICE:
            foreign = any(found != data for old in older for found in old.values())
            return bool(data) and (exchangeable or foreign)
    return bool(data)


def _recipe(
    draw: st.DrawFn, damage: Damage, name: str, files: Mapping[str, bytes],
    older: Sequence[Mapping[str, bytes]],
) -> Recipe:  # fmt: skip
    from hypothesis import assume

    data = files[name]
    others = [each for each in sorted(files) if each != name and files[each] != data]
    match damage:
        case Damage.MISSING | Damage.EMPTY:
            return Recipe(damage, name)
        case Damage.EXTEND:
            tails = [b"\0", b"\n", b" ", bytes(16), data[-16:], b""]
            return Recipe(damage, name, field=draw(st.sampled_from(tails)))
        case Damage.ROLL_BACK:
            valid = [n for n, old in enumerate(older) if name in old and old[name] != data]
            assume(bool(valid))
            return Recipe(damage, name, past=draw(st.sampled_from(valid)))
        case Damage.ROLL_BACK_ALL:
            valid = [n for n, old in enumerate(older) if dict(old) != dict(files)]
            assume(bool(valid))
            return Recipe(damage, name, past=draw(st.sampled_from(valid)))
        case Damage.SWAP_NAMES:
            assume(bool(others))
            return Recipe(damage, name, donor=draw(st.sampled_from(others)))
    assume(bool(data))
    at = draw(st.integers(min_value=0, max_value=len(data) - 1))
    match damage:
        case Damage.FLIP:
            return Recipe(damage, name, at, draw(st.integers(min_value=0, max_value=7)))
        case Damage.TRUNCATE:
            return Recipe(damage, name, at)
        case Damage.EXTREME:
            field = draw(st.sampled_from([b"\0", b"\xff", b"\xff" * 4, bytes(8), b"\x7f" * 2]))
            return Recipe(damage, name, at, field=field)
        case Damage.SWAP_BLOCKS:
            size = draw(
                st.sampled_from([n for n in (_SMALLEST_BLOCK, 64, 512) if len(data) >= 2 * n])
            )
            count = len(data) // size
            one, two = sorted(draw(_pairs(count)))
            return Recipe(damage, name, one, size, two)
        case _:
            donors = [(each, -1) for each in others]
            donors += [
                (key, n) for n, old in enumerate(older) for key in sorted(old) if old[key] != data
            ]
            assume(bool(donors))
            donor, past = draw(st.sampled_from(donors))
            return Recipe(damage, name, at, donor=donor, past=past)


def _pairs(count: int) -> st.SearchStrategy[tuple[int, int]]:
    number = st.integers(min_value=0, max_value=count - 1)
    return st.tuples(number, number).filter(lambda pair: pair[0] != pair[1])


# -- snapshots


@st.composite
def snapshots(
    draw: st.DrawFn, root: Path | str, *, kinds: Sequence[SnapshotKind] = tuple(SnapshotKind)
) -> MadeSnapshot:
    """Draw a valid snapshot of the reference implementation, made on disk below ``root``."""
    factory = SnapshotFactory(Path(root) / str(draw(st.uuids())))
    return factory(
        draw(st.sampled_from(list(kinds))),
        size=draw(st.sampled_from([0, 1, 200, 5000])),
        age=draw(st.sampled_from([timedelta(0), timedelta(days=30), timedelta(days=400)])),
        seed=draw(st.integers(min_value=0, max_value=99)),
    )


# -- what Hypothesis is told


def _register() -> None:
    ids = keys()
    times = _moments()
    common: dict[str, Any] = {"id": ids, "created_at": times, "updated_at": times}
    texts = st.text(max_size=20)
    messages = st.builds(Message, role=st.sampled_from(Role), content=texts, created_at=times)
    goals = st.builds(FocusItem, text=texts, status=st.sampled_from(FocusStatus))
    st.register_type_strategy(
        Session,
        st.builds(
            Session, **common, title=texts, status=st.sampled_from(SessionStatus),
            state=documents(max_leaves=4, large=False),
        ),
    )  # fmt: skip
    st.register_type_strategy(
        Conversation,
        st.builds(Conversation, **common, messages=st.lists(messages, max_size=3).map(tuple)),
    )
    st.register_type_strategy(
        FocusChain,
        st.builds(FocusChain, **common, name=texts, items=st.lists(goals, max_size=3).map(tuple)),
    )
    st.register_type_strategy(StateClock, clocks())
    st.register_type_strategy(ManualClock, times.map(ManualClock))
    st.register_type_strategy(Model, st.sampled_from(list(get_models(tuple(MODELS)))))
    st.register_type_strategy(ClockMove, clock_moves())


_register()
