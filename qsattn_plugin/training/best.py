"""The best weights of a run: those with the smallest leading score so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from qsattn_plugin.storage import save_tensors
from qsattn_plugin.training.run import Run


class BestWeights:
    """Tracks the first score of every evaluation and keeps the weights with its smallest value.

    The smallest of many scores is biased downwards, so the number of evaluations it was picked from is kept with it.
    Weights of a later step than ``step``, from which the run goes on, are of a training that was given up or will be
    done again: the next evaluation replaces them. So it does where ``scored_on``, a digest of what is scored, differs.
    """

    def __init__(self, run: Run, step: int, scored_on: str = ""):
        self.checkpoints, self.scored_on = run.checkpoints, scored_on
        found = self.checkpoints.best_of()
        #: What is to be said of the best weights so far.
        self.note: str | None = None
        if found.get("scored_on", scored_on) != scored_on:
            self.note = (
                f"other pictures are scored than before, or in another way: the best weights so far, of step "
                f"{found.get('step')}, do not count any more, and are replaced by those of the next evaluation"
            )
            found = {}
        #: {"score": its name, "value": ..., "step": ..., "evaluations": how many it was picked from, "scored_on": the
        #: digest}, or empty.
        self.best: dict[str, Any] = found if found.get("step", 0) <= step else {}
        last = run.last("evaluate").get("best") if self.best else None
        self.evaluations: int = (last or self.best).get("evaluations", 0)

    def update(
        self, step: int, scores: dict[str, float], state: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    ) -> dict[str, Any] | None:
        """Record an evaluation; write the weights of ``state()`` if its first score is smaller than all before.

        Return the best so far and how many evaluations it was picked from; None where no score is a number yet.

        Raises:
            WriteFailed: the weights could not be written; the previous best is unchanged.
        """
        if not scores:
            return None
        name, value = next(iter(scores.items()))
        if self.best.get("score") != name:  # the recipe's evaluation was changed: start over
            self.best, self.evaluations = {}, 0
        self.evaluations += 1
        lowest = self.best.get("value", math.inf)
        if value < lowest:
            self.best = {"score": name, "value": value, "step": step, "evaluations": self.evaluations}
            self.best["scored_on"] = self.scored_on
            tensors, document = state()
            document |= {"scores": scores, "best": self.best, "step": step}
            save_tensors(self.checkpoints.best, tensors, document)
        return {**self.best, "evaluations": self.evaluations} if self.best else None
