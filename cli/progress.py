"""Progress on stderr: bars on a terminal; in a file or a pipe, one line for each entry of a training's log."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from typing import Any

from tqdm import tqdm

from qsattn_plugin.text import duration
from qsattn_plugin.training.interrupts import silence
from qsattn_plugin.training.progress import TrainingEvent, summarise_losses

#: Steps that the time of a step is averaged over.
_HORIZON = 1000
#: From so many seconds a step on, that is shown instead of images per second.
_SLOW = 1.0


class Bar(tqdm):
    """A progress bar on stderr, drawn only where that is a terminal."""

    monitor_interval = 0  # no thread beside the work: with miniters=0 every update looks at the clock

    def __init__(self, total: int | None, desc: str = "", **options: Any) -> None:
        fixed = {"file": sys.stderr, "disable": None, "dynamic_ncols": True, "miniters": 0, "mininterval": 0.2}
        super().__init__(total=total, desc=desc, **fixed, **options)


class StageBars:
    """One bar at a time: the bar of a new stage follows that of the stage before.

    Args:
        announce: where no bar can be drawn, print a line when a stage begins.
        options: of every :class:`Bar`.
    """

    def __init__(self, announce: bool = False, **options: Any) -> None:
        self.bar: Bar | None = None
        self._announce, self._options, self._stage = announce, options, ""

    def __call__(self, stage: str, done: int, total: int | None, **options: Any) -> None:
        """Move the bar of ``stage`` to ``done`` of ``total`` (None: unknown); ``options`` are for a new bar."""
        if self.bar is None or stage != self._stage:
            self.close()
            self._stage, self.bar = stage, Bar(total, stage, **self._options, **options)
            if self._announce and self.bar.disable:
                tqdm.write(f"{stage} ...", file=sys.stderr)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Close the bar that is shown."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class TrainingDisplay:
    """Shows the :class:`~qsattn_plugin.training.progress.TrainingEvent` of a training."""

    def __init__(self) -> None:
        self._bars = StageBars(leave=False)
        self._losses = ""
        self._rate = ""
        self._steps = 0  # seen since the start
        self._last = 0.0  # seconds of training up to the last one
        self._mean = 0.0  # seconds of a step
        self._paused = 0.0  # seconds of saving and evaluating
        self._evaluations = 0
        self._log_every = self._evaluate_every = 1

    def __call__(self, progress: TrainingEvent) -> None:
        """Show an event; kinds without a method here have nothing to show.

        Where nobody reads any more (a pipe that was closed, a full disk), the training goes on in silence.
        """
        if show := getattr(self, f"_{progress.kind}", None):
            try:
                show(progress)
            except OSError:
                silence(sys.stderr.fileno())

    def close(self) -> None:
        """Remove the bar."""
        with contextlib.suppress(OSError):
            self._bars.close()

    def _line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)  # above the bar, if there is one

    def _decode(self, progress: TrainingEvent) -> None:
        self._bars(f"reading {progress.values['what']}", progress.step, progress.steps)

    def _start(self, progress: TrainingEvent) -> None:
        values = progress.values
        self.close()
        for sentence in values["damaged"]:
            self._line(f"Warning: {sentence}; going back to the checkpoint before it")
        self._skipped(values["skipped"])
        images = " and ".join(str(n) for n in values["images"].values())
        going = f"carrying on at step {progress.step}" if values["resumed"] else "starting"
        form = values["environment"]["precision"]
        self._line(f"{going} on {values['device']} in {form}, {images} images, {progress.steps} steps")
        for sentence in values["notes"]:
            self._line(sentence)
        self._steps, self._last, self._evaluations = 0, 0.0, 0
        self._log_every, self._evaluate_every = values["log_every"], values["evaluate_every"]

    def _images(self, progress: TrainingEvent) -> None:
        """Show that the images were decoded again."""
        self._skipped(progress.values["skipped"])
        images = " and ".join(str(n) for n in progress.values["images"].values())
        self._line(f"step {progress.step}: random crops end, {images} images are seen at the size of the crop")

    def _skipped(self, skipped: list[list[str]]) -> None:
        for name, reason in skipped[:5]:
            self._line(f"skipped {name}: {reason}")
        if skipped:
            self._line(f"{len(skipped)} unreadable picture{'s were' if len(skipped) > 1 else ' was'} skipped")

    def _train(self, progress: TrainingEvent) -> None:
        losses = summarise_losses(progress.values["losses"])
        self._losses = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self._rate = f"{progress.values['images_per_second']:.1f} images/s"
        if not sys.stderr.isatty():
            self._line(f"step {progress.step}/{progress.steps}  {self._state(progress)}")

    def _step(self, progress: TrainingEvent) -> None:
        now, self._paused = progress.values["training"], progress.values["paused"]
        taken, self._last = now - self._last, now
        self._steps += 1
        if self._steps <= 2:  # the first step takes longer than others: its time is dropped with the second
            self._mean = taken
        else:
            self._mean += (taken - self._mean) / min(self._steps - 1, _HORIZON)
        if self._steps == 1 and progress.step % self._log_every and not sys.stderr.isatty():
            self._line(f"step {progress.step}/{progress.steps}  {self._state(progress)}")
        self._bars("training", progress.step, progress.steps, bar_format="{bar:20} {n}/{total}  {desc}")
        assert self._bars.bar is not None
        self._bars.bar.set_description_str(self._state(progress), refresh=False)

    def _done(self, progress: TrainingEvent) -> None:
        more = "train.steps in its recipe.yaml; raise it to go on"
        self._line(f"{progress.values['folder']} is finished: {progress.step} steps ({more})")
        if "scores" in progress.values:
            self._evaluate(progress)

    def _evaluate(self, progress: TrainingEvent) -> None:
        self._evaluations += self._steps > 0  # one before the first step is not counted in the pauses
        scores = "  ".join(f"{name} {value:.4f}" for name, value in progress.values["scores"].items())
        grid = progress.values["grid"]
        if scores or grid:
            self._line(f"step {progress.step}: {'  '.join(filter(None, (scores, grid)))}")
        if best := progress.values.get("best"):
            count = best["evaluations"]
            rank = "the only evaluation" if count == 1 else f"the best of {count} evaluations"
            self._line(f"{best['score']} {best['value']:.4f} at step {best['step']} is {rank}")

    def _end(self, progress: TrainingEvent) -> None:
        if progress.values["finished"]:
            self._line(f"finished at step {progress.step} after {duration(progress.values['seconds'])}")
        elif not progress.values["signal"]:  # then the command says it as it ends
            more = f"`qsattn fit {shlex.quote(progress.values['folder'])}` continues from here"
            self._line(f"stopped at step {progress.step} of {progress.steps}; {more}")

    def _state(self, progress: TrainingEvent) -> str:
        """Return the rate, the time left, and the losses."""
        slow = self._mean >= _SLOW or not self._rate
        rate = f"{self._mean:.{1 if slow else 3}f} s/step" if slow else self._rate
        left = self._mean * (progress.steps - progress.step)
        if self._evaluations:
            every = self._evaluate_every
            due = math.ceil(progress.steps / every) - (progress.step - 1) // every  # that of this step included
            left += due * self._paused / self._evaluations
        return f"{rate}  {duration(left)} left  {self._losses}".rstrip()
