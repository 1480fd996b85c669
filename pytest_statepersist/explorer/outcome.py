"""What a recovery did: a value, an exception, a hang; and what was expected of it.

Belongs here: `Outcome`, comparing outcomes, and `Expectation`, which says whether an outcome is
allowed after a crash at some point. Pure: nothing is run and nothing is read.
"""

from __future__ import annotations

import enum
import inspect
import io
import pickle
import re
import traceback
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_statepersist.errors import UserError

__all__ = ["UNSET", "Ended", "Expectation", "Kind", "Outcome", "Raises", "Unset", "raises", "same"]


class Unset(enum.Enum):
    """Stands for an argument that was left out, since ``None`` is a value."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "<left out>"


UNSET = Unset.UNSET


class Ended(enum.Enum):
    """How a recovery ended."""

    RETURNED = "returned"
    RAISED = "raised"
    EXITED = "exited"
    HUNG = "hung"
    DIED = "died"


class Kind(enum.Enum):
    """What a finding says is broken."""

    ATOMICITY = "atomicity"
    """Recovery gave something that is neither what was there before nor what was being saved."""
    DURABILITY = "durability"
    """What was acknowledged as saved is not there."""
    UNRECOVERABLE = "unrecoverable"
    """Recovery raised, exited or killed its process."""
    HANG = "hang"
    """Recovery did not end within the time limit."""
    UNSTABLE = "unstable"
    """Recovery had returned one value, and after one more crash it gave another."""


class Outcome:
    """How one run of a recovery ended; ``text`` is a readable form of value or exception.

    Nobody changes one. The text of a value is made when it is first asked for: most are never
    shown, and the repr of a document costs as much as loading it. ``answers`` are, by stage,
    whether a value fits that may look at the disk when it is asked: see `Expectation.settle`.
    """

    __slots__ = ("_details", "_text", "answers", "ended", "error", "value")

    def __init__(
        self,
        ended: Ended,
        value: Any = None,
        error: BaseException | None = None,
        text: str | None = "",
        details: str | traceback.TracebackException = "",
    ) -> None:
        self.ended = ended
        self.value = value
        self.error = error
        self._details = details
        self._text = text
        self.answers: Mapping[int, bool] | None = None

    @classmethod
    def returned(cls, value: Any) -> Outcome:
        """Make the outcome of a recovery that returned."""
        return cls(Ended.RETURNED, value, None, None)

    @property
    def text(self) -> str:
        """The value or exception, shortened."""
        if self._text is None:
            self._text = shorten(self.value)
        return self._text

    @property
    def details(self) -> str:
        """The exception with its traceback."""
        if not isinstance(self._details, str):
            self._details = "".join(self._details.format())
        return self._details

    def __repr__(self) -> str:
        return f"<Outcome {self}>"

    @classmethod
    def raised(cls, error: BaseException, *, brief: bool = False) -> Outcome:
        """Make the outcome of a recovery that raised or called `sys.exit`; ``brief``: no lines."""
        ended = Ended.EXITED if isinstance(error, SystemExit) else Ended.RAISED
        details: str | traceback.TracebackException = ""
        if brief:
            text = _briefly(error)
        else:
            # It holds lines and no frames, and is put into words when somebody reads it.
            details = traceback.TracebackException.from_exception(error, lookup_lines=False)
            text = "".join(details.format_exception_only()).strip()
        _let_go(error)
        return cls(ended, error=error, text=text, details=details)

    @property
    def ok(self) -> bool:
        """Whether the recovery returned a value."""
        return self.ended is Ended.RETURNED

    def __str__(self) -> str:
        return f"{self.ended.value} {self.text}" if self.text else self.ended.value


def _briefly(error: BaseException) -> str:
    """Return an exception as `traceback` shows it; what is raised most by a short way to it."""
    kind = type(error)
    if kind.__module__ == "builtins" and isinstance(error, OSError) and not hasattr(
        error, "__notes__"
    ):
        words = str(error)
        if words:
            return f"{kind.__qualname__}: {words}".strip()
    return "".join(traceback.format_exception_only(error)).strip()


def _let_go(error: BaseException | None) -> None:
    """Drop the tracebacks of an exception: their frames hold the subject's open files."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def shorten(value: object, limit: int = 400) -> str:
    """Return a repr of bounded length; never raises."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 20]}… ({len(text)} characters)"


_ADDRESS = re.compile(r"0x[0-9a-f]{4,}")


def same(one: Outcome, other: Outcome) -> bool:
    """Say whether two outcomes are the same answer.

    Values compare by ``==``, and where that is not a yes or the value came from another process as
    text only, by their repr without addresses. Exceptions compare by type.
    """
    if one.ended is not other.ended:
        return False
    if one.ended is Ended.RETURNED:
        return equal_values(one.value, other.value)
    if one.ended in (Ended.DIED, Ended.HUNG):
        return True
    if one.error is not None and other.error is not None:
        return type(one.error) is type(other.error)
    return one.text.split(":")[0] == other.text.split(":")[0]


def same_items(one: Outcome, other: Outcome) -> bool:
    """Say whether two outcomes are lists of the same items, in whatever order."""
    if not (isinstance(one.value, list | tuple) and isinstance(other.value, list | tuple)):
        return False
    return sorted(map(repr, one.value)) == sorted(map(repr, other.value))


def equal_values(one: Any, other: Any) -> bool:
    """Compare two recovered values by ``==``, and what has no equality by its state, all the way.

    Values that came from another process as text are compared as text; where that text shows only
    an address, two of them are never equal, since nothing is known of them.
    """
    if isinstance(one, Unpicklable) or isinstance(other, Unpicklable):
        if isinstance(one, Unpicklable) and isinstance(other, Unpicklable):
            return one.text == other.text
        return _text(one) == _text(other)
    return _alike(one, other, set())


def _alike(one: Any, other: Any, visiting: set[tuple[int, int]]) -> bool:
    if one is other:
        return True
    try:
        if bool(one == other):
            return True
        if one != one and other != other:  # NaN is what was saved, and NaN is what came back
            return type(one) is type(other)
    except Exception:
        # Arrays and frames answer == with something that is no bool, and so does what holds them.
        if not isinstance(one, list | tuple | deque | dict):
            return type(one) is type(other) and _same_data(one, other, visiting)
    pair = (id(one), id(other))
    if type(one) is not type(other) or pair in visiting:
        return pair in visiting
    visiting.add(pair)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(
            _alike(mine, theirs, visiting) for mine, theirs in zip(one, other, strict=True)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _alike(one[key], other[key], visiting) for key in one
        )
    if isinstance(one, io.BytesIO | io.StringIO):
        return bool(one.getvalue() == other.getvalue())
    if "__eq__" in _own_methods(type(one)):
        return False
    mine, theirs = _state_of(one), _state_of(other)
    return mine is not None and theirs is not None and _alike(mine, theirs, visiting)


def _same_data(one: Any, other: Any, visiting: set[tuple[int, int]]) -> bool:
    """Compare two values of one type whose ``==`` is no yes or no; never by a shortened text."""
    try:
        if hasattr(one, "dtype") and hasattr(one, "tobytes"):  # an array
            if one.shape != other.shape or one.dtype != other.dtype:
                return False
            if one.dtype.hasobject:
                return _alike(one.tolist(), other.tolist(), visiting)
            return bool(one.tobytes() == other.tobytes())
        if callable(getattr(one, "equals", None)):  # a frame, a series, a table
            return bool(one.equals(other))
        return pickle.dumps(one) == pickle.dumps(other)
    except Exception:
        return False


def _state_of(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object, ``None`` where it shows none."""
    state = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                state[name] = getattr(value, name)
    return state or None


