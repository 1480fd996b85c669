"""The pytest plugin: options, marker, header, summary. Nothing heavy is imported at load.

Belongs here: what pytest calls. Fixtures are in `fixtures`, prose in `report`.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from pytest_statepersist.fixtures import (
    collect_reports,
    crash_simulator,
    fake_state_dir,
    fault_injector,
    snapshot_factory,
    state_clock,
    state_dir,
    tamper,
)
from pytest_statepersist.options import (
    BASELINE,
    CAPABILITIES,
    CHECKS,
    CURRENT,
    MARKER_KEYWORDS,
    REPLAY,
    REPLAYED,
    REPORTS,
    ReplayDone,
    baseline_of,
    bundles_of,
)
from pytest_statepersist.reference_fixtures import (
    _places,
    app_autosave,
    app_database,
    app_recovery,
    atomic_file,
    backup_schedule,
    close_all,
    component_registry,
    conversation_store,
    envelope_key,
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
    state_serializer,
    state_snapshot,
    user_identity,
    vault,
)

__all__ = [
    "_places",
    "app_autosave",
    "app_database",
    "app_recovery",
    "atomic_file",
    "backup_schedule",
    "component_registry",
    "conversation_store",
    "crash_simulator",
    "envelope_key",
    "event_log",
    "fake_state_dir",
    "fault_injector",
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
    "state_clock",
    "state_dir",
    "state_serializer",
    "state_snapshot",
    "tamper",
    "user_identity",
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
        "--statepersist-replay",
        metavar="ID|FILE",
        action="append",
        help="run the one test of a bundle, on the one disk that it holds",
    )
    group.addoption(
        "--statepersist-write-baseline",
        action="store_true",
        help="accept every finding of this run: write the file of statepersist_baseline",
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
        ("baseline", "JSON or TOML list of accepted findings, below the root"),
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
    config.stash[CHECKS] = []
    config.stash[REPLAYED] = []
    config.stash[CAPABILITIES] = []
    config.stash[BASELINE] = baseline_of(config)
    bundles = bundles_of(config)
    if bundles:
        config.stash[REPLAY] = bundles
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(config.rootpath / test) for test in bundles]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the markers early, and skip what explores crashes when it is switched off."""
    off = config.getoption("--statepersist-off")
    _select_replayed(config, items)
    for item in items:
        for mark in item.iter_markers("statepersist"):
            unknown = sorted(set(mark.kwargs) - set(MARKER_KEYWORDS))
            if unknown or mark.args:
                what = f"keyword {unknown[0]!r}" if unknown else f"argument {mark.args[0]!r}"
                raise pytest.UsageError(
                    f"{item.nodeid}: @pytest.mark.statepersist does not know the {what}; it takes "
                    f"{', '.join(MARKER_KEYWORDS)}"
                )
        exploring = {"crash_simulator", "fault_injector"} & {*getattr(item, "fixturenames", ())}
        if off and exploring:
            item.add_marker(pytest.mark.skip(reason="--statepersist-off was given"))


