"""python-dotenv: `set_key` on a `.env` file.

All the other keys are copied with the new one into a temporary beside the file, which is closed,
given the old mode, and renamed over it. No sync: a power loss may leave the file empty, with every
key in it gone, including those that were not touched.

Expected: atomic and durable only where the page cache survives.
"""

from pathlib import Path

from dotenv import dotenv_values, set_key

from examples.example import Citation, expect


def setup(directory: Path) -> None:
    (directory / ".env").write_text("DATABASE_URL='postgres://db'\nSECRET='old'\n")


def workload(directory: Path) -> None:
    set_key(directory / ".env", "SECRET", "new")


def recover(directory: Path) -> object:
    return dict(dotenv_values(directory / ".env"))


EXPECTED = expect(atomic=("kill",), durable=("kill",))
CITATIONS = (
    Citation("python-dotenv", "1.2.4", "dotenv.main", 163, "with tempfile.NamedTemporaryFile("),
    Citation("python-dotenv", "1.2.4", "dotenv.main", 184, "os.replace(dest_path, path)"),
)
