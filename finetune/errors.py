"""The errors a person is meant to read, and phrases for their messages."""

import difflib
import re
from collections.abc import Collection


class Refused(Exception):
    """Input that cannot be honoured; the message is one sentence with what, where, why and the fix. Exit code 2.

    It is shown on one line: names of files may hold line breaks, or codes that a terminal obeys.
    """

    def __str__(self) -> str:
        return _CONTROL_CHARACTER.sub(lambda match: match[0].encode("unicode_escape").decode(), super().__str__())


_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Interrupted(BaseException):
    """A signal asked this process to stop; `code` is its exit code (130 for Ctrl-C, 143 for SIGTERM)."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Pruned(Exception):
    """The sweep gave this trial up; the message says at which epoch and why."""


def counted(count: int, noun: str, verbs: tuple[str, str] | None = None) -> str:
    """A number with its noun; `verbs` are the singular and the plural of what follows.

    >>> counted(1, "image"), counted(2, "image"), counted(2, "image", ("lies", "lie"))
    ('1 image', '2 images', '2 images lie')
    """
    phrase = f"{count} {noun}" if count == 1 else f"{count} {noun}s"
    if verbs is None:
        return phrase

    singular, plural = verbs
    return f"{phrase} {singular if count == 1 else plural}"


def one_line(error: BaseException) -> str:
    """The error's kind and message, without line breaks."""
    return f"{type(error).__name__}: {message_of(error)}"


def message_of(error: BaseException) -> str:
    """The error's message, without line breaks."""
    return " ".join(str(error).split())


def nearest(name: str, known: Collection[str]) -> str:
    """The known name that is closest to a misspelt one as a question, or the list to choose from.

    >>> nearest("resnet81", ["resnet18", "cnn5"]), nearest("vgg", ["resnet18", "cnn5"])
    ('did you mean resnet18?', 'choose from cnn5, resnet18')
    """
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(sorted(known))}"
