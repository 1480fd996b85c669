"""The pytest plugin: options, marker, header, summary. Nothing heavy is imported at load.

Belongs here: what pytest calls. Fixtures are in `fixtures`, prose in `report`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.fixtures import (
    collect_reports,
    crash_simulator,
    snapshot_factory,
    state_dir,
)
from pytest_statepersist.options import CURRENT, MARKER_KEYWORDS, REPORTS
from pytest_statepersist.reference_fixtures import (
    _places,
    app_database,
    app_recovery,
    backup_schedule,
    close_all,
    component_registry,
    conversation_store,
    event_log,
    file_store,
    group_snapshot_store,
    invite_book,
    local_storage,
    messenger,
    nightly_retention,
    reference_clock,
    remote_store,
    replica,
    vault,
)

__all__ = [
    "_places",
    "app_database",
    "app_recovery",
    "backup_schedule",
    "component_registry",
    "conversation_store",
    "crash_simulator",
    "event_log",
    "file_store",
    "group_snapshot_store",
    "invite_book",
    "local_storage",
    "messenger",
    "nightly_retention",
    "reference_clock",
    "remote_store",
    "replica",
    "snapshot_factory",
    "state_dir",
    "vault",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options and ini settings."""
    group = parser.getgroup("statepersist", "crash consistency of what is saved")
    group.addoption(
        "--statepersist-model",
        metavar="NAMES",
        help="persistence models to check, comma-separated (default: posix); 'all' for every one",
    )
    group.addoption(
        "--statepersist-budget",
        metavar="N|Ns",
        help="bound for each exploration: a number of recoveries, or seconds such as 30s",
    )
    group.addoption(
        "--statepersist-seed", metavar="N", type=int, help="seed of every choice made by chance"
    )
    group.addoption(
        "--statepersist-deviations",
        metavar="N",
        type=int,
        help="how many operations may be overtaken by later ones (default: 2)",
    )
    group.addoption(
        "--statepersist-json",
        metavar="FILE",
        help="write every verdict and finding of the run as JSON",
    )
    group.addoption(
        "--statepersist-off",
        action="store_true",
        help="skip every test that explores crashes",
    )
    for name, text in (
        ("model", "persistence models to check, comma-separated"),
        ("budget", "bound for each exploration: recoveries, or seconds such as 30s"),
        ("seed", "seed of every choice made by chance"),
        ("deviations", "how many operations may be overtaken by later ones"),
        ("recovery_crashes", "how many crashes during recovery to explore"),
        ("recorder", "auto, python or strace"),
        ("time_limit", "seconds that one recovery may take"),
        ("workspace", "directory for crash states; default: in memory where there is one"),
        ("xfails", "TOML list of conformance tests that are known to fail, below the root"),
    ):
        parser.addini(f"statepersist_{name}", text, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the place where reports are collected."""
    config.addinivalue_line(
        "markers",
        "statepersist(model=…, budget=…, seed=…, deviations=…, recovery_crashes=…, recorder=…, "
        "time_limit=…, repairs=…, redundant_syncs=…): settings of crash_simulator for this test",
    )
    config.stash[REPORTS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the markers early, and skip what explores crashes when it is switched off."""
    off = config.getoption("--statepersist-off")
    for item in items:
        for mark in item.iter_markers("statepersist"):
            unknown = sorted(set(mark.kwargs) - set(MARKER_KEYWORDS))
            if unknown or mark.args:
                what = f"keyword {unknown[0]!r}" if unknown else f"argument {mark.args[0]!r}"
                raise pytest.UsageError(
                    f"{item.nodeid}: @pytest.mark.statepersist does not know the {what}; it takes "
                    f"{', '.join(MARKER_KEYWORDS)}"
                )
        if off and "crash_simulator" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="--statepersist-off was given"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say which test runs: fixtures that live longer take their settings from it."""
    item.config.stash[CURRENT] = item


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Close what the test opened, and keep its reports."""
    close_all(item.config)
    collect_reports(item)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what was asked for on the command line; nothing where nothing was."""
    given = [
        f"{name}={config.getoption(f'--statepersist-{name}')}"
        for name in ("model", "budget", "seed", "deviations")
        if config.getoption(f"--statepersist-{name}") is not None
    ]
    if config.getoption("--statepersist-off"):
        given.append("off")
    return f"statepersist: {', '.join(given)}" if given else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of a distributed run: hand the results to the controller."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["statepersist"] = session.config.stash[REPORTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the controller of a distributed run: take a worker's results."""
    found = getattr(node, "workeroutput", {}).get("statepersist", [])
    node.config.stash[REPORTS].extend(found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was covered, one line an exploration; nothing where there was none."""
    config = terminalreporter.config
    collected = config.stash[REPORTS]
    reports = sorted(collected, key=lambda each: str(each["name"]))
    target = config.getoption("--statepersist-json")
    if target:
        from pytest_statepersist.report.data import document

        Path(target).write_text(json.dumps(document(reports), indent=2) + "\n")
    if not reports:
        return
    from pytest_statepersist.report.summary import github_annotations, summary_lines

    terminalreporter.section("statepersist")
    for line in summary_lines(reports):
        terminalreporter.line(line)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_annotations(reports):
            terminalreporter.line(line)
