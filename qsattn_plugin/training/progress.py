"""The events of a training, and its throughput."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainingEvent:
    """An event of the training loop.

    ``kind`` is "decode", "start", "images", "step", "train" (a line of the log), "evaluate", "checkpoint", "end", or
    "done".
    """

    kind: str
    step: int = 0
    steps: int = 0
    values: dict[str, Any] = field(default_factory=dict)


class Throughput:
    """Measures steps per second, without the time spent on saving and evaluating."""

    def __init__(self, step: int):
        self._step, self._mark = step, 0.0
        self._began, self._paused = time.monotonic(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the context."""
        started = time.monotonic()
        yield
        self._paused += time.monotonic() - started

    def spent(self) -> dict[str, float]:
        """Return the seconds of training since the beginning ("training"), and those excluded ("paused")."""
        return {"training": time.monotonic() - self._began - self._paused, "paused": self._paused}

    def measure(self, step: int) -> float:
        """Return the steps per second of training since the last call."""
        now = self.spent()["training"]
        rate = (step - self._step) / max(now - self._mark, 1e-9)
        self._step, self._mark = step, now
        return rate


def summarise_losses(values: dict[str, float]) -> dict[str, float]:
    """Return the losses among a step's values; names of statistics contain a slash."""
    return {name: value for name, value in values.items() if "/" not in name}
