"""What the typed models of the app's stores have in common.

The law: a model is frozen, knows all its fields, holds only what JSON and SQLite can hold
without change, and tells of a bad value with the name of the field.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Self

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pytest_statepersist.reference.errors import ValidationError
from pytest_statepersist.reference.serializers import CompactJsonSerializer

__all__ = [
    "Count",
    "Text",
    "Value",
    "check_page",
    "first_problem",
    "from_json",
    "new_id",
    "to_json",
]

_JSON = CompactJsonSerializer()


class Value(BaseModel):
    """A frozen model; `build` makes one or raises `ValidationError` of our own tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @classmethod
    def build(cls, **values: Any) -> Self:
        """Return a checked model. Raises `ValidationError` that names the field."""
        return cls.parse(values)

    @classmethod
    def parse(cls, value: object) -> Self:
        """Return the model of a mapping, as read from JSON. Raises `ValidationError`."""
        try:
            return cls.model_validate(value)
        except pydantic.ValidationError as error:
            raise first_problem(error, cls.__name__) from error

    def changed(self, **values: Any) -> Self:
        """Return a copy with some fields replaced, checked again."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return self.parse(fields | (self.model_extra or {}) | values)


def first_problem(error: pydantic.ValidationError, name: str) -> ValidationError:
    """Return the first problem that pydantic found as an error of our tree."""
    problem = error.errors(include_url=False)[0]
    where = ".".join([name, *(str(part) for part in problem["loc"])])
    return ValidationError(where, problem["msg"])


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has a lone surrogate, which UTF-8 cannot express") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""Text that survives UTF-8: the type of every string in the models."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things: not negative, and it fits into SQLite's 64 bits."""


def to_json(value: object) -> str:
    """Return the one canonical JSON text of a value. Raises `ValidationError`."""
    return _JSON.dumps(value).decode()


def from_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises `DamagedData`."""
    return _JSON.loads(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))


def new_id() -> str:
    """Return a fresh random id, 32 hexadecimal digits."""
    return uuid.uuid4().hex


def check_page(limit: int | None, offset: int) -> tuple[int, int]:
    """Return SQL's idea of a page (-1: no limit). Raises `ValidationError` for nonsense."""
    if limit is not None and limit < 0:
        raise ValidationError("limit", f"{limit} is negative; leave it out for no limit")
    if offset < 0:
        raise ValidationError("offset", f"{offset} is negative")
    return (-1 if limit is None else limit), offset
