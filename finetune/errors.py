"""The errors a person is meant to read, and words for them."""

import difflib
import re
from collections.abc import Collection


class Refused(Exception):
    """Input that cannot be honoured; the message is one sentence with what, where, why and the fix. Exit code 2.

    It is shown on one line: names of files may hold line breaks, or codes that a terminal obeys.
    """

    def __str__(self) -> str:
        return re.sub(
            r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0].encode("unicode_escape").decode(), super().__str__()
        )


class Interrupted(BaseException):
    """A signal asked this process to stop; `code` is its exit code (130 for Ctrl-C, 143 for SIGTERM)."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Pruned(Exception):
    """The sweep gave this trial up; the message says at which epoch and why."""


def counted(count: int, noun: str, verbs: tuple[str, str] | None = None) -> str:
    """`1 image`, `2 images`; with `verbs` such as `("lies", "lie")` followed by the one that fits."""
    words = f"{count} {noun}" if count == 1 else f"{count} {noun}s"
    return words if verbs is None else f"{words} {verbs[count != 1]}"


def one_line(error: BaseException) -> str:
    """The error's kind and message, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def nearest(name: str, known: Collection[str]) -> str:
    """`did you mean X?`, or the list to choose from."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(sorted(known))}"
