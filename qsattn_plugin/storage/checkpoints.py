"""Checkpoints of a run: one safetensors file each; the newest few and the best are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from qsattn_plugin.errors import UserError
from qsattn_plugin.storage import DamagedFile, check_file, read_document, save_tensors

_NAME = re.compile(r"step-(\d{9,16})\.safetensors")
#: What going on from a checkpoint needs of its document, and of the recipe in it.
_NEEDS = ("recipe", "scaler", "step")
_RECIPE = ("method", "data", "generator", "discriminator", "encoder", "train")


class Checkpoints:
    """The checkpoints in one folder, by step.

    Args:
        folder: created when the first checkpoint is written.
        keep: number of the newest checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, oldest first."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*.safetensors") if path.is_file())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of ``step``, which need not exist."""
        return self.folder / f"step-{step:09d}.safetensors"

    def files(self) -> list[Path]:
        """Return the files of all checkpoints: those by step, and the best."""
        return [*map(self.path, self.steps()), *([self.best] if self.best.exists() else [])]

    @staticmethod
    def step_of(path: Path) -> int:
        """Return the step in the name of a checkpoint's file.

        Raises:
            ValueError: the file does not have the name of a checkpoint.
        """
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"path: {path.name} is not named as a checkpoint")
        return int(match[1])

    def save(self, step: int, tensors: dict[str, Tensor], document: dict[str, Any]) -> Path:
        """Write a checkpoint, whole or not at all, then delete those that are too many.

        Raises:
            WriteFailed: it could not be written; the older ones are all still there.
        """
        self.sweep()
        save_tensors(self.path(step), tensors, {**document, "step": step})
        self.prune(step)
        return self.path(step)

    def sweep(self) -> None:
        """Remove what a process left that was killed while it wrote."""
        # `.tmp...` is the name under which safetensors writes, before it renames that to the name that it was given.
        for pattern in (".*.part", ".tmp*"):
            for stale in self.folder.glob(pattern):
                stale.unlink(missing_ok=True)

    def prune(self, step: int) -> None:
        """Delete all but the newest ``keep`` of the checkpoints up to ``step``, which is known to be complete."""
        for old in [s for s in self.steps() if s <= step][: -self.keep]:
            self.path(old).unlink(missing_ok=True)

    def newest(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint that is not damaged, and a message for each newer one that is."""
        damaged = []
        for step in reversed(self.steps()):
            try:
                self._check(step)
            except DamagedFile as error:
                damaged.append(str(error))
            else:
                return self.path(step), damaged
        if damaged:
            raise UserError("\n".join([*damaged, f"no checkpoint in {self.folder} can be read"]))
        return None, damaged

    def _check(self, step: int) -> None:
        path = self.path(step)
        document = check_file(path)
        recipe = document.get("recipe") or {}
        lacks = [key for key in _NEEDS if document.get(key) is None]
        lacks += [f"recipe.{key}" for key in _RECIPE if not recipe.get(key)]
        if lacks:
            raise DamagedFile(f"{path} is damaged, or no checkpoint: its document has no {', '.join(lacks)}")
        if document["step"] != step:
            raise DamagedFile(f"{path} is not what its name says: it is of step {document['step']}")

    @property
    def best(self) -> Path:
        """The path of the weights with the best score, which need not exist."""
        return self.folder / "best.safetensors"

    def best_of(self) -> dict[str, Any]:
        """Return the score of the best weights, ``document["best"]``; {} where there are none to read."""
        try:
            return read_document(self.best).get("best") or {}
        except UserError:  # also a damaged file: the next evaluation replaces it
            return {}
