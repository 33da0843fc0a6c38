"""The training loop."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.data.seeding import mix
from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.interfaces import side_multiple
from qsattn_plugin.storage import WriteFailed, replacing
from qsattn_plugin.training.best import Best
from qsattn_plugin.training.distributed import World, check, world
from qsattn_plugin.training.environment import describe_environment
from qsattn_plugin.training.evaluate import Evaluation
from qsattn_plugin.training.feed import Feed
from qsattn_plugin.training.interrupts import Interrupt, Interrupted
from qsattn_plugin.training.progress import Pace, Progress, summarise_losses
from qsattn_plugin.training.report import refresh_report
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from qsattn_plugin.training.watch import LossIsNotFinite, Watch, check_weights

__all__ = ["Interrupted", "LossIsNotFinite", "Progress", "Watch", "fit", "summarise_losses"]

#: What a seed is for, mixed in beside step and rank; see feed.py for the others.
_GLOBAL = 102


def fit(
    run: Run,
    *,
    max_steps: int | None = None,
    time_limit: float | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, float]:
    """Train a run to its last step, from its newest checkpoint where there is one.

    Called in every process that ``torchrun`` or ``qsattn fit --nproc`` started, it trains in all of them together: they
    share each step, and rank 0 alone writes. All must see the run's folder.

    Args:
        run: what to train.
        max_steps: stop after this many steps of this call.
        time_limit: stop after this many seconds of this call.
        report: called with what happens, a step at a time; on rank 0 only.

    Returns:
        The scores of the last evaluation.

    Raises:
        UserError: another process trains the run, a loss is not finite, a checkpoint cannot be written, ...
        Interrupted: SIGINT or SIGTERM came; the step was finished and saved.
    """
    with world() as here, contextlib.ExitStack() as held:
        newest, damaged, last = None, [], {}
        with here.together():
            if here.main:
                held.enter_context(run.lock())
                newest, damaged = run.checkpoints.newest()
                last = run.last("evaluate")
        newest, damaged, last = here.from_main((newest, damaged, last))
        report = report if here.main else lambda progress: None
        steps = run.recipe.train.steps
        done = 0 if newest is None else run.checkpoints.step_of(newest)
        if done >= steps and last.get("step") == done:  # else it ended between the last step and its evaluation
            report(Progress("done", done, steps, {"folder": str(run.folder), **last}))
            return last["scores"]
        loop = _Loop(run, report, here, newest, damaged)
        try:
            return loop.run(max_steps, time_limit)
        except WriteFailed as error:
            raise WriteFailed(f"{error}\n{loop.way_back()}") from error
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"the memory of {loop.session.device} is too small for a step of this recipe: take a smaller "
                f"train.batch_size (with train.accumulate for the same step), data.crop or generator.width\n"
                f"{loop.way_back()}"
            ) from error


class _Stopped(Exception):
    """A signal came, or the time was over, while pictures were decoded."""


class _Loop:
    """One call of :func:`fit`."""

    def __init__(
        self, run: Run, report: Callable[[Progress], None], here: World, newest: Path | None, damaged: list[str]
    ):
        self.run_folder, self.report, self.world = run, report, here
        recipe = self.recipe = run.recipe
        with here.together():
            try:
                device = here.device(recipe.train.device)
            except UserError as error:
                raise recipe.error("train.device", str(error)) from error
            self.session = Session(recipe, device, warm=newest is None)
            check(self.session.method, here)
            if newest is not None:
                self.session.restore(newest, here.rank)
            if here.main:
                run.tidy(self.session.step)
            generators = self.session.method.published().values()
            multiple = math.lcm(4, *map(side_multiple, generators))
            self.interrupt, self.end = Interrupt(), math.inf
            self.feed = Feed(
                recipe, self.session.device, self._decoding, here.rank, here.size, multiple, self.session.step
            )
            self.evaluation = Evaluation(recipe, self.feed) if here.main else None
        here.join(self.session.method, self.session.device)
        self.session.method.world = here
        self.best = Best(run)
        self.watch = Watch()
        self.pace = Pace(self.session.step)
        self.saved, self.saved_at = self.session.step, time.monotonic()
        evaluated = here.from_main(run.last("evaluate") if here.main else {})
        self.evaluated: int = evaluated.get("step", 0)
        self.scores: dict[str, float] = evaluated.get("scores", {})
        self._tell(
            "start",
            device=f"{here.size} x {self.session.device.type}" if here.size > 1 else str(self.session.device),
            resumed=newest is not None,
            damaged=damaged,
            **self._images(),
            processes=here.size,
            environment=describe_environment(self.session.device),
        )

    def run(self, max_steps: int | None, time_limit: float | None) -> dict[str, float]:
        """Step until the recipe's end, a limit or a signal; save and evaluate at the end in any case."""
        session, recipe, steps = self.session, self.recipe, self.recipe.train.steps
        first, began = session.step, time.monotonic()
        self.saved_at = began
        last = steps if max_steps is None else min(steps, first + max_steps)
        end = self.end = math.inf if time_limit is None else began + time_limit
        with self.interrupt:
            if first % recipe.evaluate.every == 0 or first >= steps:
                self.evaluate()  # where the process before this one ended after saving and before evaluating
            self.pace = Pace(first)
            while session.step < last and not self._stops(end):
                if self.feed.changes(session.step):
                    self._decode_again()
                    continue  # unless a signal came meanwhile
                due = session.step + 1
                logs = due % recipe.train.log_every == 0 or due == last
                losses = self._step(observe=logs)
                if logs:
                    self._log(losses)
                if due % recipe.checkpoint.every == 0 or self._long_ago():
                    self.save()
                if due % recipe.evaluate.every == 0:
                    self.evaluate()
            if session.step > first:
                self.save()
                self.evaluate()
        return self._end(time.monotonic() - began)

    def _stops(self, end: float) -> bool:
        """Whether any rank's time is over or a signal came to one; then it came to all, so that all stop here."""
        most = self.world.most(self.interrupt.signal or int(time.monotonic() >= end))
        if most > 1:  # 1 is SIGHUP, which is not among those that are waited for
            self.interrupt.signal = signal.Signals(most)
        return most > 0

    def _long_ago(self) -> bool:
        """Whether the last checkpoint is as old as one may be; rank 0's clock counts."""
        late = self.world.main and time.monotonic() - self.saved_at >= 60 * self.recipe.checkpoint.minutes
        return self.world.most(int(late)) > 0

    def _step(self, observe: bool) -> dict[str, Tensor]:
        session = self.session
        session.method.set_rate(session.rate_factor())
        # For parts of others that draw from PyTorch's global generators, such as dropout.
        torch.manual_seed(mix(self.recipe.train.seed, _GLOBAL, session.step, self.world.rank))
        batch, draws = self.feed.step(session.step)
        losses = session.method.step(batch, draws, observe=observe)
        session.method.end_step()
        for average in session.averages.values():
            average.update(session.step)
        session.step += 1
        self.watch.see(session.step, losses)
        self.report(Progress("step", session.step, self.recipe.train.steps))
        return losses

    def _log(self, losses: dict[str, Tensor]) -> None:
        with self.world.together():
            values = self.watch.fetch(losses)
        values = self.world.mean(values)
        train = self.recipe.train
        rate = self.pace.look(self.session.step) * train.batch_size * train.accumulate * self.world.size
        lr = next(iter(self.session.method.optimizers.values())).param_groups[0]["lr"]
        self._tell("train", losses=values, images_per_second=round(rate, 3), lr=lr)

    def save(self) -> None:
        """Write a checkpoint of this step if there is none, unless a loss has gone wrong since the last one."""
        if self.saved == self.session.step:
            return
        with self.world.together():
            self.watch.check()
            check_weights(self.session.step, self.session.method.state_dict())
        with self.pace.paused():
            memories = self.world.collect(self.session.method.memory())
            with self.world.together():
                if self.world.main:
                    self.run_folder.checkpoints.save(self.session.step, *self.session.state(memories))
        self.saved, self.saved_at = self.session.step, time.monotonic()
        path = self.run_folder.checkpoints.path(self.saved)
        self.report(Progress("checkpoint", self.saved, self.recipe.train.steps, {"path": str(path)}))

    def evaluate(self) -> None:
        """Translate the fixed test images with the main generator, score them, write the grid, keep the best weights.

        Done once a step. A signal ends it without a result: whoever carries on does it then.
        """
        if self.evaluated == self.session.step or self._stops(math.inf):
            return
        with self.world.together():
            self.watch.check()
        with self.pace.paused(), self.world.together():
            if self.world.main:
                self._evaluate()
        self.evaluated, self.scores = self.world.from_main((self.evaluated, self.scores))

    def _evaluate(self) -> None:
        session, step = self.session, self.session.step
        found = self.evaluation(next(iter(session.translators().values())), lambda: bool(self.interrupt))
        if found is None:
            return
        scores, sheet = found
        grid = None
        if sheet is not None:
            grid = self.run_folder.grids / f"step-{step:09d}.png"
            with replacing(grid) as temporary:
                sheet.save(temporary, format="PNG")
        # Before the log says that this step is evaluated: a process that is killed in between does both again.
        best = self.best.see(step, scores, session.state)
        self.evaluated, self.scores = step, scores
        self._tell("evaluate", scores=scores, grid=str(grid) if grid else None, best=best)
        refresh_report(self.run_folder, session, self.evaluation.images)

    def _end(self, seconds: float) -> dict[str, float]:
        step, steps, came = self.session.step, self.recipe.train.steps, self.interrupt.signal
        finished = step >= steps and self.evaluated == step
        with self.world.together():  # the others stay until rank 0 has written everything
            folder = {"folder": str(self.run_folder.folder)}  # for the person, not for the log
            self._tell("end", folder, seconds=round(seconds, 1), finished=finished, signal=came.name if came else None)
            if self.world.main:
                refresh_report(self.run_folder)
        if came:
            raise Interrupted(came, f"{came.name} stopped the training; {self.way_back()}")
        return self.scores

    def way_back(self) -> str:
        """Return what is saved, and the command that carries on from it."""
        folder, steps = self.run_folder.folder, self.recipe.train.steps
        if not self.saved:
            return f"nothing is saved yet; `qsattn fit {folder}` begins again"
        return f"step {self.saved} of {steps} is saved; `qsattn fit {folder}` carries on from there"

    def _tell(self, event: str, shown: Mapping[str, Any] = MappingProxyType({}), **values: Any) -> None:
        if self.world.main:
            self.run_folder.log(event, step=self.session.step, **values)
        self.report(Progress(event, self.session.step, self.recipe.train.steps, {**values, **shown}))

    def _decode_again(self) -> None:
        """Prepare the pictures as they are seen from this step on, which takes a while; what is done is saved before.

        A signal or the time limit ends it without a result: whoever carries on does it then.
        """
        self.save()
        with self.pace.paused(), self.world.together():
            try:
                self.feed.prepare(self.session.step)
            except _Stopped:
                return
            except UserError as error:
                raise UserError(f"{error}\n{self.way_back()}") from error
        self._tell("images", **self._images())

    def _images(self) -> dict[str, Any]:
        return {
            "images": {letter: len(store) for letter, store in self.feed.stores.items()},
            "skipped": [list(entry) for entry in self.feed.skipped],
        }

    def _decoding(self, what: str, done: int, total: int) -> None:
        if self.interrupt or time.monotonic() >= self.end:
            raise _Stopped
        self.report(Progress("decode", done, total, {"what": what}))
