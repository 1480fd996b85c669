"""The turn is one thread's at a time, by the quick way and by the lock."""

from __future__ import annotations

import threading
import time
from threading import get_ident

import pytest

from pytest_statepersist.recorders.turn import Turn

SHORT = 0.05  # seconds in which a thread that need not wait has long gone on


def other(turn: Turn, order: list[str]) -> threading.Thread:
    def take() -> None:
        with turn.lock:
            order.append("other")

    made = threading.Thread(target=take, daemon=True)
    made.start()
    return made


def test_another_thread_waits_for_the_quick_way_and_ends_it() -> None:
    turn, order = Turn(), list[str]()
    assert turn.owner == get_ident()
    turn.inside = True
    thread = other(turn, order)
    time.sleep(SHORT)
    assert order == [], "the owner is inside"
    assert turn.owner is None, "but nobody goes in any more"
    order.append("owner")
    turn.inside = False
    thread.join(5)
    assert order == ["owner", "other"]


def test_the_owner_does_not_wait_for_itself() -> None:
    """A finaliser that needs the lock comes while a thread waits for the quick way to end."""
    turn, order = Turn(), list[str]()
    turn.inside = True
    thread = other(turn, order)
    time.sleep(SHORT)
    with turn.lock, turn.lock:
        order.append("nested")
    turn.inside = False
    thread.join(5)
    assert order == ["nested", "other"]


def test_the_lock_keeps_another_thread_out_that_comes_before_the_quick_way_ended() -> None:
    turn, order = Turn(), list[str]()
    with turn.lock:
        turn.inside = True
        turn.inside = False
        thread = other(turn, order)
        time.sleep(SHORT)
        assert order == []
    thread.join(5)
    assert order == ["other"]


def test_without_the_interpreters_lock_there_is_no_quick_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys._is_gil_enabled", lambda: False, raising=False)
    assert Turn().owner is None
