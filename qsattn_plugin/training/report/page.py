"""A report's page, rendered from ``page.html`` or ``fork.html``. Jinja2 escapes everything that comes from outside."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import resources
from typing import Any, NamedTuple

import jinja2

from qsattn_plugin import __version__
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.text import duration
from qsattn_plugin.training.report.history import History, charts
from qsattn_plugin.training.report.pictures import Frame, Picture

#: Skipped pictures that are listed; the rest is counted.
LISTED = 200
_KEY = re.compile(r"(\s*(?:- )?)([\w.]+)(:.*)")


class _FilmFrame(NamedTuple):
    """One evaluation in a film: a list of pictures that the page's script turns into a player with a slider."""

    step: int
    caption: str
    best: bool
    pictures: dict[str, Picture]


def render_page(recipe: Recipe, recipe_text: str, history: History, frames: list[Frame]) -> str:
    """Return the page as HTML.

    Args:
        recipe: the run's recipe.
        recipe_text: the same as YAML, to be shown.
        history: the run's log.
        frames: the pictures of some evaluations, in the order of their steps.
    """
    start = history.starts[-1] if history.starts else {}
    known = start.get("environment") or {}
    grids = [Frame(f.step, {"grid": f.pictures["grid"]}) for f in frames if "grid" in f.pictures]
    maps = [Frame(f.step, {tap: p for tap, p in f.pictures.items() if tap != "grid"}) for f in frames]
    return _render(
        "page.html",
        history,
        ["charts.js", "films.js"],
        title=recipe.name,
        kind="training report",
        recipe=recipe,
        recipe_lines=list(_highlighted(recipe_text)),
        steps=recipe.train.steps,
        best=history.best,
        figures=_figures(recipe, history),
        grids=_film(history, grids),
        drawn=sum(e.grid is not None for e in history.evaluations),
        maps=_film(history, [frame for frame in maps if frame.pictures]),
        environment={**known, "device": start.get("device", "unknown")} if start and "device" not in known else known,
        starts=list(_starts(history)),
        skipped=[entry if isinstance(entry, list) else [entry] for entry in start.get("skipped") or ()],
        listed=LISTED,
    )


def render_fork_page(title: str, history: History) -> str:
    """Return the page of a log of a fork's sampler as HTML."""
    return _render(
        "fork.html",
        history,
        ["charts.js"],
        title=title,
        kind="the sampler in a fork",
        start={"sampler": None, "arguments": None, "script": None, **(history.starts[-1] if history.starts else {})},
        printed=any(not name.startswith("tap_") for name in history.series),
    )


def _render(template: str, history: History, scripts: list[str], **values: Any) -> str:
    page = _environment().get_template(template)
    return page.render(
        **values,
        history=history,
        data=_chart_data(history),
        style=_resource("style.css"),
        script="".join(map(_resource, scripts)),
        version=__version__,
        written=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "score": _score}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _chart_data(history: History) -> dict[str, Any]:
    """Return what the page's script draws charts from."""
    best, evaluations = history.best, history.evaluations
    return {
        "train": {"steps": history.steps, "series": history.series},
        "scores": {
            "steps": [e.step for e in evaluations],
            "series": {name: [e.scores.get(name) for e in evaluations] for name in history.score_names},
        },
        "leading": history.leading,
        "best": best.step if best else None,
        "charts": [asdict(chart) for chart in charts(history)],
    }


def _figures(recipe: Recipe, history: History) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each key figure."""
    best, name = history.best, history.leading
    if best is not None and name is not None:
        last, count = history.scored[-1], history.picked_from
        picked = f"at step {_number(best.step)}, the best of {count} evaluation{'s' if count > 1 else ''}"
        yield f"Best {name}", _score(best.scores[name]), picked
        yield f"Last {name}", _score(last.scores[name]), f"at step {_number(last.step)}"
    if history.speed:
        yield "Speed", f"{history.speed:.3g} images/s", f"the median, at batch size {recipe.train.batch_size}"
    if history.seconds:
        yield "Training time", duration(history.seconds), "without evaluations"
    if history.starts:
        counts = " + ".join(_number(n) for n in (history.starts[-1].get("images") or {}).values())
        skipped = len(history.starts[-1].get("skipped") or ())
        note = f"{_number(skipped)} skipped, see below" if skipped else "in both domains, none skipped"
        yield "Training images", counts, note


def _film(history: History, frames: list[Frame]) -> list[_FilmFrame]:
    """Return the frames with their captions."""
    scored, name = {e.step: e for e in history.scored}, history.leading
    film = []
    for step, pictures in ((frame.step, frame.pictures) for frame in frames):
        caption, best = f"Step {_number(step)}", history.best is not None and step == history.best.step
        if name is not None and step in scored:
            caption += f" · {name} {_score(scored[step].scores[name])}{' · best' if best else ''}"
        film.append(_FilmFrame(step, caption, best, pictures))
    return film


def _highlighted(recipe: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield each line of a recipe as the text before, an element (b: a key, i: a comment), its text, the text after."""
    for line in recipe.splitlines():
        if line.lstrip().startswith("#"):
            yield "", "i", line, ""
        elif match := _KEY.fullmatch(line):
            yield match[1], "b", match[2], match[3]
        else:
            yield "", "", "", line or "\n"


def _starts(history: History) -> Iterator[str]:
    """Yield a sentence for every start, and for every damaged checkpoint that a start passed over."""
    for start in history.starts:
        where = f"on {start.get('device', 'an unknown device')}"
        yield f"Resumed at step {_number(start['step'])} {where}" if start.get("resumed") else f"Started {where}"
        yield from (f"Went back: {sentence}" for sentence in start.get("damaged") or ())


def _number(value: int) -> str:
    """Format a count with thousands separators."""
    return f"{value:,}"


def _score(value: float) -> str:
    """Format a score with four significant digits."""
    return f"{value:.4g}"
