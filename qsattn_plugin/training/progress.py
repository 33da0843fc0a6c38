"""What a training says while it runs, and how fast it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainingEvent:
    """What the loop has to say.

    ``kind`` is "decode", "start", "step", "train" (a line of the log), "evaluate", "checkpoint", "end", or "done".
    """

    kind: str
    step: int = 0
    steps: int = 0
    values: dict[str, Any] = field(default_factory=dict)


class Throughput:
    """Steps a second, without the time that saving and evaluating take."""

    def __init__(self, step: int):
        self._step, self._time = step, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        started = time.monotonic()
        yield
        self._time += time.monotonic() - started

    def measure(self, step: int) -> float:
        """Return the steps a second since the last look."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return rate


def summarise_losses(values: dict[str, float]) -> dict[str, float]:
    """Return the losses among a step's values: what has no statistics' name."""
    return {name: value for name, value in values.items() if "/" not in name}
