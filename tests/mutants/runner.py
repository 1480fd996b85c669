"""Runs mutants: ``python -m tests.mutants.runner [NUMBER ...]`` prints one JSON line for each.

Belongs here: the overlay that imports one module with one line changed, and the run of a
conformance group on it. Each mutant has a process of its own, forked from one that has everything
but the reference implementation loaded, so nothing is copied and no mutant sees another.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from pytest_statepersist.conformance.bench import Bench
from pytest_statepersist.conformance.needs import needs_of
from pytest_statepersist.conformance.suite import GROUPS, names_of
from tests.mutants.table import MUTANTS, Mutant

__all__ = ["STALE", "TIME_LIMIT_S", "mutated_source", "run"]

REFERENCE = "pytest_statepersist.reference"
STALE = "no longer applies"
TIME_LIMIT_S = 40
_HEAVY = (
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.kdf.argon2",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "filelock",
    "pydantic",
    "pytest_statepersist.simulator",
)
_SETTINGS = {"repairs": False, "samples": 0}


def mutated_source(mutant: Mutant) -> str | None:
    """Return the module's source with the line changed, ``None`` where the line is not there."""
    import pytest_statepersist

    path = Path(pytest_statepersist.__file__).parent / "reference" / f"{mutant.module}.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    hits = [number for number, line in enumerate(lines) if line.strip() == mutant.original]
    if len(hits) <= mutant.occurrence:
        return None
    line = lines[hits[mutant.occurrence]]
    indentation = line[: len(line) - len(line.lstrip())]
    lines[hits[mutant.occurrence]] = indentation + mutant.replacement
    return "\n".join(lines) + "\n"


class _Overlay:
    """Finds one module of the reference with other source than its file has."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self.source)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, source: str) -> None:
        super().__init__(fullname, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


def _judge(mutant: Mutant | None, store: str, group: str) -> dict[str, Any]:
    """Run a group on a store, with the mutant where there is one, up to the first failure."""
    if mutant is not None:
        source = mutated_source(mutant)
        if source is None:
            return {"outcome": STALE}
        assert not any(name.startswith(REFERENCE) for name in sys.modules)
        sys.meta_path.insert(0, _Overlay(f"{REFERENCE}.{mutant.module}", source))
    stores = importlib.import_module("pytest_statepersist.machines.reference_stores")
    if not hasattr(stores, store):
        stores = importlib.import_module("tests.mutants.bare_stores")
    adapter = getattr(stores, store)()
    ran = 0
    names = names_of(GROUPS[group])
    first = mutant.first if mutant is not None else ""
    for name in sorted(names, key=lambda each: each != first):
        test = getattr(GROUPS[group](), name)
        if adapter.lacks(*needs_of(test)) is not None:
            continue
        root = Path(tempfile.mkdtemp(prefix="mutant-", dir=_in_memory()))
        try:
            test(Bench(adapter, root, _SETTINGS))
            ran += 1
        except pytest.skip.Exception:
            continue
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return {
                "outcome": "caught",
                "test": name,
                "why": f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}",
            }
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return {"outcome": "survived", "why": f"{ran} tests of the group {group} passed"}


def run(mutant: Mutant) -> dict[str, Any]:
    """Judge one mutant in a process of its own, within `TIME_LIMIT_S` seconds."""
    began = time.perf_counter()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            signal.alarm(TIME_LIMIT_S)
            answer = _judge(mutant, mutant.store, mutant.group)
            os.write(writer, json.dumps(answer).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(data) if data else {"outcome": "survived", "why": "died or took too long"}
    return {"name": mutant.name, **answer, "seconds": round(time.perf_counter() - began, 2)}


def main(arguments: Sequence[str]) -> None:
    """Run the mutants with these numbers, or all."""
    for name in _HEAVY:  # loaded once, before the forks
        importlib.import_module(name)
    for number in map(int, arguments or map(str, range(len(MUTANTS)))):
        print(json.dumps(run(MUTANTS[number])), flush=True)


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main(sys.argv[1:])
