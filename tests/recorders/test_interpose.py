"""Runs `alone_interpose` in a process of its own: it counts every holder that the process has.

Known to be wrong: after explorations in the same process a class attribute that was a bare function
of `os` may come back as a `staticmethod` of it, which calls the same.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_interposition_and_rebinding() -> None:
    module = Path(__file__).with_name("alone_interpose.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:randomly", str(module)],
        cwd=module.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
