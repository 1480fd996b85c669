"""Every Python block and every command in the documentation is executed.

A Python block with a test in it is run by pytest, and its outcome is the one that the comment above
it announces (passed where there is none). Other blocks must at least compile. Console commands must
be known to the table below, which says how each is checked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- outcome: (?P<outcome>\w+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S
)


# Rewritten assertions and other people's plugins take longer than most blocks, and change no
# outcome. That pytest finds the plugin by itself is shown by the run that this test is part of.
PLAIN = ("-q", "--assert=plain", "-p", "pytest_statepersist.plugin", "-p", "no:cacheprovider")
ALONE = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


# A machine that finds nothing looks at all its examples, and a few say as much of the page. One
# that finds something would look for a shorter history, which no page shows.
FEW_EXAMPLES = """
from dataclasses import replace
from pytest_statepersist.machines.profiles import PROFILES
PROFILES["dev"] = replace(PROFILES["dev"], examples=2)
"""
NOTHING_SHORTER = """
from hypothesis import Phase, settings
from pytest_statepersist.machines import profiles
class Profile(profiles.Profile):
    def settings(self, weight=1.0):
        return settings(super().settings(weight), phases=[Phase.generate])
profiles.PROFILES["dev"] = Profile("dev", examples=60, steps=15, fixed=True)
"""


class Block(NamedTuple):
    page: Path
    line: int
    kind: str
    text: str
    outcome: str


def blocks(kind: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match["kind"] == kind:
                line = text[: match.start()].count("\n") + 1
                found.append(Block(page, line, kind, match["text"], match["outcome"] or "passed"))
    return found


def name(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


@pytest.mark.parametrize("block", blocks("python"), ids=name)
def test_python_blocks(block: Block, tmp_path: Path) -> None:
    compile(block.text, name(block), "exec")
    if "def test_" not in block.text and "class Test" not in block.text:
        return
    (tmp_path / "test_block.py").write_text(block.text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    profile = FEW_EXAMPLES if block.outcome == "passed" else NOTHING_SHORTER
    (tmp_path / "conftest.py").write_text(profile)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *PLAIN],
        cwd=tmp_path,
        env=ALONE,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    found = re.findall(r"(\d+) (passed|failed|error)", done.stdout)
    counts = {word: int(number) for number, word in found}
    assert set(counts) == {block.outcome}, done.stdout + done.stderr


CHECKED = {
    # make demo and make test are what continuous integration itself runs.
    "make": lambda words: f"{words[1]}:" in (ROOT / "Makefile").read_text(),
    "python": lambda words: _accepted([sys.executable, *words[1:3], "--help"], words),
    "pip": lambda words: words[1] == "install",
    "pytest": lambda words: _accepted([sys.executable, "-m", "pytest", "--help"], words),
    "statepersist": lambda words: _accepted(
        [sys.executable, "-m", "pytest_statepersist", words[1], "--help"], words
    ),
}


@cache
def _shown(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _accepted(command: list[str], words: list[str]) -> bool:
    """Say whether every option of a documented command is one that its help knows."""
    shown = _shown(*command)
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    return bool(shown) and all(option in shown for option in options)


def commands() -> list[tuple[str, str]]:
    return [
        (name(block), line[2:])
        for block in blocks("console")
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]


@pytest.mark.parametrize(("where", "command"), commands())
def test_console_commands(where: str, command: str) -> None:
    words = command.split()
    assert words[0] in CHECKED, f"{where}: nothing checks the command {command!r}"
    assert CHECKED[words[0]](words), f"{where}: {command!r} would not be accepted"


def test_every_page_of_the_documentation_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        relative = page.relative_to(ROOT / "docs").as_posix()
        if relative != "index.md":
            assert relative in index, f"docs/index.md does not lead to {relative}"


def test_the_pages_build_and_no_link_leads_nowhere(tmp_path: Path) -> None:
    sphinx = pytest.importorskip("sphinx", reason="the pages are built with Sphinx (extra: docs)")
    assert sphinx
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
