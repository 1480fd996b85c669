"""How far a check is: a bar on a terminal, a line now and then elsewhere.

Belongs here: counting recoveries and showing the count; both on standard error, so that standard
output holds nothing but the report.
"""

from __future__ import annotations

import os
import time
from typing import TextIO

__all__ = ["Progress"]

_WIDTH = 30


class Progress:
    """Counts recoveries, or another ``unit``, against a budget of them or of seconds."""

    def __init__(
        self,
        stream: TextIO,
        *,
        recoveries: int,
        seconds: float | None,
        unit: str = "recoveries",
    ) -> None:
        self._stream = stream
        self._recoveries = recoveries
        self._seconds = seconds
        self._unit = unit
        self._terminal = stream.isatty()
        self._begun = time.monotonic()
        self._next = self._begun
        self._process = os.getpid()
        self.count = 0

    def say(self, text: str) -> None:
        """Show what is being done now."""
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)

    def one_more(self) -> None:
        """Count one recovery; show it where it is time to."""
        if os.getpid() != self._process:
            return  # a fresh process, set aside to confirm an answer
        self.count += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.1 if self._terminal else 10.0)
        if self._terminal or self.count > 1:
            self.say(self._text(now - self._begun))

    def of(self, count: int, total: int) -> None:
        """Show a count whose total has become known."""
        self._recoveries, self.count = max(total, 1), count - 1
        self.one_more()

    def end(self) -> None:
        """Take the bar away."""
        if self._terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def _text(self, elapsed: float) -> str:
        if self._seconds is not None:
            share, limit = elapsed / self._seconds, f"at most {self._seconds:g} s"
        else:
            share, limit = self.count / self._recoveries, f"at most {self._recoveries:,}"
        text = f"{self.count:,} {self._unit}, {elapsed:.0f} s ({limit})"
        if not self._terminal:
            return text
        full = min(_WIDTH, int(share * _WIDTH))
        return f"[{'#' * full}{'.' * (_WIDTH - full)}] {text}"
