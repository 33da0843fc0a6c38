"""The sections of a report as HTML. Everything from outside - names, paths, reasons - goes through ``escape``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.training.report.history import EvaluationRecord, History
from qsattn_plugin.training.report.pictures import Frame, Picture

#: Skipped pictures that are listed; of the rest there is a count.
LISTED = 200
_FIRST_COLUMN = re.compile(r"(\s*(?:- )?)([\w.]+)(:.*)?")


def lead(recipe: Recipe, history: History) -> str:
    """One sentence: what was trained, and how far it is."""
    done, steps = history.step, recipe.train.steps
    if done >= steps:
        state = f"finished after {number(steps)} steps"
    elif history.stopped:
        state = f"stopped at step {number(done)} of {number(steps)}; it can be carried on"
    else:
        state = f"at step {number(done)} of {number(steps)}"
    return f"<p class=lead>Method <b>{escape(recipe.method)}</b>, {escape(recipe.data.direction)}; {state}.</p>"


def figures(recipe: Recipe, history: History) -> str:
    """The figures that one looks for first."""
    cells = []
    best, name = history.best, history.leading
    if best is not None:
        last, count = history.scored[-1], len(history.scored)
        picked = f"at step {number(best.step)}, the best of {count} evaluation{'s' if count > 1 else ''}"
        cells.append((f"Best {name}", score(best.scores[name]), picked))
        cells.append((f"Last {name}", score(last.scores[name]), f"at step {number(last.step)}"))
    if history.speed:
        cells.append(("Speed", f"{history.speed:.3g} images/s", f"the median, at batch size {recipe.train.batch_size}"))
    if history.seconds:
        cells.append(("Training time", duration(history.seconds), "without evaluations"))
    if history.starts:
        images = history.starts[-1].get("images") or {}
        counts = " + ".join(number(n) for n in images.values())
        left_out = len(history.starts[-1].get("skipped") or ())
        note = f"{number(left_out)} skipped, see below" if left_out else "in both domains, none skipped"
        cells.append(("Training images", counts, note))
    rows = (
        f"<div><dt>{escape(title)}</dt><dd><b>{escape(value)}</b><span>{escape(note)}</span></dd></div>"
        for title, value, note in cells
    )
    return f"<dl class=figures>{''.join(rows)}</dl>" if cells else "<p>Nothing was logged yet.</p>"


def pictures(history: History, frames: list[Frame]) -> str:
    """The same test images at every evaluation."""
    found = [(f.step, {"grid": f.pictures["grid"]}) for f in frames if "grid" in f.pictures]
    if not found:
        return "<p>There are no pictures: no evaluation yet, or the data set has no test images.</p>"
    drawn = sum(e.grid is not None for e in history.evaluations)
    left_out = (
        f" {len(found)} of {drawn} evaluations are shown, evenly spaced, with the first, the best and the last, so that"
        " this file stays small; all of them are in the run's <code>grids</code> folder."
        if len(found) < drawn
        else ""
    )
    text = f"<p>The same test images at every evaluation: the source above, its translation below.{left_out}</p>"
    return text + _film(history, found, "pictures", "Test images above, their translations below,")


def attention(history: History) -> str:
    """What the curves of attention say, or why there are none."""
    if any(name.endswith("/largest_probability") for name in history.series):
        return (
            "<p>How sharp the source's attention is, by tap. Where the selected rows' largest probability is near 1, a"
            " query attends to itself almost alone, and routing gathers single places.</p>"
        )
    if not history.steps:
        return "<p>Nothing was logged yet.</p>"
    return "<p>This training attends to nothing: its places are random, or it has no contrastive loss.</p>"


def maps(history: History, frames: list[Frame]) -> str:
    """Where the model looks, at every evaluation."""
    found = [(f.step, taps) for f in frames if (taps := {name: p for name, p in f.pictures.items() if name != "grid"})]
    if not found:
        return ""
    text = (
        "<h3>Entropy maps</h3><p>A test image; the entropy of its attention rows, warm where it is small, ranked over"
        " the image; and the selected queries as dots.</p>"
    )
    return text + _film(history, found, "maps", "Test image, entropy map and selected queries")


def _film(history: History, found: list[tuple[int, dict[str, Picture]]], name: str, alt: str) -> str:
    """A strip of frames, which the page's script turns into a player with a slider."""
    by_step = {e.step: e for e in history.evaluations}
    steps = [step for step, _ in found]
    best = history.best.step if history.best else None
    key = {steps[0], steps[-1], best}
    rows = []
    for step, shown in found:
        caption = _caption(by_step.get(step), step, history)
        figures = "".join(
            f"<figure>{f'<figcaption>{escape(label.capitalize())}</figcaption>' if label != 'grid' else ''}"
            f'<div class=scroll tabindex=0 role=group aria-label="Picture, scrolls sideways where it is wide">'
            f'<img width={p.width} height={p.height} src="{p.uri}" decoding=sync'
            f' alt="{escape(alt)} {escape(label) + " " if label != "grid" else ""}at step {step}"></div></figure>'
            for label, p in shown.items()
        )
        is_key = " key" if step in key else ""
        rows.append(
            f'<div class="frame{is_key}" data-step={step} data-caption="{escape(caption)}">'
            f"<h4>{escape(caption)}</h4><div class=side>{figures}</div></div>"
        )
    marks = "".join(
        f'<button type=button data-go="{i}">{label}</button>'
        for label, i in (("First", 0), ("Best", steps.index(best) if best in steps else None), ("Last", len(steps) - 1))
        if i is not None
    )
    player = (
        f"<div class=player hidden><div class=caption><label for={name}-slider>Evaluation</label>"
        f"<output for={name}-slider aria-live=polite></output></div>"
        f"<input type=range id={name}-slider min=0 max={len(steps) - 1} value={len(steps) - 1} step=1>"
        f"<div class=buttons>{marks}<button type=button data-play aria-pressed=false>Play</button></div></div>"
    )
    return f"<div class=film>{player if len(found) > 1 else ''}{''.join(rows)}</div>"


