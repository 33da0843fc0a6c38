"""A training's log for TensorBoard (optional: ``pip install tensorboard``)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qsattn_plugin.errors import UserError
from qsattn_plugin.training.loop import TrainingEvent
from qsattn_plugin.training.report import ReportWarning


class TensorBoard:
    """Writes the loop's events as TensorBoard event files; pass it to ``fit`` as ``on_event``.

    Losses are logged as ``loss/NCE``, statistics under their own names (``tap_12/entropy_q50``), scores as
    ``score/...``, the picture grid as ``grid``. The folder is created when training starts.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard is not installed; pip install tensorboard") from error
        self.folder = folder
        self._make = SummaryWriter
        self._writer: Any = None

    def __call__(self, event: TrainingEvent) -> None:
        """Log one event of the training.

        A folder that is deleted or full during it ends the logging, not the training.
        """
        if event.kind == "start":
            # Hide what a killed process wrote after its last checkpoint: those steps are repeated.
            self._writer = self._make(str(self.folder), purge_step=event.step + 1)
        elif self._writer is not None and event.kind in ("train", "evaluate", "end"):
            try:
                getattr(self, f"_{event.kind}")(event.step, event.values)
            except OSError as error:
                self._writer = None
                text = f"{self.folder} cannot be written ({error.strerror or error}); the training goes on without"
                warnings.warn(f"{text} TensorBoard", ReportWarning, stacklevel=2)

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
