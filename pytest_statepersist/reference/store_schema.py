"""Old items read by new code: the file store's schema version and the steps between versions.

The law: a step is a pure function from one version's data to the next one's; steps are only
ever added, and none is changed once released. Data from the future is refused, untouched.

Version 1 called a session's title ``name`` and its state ``context``, kept messages as
``text`` at ``time`` (seconds since 1970), and focus items as bare strings with a set of
finished positions. Version 2 is what `items` declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pytest_statepersist.reference.errors import DamagedData, NewerVersion, ValidationError

__all__ = ["SCHEMA", "Schema", "Step"]

Data = dict[str, Any]
Step = Callable[[str, Data], Data]


@dataclass(frozen=True, slots=True)
class Schema:
    """The version that is written, and a step for each older one that is read.

    ``steps[n]`` takes the kind ("sessions", "conversations", "focus") and version n's data,
    and returns version n+1's.
    """

    version: int
    steps: Mapping[int, Step]

    def __post_init__(self) -> None:
        expected = set(range(min(self.steps, default=self.version), self.version))
        if set(self.steps) != expected:
            raise ValidationError("steps", f"{sorted(self.steps)} do not lead to {self.version}")

    def upgrade(self, kind: str, version: int, data: Data) -> Data:
        """Return ``data`` as the current version has it. The argument is not changed.

        Raises `NewerVersion`, or `DamagedData` for a version that never was or data that its
        version cannot have had.
        """
        if version > self.version:
            raise NewerVersion(
                f"written in schema version {version}, this code knows up to {self.version}; "
                "update the application, nothing was changed"
            )
        if version != self.version and version not in self.steps:
            raise DamagedData(f"schema version {version} never was")
        for number in range(version, self.version):
            try:
                data = self.steps[number](kind, dict(data))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise DamagedData(f"is no data of schema version {number}: {error!r}") from error
        return data


def _from_1_to_2(kind: str, data: Data) -> Data:
    if kind == "sessions":
        data["title"] = data.pop("name")
        data["state"] = data.pop("context", {})
    elif kind == "conversations":
        data["messages"] = [_message_2(message) for message in data["messages"]]
    elif kind == "focus":
        finished = set(data.pop("finished", []))
        data["items"] = [
            {"text": text, "status": "done" if index in finished else "open"}
            for index, text in enumerate(data["items"])
        ]
    return data


def _message_2(old: Data) -> Data:
    new = {key: value for key, value in old.items() if key not in ("text", "time")}
    moment = datetime.fromtimestamp(old["time"], UTC)
    return new | {"content": old["text"], "created_at": moment.isoformat()}


SCHEMA = Schema(2, {1: _from_1_to_2})
