"""Runs of pytest inside tests: with the plugins that a test asks for and no others.

All that is installed beside pytest (numpy for randomly, hypothesis, pyfakefs) costs a run three
seconds of imports, and has no part in what is tested here.
"""

from __future__ import annotations

import pytest

# A run inside this process forgets what it was first to import: imported here, it is kept.
import pytest_statepersist.keeping
import pytest_statepersist.report.data
import pytest_statepersist.report.summary  # noqa: F401


@pytest.fixture(autouse=True)
def _few_plugins(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_statepersist.plugin")
    # Sources are changed within one second and keep their size.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