def _select_replayed(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of all tests leave those whose bundles are replayed."""
    bundles = config.stash.get(REPLAY, None)
    if bundles is None:
        return
    missing = bundles.keys() - {item.nodeid for item in items}
    for test in sorted(missing):
        raise pytest.UsageError(
            f"the test {test} of the bundle {bundles[test].name} is not there; was it renamed?"
        )
    others = [item for item in items if item.nodeid not in bundles]
    items[:] = [item for item in items if item.nodeid in bundles]
    if others:
        config.hook.pytest_deselected(items=others)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """End a replay where it was judged; a test that never came to it is no success."""
    with _failures_kept(item):
        return (yield from _replayed(item))


def _failures_kept(item: pytest.Item) -> AbstractContextManager[None]:
    """Keep what a machine finds; for other tests nothing is done, and nothing imported."""
    if not hasattr(getattr(item, "obj", None), "statepersist_machine"):
        return nullcontext()
    from pytest_statepersist.machine_keeping import MachineKeeper
    from pytest_statepersist.machines.kept import keeping

    return keeping(MachineKeeper(item))


def _replayed(item: pytest.Item) -> Generator[None, object, object]:
    if REPLAY not in item.config.stash:
        return (yield)
    bundle, rows = item.config.stash[REPLAY][item.nodeid], item.config.stash[REPLAYED]
    before = len(rows)
    result: object = None
    try:
        result = yield
    except ReplayDone:
        pass
    except BaseException as error:
        if len(rows) == before:
            text = f"the test did not come to the recorded exploration: {error!r}"
            rows.append(_replay_error(bundle.name, bundle.test, text))
            raise
        if not isinstance(error, Exception):
            raise
    if len(rows) == before:
        text = (
            f"the test ended without the exploration of the bundle {bundle.name}: its exploration "
            f"number {bundle.ordinal + 1}, named {bundle.exploration!r}"
        )
        rows.append(_replay_error(bundle.name, bundle.test, text))
    if rows[-1]["status"] != "FIXED":
        # The text holds all that there is to see; a traceback would show the way to the recovery.
        pytest.fail(rows[-1]["text"], pytrace=False)
    return result


def _replay_error(name: str, test: str, text: str) -> dict[str, Any]:
    return {"bundle": name, "test": test, "status": "ERROR", "text": text}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say which test runs: fixtures that live longer take their settings from it."""
    item.config.stash[CURRENT] = item


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Close what the test opened, and keep its reports."""
    close_all(item.config)
    collect_reports(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Once a machine or conformance test has ended: say what it tells of its store's promises."""
    report = yield
    matrix: Any = sys.modules.get("pytest_statepersist.matrix")
    if matrix is None or (call.when == "setup" and report.passed):
        return report
    rows = matrix.take()
    if not _is_about_one_store(item):
        return report
    status, reason = matrix.Status.YES, ""
    if hasattr(report, "wasxfail"):
        status, reason = matrix.Status.KNOWN, report.wasxfail
    elif report.skipped:
        status = matrix.Status.SKIPPED
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        reason = reason.removeprefix("Skipped: ")
    elif report.failed:
        status, reason = matrix.Status.FAILS, f"see {item.nodeid}"
    item.config.stash[CAPABILITIES].extend(matrix.judged(rows, status, reason))
    return report


def _is_about_one_store(item: pytest.Item) -> bool:
    """Whether the item is a machine or a conformance test: others may expect a machine to fail."""
    function = getattr(item, "obj", None)
    return hasattr(function, "statepersist_machine") or "bench" in getattr(item, "fixturenames", ())


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
        output["statepersist_checks"] = session.config.stash[CHECKS]
        output["statepersist_replays"] = session.config.stash[REPLAYED]
        rows = session.config.stash[CAPABILITIES]
        output["statepersist_capabilities"] = [row.plain() for row in dict.fromkeys(rows)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the controller of a distributed run: take a worker's results."""
    found = getattr(node, "workeroutput", {}).get("statepersist", [])
    node.config.stash[REPORTS].extend(found)
    checks = getattr(node, "workeroutput", {}).get("statepersist_checks", [])
    node.config.stash[CHECKS].extend(checks)
    replays = getattr(node, "workeroutput", {}).get("statepersist_replays", [])
    node.config.stash[REPLAYED].extend(replays)
    if found := getattr(node, "workeroutput", {}).get("statepersist_capabilities"):
        from pytest_statepersist.matrix import Row

        node.config.stash[CAPABILITIES].extend(Row(**each) for each in found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was covered, one line for each exploration or check; nothing without one."""
    config = terminalreporter.config
    reports, checks = _sorted(config.stash[REPORTS]), _sorted(config.stash[CHECKS])
    target = config.getoption("--statepersist-json")
    if target:
        from pytest_statepersist.report.data import document

        data = document(reports, checks) | {"replays": config.stash[REPLAYED]}
        data["capabilities"] = _capabilities(config)
        Path(target).write_text(json.dumps(data, indent=2) + "\n")
    _show_capabilities(terminalreporter)
    if not reports and not checks:
        replays = config.stash[REPLAYED]
        if replays:
            terminalreporter.section("statepersist")
        for each in sorted(replays, key=lambda row: str(row["bundle"])):
            terminalreporter.line(f"{each['bundle']}: {each['status']} ({each['test']})")
        return
    from pytest_statepersist.report import summary

    terminalreporter.section("statepersist")
    for line in [*summary.summary_lines(reports), *summary.check_lines(checks)]:
        terminalreporter.line(line)
    for line in _baseline_lines(terminalreporter, reports):
        terminalreporter.line(line)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        annotations = summary.github_annotations(reports), summary.check_annotations(checks)
        for line in itertools.chain(*annotations):
            terminalreporter.line(line)


def _sorted(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda each: str(each["name"]))
def _capabilities(config: pytest.Config) -> list[dict[str, Any]]:
    """Return the capability matrix as plain data; empty where no store was described."""
    rows = config.stash[CAPABILITIES]
    if not rows:
        return []
    from pytest_statepersist.matrix import merged

    return merged(rows)


def _show_capabilities(reporter: pytest.TerminalReporter) -> None:
    entries = _capabilities(reporter.config)
    if not entries:
        return
    from pytest_statepersist.report.capabilities import matrix_lines

    reporter.section("capabilities of the stores under test")
    for line in matrix_lines(entries, max(80, reporter._tw.fullwidth)):
        reporter.line(line)


def _baseline_lines(
    reporter: pytest.TerminalReporter, reports: list[dict[str, Any]]
) -> Iterator[str]:
    """Write the baseline where that was asked for; name what is accepted and no longer there."""
    baseline = reporter.config.stash[BASELINE]
    if not baseline.path:
        return
    from pytest_statepersist.baseline import updated, vanished, write_baseline

    name = os.path.relpath(baseline.path, reporter.config.rootpath)
    if baseline.everything:
        accepted = updated(baseline.accepted, reports)
        write_baseline(Path(baseline.path), accepted)
        yield f"baseline {name}: {len(accepted)} accepted findings written"
        return
    if any(
        reporter.config.getoption(f"--statepersist-{each}") is not None
        for each in ("model", "budget", "deviations")
    ):
        return  # this run may have looked at less than the one that found them
    passed = {each.nodeid for each in reporter.stats.get("passed", []) if each.when == "call"}
    for gone in vanished(baseline.accepted, reports, passed):
        text = f": {gone.text}" if gone.text else ""
        test = f" ({gone.test})" if gone.test else ""
        yield f"baseline {name}: {gone.id} is gone{text}{test}; take it out"
