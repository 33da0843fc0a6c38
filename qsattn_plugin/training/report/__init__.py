"""A run's report: one HTML file that shows the whole training, written from disk, without a server or a network.

The page of a fork's log is drawn where torch, jinja2, pillow and safetensors are all there is; therefore the late
imports.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from qsattn_plugin.errors import UserError
from qsattn_plugin.training.report.history import History, read_history
from qsattn_plugin.training.report.page import render_fork_page, render_page
from qsattn_plugin.training.report.pictures import BUDGET, Frame, find_maps, make_frames

if TYPE_CHECKING:
    from qsattn_plugin.training.run import Run
    from qsattn_plugin.training.session import Session


class ReportWarning(UserWarning):
    """The report, or a picture for it, could not be written. The training continues."""


@contextlib.contextmanager
def _only_warned_of(run: Run, what: str) -> Iterator[None]:
    """Make any error a :class:`ReportWarning`: a training never stops because of its report."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a report must not end a training
        text = f"the {what} of {run.folder} could not be written ({type(error).__name__}: {error}); training continues"
        warnings.warn(text, ReportWarning, stacklevel=4)


def refresh_maps(run: Run, session: Session, images: Sequence[Tensor]) -> None:
    """Write the entropy maps of a few test images; any error becomes a :class:`ReportWarning`."""
    with _only_warned_of(run, "entropy maps"):
        from qsattn_plugin.training.report.maps import write_maps

        write_maps(session, images, run.maps)


def refresh_report(run: Run) -> None:
    """Write the report; any error becomes a :class:`ReportWarning`."""
    with _only_warned_of(run, "report"):
        write_report(run)


def write_report(run: Run, budget: int = BUDGET) -> Path:
    """Write ``report.html`` from the log, the pictures and the recipe in a run's folder; return its path.

    Embedded pictures take at most ``budget`` characters together; some evaluations are left out to keep to it.

    Raises:
        UserError: the report could not be written.
    """
    from qsattn_plugin.storage import write_text

    train = run.recipe.train
    history = read_history(run.folder / "metrics.jsonl", train.step_images)
    recipe = (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    write_text(run.report, render_page(run.recipe, recipe, history, _frames(run, history, budget)))
    return run.report


def write_fork_report(log: Path) -> Path:
    """Write the page of a log of ``qsattn fork --log`` beside it, and return its path.

    Raises:
        UserError: there is no such log, or it holds nothing that such a log holds.
        OSError: the page cannot be written.
    """
    history = read_history(log)
    if not history.starts and not history.steps:
        raise UserError(
            f"{log} is not a log that qsattn fork --log wrote" if log.exists() else f"there is no log {log}"
        )
    if not all("sampler" in start for start in history.starts):
        raise UserError(f"{log} is the log of a training: qsattn report {log.parent} draws that run's page")
    page = log.with_suffix(".html")
    page.write_text(render_fork_page(log.stem, history), encoding="utf-8")
    return page


def _frames(run: Run, history: History, budget: int) -> list[Frame]:
    """Return the pictures of the logged evaluations: their grids and entropy maps."""
    maps = find_maps(run.maps)
    sheets = []
    for evaluation in history.evaluations:
        files = {"grid": run.grids / evaluation.grid} if evaluation.grid else {}
        files |= {f"tap {tap}": path for tap, path in maps.get(evaluation.step, {}).items()}
        sheets.append((evaluation.step, files))
    return make_frames(sheets, [history.best.step] if history.best else [], budget)
