"""The training loop."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError
from qsattn_plugin.storage import WriteFailed, read_document, replacing
from qsattn_plugin.training.best import BestWeights
from qsattn_plugin.training.distributed import World, check_distributable, world
from qsattn_plugin.training.environment import describe_environment
from qsattn_plugin.training.evaluate import Evaluator
from qsattn_plugin.training.finite_guard import FiniteGuard, NonFiniteLossError, check_weights
from qsattn_plugin.training.interrupts import Interrupted, StopSignal
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.training.precision import choose_precision
from qsattn_plugin.training.progress import Throughput, TrainingEvent, summarise_losses
from qsattn_plugin.training.report import refresh_maps, refresh_report
from qsattn_plugin.training.resuming import check_architecture, rate_note
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session

__all__ = ["FiniteGuard", "Interrupted", "NonFiniteLossError", "TrainingEvent", "fit", "summarise_losses"]


def fit(
    run: Run,
    *,
    max_steps: int | None = None,
    time_limit: float | None = None,
    on_event: Callable[[TrainingEvent], None] = lambda event: None,
) -> dict[str, float]:
    """Train a run to its last step, starting from its newest checkpoint if there is one.

    Call it in every process that ``torchrun`` or ``qsattn fit --nproc`` started: the processes share each step, and
    only rank 0 writes. All of them need access to the run's folder.

    Args:
        run: the run to train.
        max_steps: stop after this many steps of this call.
        time_limit: stop after this many seconds of this call.
        on_event: called with every event of the training; on rank 0 only.

    Returns:
        The scores of the last evaluation.

    Raises:
        UserError: another process trains the run, a loss is not finite, a checkpoint cannot be written, ...
        Interrupted: SIGINT or SIGTERM arrived; the step was finished and saved.
    """
    with world() as here, contextlib.ExitStack() as held:
        newest, last, begun = None, {}, {}
        damaged: list[str] = []
        with here.sync_errors():
            if here.main:
                held.enter_context(run.lock())
                newest, damaged = run.checkpoints.newest()
                last = run.last("evaluate")
                if newest is not None:
                    begun = read_document(newest)
                    check_architecture(run.recipe, begun, newest)
        newest, damaged, last, begun = here.broadcast((newest, damaged, last, begun))
        on_event = on_event if here.main else lambda event: None
        steps = run.recipe.train.steps
        done = 0 if newest is None else run.checkpoints.step_of(newest)
        if done >= steps and last.get("step") == done:  # else it stopped between the last step and its evaluation
            with here.sync_errors():
                if here.main:
                    _complete(run, done)
            on_event(TrainingEvent("done", done, steps, {"folder": str(run.folder), **last}))
            return last["scores"]
        loop = _Loop(run, on_event, here, newest, damaged, begun)
        try:
            return loop.train(max_steps, time_limit)
        except WriteFailed as error:
            if here.main and loop.session.step:
                loop._hold()  # the folder may have gone away in the middle of a file
            raise WriteFailed(f"{error}\n{loop.how_to_resume()}") from error
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(f"{loop.session.memory_error()}\n{loop.how_to_resume()}") from error


def _complete(run: Run, step: int) -> None:
    """Write what a process did not come to that was killed between the last evaluation and its end."""
    run.tidy(step)
    end = run.last("end")
    if not (end.get("finished") and end["step"] == step):
        run.log("end", step=step, seconds=0.0, finished=True, signal=None)
    if not run.report.is_file() or run.report.stat().st_mtime_ns < run.log_file.stat().st_mtime_ns:
        refresh_report(run)


class _DecodingStopped(Exception):
    """A signal arrived, or the time limit was reached, while pictures were decoded."""


class _Loop:
    """The state of one call of :func:`fit`."""

    def __init__(
        self,
        run: Run,
        on_event: Callable[[TrainingEvent], None],
        here: World,
        newest: Path | None,
        damaged: list[str],
        begun: Mapping[str, Any],
    ):
        self.run, self.on_event, self.world = run, on_event, here
        recipe = self.recipe = run.recipe
        with here.sync_errors():
            try:
                device = here.device(recipe.train.device)
            except UserError as error:
                raise recipe.error("train.device", str(error)) from error
        asked = recipe.train.precision
        precision = here.broadcast(choose_precision(asked, device, begun.get("precision")) if here.main else "")
        with here.sync_errors():
            self.session = Session(recipe, device, warm=newest is None, precision=precision)
            check_distributable(self.session.method, here)
            if newest is not None:
                self.session.restore(newest, here.rank)
            if here.main:
                run.tidy(self.session.step)
            self.stop_signal, self.end = StopSignal(), math.inf
            self.loader = TrainingLoader(
                *(recipe, self.session.device, self._on_decoded, here.rank, here.size),
                *(self.session.multiple, self.session.step),
            )
            self.evaluator = Evaluator(recipe, self.loader) if here.main else None
        here.join(self.session.method, self.session.device)
        self.session.method.world = here
        self.best = BestWeights(run, self.session.step, self.evaluator.scored_on if self.evaluator else "")
        self.guard = FiniteGuard()
        self.throughput = Throughput(self.session.step)
        self.saved, self.saved_at = self.session.step, time.monotonic()
        evaluated = here.broadcast(run.last("evaluate") if here.main else {})
        self.evaluated: int = evaluated.get("step", 0)
        self.scores: dict[str, float] = evaluated.get("scores", {})
        notes = [begun and rate_note(recipe.train, begun, self.session.step), self.best.note if here.main else None]
        if self.evaluator is not None and self.evaluator.source.startswith("train"):
            notes.append(f"there are no test pictures: the first of {self.evaluator.source} are shown and scored")
        self._emit(
            "start",
            device=f"{here.size} x {self.session.device.type}" if here.size > 1 else str(self.session.device),
            resumed=newest is not None,
            damaged=damaged,
            notes=[*filter(None, notes), *self.loader.notes],
            log_every=recipe.train.log_interval,
            evaluate_every=recipe.evaluate.interval(recipe.train.steps),
            **self._images(),
            processes=here.size,
            batch=recipe.train.step_images,
            environment={**describe_environment(self.session.device), "precision": precision},
        )

    def train(self, max_steps: int | None, time_limit: float | None) -> dict[str, float]:
        """Train until the last step, a limit or a signal; then save and evaluate."""
        session, recipe, steps = self.session, self.recipe, self.recipe.train.steps
        log_every, evaluate_every = recipe.train.log_interval, recipe.evaluate.interval(steps)
        first, began = session.step, time.monotonic()
        self.saved_at = began
        last = steps if max_steps is None else min(steps, first + max_steps)
        end = self.end = math.inf if time_limit is None else began + time_limit
        with self.stop_signal:
            if first % evaluate_every == 0 or first >= steps:
                self.evaluate()  # the previous process ended after saving and before evaluating
            self.throughput = Throughput(first)
            while session.step < last and not self._should_stop(end):
                if self.loader.needs_decoding(session.step):
                    self._redecode()
                    continue  # a signal may have arrived meanwhile
                due = session.step + 1
                logs = due % log_every == 0 or due == last
                losses = self._step(observe=logs)
                self._hold()
                if logs:
                    self._log(losses)
                if due % recipe.checkpoint.every == 0 or self._checkpoint_is_overdue():
                    self.save()
                if due % evaluate_every == 0:
                    self.evaluate()
            if session.step > first:
                self.save()
                self.evaluate()
        return self._finish(time.monotonic() - began)

    def _should_stop(self, end: float) -> bool:
        """Return whether a rank reached its time limit or got a signal; the signal is set on all ranks, so all stop."""
        came = self.stop_signal.signal
        most = self.world.all_reduce_max(int(time.monotonic() >= end) if came is None else 1 + came)
        if most > 1:  # 1 means a time limit
            self.stop_signal.signal = signal.Signals(most - 1)
        return most > 0

    def _checkpoint_is_overdue(self) -> bool:
        """Return whether the last checkpoint is older than ``checkpoint.minutes``, by rank 0's clock."""
        late = self.world.main and time.monotonic() - self.saved_at >= 60 * self.recipe.checkpoint.minutes
        return self.world.all_reduce_max(int(late)) > 0

    def _step(self, observe: bool) -> dict[str, Tensor]:
        session = self.session
        losses = session.advance(self.loader, observe)
        self.guard.record(session.step, losses)
        self.on_event(TrainingEvent("step", session.step, self.recipe.train.steps, self.throughput.spent()))
        return losses

    def _log(self, losses: dict[str, Tensor]) -> None:
        with self.world.sync_errors():
            values = self.guard.to_floats(losses)
        values = self.world.all_reduce_mean(values)
        rate = self.throughput.measure(self.session.step) * self.recipe.train.step_images * self.world.size
        lr = next(iter(self.session.method.optimizers.values())).param_groups[0]["lr"]
        self._emit("train", losses=values, images_per_second=round(rate, 3), lr=lr)

    def save(self) -> None:
        """Write a checkpoint of this step if there is none yet.

        Raises:
            NonFiniteLossError: a loss since the last check, or a weight, is not finite; nothing is written.
        """
        if self.saved == self.session.step:
            return
        with self.world.sync_errors():
            self.guard.check()
            check_weights(self.session.step, self.session.method.state_dict())
        with self.throughput.paused():
            memories = self.world.gather_tensors(self.session.method.memory())
            with self.world.sync_errors():
                if self.world.main:
                    if not self.run.is_there():
                        raise self._rescued(self.session.state(memories))
                    self.run.checkpoints.save(self.session.step, *self.session.state(memories))
        self.saved, self.saved_at = self.session.step, time.monotonic()
        path = self.run.checkpoints.path(self.saved)
        self.on_event(TrainingEvent("checkpoint", self.saved, self.recipe.train.steps, {"path": str(path)}))

    def _hold(self) -> None:
        """Save and stop where the run's folder has gone away. With several processes, :meth:`save` alone looks."""
        if self.world.size == 1 and not self.run.is_there():
            self.saved = 0  # what was saved went with the folder
            self.save()
            raise UserError(f"the run's folder {self.run.folder} was moved or deleted before the first step was done")

    def _rescued(self, state: tuple[dict[str, Tensor], dict[str, Any]]) -> UserError:
        """Save a checkpoint elsewhere, and return the error that says so."""
        was, self.run = self.run, self.run.refuge()
        self.run.checkpoints.save(self.session.step, *state)
        self.saved = self.session.step
        return UserError(f"the run's folder {was.folder} was moved or deleted; {self.how_to_resume()}")

    def evaluate(self) -> None:
        """Translate the fixed test images with the main generator, score them, write the grid, keep the best weights.

        At most once per step. A signal ends it without a result; the resumed run then evaluates.
        """
        if self.evaluated == self.session.step or self._should_stop(math.inf):
            return
        with self.world.sync_errors():
            self.guard.check()
        try:
            with self.throughput.paused(), self.world.sync_errors():
                if self.world.main:
                    self._evaluate()
        except Exception as error:  # what a score raises, maybe one of somebody's own, costs no steps
            if self.world.size == 1 and not isinstance(error, NonFiniteLossError):
                self.save()
            raise
        self.evaluated, self.scores = self.world.broadcast((self.evaluated, self.scores))

    def _evaluate(self) -> None:
        session, step = self.session, self.session.step
        assert self.evaluator is not None  # rank 0 has it
        found = self.evaluator(next(iter(session.translators().values())), lambda: bool(self.stop_signal))
        if found is None:
            return
        self._hold()
        scores, sheet = found
        grid = self.run.grids / f"step-{step:09d}.png"
        with replacing(grid) as temporary:
            sheet.save(temporary, format="PNG")
        self._hold()
        # Before the log entry: a process that is killed in between does all of it again when resumed.
        best = self.best.update(step, scores, session.state)
        refresh_maps(self.run, session, self.evaluator.images)
        self.evaluated, self.scores = step, scores
        pictures = [self.evaluator.source, self.evaluator.target]
        self._emit("evaluate", scores=scores, grid=str(grid), best=best, pictures=pictures)
        refresh_report(self.run)

    def _finish(self, seconds: float) -> dict[str, float]:
        step, steps, came = self.session.step, self.recipe.train.steps, self.stop_signal.signal
        finished = step >= steps and self.evaluated == step
        with self.world.sync_errors():  # the other ranks wait until rank 0 has written everything
            self._emit("end", seconds=round(seconds, 1), finished=finished, signal=came.name if came else None)
            if self.world.main:
                refresh_report(self.run)
        if came:
            raise Interrupted(came, f"{came.name} stopped the training; {self.how_to_resume()}")
        return self.scores

    def how_to_resume(self) -> str:
        """Return what is saved, and the command that resumes from it."""
        folder, steps = shlex.quote(str(self.run.folder)), self.recipe.train.steps
        if not self.saved:
            return f"nothing is saved yet; `qsattn fit {folder}` begins again"
        return f"step {self.saved} of {steps} is saved; `qsattn fit {folder}` carries on from there"

    def _emit(self, event: str, **values: Any) -> None:
        if self.world.main:
            self.run.log(event, step=self.session.step, **values)
        values["folder"] = str(self.run.folder)  # shown, but not logged
        self.on_event(TrainingEvent(event, self.session.step, self.recipe.train.steps, values))

    def _redecode(self) -> None:
        """Decode the pictures again as this step needs them. The run is saved first: this takes a while.

        A signal or the time limit ends it without a result; the resumed run then decodes.
        """
        self.save()
        with self.throughput.paused(), self.world.sync_errors():
            try:
                self.loader.prepare(self.session.step)
            except _DecodingStopped:
                return
            except UserError as error:
                raise UserError(f"{error}\n{self.how_to_resume()}") from error
        self._emit("images", **self._images())

    def _images(self) -> dict[str, Any]:
        return {
            "images": {letter: len(store) for letter, store in self.loader.stores.items()},
            "skipped": [list(entry) for entry in self.loader.skipped],
        }

    def _on_decoded(self, what: str, done: int, total: int) -> None:
        if self.stop_signal or time.monotonic() >= self.end:
            raise _DecodingStopped
        self.on_event(TrainingEvent("decode", done, total, {"what": what}))
