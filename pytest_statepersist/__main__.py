"""``python -m pytest_statepersist`` is the command line where no script was installed."""

from __future__ import annotations

import sys

from pytest_statepersist.cli import main

if __name__ == "__main__":
    sys.exit(main())