DATA = (str, bytes, int, float, bool, type(None), dict, list, tuple, set, frozenset)
"""Types of values that are taken for plain data, which reads nothing when it is looked at."""


def refuse_what_is_read_later(outcome: Outcome) -> None:
    """Raise `UserError` for a value that can be read once, and only after recovery has ended."""
    value = outcome.value
    if not outcome.ok or isinstance(value, io.BytesIO | io.StringIO):
        return
    inside: list[Any] = [value]
    if type(value) in (list, tuple, set):
        inside += value
    elif type(value) is dict:
        inside += value.values()
    for each in inside:
        what = "an open file" if isinstance(each, io.IOBase) else ""
        if inspect.isgenerator(each) or inspect.isasyncgen(each):
            what = "a generator"
        elif not what and isinstance(each, Iterator | AsyncIterator):
            what = f"an iterator ({type(each).__name__})"
        if what and not isinstance(each, io.BytesIO | io.StringIO):
            if hasattr(each, "close"):
                each.close()
            raise UserError(
                f"recovery returned {what}, which is read only after recovery has ended, when the "
                "disk is another one. Return what was loaded: list(...), .read(), a dict."
            )


def _own_methods(kind: type) -> set[str]:
    return {name for base in kind.__mro__[:-1] for name in vars(base)}


