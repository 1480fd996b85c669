"""The keys that the app knows in its `LocalStorage`, with their types and defaults.

The law: a name that is listed here has one type, checked when written and when read, and one
default; private ones never get into an export unless asked for by name. Models keep fields that
they do not know, so that settings written by a sibling program survive our saving them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.errors import NewerVersion, ValidationError
from pytest_statepersist.reference.values import Text, Value, first_problem

__all__ = [
    "AUTH_TOKEN",
    "CRASH_RECORD",
    "DEBUG_ENABLED",
    "HELP_DISMISSED",
    "KEYS",
    "RECENT_COMMANDS",
    "RECENT_SEARCHES",
    "RECENT_SESSIONS",
    "SETTINGS",
    "SETTINGS_VERSION",
    "THEME",
    "TOUR_COMPLETED",
    "UI",
    "Key",
    "KeyboardSettings",
    "NotificationSettings",
    "Settings",
    "UiState",
]

SETTINGS_VERSION = 1
T = TypeVar("T")


class _Stored(Value):
    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, alias_generator=to_camel
    )


class NotificationSettings(_Stored):
    """When to disturb the user."""

    enabled: bool = True
    sound: bool = False


class KeyboardSettings(_Stored):
    """Shortcuts by the name of their command."""

    shortcuts: dict[Text, Text] = Field(default_factory=dict)


class Settings(_Stored):
    """The user's preferences; ``version`` is that of this model."""

    version: int = Field(default=SETTINGS_VERSION, ge=1)
    default_model: Text = ""
    notifications: NotificationSettings = NotificationSettings()
    keyboard: KeyboardSettings = KeyboardSettings()


class UiState(_Stored):
    """What the window looked like; panel sizes in pixels."""

    sidebar_collapsed: bool = False
    last_view: Text = ""
    panel_sizes: dict[Text, float] = Field(default_factory=dict)


@checked
@dataclass(frozen=True, slots=True)
class Key(Generic[T]):
    """A known name: its type, how to make its default, and whether exports may hold it."""

    name: str
    adapter: TypeAdapter[T]
    default: Callable[[], T]
    private: bool = False
    newest: int | None = None  # of the value's own "version", where it has one

    def check(self, value: Any) -> T:
        """Return the typed value. Raises `ValidationError` that names the field."""
        try:
            return self.adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise first_problem(error, self.name) from error

    def load(self, plain: Any) -> T:
        """Return the typed value of plain JSON. Raises `ValidationError`, `NewerVersion`."""
        if self.newest is not None and isinstance(plain, dict):
            version = plain.get("version")
            if isinstance(version, int) and version > self.newest:
                raise NewerVersion(
                    f"{self.name}: version {version} was written by newer code, this code knows "
                    f"{self.newest}; it was left untouched. Update the application"
                )
        return self.check(plain)

    def dump(self, value: T) -> Any:
        """Return the plain JSON of a typed value. Raises `ValidationError`."""
        try:
            return self.adapter.dump_python(value, mode="json", by_alias=True)
        except ValueError as error:
            raise ValidationError(self.name, str(error)) from error


SETTINGS = Key("settings", TypeAdapter(Settings), Settings, newest=SETTINGS_VERSION)
Theme = Literal["dark", "light", "system"]
THEME: Key[Theme] = Key("theme", TypeAdapter(Theme), lambda: "system")
UI = Key("ui", TypeAdapter(UiState), UiState)
RECENT_SESSIONS: Key[list[str]] = Key("recent.sessions", TypeAdapter(list[Text]), list)
RECENT_SEARCHES: Key[list[str]] = Key("recent.searches", TypeAdapter(list[Text]), list)
RECENT_COMMANDS: Key[list[str]] = Key("recent.commands", TypeAdapter(list[Text]), list)
AUTH_TOKEN: Key[str | None] = Key(
    "auth.token", TypeAdapter(Text | None), lambda: None, private=True
)
TOUR_COMPLETED: Key[bool] = Key("tour.completed", TypeAdapter(bool), lambda: False)
HELP_DISMISSED: Key[list[str]] = Key("help.dismissed", TypeAdapter(list[Text]), list)
DEBUG_ENABLED: Key[bool] = Key("debug.enabled", TypeAdapter(bool), lambda: False)
# What an interrupted run left behind; `recovery` knows its shape.
CRASH_RECORD: Key[dict[str, Any] | None] = Key(
    "crash.recovery", TypeAdapter(dict[str, Any] | None), lambda: None, private=True
)

KEYS: dict[str, Key[Any]] = {
    key.name: key
    for key in (
        SETTINGS,
        THEME,
        UI,
        RECENT_SESSIONS,
        RECENT_SEARCHES,
        RECENT_COMMANDS,
        AUTH_TOKEN,
        TOUR_COMPLETED,
        HELP_DISMISSED,
        DEBUG_ENABLED,
        CRASH_RECORD,
    )
}
