"""Output streams that survive their reader: closed pipes, narrow encodings, control characters."""

from __future__ import annotations

import os
from typing import TextIO


class Stream:
    """A text stream that falls silent when its reader has gone, and writes `?` for what it cannot encode.

    After a broken pipe the file descriptor leads to the null device, so that nothing else in the process (a child,
    the interpreter's last flush) stumbles over it.
    """

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner
        self.encoding = getattr(inner, "encoding", None) or "utf-8"
        self.silent = False

    def write(self, text: str) -> int:
        if not self.silent:
            try:
                self._inner.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except BrokenPipeError:
                self._fall_silent()
        return len(text)

    def flush(self) -> None:
        if not self.silent:
            try:
                self._inner.flush()
            except BrokenPipeError:
                self._fall_silent()

    def isatty(self) -> bool:
        return self._inner.isatty()

    def fileno(self) -> int:
        return self._inner.fileno()

    def _fall_silent(self) -> None:
        self.silent = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._inner.fileno())
        os.close(null)


def printable(text: str) -> str:
    """One line without control characters: text from a user's file must not steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
