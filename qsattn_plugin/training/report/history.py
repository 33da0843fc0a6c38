"""A run's log, read into the form that the report shows."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from qsattn_plugin.storage.content import read_events

#: The most numbers in all curves together. Neighbouring lines of a longer log are averaged to keep the page small.
NUMBERS = 60_000
#: Up to so many lines, the log is never averaged, however many curves it has.
FEWEST = 200

_TOP_LEVEL = {"images_per_second": "Images per second", "lr": "Learning rate"}


@dataclass
class EvaluationRecord:
    """One evaluation: its step, its scores (smaller is better, the first leads), and its grid's file name."""

    step: int
    scores: dict[str, float]
    grid: str | None = None


@dataclass
class History:
    """A run's log, read."""

    steps: list[int] = field(default_factory=list)  # the step of each point of the curves, ascending
    series: dict[str, list[float | None]] = field(default_factory=dict)  # values at those steps; None: there is none
    averaged: int = 1  # the number of log lines that are averaged into one point
    evaluations: list[EvaluationRecord] = field(default_factory=list)  # by ascending step
    picked: dict[str, Any] = field(default_factory=dict)  # what the newest evaluation says of the best weights
    starts: list[dict[str, Any]] = field(default_factory=list)  # the "start" event of each call of fit
    ends: list[dict[str, Any]] = field(default_factory=list)  # the "end" event of each call that was not killed
    stopped: bool = False  # whether the last call of fit logged its "end"
    seconds: float = 0.0  # spent in training steps, without evaluations
    pictures: tuple[str, str] = ("testA", "testB")  # the splits that the last evaluation translated, and compared with

    @property
    def step(self) -> int:
        """The last step in the log."""
        return max([*self.steps[-1:], *(e.step for e in self.evaluations), *(e.get("step", 0) for e in self.ends), 0])

    @property
    def leading(self) -> str | None:
        """The score that "best" refers to: the first score of the newest evaluation that has any."""
        return next((next(iter(e.scores)) for e in reversed(self.evaluations) if e.scores), None)

    @property
    def score_names(self) -> list[str]:
        """The names of all scores, in the order of their first appearance."""
        return list(dict.fromkeys(name for e in self.evaluations for name in e.scores))

    @property
    def attends(self) -> bool:
        """Whether statistics of attention were logged."""
        return any(name.endswith("/largest_probability") for name in self.series)

    @property
    def scored(self) -> list[EvaluationRecord]:
        """The evaluations that have the leading score."""
        return [e for e in self.evaluations if self.leading in e.scores]

    @property
    def best(self) -> EvaluationRecord | None:
        """The evaluation of the best weights; without any, that with the smallest leading score.

        After going back to an earlier checkpoint there may be evaluations with a smaller one, whose weights are gone.
        """
        name, kept = self.leading, [e for e in self.scored if e.step == self.picked.get("step")]
        return min(kept or self.scored, key=lambda e: e.scores[name], default=None) if name is not None else None

    @property
    def picked_from(self) -> int:
        """How many evaluations the best was picked from."""
        said = self.picked.get("evaluations")
        return said if isinstance(said, int) else len(self.scored)

    @property
    def speed(self) -> float | None:
        """The median of images per second; None if none were logged."""
        known = [v for v in self.series.get("images_per_second", []) if v is not None]
        return median(known) if known else None


def read_history(path: Path, batch_size: int = 1) -> History:
    """Read a run's ``metrics.jsonl``. Truncated lines are skipped; a missing file is an empty log.

    Args:
        path: the log.
        batch_size: images per step and process; with images per second it gives the time of a step.
    """
    train: dict[int, dict[str, float | None]] = {}
    images = batch_size  # per step, over all processes
    spans: dict[int, int] = {}
    evaluations: dict[int, EvaluationRecord] = {}
    history = History()
    for _, event in read_events(path):
        kind, step = event["event"], event["step"]
        if kind == "train":
            train[step] = _numbers(event)
            spans[step] = images
        elif kind == "evaluate":
            scores = {k: v for k, v in numbers(event.get("scores")).items() if v is not None}
            grid = event.get("grid")
            history.pictures = tuple(event.get("pictures") or history.pictures)
            history.picked = event["best"] if isinstance(event.get("best"), dict) else {}
            evaluations[step] = EvaluationRecord(step, scores, Path(grid).name if isinstance(grid, str) else None)
        elif kind == "start":
            history.stopped = False
            history.starts.append(event)
            processes = event.get("processes")
            each = event.get("batch", batch_size)  # older logs lack it
            images = (each if isinstance(each, int) else batch_size) * (processes if isinstance(processes, int) else 1)
        elif kind == "images" and history.starts:  # decoded again, when random crops ended
            history.starts[-1] = {**history.starts[-1], **{k: event.get(k) for k in ("images", "skipped")}}
        elif kind == "end":
            history.stopped = True
            history.ends.append(event)
    history.evaluations = [evaluations[step] for step in sorted(evaluations)]
    history.seconds = _seconds(train, spans)
    _tabulate(train, history)
    return history


