"""What a user of the plugin meets: fixtures, options, marker, header, summary."""

from __future__ import annotations

import subprocess
import sys

import pytest

STORE = """
    import json, os

    def save(path, value):
        path.write_text(json.dumps(value))

    def save_well(path, value):
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def load(path):
        return json.loads(path.read_text())

    def explore(simulator, save):
        return simulator.check(
            setup=lambda d: save_well(d / "s", 1),
            workload=lambda d: save(d / "s", 2),
            recover=lambda d: load(d / "s"),
            before=1,
            after=2,
        )
"""
TESTS = (
    STORE
    + """
    def test_good(crash_simulator):
        explore(crash_simulator, save_well)

    def test_bad(crash_simulator):
        explore(crash_simulator, save)
"""
)


@pytest.fixture(autouse=True)
def _quiet(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:randomly -p no:cacheprovider")


def test_a_failure_explains_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*What was lost: *",
            "*on disk*#0 truncate s to 0 bytes*test_a_failure_explains_itself.py:4*",
            "*Recovery raised json.decoder.JSONDecodeError*",
            "*Expected 1 or 2*",
            "*Allowed by: posix*",
            "*= statepersist =*",
            "*test_bad: posix: atomic NO, durable NO*",
            "*test_good: posix: atomic yes, durable yes*",
        ]
    )


def test_models_come_from_options_ini_and_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        STORE
        + """
    import pytest

    def test_options(crash_simulator):
        assert explore(crash_simulator, save_well).verdict("xfs").durable

    @pytest.mark.statepersist(model="kill", deviations=1)
    def test_marker(crash_simulator):
        report = explore(crash_simulator, save_well)
        assert [v.model for v in report.verdicts] == ["kill"]
        assert crash_simulator.settings.deviations == 1
        assert crash_simulator.settings.seed == 9
"""
    )
    result = pytester.runpytest_subprocess(
        "-q", "--statepersist-model=ext4,xfs", "--statepersist-seed=9"
    )
    result.assert_outcomes(passed=2)


def test_ini_settings(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\naddopts = -p no:randomly\nstatepersist_model = all\nstatepersist_budget = 20s\n"
        "statepersist_recovery_crashes = 0"
    )
    pytester.makepyfile(
        STORE
        + """
    def test_ini(crash_simulator):
        assert len(explore(crash_simulator, save_well).verdicts) == 7
        assert crash_simulator.settings.budget == "20s"
        assert crash_simulator.settings.recovery_crashes == 0
"""
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=1)


def test_the_marker_rejects_unknown_keywords(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.statepersist(modle="ext4")
        def test_it(crash_simulator):
            pass
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*does not know the keyword 'modle'*"])


def test_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("--statepersist-off")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["statepersist: off"])


def test_an_unknown_model_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("--statepersist-model=ext5")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*there is no persistence model 'ext5'*"])


def test_nothing_is_shown_where_nothing_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_plain(): pass")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    assert "statepersist:" not in result.stdout.str()
    assert "= statepersist =" not in result.stdout.str()


def test_state_dir_is_an_empty_private_directory(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(state_dir):
            assert state_dir.is_dir() and not list(state_dir.iterdir())
            assert state_dir.stat().st_mode & 0o777 == 0o700
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_it_works_under_hypothesis(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        STORE
        + """
    from hypothesis import given, settings, strategies as st

    @settings(max_examples=3, deadline=None)
    @given(value=st.integers())
    def test_it(crash_simulator, value):
        crash_simulator.check(
            setup=lambda d: save_well(d / "s", None),
            workload=lambda d: save_well(d / "s", value),
            recover=lambda d: load(d / "s"),
        )
"""
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=1)


def test_the_package_is_importable_without_pytest_being_run() -> None:
    code = "from pytest_statepersist import CrashSimulator, MODELS; print(len(MODELS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7"
