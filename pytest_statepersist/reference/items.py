"""What the file store keeps: sessions, conversations and focus chains, as typed values.

The law: each model is frozen and strict (an unknown field is an error, not a silent loss),
all times are aware, and each class says in `directory` where its files live. Change one by
`model_copy(update=...)` or through its manager.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, field_validator

from pytest_statepersist.reference.ids import check_id

__all__ = [
    "ITEM_TYPES",
    "Conversation",
    "FocusChain",
    "FocusItem",
    "FocusStatus",
    "Item",
    "Message",
    "Role",
    "Session",
    "SessionStatus",
]


class _Value(BaseModel):
    # Checked again as part of another one: `model_copy(update=...)` bypasses pydantic.
    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="always")


class Item(_Value):
    """Something with an id and a file of its own."""

    directory: ClassVar[str]

    id: str
    created_at: AwareDatetime
    updated_at: AwareDatetime
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("id")
    @classmethod
    def _id_is_a_file_name(cls, value: str) -> str:
        return check_id(value)


class SessionStatus(StrEnum):
    """Where a session is in its life."""

    ACTIVE = "active"
    PAUSED = "paused"
    DONE = "done"


class Session(Item):
    """One stretch of work with the app."""

    directory: ClassVar[str] = "sessions"

    title: str = ""
    status: SessionStatus = SessionStatus.ACTIVE
    state: dict[str, JsonValue] = Field(default_factory=dict)


class Role(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Message(_Value):
    """One turn of a conversation."""

    role: Role
    content: str
    created_at: AwareDatetime
    metadata: dict[str, JsonValue] = Field(default_factory=dict)


class Conversation(Item):
    """Messages in the order in which they were said."""

    directory: ClassVar[str] = "conversations"

    session_id: str | None = None
    title: str = ""
    messages: tuple[Message, ...] = ()


class FocusStatus(StrEnum):
    """What became of a focus item."""

    OPEN = "open"
    DONE = "done"
    DROPPED = "dropped"


class FocusItem(_Value):
    """One thing to attend to."""

    text: str
    status: FocusStatus = FocusStatus.OPEN
    metadata: dict[str, JsonValue] = Field(default_factory=dict)


class FocusChain(Item):
    """Focus items in order of attention."""

    directory: ClassVar[str] = "focus"

    name: str = ""
    session_id: str | None = None
    items: tuple[FocusItem, ...] = ()


ITEM_TYPES: tuple[type[Item], ...] = (Session, Conversation, FocusChain)
