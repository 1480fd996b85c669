"""Which tests run only in the soak profile, in which order the others run, and what may be skipped.

``STATEPERSIST_PROFILE=soak`` (``make soak``) runs them all. ``.ci/run`` installs what tests need
and sets ``STATEPERSIST_SKIPS=refuse``: then a skip is a failure, unless the machine itself lacks
something, such as a kernel, a file system, or a package that is not made for it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]

# What Hypothesis knows of Unicode takes three seconds to find out. Tests that start other processes
# elsewhere share it with them.
KEPT = Path(__file__).parent.parent / ".hypothesis"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(KEPT))

SOAK = (
    # filelock takes the same lock, and lockf's goes the same way between processes.
    "tests/test_concurrency.py::test_the_same_store_with_a_lock_passes[add_with_flock-True]",
    # Of the file store: the same crashes as in others, judged by another question.
    *(
        f"tests/conformance/test_reference_stores.py::TestFileStore::{name}"
        for name in (
            "test_several_keys_survive",
            "test_a_crashed_save_of_several_keys_can_be_repeated",
            "test_each_of_several_saves_survives",
            "test_a_crashed_first_save_can_be_repeated",
        )
    ),
    "tests/conformance/test_reference_stores.py::TestEncryptedFileStore",
    "tests/conformance/test_reference_stores.py::TestLocalStorage",
    "tests/conformance/test_reference_stores.py::TestVault",
    "tests/conformance/test_reference_stores.py::TestDatabase",
    "tests/conformance/test_reference_stores.py::TestGroupStore",
    "tests/mutants/test_mutants.py::test_ordinary_unit_tests",
    # Each has a twin in tests/machines/test_every_rule_bites.py.
    *(
        f"tests/machines/test_other_machines.py::test_{name}]"
        for name in (
            "retention_catches[limit itself",
            "retention_catches[stars",
            "retention_catches[two steps",
            "integrity_catches[associated data",
            "integrity_catches[wrong key",
            "backup_catches[crash inside restore",
            "backup_catches[keeps newer keys",
            "backup_catches[damaged backup",
            "migration_catches[in place",
            "migration_catches[newer taken",
            "migration_catches[newer rewritten",
            "migration_catches[older code harms",
        )
    ),
    # Their neighbours ask the same of another setting, another engine, another kind of answer.
    *(
        f"tests/{name}]"
        for name in (
            "test_examples.py::test_every_store_is_judged_as_its_source_says[sqlite_extra",
            "test_examples.py::test_every_store_is_judged_as_its_source_says[sqlite_off",
            "test_examples.py::test_every_store_is_judged_as_its_source_says[sqlite_side_file_synced",
            "test_examples.py::test_every_store_is_judged_as_its_source_says[sqlite_wal_normal",
            "test_engines.py::test_every_engine_is_judged_as_its_module_says[diskcache_set",
            "test_engines.py::test_every_engine_is_judged_as_its_module_says[parquet_write",
            "test_engines.py::test_every_engine_is_judged_as_its_module_says[rocksdb_put",
            "explorer/test_against_brute_force.py::test_the_same_answers_as_from_every_state[only_names",
            "plugin/test_capabilities.py::test_the_matrix[workers",
        )
    ),
    # The slowest of the programs: four hundred recoveries by git.
    "tests/test_cli.py::test_git_add_and_commit",
    # What is merged of several workers is in every run for explorations and for checks.
    "tests/plugin/test_machine_failures.py::test_no_bundle_is_lost_between_workers",
    # Other replays of a repair are in every run, and so is a store without syncs.
    "tests/plugin/test_replay.py::test_a_repaired_save_takes_its_bundles_along",
    "tests/reference/test_groups_under_crashes.py::test_a_log_without_syncs_is_found",
    # A program in C does the same, and passes in every run.
    "tests/test_fault_commands.py::test_a_sound_shell_program_passes",
    # Both at once are in every run.
    "tests/plugin/test_in_ci.py::test_results_are_merged_into_one_summary_and_one_file[workers]",
    "tests/plugin/test_in_ci.py::test_results_are_merged_into_one_summary_and_one_file[random]",
    "tests/plugin/test_check_reports.py::test_every_check_is_in_one_summary_and_one_file[plain]",
)

REASON = "runs in the soak profile: STATEPERSIST_PROFILE=soak"
FIRST = (
    "tests/recorders/test_strace_maps.py",
    "tests/plugin",
    "tests/test_concurrency.py",
    "tests/test_fault",
)
"""What forks, and what searches all that a process has loaded: both take the longer, the more that
is. What forks most is a run of its own, in the Makefile."""
LAST = ("tests/test_engines.py", "tests/reference/test_remote.py", "tests/core")
"""After what a process has most memory: large modules are imported, large tables are kept. At the
end stand small tests, so that no worker waits for another."""
GIVEN = (
    REASON,
    "FileStore does not declare",  # what a store does not promise is not asked of it
    "this kernel",
    "this file system",
    "the file system",
    "the C library here",
    "azure",
)
"""How the reasons begin that no installation can take away."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import Together

    config.option.loadscopereorder = False  # the order is chosen here
    return Together(config, log)


def place_of(nodeid: str) -> int:
    """Return where in the order a test stands: negative what comes first, positive what last."""
    if nodeid.startswith(FIRST):
        return -1
    return next((at for at, begin in enumerate(LAST, 1) if nodeid.startswith(begin)), 0)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place_of(item.nodeid))
    if os.environ.get("STATEPERSIST_PROFILE") == "soak":
        return
    for item in items:
        if item.nodeid.startswith(SOAK):
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("STATEPERSIST_SKIPS") != "refuse" or not report.skipped:
        return report
    if hasattr(report, "wasxfail"):
        return report
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(GIVEN):
        report.outcome = "failed"
        report.longrepr = f"skipped where everything is installed: {reason}"
    return report
