"""What is written of a function runs as it did; what would have to be guessed is left out."""

from __future__ import annotations

import functools
import json
import os.path as paths
import types
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.callables import IMPORT, written

LIMIT = 3


def load(value: object) -> object:
    return ("loaded", value)


class Store:
    def load(self, value: object) -> object:
        return value


class Abstract:
    def load(self, value: object) -> object:
        """Nothing but this: no instruction of it has a place in the file."""


PAIR = (lambda d: load([d, 1])), (lambda d: load([d, 2]))


@pytest.mark.parametrize(
    ("function", "expression"),
    [
        (load, "load"),
        (lambda d: load(d), "lambda d: load(d)"),
        (PAIR[0], "lambda d: load([d, 1])"),
        (PAIR[1], "lambda d: load([d, 2])"),
        (lambda d: json.dumps([d, LIMIT]), "lambda d: json.dumps([d, LIMIT])"),
        (lambda d: [paths.join("a", str(n)) for n in range(d)], None),
        (lambda d: (lambda inner: load(inner))(d), None),
    ],
)
def test_what_is_written_does_the_same(function: Any, expression: str | None) -> None:
    *imports, (name, text) = written({"recover": function})
    assert name == "recover"
    assert expression in (None, text)
    space: dict[str, Any] = {}
    for kind, line in imports:
        assert kind == IMPORT
        exec(line, space)
    assert eval(text, space)(3) == function(3)


def test_code_without_places_is_not_written() -> None:
    """So it is under ``python -X no_debug_ranges``."""
    placed = PAIR[0].__code__
    bare = types.FunctionType(placed.replace(co_linetable=b""), globals(), "<lambda>")
    assert written({"recover": bare}) == (("recover", ""),)


def test_what_has_values_of_its_own_is_not_written() -> None:
    held = 1

    def inner(value: object) -> object:
        return value

    for function in (
        lambda d: held,
        lambda d, value=held: value,
        inner,
        functools.partial(load, 1),
        Store().load,
        eval("lambda d: load(d)", {"load": load}),
        print,
    ):
        assert written({"recover": function, "setup": None}) == (("recover", ""),)


def test_a_file_that_changed_is_not_trusted(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("function = lambda d: d + 1\n")
    space: dict[str, Any] = {"__name__": "source"}
    exec(compile(source.read_text(), str(source), "exec"), space)
    assert written({"recover": space["function"]}) == (("recover", "lambda d: d + 1"),)
    source.write_text("function = lambda d: d + 2 \n")
    assert written({"recover": space["function"]}) == (("recover", ""),)
