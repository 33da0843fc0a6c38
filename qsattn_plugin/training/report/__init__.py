"""A run's report: one HTML file that shows all of a training, from disk, without a server or a network."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from qsattn_plugin import __version__
from qsattn_plugin.storage import write_text
from qsattn_plugin.training.report import sections
from qsattn_plugin.training.report.history import History, charts, read_history
from qsattn_plugin.training.report.maps import write_maps
from qsattn_plugin.training.report.pictures import BUDGET, Frame, find_maps, make_frames
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session


class ReportWarning(UserWarning):
    """The report, or a picture for it, could not be written. The training goes on."""


def refresh_report(run: Run, session: Session | None = None, images: Sequence[Tensor] = ()) -> None:
    """Draw the entropy maps of a few test images, if there is a session to draw them from, and write the report.

    Whatever goes wrong is said in a :class:`ReportWarning`: no training stops for its report.
    """
    try:
        if session is not None:
            write_maps(session, images, run.maps)
        write_report(run)
    except Exception as error:
        text = f"the report of {run.folder} could not be written ({type(error).__name__}: {error}); training goes on"
        warnings.warn(text, ReportWarning, stacklevel=2)


def write_report(run: Run, budget: int = BUDGET) -> Path:
    """Write ``report.html`` into a run's folder from what lies there, and return its path.

    Args:
        run: its log, its pictures and its recipe are read.
        budget: characters of all embedded pictures together; where they are more, some evaluations are left out.

    Raises:
        UserError: it could not be written.
    """
    train = run.recipe.train
    history = read_history(run.folder / "metrics.jsonl", train.batch_size * train.accumulate)
    write_text(run.report, _page(run, history, _frames(run, history, budget)))
    return run.report


def _frames(run: Run, history: History, budget: int) -> list[Frame]:
    """Return the pictures of the evaluations in the log: their grids and entropy maps."""
    maps = find_maps(run.maps)
    sheets = []
    for evaluation in history.evaluations:
        files = {"grid": run.grids / evaluation.grid} if evaluation.grid else {}
        files |= {f"tap {tap}": path for tap, path in maps.get(evaluation.step, {}).items()}
        sheets.append((evaluation.step, files))
    return make_frames(sheets, [history.best.step] if history.best else [], budget)


def _page(run: Run, history: History, frames: list[Frame]) -> str:
    recipe = (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    parts = {
        "title": escape(f"{run.recipe.name}: training report"),
        "name": escape(run.recipe.name),
        "style": _resource("style.css"),
        "script": _resource("charts.js") + _resource("films.js"),
        "data": _embed(_data(history)),
        "lead": sections.lead(run.recipe, history),
        "figures": sections.figures(run.recipe, history),
        "pictures": sections.pictures(history, frames),
        "scores": sections.scores(history),
        "losses": sections.losses(history),
        "attention": sections.attention(history),
        "maps": sections.maps(history, frames),
        "recipe": sections.recipe(recipe),
        "environment": sections.environment(history),
        "calls": sections.calls(run.recipe, history),
        "skipped": sections.skipped(history),
        "version": escape(__version__),
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
    }
    # In one pass: a recipe's name that looks like a place to fill in stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _data(history: History) -> dict[str, Any]:
    """Return what the page's script draws from."""
    best, evaluations = history.best, history.evaluations
    names = dict.fromkeys(name for e in evaluations for name in e.scores)
    return {
        "train": {"steps": history.steps, "series": history.series},
        "scores": {
            "steps": [e.step for e in evaluations],
            "series": {name: [e.scores.get(name) for e in evaluations] for name in names},
        },
        "leading": history.leading,
        "best": best.step if best else None,
        "charts": [asdict(chart) for chart in charts(history)],
    }


def _embed(values: Any) -> str:
    """Return JSON that can stand in a script element: no ``</script>``, no comment, whatever the names hold."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
