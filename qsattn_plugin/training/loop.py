"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.errors import UserError
from qsattn_plugin.training.evaluate import Evaluation
from qsattn_plugin.training.feed import Feed
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session


class LossIsNotFinite(UserError):
    """A loss became NaN or infinite."""


@dataclass
class Progress:
    """What the loop has to say.

    ``kind`` is "decode", "start", "step", "train" (a line of the log), "evaluate", "checkpoint", "end", or "done".
    """

    kind: str
    step: int = 0
    steps: int = 0
    values: dict[str, Any] = field(default_factory=dict)


def fit(
    run: Run,
    *,
    max_steps: int | None = None,
    time_limit: float | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, float]:
    """Train a run to its last step, from its newest checkpoint where there is one.

    Args:
        run: what to train.
        max_steps: stop after this many steps of this call.
        time_limit: stop after this many seconds of this call.
        report: called with what happens; a step at a time.

    Returns:
        The scores of the last evaluation.

    Raises:
        UserError: another process trains the run, a loss is not finite, a checkpoint cannot be written, ...
    """
    with run.lock():
        steps = run.recipe.train.steps
        newest, _ = run.checkpoints.newest()
        if newest is not None and (done := run.checkpoints.step_of(newest)) >= steps:
            last = run.last("evaluate")
            report(Progress("done", done, steps, {"folder": str(run.folder), **last}))
            return last.get("scores", {})
        return _Loop(run, report).run(max_steps, time_limit)


class _Loop:
    """One call of :func:`fit`."""

    def __init__(self, run: Run, report: Callable[[Progress], None]):
        self.run_folder, self.report = run, report
        recipe = self.recipe = run.recipe
        self.session = Session(recipe)
        newest, damaged = run.checkpoints.newest()
        if newest is not None:
            self.session.restore(newest)
        run.truncate_log(self.session.step)
        self.feed = Feed(recipe, self.session.device, self._decoding)
        self.evaluation = Evaluation(recipe, self.feed)
        self.watch = Watch()
        self.scores: dict[str, float] = {}
        self._tell(
            "start",
            device=str(self.session.device),
            resumed=newest is not None,
            damaged=damaged,
            images={letter: len(store) for letter, store in self.feed.stores.items()},
            skipped=[list(entry) for entry in self.feed.skipped],
        )

    def run(self, max_steps: int | None, time_limit: float | None) -> dict[str, float]:
        """Step until the recipe's end or a limit; save and evaluate at the end in any case."""
        session, recipe = self.session, self.recipe
        began = time.monotonic()
        last = recipe.train.steps if max_steps is None else min(recipe.train.steps, session.step + max_steps)
        first = session.step
        clock, clocked = began, first
        while session.step < last and (time_limit is None or time.monotonic() - began < time_limit):
            due = session.step + 1
            logs = due % recipe.train.log_every == 0 or due == last
            losses = self._step(observe=logs)
            self.report(Progress("step", session.step, recipe.train.steps))
            if logs:
                values = self.watch.fetch(losses)
                now = time.monotonic()
                rate = (session.step - clocked) * recipe.train.batch_size / max(now - clock, 1e-9)
                self._tell("train", losses=values, images_per_second=round(rate, 3), lr=self._rate())
                clock, clocked = now, session.step
            if session.step % recipe.evaluate.every == 0 and session.step < last:
                started = time.monotonic()
                self.evaluate()
                clock += time.monotonic() - started  # looking is not training
            if session.step % recipe.checkpoint.every == 0 and session.step < last:
                started = time.monotonic()
                self.save()
                clock += time.monotonic() - started
        if session.step > first:
            self.save()
            self.evaluate()
        self._tell("end", seconds=round(time.monotonic() - began, 1), finished=session.step >= recipe.train.steps)
        return self.scores

    def _step(self, observe: bool) -> dict[str, Tensor]:
        session = self.session
        session.method.set_rate(session.rate_factor())
        batch, draws = self.feed.step(session.step)
        losses = session.method.step(batch, draws, observe=observe)
        for average in session.averages.values():
            average.update(session.step)
        session.step += 1
        self.watch.see(session.step, losses)
        return losses

    def evaluate(self) -> None:
        """Translate the fixed test images with every published generator's main one, write the grid, log the scores."""
        generator = next(iter(self.session.translators().values()))
        self.scores, sheet = self.evaluation(generator)
        grid = None
        if sheet is not None:
            grid = self.run_folder.grids / f"step-{self.session.step:09d}.png"
            grid.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(grid)
        self._tell("evaluate", scores=self.scores, grid=str(grid) if grid else None)

    def save(self) -> None:
        """Write a checkpoint, unless a loss has gone wrong since the last one."""
        self.watch.check()
        path = self.run_folder.checkpoints.save(self.session.step, *self.session.state())
        self.report(Progress("checkpoint", self.session.step, self.recipe.train.steps, {"path": str(path)}))

    def _rate(self) -> float:
        return next(iter(self.session.method.optimizers.values())).param_groups[0]["lr"]

    def _tell(self, event: str, **values: Any) -> None:
        self.run_folder.log(event, step=self.session.step, **values)
        self.report(Progress(event, self.session.step, self.recipe.train.steps, values))

    def _decoding(self, what: str, done: int, total: int) -> None:
        self.report(Progress("decode", done, total, {"what": what}))


class Watch:
    """Keeps an eye on the losses without waiting for the device at every step.

    The first step at which each loss was not finite is kept in a tensor on the device; :meth:`check` reads it.
    """

    def __init__(self) -> None:
        self._first_bad: dict[str, Tensor] = {}

    def see(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take note of a step's losses (0-dim tensors)."""
        for name, loss in losses.items():
            if not loss.is_floating_point() or "/" in name:  # statistics are no losses
                continue
            if name not in self._first_bad:
                self._first_bad[name] = torch.full((), math.inf, device=loss.device)
            # Kept on the device: reading it here would make the host wait for every step.
            bad = torch.where(loss.isfinite(), math.inf, float(step))
            self._first_bad[name] = torch.minimum(self._first_bad[name], bad)

    def fetch(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Return the losses as numbers, and check."""
        values = {name: value.item() for name, value in losses.items()}
        nonfinite = [name for name, value in values.items() if name.endswith("nonfinite") and value]
        self.check(", ".join(name.removesuffix("/nonfinite") for name in nonfinite))
        return values

    def check(self, taps: str = "") -> None:
        """Raise where a loss was not finite.

        Raises:
            LossIsNotFinite: naming the first such step and the losses.
        """
        bad = {name: step.item() for name, step in self._first_bad.items() if math.isfinite(step.item())}
        if bad:
            first = min(bad.values())
            names = ", ".join(name for name, step in bad.items() if step == first)
            where = f"; the source features are not finite at {taps}" if taps else ""
            raise LossIsNotFinite(
                f"the loss {names} became NaN or infinite at step {first:.0f}{where}. The last checkpoint is from "
                f"before it: go on from there with a smaller train.lr or train.precision=fp32"
            )


def summarise_losses(values: dict[str, float]) -> dict[str, float]:
    """Return the losses among a step's values: what has no statistics' name."""
    return {name: value for name, value in values.items() if "/" not in name}
