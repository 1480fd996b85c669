"""What an example states about the store that it calls.

Belongs here: the vocabulary of the example modules (expected verdicts, citations of the source) and
how a module is loaded. Running is in `run`. Rules:

1. An example calls a store as its documentation says; it contains no store of its own, apart from
   the four lines of JSON that everybody writes.
2. Its expectations were written from the store's source, which it cites, before its first run.
   Where a run disagreed, the module says which of the two was wrong.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["MODELS", "POWER_LOSS", "Citation", "Example", "Expected", "expect", "load", "names"]

MODELS = ("posix", "ext4", "ext4-writeback", "ext4-noauto_da_alloc", "xfs", "btrfs", "kill")
"""Every model, in the order of the table's columns."""
POWER_LOSS = MODELS[:-1]
"""Every model but the killed process."""


class Expected(NamedTuple):
    """What a careful reader expects of one store under one model."""

    atomic: bool
    durable: bool


def expect(*, atomic: tuple[str, ...], durable: tuple[str, ...]) -> Mapping[str, Expected]:
    """Return a verdict for every model from the models under which the store holds."""
    return {model: Expected(model in atomic, model in durable) for model in MODELS}


@dataclass(frozen=True, slots=True)
class Citation:
    """A line that an expectation rests on: ``text`` stands in line ``line`` of ``module``.

    ``version`` is that of the distribution, or of Python where ``distribution`` is ``"python"``;
    line numbers hold for that version only.
    """

    distribution: str
    version: str
    module: str
    line: int
    text: str

    def installed(self) -> bool:
        """Say whether the cited version is the one that is installed."""
        if self.distribution == "python":
            return platform.python_version() == self.version
        return importlib.metadata.version(self.distribution) == self.version

    def actual(self) -> str:
        """Return the cited line as it stands in the installed source, without its indentation."""
        specification = importlib.util.find_spec(self.module)
        if specification is None or specification.origin is None or not specification.has_location:
            raise LookupError(f"{self.module} has no source file")
        lines = Path(specification.origin).read_text(encoding="utf-8").splitlines()
        return lines[self.line - 1].strip()


@dataclass(frozen=True, slots=True)
class Example:
    """One store as a user calls it, and what is expected of it."""

    name: str
    setup: Callable[[Path], object]
    workload: Callable[..., object]
    recover: Callable[[Path], object]
    expected: Mapping[str, Expected]
    citations: tuple[Citation, ...]
    module: ModuleType
    settings: Mapping[str, Any]
    """How far it is explored where that is not as usual: a smaller bound is still said."""


def names() -> list[str]:
    """Return the names of all examples, sorted."""
    stores = Path(__file__).parent / "stores"
    return sorted(path.stem for path in stores.glob("*.py") if path.stem != "__init__")


def load(name: str) -> Example:
    """Import one example; raises `ModuleNotFoundError` where its package is not installed."""
    module = importlib.import_module(f"examples.stores.{name}")
    return Example(
        name,
        module.setup,
        module.workload,
        module.recover,
        module.EXPECTED,
        module.CITATIONS,
        module,
        getattr(module, "SETTINGS", {}),
    )
