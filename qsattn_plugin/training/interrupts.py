"""Signals during training: the current step is finished and saved before the process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; everything is saved."""

    def __init__(self, number: signal.Signals, text: str):
        super().__init__(text)
        self.signal = number
        self.exit_code = 128 + number  # as shells expect: 130 for SIGINT, 143 for SIGTERM


class StopSignal:
    """A context that records SIGINT (Ctrl-C), SIGTERM and SIGHUP instead of ending the process; true once one arrived.

    SIGHUP comes when the terminal closes or a connection breaks off. A second SIGINT raises ``KeyboardInterrupt`` at
    once. Signals that this process was started to ignore (by
    ``nohup``, or as a script's background job) stay ignored. Outside the main thread, where Python cannot handle
    signals, the context does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if number == signal.SIGHUP:
            _leave_terminal()
        elif os.isatty(2):
            # Not print: the signal may have interrupted one.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.signal.name}: finishing the step and saving; Ctrl-C ends at once\n".encode())


def _leave_terminal() -> None:
    """Let what is printed go nowhere: writing to a terminal that has closed is an error, and would end the training."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # it has hung up; a file or a pipe answers ENOTTY
                silence(stream)


def silence(stream: int) -> None:
    """Let what is printed on a file descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)
