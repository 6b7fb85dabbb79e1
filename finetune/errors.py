"""The errors a person is meant to read."""


class Refused(Exception):
    """Input that cannot be honoured; the message is one sentence with what, where, why and the fix. Exit code 2."""


class Interrupted(BaseException):
    """A signal asked this process to stop; `code` is its exit code (130 for Ctrl-C, 143 for SIGTERM)."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Pruned(Exception):
    """The sweep gave this trial up; the message says at which epoch and why."""