@dataclass(frozen=True, slots=True)
class Unpicklable:
    """Stands for a value that could not be handed over from another process."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _text(value: object) -> str:
    return _ADDRESS.sub("0x", value.text if isinstance(value, Unpicklable) else shorten(value))


@dataclass(frozen=True, slots=True)
class Raises:
    """Says that a recovery is expected to raise: nothing was saved yet."""

    types: tuple[type[BaseException], ...]

    def matches(self, outcome: Outcome) -> bool:
        """Say whether an outcome is an exception of one of the types."""
        return outcome.error is not None and isinstance(outcome.error, self.types)

    def __repr__(self) -> str:
        return f"raises({', '.join(t.__name__ for t in self.types)})"


def raises(*types: type[BaseException]) -> Raises:
    """Say, as ``before=`` or ``after=``, that recovery raises one of these exceptions.

    Raises `UserError` where no exception type is given.
    """
    if not types or not all(isinstance(t, type) and issubclass(t, BaseException) for t in types):
        raise UserError("raises() takes exception types, as in before=raises(FileNotFoundError)")
    return Raises(types)


Expected = Outcome | Raises
Invariant = Callable[[Any, tuple[Any, ...]], object]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is wrong with an outcome at one crash point; ``returned`` if the workload had."""

    kind: Kind
    point: int
    acknowledged: int
    expected: str


