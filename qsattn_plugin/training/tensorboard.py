"""A training's log for TensorBoard, an extra: ``pip install 'qsattn-plugin[tensorboard]'``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qsattn_plugin.errors import UserError
from qsattn_plugin.training.loop import TrainingEvent


class TensorBoard:
    """Writes what the loop reports into a folder that TensorBoard reads; give it to ``fit`` as ``report``.

    Losses are at ``loss/NCE``, statistics under their own names (``tap_12/entropy_q50``), scores at ``score/...``,
    the picture grid at ``grid``.

    Args:
        folder: made when training starts.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard is not installed; pip install 'qsattn-plugin[tensorboard]'") from error
        self.folder = folder
        self._make = SummaryWriter
        self._writer: Any = None

    def __call__(self, progress: TrainingEvent) -> None:
        """Take one event of the training."""
        if progress.kind == "start":
            # What a process that was killed wrote beyond the checkpoint is hidden: those steps come again.
            self._writer = self._make(str(self.folder), purge_step=progress.step + 1)
        elif self._writer is not None and progress.kind in ("train", "evaluate", "end"):
            getattr(self, f"_{progress.kind}")(progress.step, progress.values)

    def _train(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values["losses"].items():
            if not name.endswith("/nonfinite"):
                self._writer.add_scalar(name if "/" in name else f"loss/{name}", value, step)
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"training/{name}", value, step)

    def _evaluate(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values["scores"].items():
            self._writer.add_scalar(f"score/{name}", value, step)
        if values["grid"]:
            with Image.open(values["grid"]) as sheet:
                self._writer.add_image("grid", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def _end(self, step: int, values: dict[str, Any]) -> None:
        self._writer.close()
        self._writer = None
