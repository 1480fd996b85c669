"""cachelib: `FileSystemCache.set`, as Flask applications keep their sessions.

One file for each key: a temporary in the cache directory, renamed over the key's file, then the
mode is set. No sync: after a power loss the key's file is empty or zeros, and `get` returns `None`
or raises. For a cache that is a miss; for a session it is a user who is logged out. The cache has
no limit (`threshold=0`), so that opening it does not write a count of its files.

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

from cachelib import FileSystemCache

from examples.example import Citation, expect


def cache(directory: Path) -> FileSystemCache:
    return FileSystemCache(str(directory / "cache"), threshold=0)


def setup(directory: Path) -> None:
    cache(directory).set("session", {"user": "ada"}, timeout=0)


def workload(directory: Path) -> None:
    cache(directory).set("session", {"user": "ada", "basket": ["milk"]}, timeout=0)


def recover(directory: Path) -> object:
    return cache(directory).get("session")


EXPECTED = expect(atomic=("kill",), durable=("kill",))
CITATIONS = (
    Citation(
        "cachelib", "0.17.0", "cachelib.file", 265, "self._run_safely(os.replace, tmp, filename)"
    ),
    Citation(
        "cachelib",
        "0.17.0",
        "cachelib.file",
        266,
        "self._run_safely(os.chmod, filename, self._mode)",
    ),
)
