"""A process that is warm, and judges each mutant in a fork of itself.

Belongs here: the server (``python -m tests.mutants.forks``, one request a line on its standard
input, one answer a line) and its client. Everything is imported once; a fork is mutated by
`mutation.apply`, judges one target, answers and is gone, so that no mutant sees another.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_statepersist.concurrency import interposed
from tests.mutants.judge import Target, Verdict, judge
from tests.mutants.mutation import Change, apply

__all__ = ["Forks"]

TIME_LIMIT_S = 300.0
_ROOT = Path(__file__).parent.parent.parent


class Forks:
    """The client; the process starts with the first question and ends with `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def judge(
        self,
        change: Change | None,
        target: Target,
        *,
        seed: int | None = None,
        examples: int | None = None,
        recoveries: int | None = None,
    ) -> Verdict:
        """Judge a target with a change made, or with none. An unforeseen end is an error."""
        question = {
            "change": None if change is None else asdict(change),
            "target": asdict(target),
            "options": {"seed": seed, "examples": examples, "recoveries": recoveries},
        }
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.mutants.forks"],
                cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "STATEPERSIST_PROFILE": "ci"},
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that judges mutants ended: {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return Verdict(**answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a subject prints is no answer
    # What every fork would do again: put the replacements in place, and Hypothesis' first steps.
    with interposed():
        judge(Target("RoundTripMachine", "LocalStorageAdapter"), examples=1)
        judge(Target("AtomicityMachine", "FileStoreAdapter"), examples=1)
        judge(Target("atomic/test_a_deletion_is_done_or_not", "LocalStorageAdapter"))
        for line in sys.stdin:
            answers.write(_in_a_fork(json.loads(line)) + "\n")
            answers.flush()


def _in_a_fork(question: dict[str, Any]) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reader)
        os.write(writer, json.dumps(_answer(question)).encode())
        os._exit(0)
    os.close(writer)
    data, late = b"", False
    ends = time.monotonic() + TIME_LIMIT_S
    while not late:
        late = not select.select([reader], [], [], max(0.0, ends - time.monotonic()))[0]
        piece = b"" if late else os.read(reader, 1 << 16)
        if not piece:
            break
        data += piece
    if late:
        os.killpg(child, signal.SIGKILL)  # a group of its own: what it forked goes too
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if late or not data:
        why = f"no answer in {TIME_LIMIT_S:g} s" if late else f"ended with status {status}"
        return json.dumps({"error": why})
    return data.decode()


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        if question["change"] is not None:
            apply(Change(**question["change"]))
        return asdict(judge(Target(**question["target"]), **question["options"]))
    except BaseException:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    _serve()
