"""A run: a folder with the resolved recipe, the log, the checkpoints and the picture grids of one training.

::

    runs/my-zebras/
        recipe.yaml                      # resolved: every value, so that it rebuilds the same run
        metrics.jsonl                    # one JSON object a line, see `Run.log`
        checkpoints/step-000005000.safetensors
        grids/step-000005000.png
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qsattn_plugin.checkpoints import Checkpoints
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry.recipe import Recipe, load_recipe
from qsattn_plugin.storage import write_text

RUNS = Path("runs")
_LAST = ".last"


class Run:
    """One training's folder. Make one with :meth:`create`, come back to it with :meth:`open`."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.recipe = recipe
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.checkpoint.keep)
        self.grids = folder / "grids"

    @classmethod
    def create(cls, recipe: Recipe, folder: Path | None = None, overwrite: bool = False) -> Run:
        """Make the folder (``runs/<name>`` without ``folder``) and write the resolved recipe into it.

        Raises:
            UserError: it holds a training already and ``overwrite`` is not set, or it cannot be written.
        """
        run = cls(folder or RUNS / recipe.name, recipe)
        if run.checkpoints.steps():
            if not overwrite:
                raise UserError(
                    f"{run.folder} holds a training of {run.checkpoints.steps()[-1]} steps; carry on with "
                    f"`qsattn fit {run.folder}`, choose another folder with --run, or replace it with --overwrite"
                )
            with run.lock():
                run._clear()
        write_text(run.folder / "recipe.yaml", recipe.to_yaml())
        write_text(RUNS / _LAST, f"{run.folder.resolve()}\n")
        return run

    @classmethod
    def open(cls, folder: Path | str | None = None) -> Run:
        """Return the run in ``folder`` (a path, or a name below ``runs/``); without one, the run built last.

        Raises:
            UserError: there is no such run.
        """
        if folder is None:
            last = RUNS / _LAST
            if not last.is_file():
                raise UserError("no run was built here yet; build one with `qsattn build RECIPE`")
            path = Path(last.read_text(encoding="utf-8").strip())
        else:
            path = next((p for p in (Path(folder), RUNS / folder) if (p / "recipe.yaml").is_file()), Path(folder))
        if not (path / "recipe.yaml").is_file():
            known = [p.parent.name for p in RUNS.glob("*/recipe.yaml")]
            raise UserError(
                f"{path} is not a run (there is no recipe.yaml in it){nearest(path.name, known)}; "
                f"build one with `qsattn build RECIPE`"
            )
        return cls(path, load_recipe(path / "recipe.yaml"))

    def _clear(self) -> None:
        for step in self.checkpoints.steps():
            self.checkpoints.path(step).unlink()
        for picture in self.grids.glob("*.png"):
            picture.unlink()
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)

    def log(self, event: str, **values: Any) -> None:
        """Append one JSON object to ``metrics.jsonl``: ``{"event": "train" | "evaluate" | ..., "step": ..., ...}``."""
        line = json.dumps({"event": event, **values}, allow_nan=True)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def last(self, event: str) -> dict[str, Any]:
        """Return the log's last line of that event, or an empty mapping."""
        path = self.folder / "metrics.jsonl"
        found: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):  # a line that a crash cut short
                values = json.loads(line)
                found = values if values.get("event") == event else found
        return found

    def truncate_log(self, step: int) -> None:
        """Drop the log's lines of steps after ``step``: those that a resumed run takes again."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that a crash cut short
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
        write_text(path, "".join(kept))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the kernel lets go of it when the process ends, however it ends.

        Raises:
            UserError: another process holds it.
        """
        path = self.folder / ".lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.folder}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another process is training {self.folder}; wait for it or stop it") from error
            yield
        finally:
            os.close(handle)
