"""What asks a trial to end: Ctrl-C, SIGTERM, a preemption's SIGUSR1, a closed terminal. Imports no torch."""

import os
import signal
from types import FrameType

from finetune.errors import Interrupted
from finetune.storage.system import END_CODES


class _State:
    listening = False
    deferred = False
    code: int | None = None


_state = _State()


def listen() -> None:
    """From now on these signals end what this process does as interrupted; those ignored so far stay ignored.

    A second Ctrl-C ends the process at once: files are whole at any moment.
    """
    for number in END_CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a script, or under nohup
            signal.signal(number, _on_signal)
    _state.listening, _state.deferred, _state.code = True, False, None


def listen_again() -> None:
    """Take SIGTERM back from Lightning, which ends an epoch on it by an exception of its own."""
    if _state.listening and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _on_signal)


def defer(on: bool) -> None:
    """While on, a signal is only noted: `requested` returns it, and training ends at the end of a batch."""
    _state.deferred = on
    if on:
        _state.code = None


def requested() -> int | None:
    """The exit code that a signal has asked for; None as long as none came."""
    return _state.code


def _on_signal(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _state.code = _state.code or END_CODES[signal.Signals(number)]
    if not _state.deferred:
        raise Interrupted(_state.code)
    if number == signal.SIGINT:
        os.write(2, b"\nstopping after this batch; Ctrl-C again to stop at once\n")
