"""The best weights of a run: those with the smallest leading score so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from qsattn_plugin.training.run import Run


class BestWeights:
    """Follows the first score of every evaluation, and keeps the weights that had its smallest value.

    A score that is the smallest of many looks is smaller than the next look would be: what is kept says, beside the
    score, how many evaluations it was picked from.

    Args:
        run: where the weights are kept (``checkpoints/best.safetensors``), and where the log counts evaluations.
    """

    def __init__(self, run: Run):
        self.checkpoints = run.checkpoints
        #: {"score": its name, "value": ..., "step": ..., "evaluations": how many it was picked from}; empty at first.
        self.best: dict[str, Any] = self.checkpoints.best_of()
        self.evaluations = sum(bool(event.get("scores")) for event in run.events("evaluate"))

    def update(
        self, step: int, scores: dict[str, float], state: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    ) -> dict[str, Any] | None:
        """Take note of an evaluation; write the weights where its first score is smaller than every one before.

        Args:
            step: of the weights.
            scores: smaller is better, the first one counts.
            state: gives what to write, tensors and document.

        Returns:
            The best so far and how many evaluations it was picked from; None where there are no scores.

        Raises:
            WriteFailed: the weights could not be written; those before are still there.
        """
        if not scores:
            return None
        self.evaluations += 1
        name, value = next(iter(scores.items()))
        # Another score leads than the one that the file was picked by: the recipe's evaluation was changed.
        lowest = self.best.get("value", math.inf) if self.best.get("score") == name else math.inf
        if value < lowest:
            self.best = {"score": name, "value": value, "step": step, "evaluations": self.evaluations}
            tensors, document = state()
            self.checkpoints.save_best(step, tensors, {**document, "scores": scores, "best": self.best})
        return {**self.best, "evaluations": self.evaluations}
