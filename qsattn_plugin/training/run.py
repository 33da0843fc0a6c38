"""A run: the folder of one training, with its resolved recipe, log, checkpoints and pictures.

::

    runs/my-zebras/
        recipe.yaml                      # resolved: every value, so that it rebuilds the same run
        metrics.jsonl                    # one JSON object a line, see `Run.log`
        checkpoints/step-000005000.safetensors
        checkpoints/best.safetensors     # the weights with the smallest score so far
        grids/step-000005000.png
        maps/step-000005000-tap-12.png   # entropy maps, if the method uses attention
        report.html                      # all of it on one page
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsattn_plugin.data.values import with_measured_range
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry.recipe import Recipe, load_recipe
from qsattn_plugin.storage import WriteFailed, write_text
from qsattn_plugin.storage.checkpoints import Checkpoints
from qsattn_plugin.storage.content import read_events

if TYPE_CHECKING:
    from typing_extensions import Self

RUNS = Path("runs")
_LAST = ".last"


class Run:
    """The folder of one training; see :meth:`create` and :meth:`open`."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.recipe = recipe
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.checkpoint.keep)
        self.grids = folder / "grids"
        self.maps = folder / "maps"
        self.report = folder / "report.html"
        self.log_file = folder / "metrics.jsonl"
        self._held: int | None = None  # the descriptor of the folder while it is locked

    @classmethod
    def create(cls, recipe: Recipe, folder: Path | None = None, overwrite: bool = False) -> Self:
        """Create the folder (``runs/<name>`` by default) and write the resolved recipe into it, its range measured.

        Raises:
            UserError: the folder holds a training and ``overwrite`` is not set, or it cannot be written.
        """
        run = cls.at(with_measured_range(recipe), folder)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run folder {run.folder} cannot be created: {error.strerror}") from error
        with run.lock():
            run._begin(overwrite)
        return run

    @classmethod
    def at(cls, recipe: Recipe, folder: Path | None = None) -> Self:
        """Return the run that :meth:`create` would create; nothing is written."""
        return cls(folder or RUNS / recipe.name, recipe)

    def check(self, overwrite: bool = False) -> None:
        """Check that no training would be lost by :meth:`create`.

        Raises:
            UserError: the folder holds one and ``overwrite`` is not set, or what the recipe starts from.
        """
        steps = self.checkpoints.steps()
        if steps or self.checkpoints.best.exists():
            if not overwrite:
                holds = f"a training of {steps[-1]} steps" if steps else f"{self.checkpoints.best.name}"
                what = f"carry on with `qsattn fit {shlex.quote(str(self.folder))}`, choose another folder with --run"
                raise UserError(f"{self.folder} holds {holds}; {what}, or replace it with --overwrite")
            start = self.recipe.train.init_from
            if start is not None and start.resolve() in {path.resolve() for path in self.checkpoints.files()}:
                what = f"{start} is a checkpoint that --overwrite would remove; choose another folder with --run"
                raise self.recipe.error("train.init_from", what)

    def _begin(self, overwrite: bool) -> None:
        """Write the recipe; with ``overwrite`` remove an earlier training first."""
        self.check(overwrite)
        if self.checkpoints.files():
            self._clear()
        write_text(self.folder / "recipe.yaml", self.recipe.to_yaml())
        write_text(RUNS / _LAST, f"{self.folder.resolve()}\n")

    @classmethod
    def open(cls, folder: Path | str | None = None) -> Self:
        """Return the run in ``folder`` (a path, or a name below ``runs/``); by default the run built last.

        Raises:
            UserError: there is no such run.
        """
        if folder is None:
            last = RUNS / _LAST
            if not last.is_file():
                raise UserError("no run was built here yet; build one with `qsattn build RECIPE`")
            path = Path(last.read_text(encoding="utf-8", errors="surrogateescape").strip())
        elif not str(folder):
            raise UserError("the run's name is empty; is a variable of the command not set?")
        else:
            path = next((p for p in (Path(folder), RUNS / folder) if (p / "recipe.yaml").is_file()), Path(folder))
        if not (path / "recipe.yaml").is_file():
            known = [p.parent.name for p in RUNS.glob("*/recipe.yaml")]
            what = f"{path} is not a run (there is no recipe.yaml in it){nearest(path.name, known)}"
            raise UserError(f"{what}; build one with `qsattn build RECIPE`")
        return cls(path, load_recipe(path / "recipe.yaml"))

    def _clear(self) -> None:
        for file in self.checkpoints.files():
            file.unlink()
        for picture in (*self.grids.glob("*.png"), *self.maps.glob("*.png")):
            picture.unlink()
        for file in (self.log_file, self.report):
            file.unlink(missing_ok=True)

    def log(self, event: str, **values: Any) -> None:
        """Append one JSON object to ``metrics.jsonl``: ``{"event": "train" | "evaluate" | ..., "step": ..., ...}``.

        Raises:
            WriteFailed: the disk is full, ...
        """
        line = json.dumps({"event": event, **values}, allow_nan=True)
        try:
            with open(self.log_file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise WriteFailed(f"could not write {self.log_file}: {error.strerror}") from error

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log's entries for an event, oldest first."""
        return [values for _, values in read_events(self.log_file) if values["event"] == event]

    def last(self, event: str) -> dict[str, Any]:
        """Return the log's last entry for an event, or an empty mapping."""
        return next(reversed(self.events(event)), {})

    def tidy(self, step: int) -> None:
        """Remove what a killed process left: partial files, surplus checkpoints, and log entries after ``step``."""
        self.checkpoints.sweep()
        for folder in (self.folder, self.grids, self.maps):
            for stale in folder.glob(".*.part"):
                stale.unlink(missing_ok=True)
        self.checkpoints.prune(step)
        kept = "".join(f"{line}\n" for line, values in read_events(self.log_file) if values["step"] <= step)
        if self.log_file.is_file() and self.log_file.read_bytes() != kept.encode():
            write_text(self.log_file, kept)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for this process; the kernel releases the lock when the process ends, however it ends.

        Both the folder and a file in it are locked: the file can be deleted, and some file systems lock no folders.

        Raises:
            UserError: another process holds the lock, or the folder is not writable.
        """
        with contextlib.ExitStack() as closing:
            try:
                handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
                closing.callback(os.close, handle)
                folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
                closing.callback(os.close, folder)
            except OSError as error:
                raise UserError(f"cannot write to the run folder {self.folder}: {error.strerror}") from error
            for each in (handle, folder):
                try:
                    fcntl.flock(each, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(f"another process is training {self.folder}; wait for it or stop it") from error
                except OSError:
                    if each != folder:
                        raise
            self._held = folder
            closing.callback(setattr, self, "_held", None)
            yield

    def is_there(self) -> bool:
        """Return whether the folder that was locked is still where it was, neither moved nor deleted."""
        assert self._held is not None, "the run is locked"
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._held), os.stat(self.folder))
        return False

    def refuge(self) -> Run:
        """Return where this run goes on when its folder is not there: where that was moved to, or a new folder."""
        assert self._held is not None, "the run is locked"
        with contextlib.suppress(OSError):  # Linux tells where an open folder is now
            moved = Path(os.readlink(f"/proc/self/fd/{self._held}"))
            if os.path.samestat(os.fstat(self._held), os.stat(moved)):
                return Run(moved, self.recipe)
        beside = (self.folder.with_name(f"{self.folder.name}-{n}") for n in itertools.count(2))
        place = next(path for path in beside if not path.exists())
        run = Run(place, self.recipe)
        write_text(place / "recipe.yaml", self.recipe.to_yaml())
        return run
