"""Where failures of machines are kept, and where kept ones are found again.

Belongs here: the one place in this process that says who keeps them, so that machines know nothing
of pytest. Nothing of Hypothesis is needed to import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_statepersist.core.tree import Tree
    from pytest_statepersist.findings import Report
    from pytest_statepersist.simulator import CrashSimulator

__all__ = ["Keeper", "Told", "current", "exploring", "keeping", "regression_test"]


@dataclass(frozen=True, slots=True)
class Told:
    """A failure in words, and what is needed to do it again.

    ``history`` is JSON text, ``kind`` one word, ``cause`` a line, ``text`` the explanation;
    ``tree`` is the store's directory as it was found, ``report`` the exploration of the crash.
    """

    machine: str
    history: str
    kind: str
    cause: str
    text: str
    tree: Tree
    report: Report | None = None


class Keeper(Protocol):
    """Keeps failures of one test."""

    def exploring(self) -> AbstractContextManager[CrashSimulator]:
        """Lend the simulator that keeps reports of explorations."""

    def keep(self, told: Told) -> str:
        """Keep a failure and return what replays it."""

    def before(self, machine: Any) -> bool:
        """Do the kept histories of the test again; True where the test has nothing more to do."""


_keepers: list[Keeper] = []


def current() -> Keeper | None:
    """Return who keeps failures now, ``None`` for nobody."""
    return _keepers[-1] if _keepers else None


@contextmanager
def keeping(keeper: Keeper) -> Iterator[None]:
    """Let this one keep the failures of a block."""
    _keepers.append(keeper)
    try:
        yield
    finally:
        _keepers.remove(keeper)


@contextmanager
def exploring() -> Iterator[CrashSimulator]:
    """Lend a simulator: the keeper's, or one whose reports nobody keeps."""
    keeper = current()
    if keeper is not None:
        with keeper.exploring() as simulator:
            yield simulator
        return
    from pytest_statepersist.simulator import CrashSimulator

    yield CrashSimulator()


def regression_test(machine: str, history: str) -> Iterator[str]:
    """Yield a test that does a history again, to be copied."""
    yield "from pytest_statepersist.machines import replay_history"
    yield ""
    yield ""
    yield "def test_a_history_that_failed():"
    yield f"    replay_history({machine}, {history!r})"
