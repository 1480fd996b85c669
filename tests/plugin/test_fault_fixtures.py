"""The fixtures for faults, clocks and tampering, as a user's tests meet them."""

from __future__ import annotations

import pytest

TESTS = """
    import json, os
    from pathlib import Path
    import pytest
    from hypothesis import HealthCheck, given, settings, strategies as st

    def save(path, value):
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def swallow(path, value):
        try:
            save(path, value)
        except OSError:
            pass

    def load(path):
        return json.loads(path.read_text())

    def arguments(save):
        return dict(
            setup=lambda d: save(d / "s", 1),
            workload=lambda d: save(d / "s", 2),
            recover=lambda d: load(d / "s"),
            before=1,
            after=2,
        )

    def test_passes(fault_injector):
        assert fault_injector.check(**arguments(save)).ok

    def test_fails(fault_injector):
        fault_injector.check(errors=["ENOSPC"], states=0, **arguments(swallow))

    @pytest.mark.statepersist(model="ext4", seed=3)
    def test_marker(fault_injector):
        report = fault_injector.sweep(errors=["EIO"], **arguments(save))
        assert report.seed == 3

    @settings(max_examples=2, deadline=None)
    @given(st.sampled_from([0, 1]))
    def test_given(fault_injector, fake_state_dir, tamper, number):
        with fake_state_dir(capacity=100) as directory:
            (directory / "f").write_text("x")
            with pytest.raises(OSError):
                (directory / "f").write_text("x" * 200)

    def test_clock(state_clock):
        before = state_clock.monotonic()
        state_clock.sleep(3600)
        assert state_clock.monotonic() - before == 3600

    def test_tamper(tamper):
        class Damaged(Exception):
            pass
        def load(files):
            if files["f"] != b"whole":
                raise Damaged
            return 1
        report = tamper.check_integrity(
            load, {"f": b"whole"}, expect=Damaged, passing=tamper.Passing.MAPPING)
        assert report.ok
        assert callable(tamper.scan_leaks)
        with pytest.raises(AttributeError, match="scan_nonces"):
            tamper.nothing
"""


def test_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("-p", "no:randomly")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*CrashConsistencyError*"])


def test_they_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("-p", "no:randomly", "--statepersist-off")
    result.assert_outcomes(
        passed=2, skipped=4, failed=0, errors=0, xfailed=0, xpassed=0, warnings=0
    )
