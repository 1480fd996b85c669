"""The live side of an app: managers that hold the items a store saves and loads.

The law: a manager knows nothing of files. A store asks it for a consistent list (`snapshot`)
and hands it what it loaded (`adopt`); an app may attach its own class with these two methods.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.errors import ConflictError, NotFound
from pytest_statepersist.reference.items import (
    Conversation,
    FocusChain,
    FocusItem,
    FocusStatus,
    Item,
    Message,
    Role,
    Session,
)

__all__ = ["FocusManager", "InMemoryManager", "Manager", "MemoryManager", "SessionManager"]

T = TypeVar("T", bound=Item)


class Manager(Protocol[T]):
    """What a store needs to know about a manager."""

    def snapshot(self) -> Sequence[T]:
        """Return all items, as of one moment."""

    def adopt(self, items: Sequence[T]) -> None:
        """Hold exactly these items from now on."""


@checked
class InMemoryManager(Generic[T]):
    """Items by id, safe between threads; the base of the three managers below."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._items: dict[str, T] = {}

    def snapshot(self) -> tuple[T, ...]:
        """Return all items in the order of their creation."""
        with self._lock:
            return tuple(self._items.values())

    def adopt(self, items: Iterable[T]) -> None:
        """Forget everything and hold ``items``."""
        with self._lock:
            self._items = {item.id: item for item in items}

    def get(self, item_id: str) -> T:
        """Return one item. Raises `NotFound`."""
        with self._lock:
            try:
                return self._items[item_id]
            except KeyError:
                raise NotFound(f"no item is called {item_id!r}") from None

    def put(self, item: T) -> T:
        """Hold ``item``, in the place of one with the same id."""
        with self._lock:
            self._items[item.id] = item
            return item

    def remove(self, item_id: str) -> None:
        """Forget one item. Raises `NotFound`."""
        with self._lock:
            self.get(item_id)
            del self._items[item_id]

    def __len__(self) -> int:
        return len(self._items)

    def _add(self, item: T) -> T:
        with self._lock:
            if item.id in self._items:
                raise ConflictError(f"there is already an item called {item.id!r}")
            return self.put(item)


@checked
class SessionManager(InMemoryManager[Session]):
    """The app's sessions."""

    def create(self, title: str = "", *, session_id: str | None = None) -> Session:
        """Begin a session, under a random id unless one is given. Raises `ConflictError`."""
        now = self._clock.now()
        chosen = session_id or f"sess-{secrets.token_hex(8)}"
        return self._add(Session(id=chosen, title=title, created_at=now, updated_at=now))

    def set_state(self, session_id: str, **state: object) -> Session:
        """Merge ``state`` (JSON values) into a session's. Raises `NotFound`."""
        with self._lock:
            old = self.get(session_id)
            update = {"state": {**old.state, **state}, "updated_at": self._clock.now()}
            return self.put(Session.model_validate({**dict(old), **update}))


@checked
class MemoryManager(InMemoryManager[Conversation]):
    """The app's conversations."""

    def start(self, title: str = "", *, conversation_id: str | None = None) -> Conversation:
        """Begin a conversation. Raises `ConflictError`."""
        now = self._clock.now()
        chosen = conversation_id or f"conv-{secrets.token_hex(8)}"
        return self._add(Conversation(id=chosen, title=title, created_at=now, updated_at=now))

    def say(self, conversation_id: str, role: Role, content: str) -> Conversation:
        """Append a message. Raises `NotFound`."""
        with self._lock:
            old = self.get(conversation_id)
            now = self._clock.now()
            message = Message(role=role, content=content, created_at=now)
            update = {"messages": (*old.messages, message), "updated_at": now}
            return self.put(old.model_copy(update=update))


@checked
class FocusManager(InMemoryManager[FocusChain]):
    """The app's focus chains."""

    def create_chain(self, name: str = "", *, chain_id: str | None = None) -> FocusChain:
        """Begin a chain. Raises `ConflictError`."""
        now = self._clock.now()
        chosen = chain_id or f"chain-{secrets.token_hex(8)}"
        return self._add(FocusChain(id=chosen, name=name, created_at=now, updated_at=now))

    def push(self, chain_id: str, text: str) -> FocusChain:
        """Append an item. Raises `NotFound`."""
        with self._lock:
            old = self.get(chain_id)
            return self._replace_items(old, (*old.items, FocusItem(text=text)))

    def finish(self, chain_id: str, index: int) -> FocusChain:
        """Mark one item as done. Raises `NotFound`."""
        with self._lock:
            old = self.get(chain_id)
            if not 0 <= index < len(old.items):
                raise NotFound(f"chain {chain_id!r} has {len(old.items)} items, none at {index}")
            done = old.items[index].model_copy(update={"status": FocusStatus.DONE})
            return self._replace_items(old, (*old.items[:index], done, *old.items[index + 1 :]))

    def _replace_items(self, old: FocusChain, items: tuple[FocusItem, ...]) -> FocusChain:
        return self.put(old.model_copy(update={"items": items, "updated_at": self._clock.now()}))
