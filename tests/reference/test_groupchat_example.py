"""The command-line chat, one process for each command: what one saved the next one has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples import groupchat

REPOSITORY = Path(__file__).parents[2]
CHEAP = ("--kdf-memory-kib", "64")


@dataclass
class User:
    """Somebody with a home directory and a shell."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Run one command and return what it printed and logged."""
        program = [sys.executable, str(REPOSITORY / "examples" / "groupchat.py")]
        home = ["--home", str(self.home), "--relay", str(self.home.parent / "relay")]
        found = subprocess.run(
            [*program, *home, *CHEAP, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(REPOSITORY),
                "PYTHONWARNINGS": "error",
                **self.environment,
            },
        )
        assert found.returncode == status, found.stderr
        assert "Traceback" not in found.stderr
        return found.stdout.strip(), found.stderr


@pytest.fixture
def alice(ram_path: Path) -> User:
    return User(ram_path / "alice")


@pytest.fixture
def bob(ram_path: Path) -> User:
    return User(ram_path / "bob", {"GROUPCHAT_PASSWORD": "bob's", "GROUPCHAT_EXPORT_PASSWORD": "x"})


def test_a_conversation_over_many_processes(alice: User, bob: User) -> None:
    out, log = alice.run("init", "--name", "Alice")
    assert re.fullmatch(r"user [0-9a-f-]{36}\nfingerprint [0-9a-f]{64}", out)
    assert "saved identity" in log
    channel, log = alice.run("channel", "create", "general")
    assert f"saved group {channel.replace('-', '')} at epoch 0" in log

    out, log = alice.run("channel", "list")
    assert out.startswith(f"{channel}  general  epoch 0, 1 member(s)\n  Alice, since ")
    assert f"loaded group {channel.replace('-', '')} at epoch 0" in log
    assert "loaded Alice and 1 group(s)" in log

    code, _ = alice.run("channel", "invite", channel)
    alice.run("send", channel, "before you came")
    bob.run("init", "--name", "Bob")
    out, _ = bob.run("channel", "join", code)
    assert out == f"{channel}  general  epoch 2, 2 member(s)"
    bob.run("send", channel, "hello from a later process")
    out, _ = alice.run("read", channel)
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == [
        "Alice: before you came",
        "Bob: hello from a later process",
    ]

    # Bob moves to another machine, and Alice notices nothing.
    backup = bob.home.with_name("bob.backup")
    _, log = bob.run("state", "export", str(backup))
    assert "exported 1 group(s)" in log
    laptop = User(bob.home.with_name("laptop"), bob.environment)
    laptop.run("state", "import", str(backup))
    laptop.run("send", channel, "from my laptop")
    out, _ = alice.run("read", channel)
    assert out.endswith("Bob: from my laptop")
    _, problem = laptop.run("state", "import", str(backup), status=1)
    assert "replace=True" in problem

    # He leaves, and comes back by the code that he was once given.
    laptop.run("channel", "leave", channel)
    assert laptop.run("channel", "list")[0] == ""
    assert laptop.run("channel", "rejoin", channel)[0].endswith("2 member(s)")


def test_mistakes_are_told_in_a_line(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: that each command can be one of its own is shown above."""

    def fails(home: str, *arguments: str) -> str:
        assert run(home, *arguments) == 1
        return capsys.readouterr().err

    def run(home: str, *arguments: str) -> int:
        places = ["--home", str(ram_path / home), "--relay", str(ram_path / "relay")]
        return groupchat.main([*places, *CHEAP, *arguments])

    for name in ("GROUPCHAT_PASSWORD", "GROUPCHAT_EXPORT_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for arguments in (["channel", "list"], ["channel", "create", "general"]):
        assert "run init" in fails("alice", *arguments)
    assert run("alice", "init", "--name", "Alice") == 0
    for arguments, expected in (
        (["init", "--name", "Alice"], "already"),
        (["channel", "join", "nonsense"], "no invite code"),
        (["send", "nowhere", "text"], "not a channel id"),
        (["state", "export", "file"], "GROUPCHAT_EXPORT_PASSWORD"),
    ):
        assert expected in fails("alice", *arguments)
    monkeypatch.setenv("GROUPCHAT_PASSWORD", "bob's")
    assert run("bob", "init", "--name", "Bob") == 0
    monkeypatch.setenv("GROUPCHAT_PASSWORD", "forgotten")
    assert "wrong password" in fails("bob", "channel", "list")
