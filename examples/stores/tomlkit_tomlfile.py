"""tomlkit: `TOMLFile.read`, change a value, `TOMLFile.write`.

`write` opens the file with "w", which truncates it, and writes the text. An empty file is a valid
TOML document without any key.

Expected: atomic nowhere; durable only where the page cache survives.
"""

from pathlib import Path

from tomlkit.toml_file import TOMLFile

from examples.example import Citation, expect


def setup(directory: Path) -> None:
    (directory / "app.toml").write_text('# the window\n[window]\ntheme = "light"\n')


def workload(directory: Path) -> None:
    file = TOMLFile(directory / "app.toml")
    document = file.read()
    document["window"]["theme"] = "dark"
    file.write(document)


def recover(directory: Path) -> object:
    return TOMLFile(directory / "app.toml").read().unwrap()


EXPECTED = expect(atomic=(), durable=("kill",))
CITATIONS = (
    Citation(
        "tomlkit",
        "0.15.2",
        "tomlkit.toml_file",
        58,
        'with open(self._path, "w", encoding="utf-8", newline="") as f:',
    ),
)
