"""Signals during training: the step is finished and saved before the process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after everything was saved.

    Attributes:
        signal: which one.
        exit_code: what a shell expects of a process that this signal stopped: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: signal.Signals, text: str):
        super().__init__(text)
        self.signal = number
        self.exit_code = 128 + number


class StopSignal:
    """Inside this context SIGINT (Ctrl-C) and SIGTERM are noted instead of ending the process; true once one came.

    A SIGINT after that ends at once, by ``KeyboardInterrupt``. A signal that this process was started to ignore (by
    ``nohup``, or as a script's background job) stays ignored. Outside the main thread, where Python lets nobody handle
    signals, the context does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
        if os.isatty(2):
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.signal.name}: finishing the step and saving; Ctrl-C ends at once\n".encode())
