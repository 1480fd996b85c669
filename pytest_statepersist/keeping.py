"""The `crash_simulator` of pytest: keeps bundles, knows the baseline, and replays when told to.

Belongs here: what the fixture does beyond `CrashSimulator`. Imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_statepersist.bundle import DIRECTORY
from pytest_statepersist.bundle_json import Bundle
from pytest_statepersist.checked import Checked
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import BundleError, CrashConsistencyError
from pytest_statepersist.findings import Report
from pytest_statepersist.options import (
    BASELINE,
    CURRENT,
    REPLAY,
    REPLAYED,
    ReplayDone,
    keep_check,
    settings_for,
)
from pytest_statepersist.replaying import judge, keep_bundles
from pytest_statepersist.settings import Settings, changed_settings
from pytest_statepersist.simulator import CrashSimulator

__all__ = ["SimulatorOfTests"]


class SimulatorOfTests(CrashSimulator):
    """Lives as long as the session, so that ``@given`` may use it; settings are the test's."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._ordinal = -1
        self.following = False
        """Whether a machine's history is explored, which is the same each time."""
        super().__init__()

    @property
    def settings(self) -> Settings:
        """What ini, options and the marker of the test that runs say."""
        return changed_settings(Settings(), settings_for(self._config, self._item))

    @settings.setter
    def settings(self, value: Settings) -> None:
        """Settings come from the test that runs."""

    @property
    def _item(self) -> pytest.Item | None:
        return self._config.stash.get(CURRENT, None)

    @property
    def _generated(self) -> bool:
        """Whether Hypothesis calls the test: then the n-th exploration is not always the same."""
        function = getattr(self._item, "obj", None)
        return not self.following and bool(getattr(function, "is_hypothesis_test", False))

    def test_ends(self) -> None:
        """Count the explorations of the next test from the start."""
        self._ordinal = -1

    def keep_check(self, checked: Checked) -> None:
        """Keep a kill, or savers that ran against each other, for the summary and for JSON."""
        keep_check(self._config, checked)

    def keep(self, report: Report) -> Report:
        """Mark what the baseline accepts, and write a bundle for each finding."""
        baseline = self._config.stash[BASELINE]
        findings = []
        test = self._item.nodeid if self._item is not None else ""
        for finding in report.findings:
            note = baseline.note(finding.id, test)
            findings.append(replace(finding, accepted=note))
        report = replace(report, findings=tuple(findings))
        directory = self._config.rootpath / DIRECTORY
        ordinal = 0 if self._generated else max(self._ordinal, 0)
        if self._item is None or (not findings and not directory.is_dir()):
            return report
        prune = not self._generated
        return keep_bundles(report, directory, test=test, ordinal=ordinal, prune=prune)

    def instead(
        self,
        *,
        settings: Settings,
        name: str,
        acknowledged: Callable[[], tuple[Any, ...]],
        **arguments: Any,
    ) -> Report | None:
        """When replaying: judge recovery on the one disk, and end the test there."""
        if self.following:
            return None
        self._ordinal += 1
        bundles = self._config.stash.get(REPLAY, None)
        if bundles is None or self._item is None:
            return None
        bundle = bundles[self._item.nodeid]
        if name != bundle.exploration or not (self._generated or self._ordinal == bundle.ordinal):
            return Report(Trace(Tree()), (), (), name=name)
        self._replay(bundle, settings, acknowledged, arguments)
        raise ReplayDone

    def _replay(
        self,
        bundle: Bundle,
        settings: Settings,
        acknowledged: Callable[[], tuple[Any, ...]],
        arguments: dict[str, Any],
    ) -> None:
        results = self._config.stash[REPLAYED]
        row = {"bundle": bundle.name, "test": bundle.test, "status": "ERROR", "text": ""}
        results.append(row)
        try:
            done = judge(
                bundle,
                acknowledged=acknowledged,
                time_limit=settings.time_limit,
                workspace=settings.workspace,
                **arguments,
            )
        except BundleError as error:
            row["text"] = str(error)
            raise
        except BaseException as error:
            row["text"] = f"{type(error).__name__}: {error}"
            raise
        row["status"] = "FIXED" if done.fixed else "FAILED"
        row["text"] = str(done)
        if not done.fixed:
            raise CrashConsistencyError(str(done), done)
