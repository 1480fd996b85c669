"""Which tests go to one worker of pytest-xdist, since they share what takes long to make.

Belongs here: a scheduler that knows this from the names of tests. xdist has the mark `xdist_group`
for it, and writes the group into an attribute that pytest has no more since 9.2; the mark is then
without effect, and each worker makes everything itself.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

BY_FILE = (
    "tests/reference/test_remote.py",  # one worker starts the servers, and only one
)
BY_PARAMETER = (
    "tests/reference/test_every_durable_operation.py",  # one exploration for each operation
    "tests/test_repairs.py",  # and for each store
    "tests/test_architecture.py",  # and one reading of each module
)


def together(nodeid: str) -> str:
    """Name what a test belongs to; tests of one name go to one worker, one after the other."""
    file, _, rest = nodeid.partition("::")
    if file in BY_FILE:
        return file
    if file in BY_PARAMETER and "[" in rest:
        return f"{file}[{rest.partition('[')[2]}"
    return nodeid


class Together(LoadScopeScheduling):
    """Hands out tests one by one, and those that belong together to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)
