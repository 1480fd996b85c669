"""``python -m examples.conformance``: the table of all stores."""

from __future__ import annotations

import sys

from examples.conformance.table import main

sys.exit(main())