def _caption(evaluation: EvaluationRecord | None, step: int, history: History) -> str:
    text = f"Step {number(step)}"
    name = history.leading
    if evaluation is not None and name in evaluation.scores:
        text += f" · {name} {score(evaluation.scores[name])}"
        if evaluation is history.best:
            text += " · best"
    return text


def scores(history: History) -> str:
    """How good the translations were, as a table for reading and copying; the curves are the script's."""
    names = list(dict.fromkeys(name for e in history.evaluations for name in e.scores))
    if not names:
        return "<p>There are no scores: no evaluation yet, or the data set knows nothing to score with.</p>"
    best, count = history.best, len(history.scored)
    text = (
        f"<p>Smaller is better. The best evaluation by <b>{escape(history.leading)}</b> is the one at step"
        f" <b>{number(best.step)}</b>, picked from {count}; the more a best is picked from, the more of it is luck.</p>"
    )
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr{' class=best' if e is best else ''}><th scope=row>{number(e.step)}{' (best)' if e is best else ''}</th>"
        + "".join(f"<td>{score(e.scores[name]) if name in e.scores else '–'}</td>" for name in names)
        + "</tr>"
        for e in history.evaluations
    )
    table = f"<thead><tr><th scope=col>Step</th>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"{text}<div class=charts></div>{_details(f'All {len(history.evaluations)} evaluations', _table(table))}"


def losses(history: History) -> str:
    """What the loss curves are made of."""
    if not history.steps:
        return "<p>Nothing was logged yet.</p>"
    if history.averaged > 1:
        return f"<p>Each point is the mean of {history.averaged} lines of the log.</p>"
    return ""


def recipe(text: str) -> str:
    """The resolved recipe with its line numbers."""
    return f"<ol class=code>{''.join(f'<li>{_line(line)}</li>' for line in text.splitlines())}</ol>"


def _line(line: str) -> str:
    if line.lstrip().startswith("#"):
        return f"<i>{escape(line)}</i>"
    match = _FIRST_COLUMN.fullmatch(line)
    if match is None or match[3] is None:
        return escape(line) or "\n"
    return f"{escape(match[1])}<b>{escape(match[2])}</b>{escape(match[3])}"


def environment(history: History) -> str:
    """What it ran on, as of its last start."""
    known = (history.starts[-1].get("environment") if history.starts else None) or {}
    if history.starts and "device" not in known:
        known = {**known, "device": history.starts[-1].get("device", "unknown")}
    if not known:
        return "<p>Not recorded.</p>"
    rows = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in known.items())
    return f"<dl class=pairs>{rows}</dl>"


def calls(recipe: Recipe, history: History) -> str:
    """How often it was started, and what happened then."""
    items = []
    for start in history.starts:
        where = f"on {start.get('device', 'an unknown device')}"
        text = f"Carried on at step {number(start['step'])} {where}" if start.get("resumed") else f"Started {where}"
        items += [text, *(f"Went back: {sentence}" for sentence in start.get("damaged") or ())]
    if len(items) < 2:
        return ""
    return f"<h3>Starts</h3><ol class=plain>{''.join(f'<li>{escape(str(i))}</li>' for i in items)}</ol>"


def skipped(history: History) -> str:
    """The pictures that could not be read."""
    entries = (history.starts[-1].get("skipped") or []) if history.starts else []
    if not entries:
        return "<p>None: every training picture could be read.</p>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in (entry if isinstance(entry, list) else [entry]))
        for entry in entries[:LISTED]
    )
    more = f"<p>And {number(len(entries) - LISTED)} more.</p>" if len(entries) > LISTED else ""
    text = f"{number(len(entries))} training picture{'s' if len(entries) > 1 else ''} could not be read"
    head = "<thead><tr><th scope=col>Picture</th><th scope=col>Reason</th></tr></thead>"
    return _details(text, _table(f"{head}<tbody>{rows}</tbody>") + more)


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _table(rows: str) -> str:
    return f'<div class=scroll tabindex=0 role=group aria-label="Table"><table>{rows}</table></div>'


def number(value: int) -> str:
    """Return a count for people: thousands apart."""
    return f"{value:,}"


def score(value: float) -> str:
    """Return a score for people: four figures."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return a time for people."""
    units: Iterable[tuple[str, int]] = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left, parts = round(seconds), []
    for unit, size in units:
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
