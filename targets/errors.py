"""What, where, why, fix: the errors a user sees, with stable codes and exit codes.

The module stands in the lowest room so that every room can raise the same errors.

Exit codes of the command line: 0 done and every gate met, 1 unexpected, 2 usage or recipe, 3 target not met
(best candidate still written), 4 verification failed, 5 measurement undecidable, 6 environment or device missing,
130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlanishError(Exception):
    """An error that is a value of four lines: what happened, where, why, and what to do.

    Args:
        what: one sentence, in the user's terms.
        where: the user's file, module, line or setting.
        why: the cause as far as it is known.
        fix: what to do next, a command where there is one.
        code: stable identifier, upper case, never reused for another meaning.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, why: str, fix: str, code: str) -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.fix, self.code = what, where, why, fix, code

    def __str__(self) -> str:
        """Exactly four lines; line breaks inside a field are flattened."""
        what, where, why, fix = (" ".join(part.split()) for part in (self.what, self.where, self.why, self.fix))
        return f"error[{self.code}]: {what}\n  where: {where}\n  why:   {why}\n  fix:   {fix}"

    def to_json(self) -> dict[str, str | int]:
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "fix": self.fix,
        }


class UsageError(PlanishError):
    """The command line, recipe, model file or data cannot be used as given."""

    exit_code = 2


class VerificationError(PlanishError):
    """An artifact differs from the network it was exported from, or could not be exported."""

    exit_code = 4


class MissingEnvironmentError(PlanishError):
    """A runtime, emulator, device, disk space or permission that the command needs is missing."""

    exit_code = 6


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"did you mean 'x'? "` for the closest of `choices`, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.4)
    return f"did you mean '{close[0]}'? " if close else ""