class Expectation:
    """What recovery may give after a crash at a given point of a trace of ``length`` operations.

    ``acknowledged`` are (position, value) in order. With an ``invariant`` it decides about values;
    otherwise a value must be what the last acknowledgement said, or what was being saved then.
    With ``demands_after`` it must be ``after`` once the workload has returned, beside an invariant.
    """

    def __init__(
        self,
        *,
        length: int,
        before: Expected,
        after: Expected,
        acknowledged: Sequence[tuple[int, Any]] = (),
        invariant: Invariant | None = None,
        demands_after: bool = False,
    ) -> None:
        self.length = length
        self.before = before
        self.after = after
        self.acknowledged = tuple(acknowledged)
        self.invariant = invariant
        self.demands_after = demands_after and invariant is not None
        self._stages = self._make_stages()
        self._positions = [position for position, _ in self._stages[1:]]
        self._judged: dict[tuple[int, int], tuple[Outcome, Kind | None]] = {}
        """By identity of an outcome and stages reached; many crash states share one outcome."""

    def _make_stages(self) -> list[tuple[int, Expected]]:
        """Values in the order in which they became durable, with the point from which each must."""
        stages: list[tuple[int, Expected]] = [(0, self.before)]
        stages += [(position, Outcome.returned(value)) for position, value in self.acknowledged]
        last = stages[-1][1]
        if len(stages) == 1 or self.demands_after or not _agree(last, self.after):
            stages.append((self.length, self.after))
        return stages

    def judge(
        self, outcome: Outcome, points: Sequence[tuple[int, int]], last: int
    ) -> list[Judgement]:
        """Return what is wrong with an outcome that is legal at these crash points.

        ``last`` is the last operation with an effect on disk: what was acknowledged before it began
        was acknowledged. One judgement a kind, each at its earliest crash point.
        """
        found: list[Judgement] = []
        for begin, end in points:
            for point, count in self._moments(max(begin, 0), end, last):
                kind = self._wrong(outcome, count)
                if kind is not None and all(kind is not known.kind for known in found):
                    found.append(Judgement(kind, point, count, self._expected(count)))
        return found

    def _moments(self, begin: int, end: int, last: int) -> list[tuple[int, int]]:
        """Return (crash point, stages reached) for each moment that the outcome must fit."""
        positions = self._positions
        least = max(bisect_right(positions, last), bisect_left(positions, begin))
        most = bisect_right(positions, end)
        if most <= least:
            return [(begin, least)]
        moments = [(begin, least)]
        moments += [(max(begin, positions[n - 1]), n) for n in range(least + 1, most + 1)]
        return moments

    def settle(self, outcome: Outcome, reads: Callable[[], int]) -> Outcome:
        """Ask a value now, while its disk is there, what will be asked of it.

        ``reads`` counts what was read of the directory so far. What reads when it is asked, and
        what is no plain data and might, keeps the answers; for the rest nothing changes.
        Raises `UserError` where there would be too many.
        """
        if not outcome.ok or isinstance(outcome.value, Unpicklable):
            return outcome
        last, count = self._last_question, reads()
        if type(outcome.value) in DATA or last > _MOST_ASKED:
            for question in {0, last}:
                self._answer(outcome, question)
            if reads() == count:
                return outcome
            if last > _MOST_ASKED:
                raise UserError(
                    "what recovery returned reads the disk when it is looked at, and there are "
                    f"{last:,} acknowledged values to ask it about; return plain data, or "
                    "acknowledge fewer values"
                )
        outcome.answers = {n: self._answer(outcome, n) for n in range(last + 1)}
        return outcome

    @property
    def _last_question(self) -> int:
        if self.invariant is None or self.demands_after:
            return len(self._stages) - 1
        return len(self.acknowledged)

    def _answer(self, outcome: Outcome, question: int) -> bool:
        """Say whether an outcome fits a stage; with an invariant, so many acknowledged values.

        The stage behind these is the end, where one asks for both.
        """
        if outcome.answers is not None:
            return outcome.answers[question]
        if self.invariant is None:
            return fits(outcome, self._stages[question][1])
        values = tuple(value for _, value in self.acknowledged[:question])
        if question > len(self.acknowledged) and not fits(outcome, self.after):
            return False
        return self._holds(outcome.value, values)

    def accepts_loss(self, before: Outcome) -> bool:
        """Say whether an invariant takes what recovery gave before for what it must give after."""
        if self.invariant is None or not before.ok:
            return False
        return self._answer(before, self._last_question)

    def refuse_what_raises(self, after: Outcome) -> None:
        """Raise `UserError` where the invariant cannot judge what a plain run leaves."""
        if self.invariant is None or not after.ok or after.answers is not None:
            return
        try:
            self.invariant(after.value, tuple(value for _, value in self.acknowledged))
        except (AssertionError, UserError):
            return
        except Exception as error:
            raise UserError(
                f"the invariant raised {type(error).__name__}: {error}, on what recovery gives "
                "after a run without any crash; an invariant returns or asserts"
            ) from error

    def _wrong(self, outcome: Outcome, count: int) -> Kind | None:
        known = self._judged.get((id(outcome), count))
        if known is None:
            known = self._judged[id(outcome), count] = (outcome, self._judge(outcome, count))
        return known[1]

    def _judge(self, outcome: Outcome, count: int) -> Kind | None:
        if outcome.ended is Ended.HUNG:
            return Kind.HANG
        if self.invariant is not None:
            return self._by_invariant(outcome, count)
        allowed = range(count, min(count + 2, len(self._stages)))
        if any(self._answer(outcome, stage) for stage in allowed):
            return None
        if any(self._answer(outcome, stage) for stage in range(count)):
            return Kind.DURABILITY
        return Kind.ATOMICITY if outcome.ok else Kind.UNRECOVERABLE

    def _by_invariant(self, outcome: Outcome, count: int) -> Kind | None:
        assert self.invariant is not None
        # The return of the workload is a stage of its own, but not an acknowledgement.
        count = min(count, self._last_question)
        if not outcome.ok:
            expected = self.before if count == 0 else self.after
            at_the_end = self.demands_after and count == self._last_question
            if (count == 0 or at_the_end) and fits(outcome, expected):
                return None
            return Kind.UNRECOVERABLE
        if self._answer(outcome, count):
            return None
        earlier = any(self._answer(outcome, n) for n in range(count))
        return Kind.DURABILITY if earlier else Kind.ATOMICITY

    def _holds(self, value: Any, acknowledged: tuple[Any, ...]) -> bool:
        assert self.invariant is not None
        if isinstance(value, Unpicklable):
            raise UserError(
                f"recovery returned {value.text[:200]}, which cannot be handed over from the fresh "
                "process in which it has to run, so the invariant cannot look at it; return plain "
                "data (the warnings of explore() say why fresh processes are needed)"
            )
        try:
            answer = self.invariant(value, acknowledged)
        except UserError:
            raise
        except Exception:  # `assert` and whatever else it meets in a value that is not right
            return False
        if inspect.isawaitable(answer) or inspect.isgenerator(answer):
            if hasattr(answer, "close"):
                answer.close()
            raise UserError(
                "the invariant did not run: it is async or a generator; give a plain function that "
                "returns or asserts whether the recovered value is right"
            )
        # A function that asserts and returns nothing has agreed.
        return answer is None or bool(answer)

    def _expected(self, count: int) -> str:
        if self.invariant is not None:
            done = [value for _, value in self.acknowledged][: min(count, len(self.acknowledged))]
            name = getattr(self.invariant, "__name__", "invariant")
            holds = f"{name}(recovered, acknowledged={shorten(tuple(done))}) to hold"
            if self.demands_after and count > len(self.acknowledged):
                return f"{describe(self.after)}, and {holds}"
            return holds
        texts = [describe(self._stages[count][1])]
        if count + 1 < len(self._stages):
            texts.append(describe(self._stages[count + 1][1]))
        return " or ".join(dict.fromkeys(texts))

    @property
    def tells_apart(self) -> bool:
        """Whether a right and a wrong answer can be told apart at all."""
        return self.invariant is not None or not _agree(self.before, self.after)


_MOST_ASKED = 200


def fits(outcome: Outcome, expected: Expected) -> bool:
    """Say whether an outcome is the expected one."""
    if isinstance(expected, Raises):
        return expected.matches(outcome)
    return same(outcome, expected)


def describe(expected: Expected) -> str:
    """Return the expected outcome in words."""
    return repr(expected) if isinstance(expected, Raises) else expected.text or str(expected)


def _agree(one: Expected, other: Expected) -> bool:
    if isinstance(one, Raises):
        return one == other if isinstance(other, Raises) else one.matches(other)
    return fits(one, other)
