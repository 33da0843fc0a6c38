"""How training shows on a terminal: one line that moves; in a file or a pipe, one line a log entry."""

from __future__ import annotations

import shutil
import sys
import time

import click

from qsattn_plugin.training.loop import TrainingEvent, summarise_losses


class Screen:
    """Shows a training's :class:`~qsattn_plugin.training.loop.TrainingEvent`."""

    def __init__(self) -> None:
        self.moving = sys.stderr.isatty()
        self._began: tuple[float, int] | None = None
        self._drawn = 0.0
        self._losses = ""
        self._rate = ""

    def __call__(self, progress: TrainingEvent) -> None:
        getattr(self, f"_{progress.kind}", self._nothing)(progress)

    def _nothing(self, progress: TrainingEvent) -> None:
        """Events that have nothing to show."""

    def _line(self, text: str) -> None:
        if self.moving:
            click.echo("\r\x1b[K", nl=False, err=True)
        click.echo(text, err=True)

    def _decode(self, progress: TrainingEvent) -> None:
        if self.moving and time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            click.echo(
                f"\r\x1b[Kreading {progress.values['what']}: {progress.step}/{progress.steps}", nl=False, err=True
            )

    def _start(self, progress: TrainingEvent) -> None:
        values = progress.values
        for sentence in values["damaged"]:
            self._line(f"Warning: {sentence}; going back to the one before")
        self._skipped(values["skipped"])
        images = " and ".join(str(n) for n in values["images"].values())
        going = f"carrying on at step {progress.step}" if values["resumed"] else "starting"
        self._line(f"{going} on {values['device']}, {images} images, {progress.steps} steps")
        self._began = (time.monotonic(), progress.step)

    def _images(self, progress: TrainingEvent) -> None:
        """The pictures were decoded again."""
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
        if not self.moving:
            self._line(f"step {progress.step}/{progress.steps}  {self._rate}  {self._left(progress)}  {self._losses}")

    def _step(self, progress: TrainingEvent) -> None:
        if not self.moving or time.monotonic() - self._drawn < 0.2:
            return
        self._drawn = time.monotonic()
        width = 20
        full = int(width * progress.step / progress.steps)
        bar = "█" * full + "·" * (width - full)
        text = f"{bar} {progress.step}/{progress.steps}  {self._rate}  {self._left(progress)}  {self._losses}"
        columns = shutil.get_terminal_size().columns
        click.echo("\r\x1b[K" + text[: columns - 1], nl=False, err=True)

    def _done(self, progress: TrainingEvent) -> None:
        self._line(
            f"{progress.values['folder']} is finished: {progress.step} steps (train.steps in its recipe.yaml; raise it "
            "to go on)"
        )
        if "scores" in progress.values:
            self._evaluate(progress)

    def _evaluate(self, progress: TrainingEvent) -> None:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in progress.values["scores"].items())
        grid = progress.values["grid"]
        if scores or grid:
            self._line(f"step {progress.step}: {'  '.join(filter(None, (scores, grid)))}")
        if best := progress.values.get("best"):
            looks = (
                "the only evaluation" if best["evaluations"] == 1 else f"the best of {best['evaluations']} evaluations"
            )
            self._line(f"{best['score']} {best['value']:.4f} at step {best['step']} is {looks}")

    def _end(self, progress: TrainingEvent) -> None:
        if progress.values["finished"]:
            self._line(f"finished at step {progress.step} after {_duration(progress.values['seconds'])}")
        elif not progress.values["signal"]:  # then the command says it as it ends
            self._line(
                f"stopped at step {progress.step} of {progress.steps}; "
                f"`qsattn fit {progress.values['folder']}` carries on from here"
            )

    def _left(self, progress: TrainingEvent) -> str:
        if self._began is None or progress.step <= self._began[1]:
            return ""
        a_step = (time.monotonic() - self._began[0]) / (progress.step - self._began[1])
        return f"{_duration(a_step * (progress.steps - progress.step))} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
