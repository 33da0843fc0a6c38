"""A report's page taken apart, for the tests that look into it; and small runs to write one of."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.run import Run
from tests.conftest import TINY

VOID = {"meta", "link", "input", "img", "br", "hr"}


class Page(HTMLParser):
    """A page, taken apart; every element must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open[-1] in ("tr", "td", "th", "li") and self.open[-1] != tag:  # HTML lets these end by themselves
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open[-1:] != ["style"]:
            self.text += data

    @property
    def data(self) -> dict:
        return next(json.loads(text) for attrs, text in self.scripts if attrs.get("type") == "application/json")

    @property
    def pictures(self) -> list[str]:
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]

    def steps(self) -> list[int]:
        return sorted({int(attrs["data-step"]) for _, attrs in self.tags if "data-step" in attrs})


def page(run: Run) -> Page:
    return Page(run.report.read_text(encoding="utf-8"))


def build(folder: Path, *overrides: str, recipe: str = "toy") -> Run:
    return Run.create(load_recipe(recipe, (*TINY, *overrides)), folder)


def made_up(folder: Path, evaluations: int, size: tuple[int, int] = (60, 30), noise: bool = False) -> Run:
    """A run that was never trained: a log, and a grid for every evaluation."""
    run = build(folder)
    run.grids.mkdir(parents=True)
    first = run.grids / "first.png"
    (Image.effect_noise(size, 90) if noise else Image.new("RGB", size, "teal")).save(first)
    run.log("start", step=0, device="cpu", resumed=False, damaged=[], images={"A": 4, "B": 5}, skipped=[])
    for i in range(1, evaluations + 1):
        shutil.copy(first, run.grids / f"step-{i:09d}.png")
        scores = {"coat_distance": abs(i - evaluations * 0.4) + 1}
        run.log("evaluate", step=i, scores=scores, grid=str(run.grids / f"step-{i:09d}.png"))
    return run
