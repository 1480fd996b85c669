"""Arguments of the wrong kind, refused by name before anything is touched.

The law: what a public method declares in its signature is what it is given, or it raises
`ValidationError` with the argument's name and does nothing. Values that are of the right type
and still wrong (a negative limit, a name that no file can have) are the method's own affair. A
message never shows the value, which may be a secret.

An enumeration of strings also takes the string itself, a float also a whole number; a bool is
no number, NaN is none either, and a text is no collection of texts.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from functools import cache, wraps
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pytest_statepersist.reference.errors import ValidationError

__all__ = ["checked"]

T = TypeVar("T", bound=Callable[..., object])
_Test = Callable[[Any], bool]
_NUMBERS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), complex: (complex,)}


def checked(public: T) -> T:
    """Let a function, or each public method of a class, refuse arguments of the wrong type."""
    if not isinstance(public, type):
        return cast("T", _checked_function(public))
    for name, member in list(vars(public).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, classmethod | staticmethod):
            setattr(public, name, type(member)(_checked_function(member.__func__)))
        elif inspect.isfunction(member):
            setattr(public, name, _checked_function(member))
    return public


def _checked_function(function: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter
    positional = [p.name for p in parameters if p.kind in (
        kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD
    )]  # fmt: skip
    further = next((p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL), None)

    @cache
    def tests() -> dict[str, tuple[_Test, str]]:
        # Not before the first call: a class may be named that is defined further down.
        hints = get_type_hints(function, include_extras=True)
        named = [p.name for p in parameters if p.kind is not kinds.VAR_KEYWORD and p.name in hints]
        return {name: (_test_of(hints[name]), _words(hints[name])) for name in named}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        known = tests()
        for number, value in enumerate(args):
            name = positional[number] if number < len(positional) else further
            if name in known and not known[name][0](value):
                raise _refusal(name, value, known[name][1])
        for name, value in kwargs.items():
            if name in known and not known[name][0](value):
                raise _refusal(name, value, known[name][1])
        return function(*args, **kwargs)

    return call


def _refusal(name: str, value: object, expected: str) -> ValidationError:
    found = "NaN" if value != value else type(value).__name__
    return ValidationError(name, f"is {found}, and must be {expected}")


def _words(hint: Any) -> str:
    if isinstance(hint, type) and not get_args(hint):
        return "None" if hint is type(None) else hint.__name__
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(each) for each in get_args(hint))
    return str(hint).replace("typing.", "").replace("collections.abc.", "")


def _anything(value: object) -> bool:
    return True


@cache
def _test_of(hint: Any) -> _Test:
    """Return what tells whether a value is of a declared type, as far as can be told."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeVar):
        return _test_of(hint.__bound__) if hint.__bound__ is not None else _anything
    if origin is Annotated:
        return _test_of(inner[0])
    if origin is Literal:
        return lambda value: value in inner
    if origin in (Union, types.UnionType):
        tests = [_test_of(each) for each in inner]
        return lambda value: any(test(value) for test in tests)
    if origin is type:
        return _test_of_classes(inner[0])
    if origin is not None:
        return _test_of_parts(origin, inner)
    return _test_of_class(hint)


def _test_of_class(kind: Any) -> _Test:
    if kind in _NUMBERS:
        numbers = _NUMBERS[kind]
        return lambda v: isinstance(v, numbers) and not isinstance(v, bool) and v == v
    if kind in (Any, object) or not isinstance(kind, type):
        return _anything
    if issubclass(kind, StrEnum):
        words = frozenset(str(member) for member in kind)
        return lambda value: isinstance(value, str) and str(value) in words
    if getattr(kind, "_is_protocol", False):
        names = _public_names(kind)
        return lambda value: all(hasattr(value, name) for name in names)
    return lambda value: isinstance(value, kind)


def _public_names(protocol: type) -> tuple[str, ...]:
    own = [base for base in protocol.__mro__ if base not in (object, Protocol)]
    return tuple(name for base in own for name in vars(base) if not name.startswith("_"))


def _test_of_classes(base: Any) -> _Test:
    base = base.__bound__ if isinstance(base, TypeVar) else base
    if not isinstance(base, type):
        return lambda value: isinstance(value, type)
    return lambda value: isinstance(value, type) and issubclass(value, base)


def _test_of_parts(origin: Any, inner: tuple[Any, ...]) -> _Test:
    """Return the test of a collection with its elements, a mapping, or anything else generic."""
    if origin is Callable:
        return callable
    if not isinstance(origin, type):
        return _anything
    if getattr(origin, "_is_protocol", False) and origin.__module__ != "collections.abc":
        return _test_of_class(origin)
    if issubclass(origin, Mapping) and len(inner) == 2:
        keys, values = _test_of(inner[0]), _test_of(inner[1])
        return lambda value: isinstance(value, origin) and all(
            keys(key) and values(each) for key, each in value.items()
        )
    if issubclass(origin, tuple):
        if len(inner) == 2 and inner[1] is ...:
            return _test_of_elements(origin, _test_of(inner[0]))
        tests = [_test_of(each) for each in inner]
        return lambda value: (
            isinstance(value, tuple)
            and len(value) == len(tests)
            and all(test(each) for test, each in zip(tests, value, strict=True))
        )
    if issubclass(origin, Iterable) and len(inner) == 1:
        return _test_of_elements(origin, _test_of(inner[0]))
    return lambda value: isinstance(value, origin)


def _test_of_elements(origin: type, test: _Test) -> _Test:
    def fits(value: Any) -> bool:
        if not isinstance(value, origin) or isinstance(value, str | bytes | bytearray):
            return False
        # What can be gone through only once is the method's to judge.
        if not isinstance(value, Collection) or isinstance(value, Iterator):
            return True
        return all(test(each) for each in value)

    return fits
