"""Every broken store is caught, with its class and its line; every sound one passes.

The broken ones are the engine's canaries: each must be caught under each model that it lists, and
must pass under each that it does not. The sound ones are the opposite: one finding is a false
alarm. Nothing here may be skipped or loosened: where the engine and a store disagree, one of them
is wrong.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_statepersist import CrashSimulator, Report
from pytest_statepersist.recorders.python import interposition
from tests.zoo import steps
from tests.zoo.spec import ALL_MODELS, ZooSpec, bug_lines

ZOO = Path(__file__).parent
BROKEN = sorted((ZOO / "broken").glob("*.py"))
RECOVERY = sorted((ZOO / "recovery").glob("*.py"))
SOUND = sorted((ZOO / "sound").glob("*.py"))
SOAK = os.environ.get("STATEPERSIST_PROFILE") == "soak"
RECIPES = [
    ZOO / "sound" / f"{name}.py"
    for name in (
        "framed_log",
        "generations",
        "link_then_sync",
        "one_atomic_replace",
        "pointer_after_target",
        "queue_that_prefers_done",
        "symlink_swap",
        "undo_journal",
    )
]
"""Sound stores that differ in what their syncs are for; the others repeat these."""


@pytest.fixture(scope="module", autouse=True)
def replacements_once() -> Iterator[None]:
    """Put in place for all stores what each recording would put in place for itself."""
    with interposition():
        yield


@cache
def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"zoo_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class OneSyncLess:
    """The module `os`, seen through a store whose n-th `fsync` was forgotten."""

    def __init__(self, forgotten: int) -> None:
        self.forgotten = forgotten
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls - 1 != self.forgotten:
            os.fsync(descriptor)


def explore(path: Path, spec: ZooSpec | None = None, **options: Any) -> Report:
    spec = spec or load(path).SPEC
    judged_by: dict[str, Any] = {"before": spec.before, "after": spec.after}
    if spec.invariant is not None:
        judged_by = {"invariant": spec.invariant}
    return CrashSimulator().explore(
        setup=spec.setup,
        workload=spec.workload,
        recover=spec.recover,
        **judged_by,
        **{"model": list(ALL_MODELS), "repairs": False, **options},
    )


def answers(report: Report) -> dict[str, bool | None]:
    """Return, for each model, whether it says yes to both questions."""
    found = {}
    for model in ALL_MODELS:
        verdict = report.verdict(model)
        both = (verdict.atomic, verdict.durable)
        found[model] = False if False in both else None if None in both else True
    return found


def named(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in paths]


@pytest.mark.parametrize("path", named(BROKEN + RECOVERY))
def test_a_broken_store_is_caught(path: Path) -> None:
    spec: ZooSpec = load(path).SPEC
    report = explore(path)
    assert answers(report) == {model: model not in spec.models for model in ALL_MODELS}
    assert not report.warnings
    fewest = min(finding.deviations for finding in report.findings if "posix" in finding.models)
    assert fewest == spec.deviations
    for model in spec.models:
        first = next(finding for finding in report.findings if model in finding.models)
        assert first.kind.value == spec.kind, f"{model}: {first}"
        assert first.cause in spec.causes, f"{model}: {first}"
        assert first.site is not None, f"{model}: {first}"
        assert Path(first.site.file).resolve() == path.resolve(), f"{model}: {first}"
        assert first.site.line in bug_lines(path.read_text()), f"{model}: {first}"


@pytest.mark.parametrize("path", named(RECOVERY))
def test_a_broken_recovery_shows_only_when_it_is_interrupted(path: Path) -> None:
    assert explore(path, recovery_crashes=0).findings == ()


@pytest.mark.parametrize("path", named(SOUND))
def test_a_sound_store_passes(path: Path) -> None:
    report = explore(path)
    assert report.findings == ()
    assert answers(report) == dict.fromkeys(ALL_MODELS, True)
    assert all(report.verdict(model).complete for model in ALL_MODELS)
    assert not report.warnings


@pytest.mark.parametrize("path", named(RECIPES if SOAK else RECIPES[::2]))
def test_a_sound_store_with_one_sync_less_is_caught(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sync of a sound store is there for show: the engine must miss each one."""
    module = load(path)
    caught, forgotten = [], 0
    while True:
        less = OneSyncLess(forgotten)

        @wraps(module.SPEC.workload)
        def workload(*arguments: Any, less: OneSyncLess = less) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(steps, "os", less)
                patch.setattr(module, "os", less, raising=False)
                module.SPEC.workload(*arguments)

        spec = replace(module.SPEC, workload=workload)
        for model in ("posix", "btrfs"):  # the second for what the weakest model never shows
            less.calls = 0
            report = explore(path, spec, model=model, deviations=1, samples=0, recovery_crashes=0)
            if report.findings or less.calls <= forgotten:
                break
        if less.calls <= forgotten:
            break
        caught.append(bool(report.findings))
        forgotten += 1
    assert caught == [number not in module.SPEC.spare_syncs for number in range(len(caught))]
    assert caught


def test_the_zoo_is_large_enough() -> None:
    assert len(BROKEN) >= 28
    assert len(RECOVERY) >= 5
    assert len(SOUND) >= 10


@pytest.mark.parametrize("path", named(BROKEN + RECOVERY + SOUND))
def test_a_store_tells_its_story(path: Path) -> None:
    module = load(path)
    story = (module.__doc__ or "").strip()
    marked = bug_lines(path.read_text())
    assert len(story.split()) > 10
    if path in SOUND:
        assert module.SPEC.models == ()
        assert not marked
    else:
        assert "deviation" in story
        assert "posix" in module.SPEC.models
        assert set(module.SPEC.models) <= set(ALL_MODELS)
        assert module.SPEC.models
        assert len(marked) == 1