def numbers(values: Any) -> dict[str, float | None]:
    """Return a mapping's numbers as floats; None for those that no float holds, or JSON does not."""
    if not isinstance(values, dict):
        return {}
    kept = {str(k): v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return {k: float(v) if abs(v) <= sys.float_info.max else None for k, v in kept.items()}


def _numbers(event: dict[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a log line, without the flags for values that are not finite."""
    found = numbers(event.get("losses"))
    found |= numbers({k: v for k, v in event.items() if k != "step"})
    return {k: v for k, v in found.items() if not k.endswith("/nonfinite")}


def _seconds(train: dict[int, dict[str, float | None]], images: dict[int, int]) -> float:
    """Return the seconds that the steps took, from each step's image count and images per second."""
    total, before = 0.0, 0
    for step in sorted(train):
        rate = train[step].get("images_per_second")
        total += (step - before) * images[step] / rate if rate else 0.0
        before = step
    return total


def _tabulate(train: dict[int, dict[str, float | None]], history: History) -> None:
    """Turn the log's lines into curves of bounded length."""
    names = list(dict.fromkeys(name for values in train.values() for name in values))
    steps = sorted(train)
    most = max(FEWEST, NUMBERS // max(1, len(names)))
    size = history.averaged = max(1, math.ceil(len(steps) / most))
    groups = [steps[i : i + size] for i in range(0, len(steps), size)]
    history.steps = [group[-1] for group in groups]
    for name in names:
        history.series[name] = [_mean([train[step].get(name) for step in group]) for group in groups]


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(f"{sum(known) / len(known):.6g}") if known else None


@dataclass(frozen=True)
class Chart:
    """One chart of a report."""

    section: str  # id of the page's section that holds it
    title: str
    names: list[str]  # the series that it shows; for bands the quantiles, ascending
    labels: list[str]  # the series' names in the legend
    kind: str = "lines"  # or "bands" or "scores"
    unit: str = ""  # shown after the title
    low: float | None = None  # a value that the vertical axis always includes
    high: float | None = None  # another
    smooth: bool = True  # whether the smoothing slider applies to it


def charts(history: History) -> list[Chart]:
    """Return the charts of a log: speed, attention by tap, losses by group, one chart for each score."""
    found = []
    left = dict.fromkeys(history.series)
    for key, title in _TOP_LEVEL.items():
        if key in left:
            smooth = key == "images_per_second"
            found.append(Chart("speed", title, [key], [title], low=0, smooth=smooth))
            del left[key]
    largest = {n: f"tap {m[1]}" for n in left if (m := re.fullmatch(r"tap_(.+)/largest_probability", n))}
    if largest:
        title = "Largest probability, selected rows"
        found.append(Chart("attention", title, [*largest], [*largest.values()], unit="mean", low=0, high=1))
    for what, title, unit in (("milliseconds", "Time", "ms"), ("megabytes", "Memory", "MB")):
        names = {n: f"tap {m[1]}" for n in left if (m := re.fullmatch(rf"tap_(.+)/{what}", n))}
        if names:
            found.append(Chart("speed", title, [*names], [*names.values()], unit=unit, low=0))
            left = {name: None for name in left if name not in names}
    quantiles: dict[str, dict[int, str]] = {}
    for name in left:
        if m := re.fullmatch(r"tap_(.+)/entropy_q(\d+)", name):
            quantiles.setdefault(m[1], {})[int(m[2])] = name
    for tap, by_level in quantiles.items():
        levels = sorted(by_level)
        labels = [{0: "smallest", 50: "median", 100: "largest"}.get(q, f"{q} %") for q in levels]
        title = f"Entropy of all rows at tap {tap}"
        found.append(Chart("attention", title, [by_level[q] for q in levels], labels, "bands", "nats", low=0))
    shown = {*largest, *(name for by_level in quantiles.values() for name in by_level.values())}
    groups: dict[str, list[str]] = {}
    for name in left:
        if name not in shown:
            groups.setdefault(_group(name), []).append(name)
    found += [Chart("losses", title, names, names) for title, names in groups.items()]
    for name in history.score_names:
        found.append(Chart("scores", name, [name], [name], "scores", "smaller is better", smooth=False))
    return found


def _group(name: str) -> str:
    """Return the title of the chart that a loss belongs to."""
    if "/" in name:
        return "Other statistics"
    head = name.split("_")[0]
    known = {"D": "Adversarial", "G": "Adversarial", "NCE": "Contrastive (NCE)", "L1": "L1 distance"}
    return known.get(head, head.capitalize())
