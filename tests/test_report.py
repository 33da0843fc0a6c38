"""The report: one file, complete, safe to open, and never in the way of a training."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsattn_plugin.cli import main
from qsattn_plugin.training import report as report_module
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.report import ReportWarning, write_report
from qsattn_plugin.training.run import Run
from tests.report_page import Page, build, page

NASTY = '</script><script>alert("x")</script><img src=x onerror=alert(1)>{{data}}'


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """A tiny training that attends to a tap."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("trained"))
    run = build(Path("run").resolve(), "data.size=32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReportWarning)
        fit(run)
    patch.undo()
    return run


def test_a_training_writes_a_page_that_needs_nothing_else(trained):
    text = trained.report.read_text(encoding="utf-8")
    seen = page(trained)
    assert not [attrs for tag, attrs in seen.tags if tag in ("link", "iframe", "object", "base")]
    for _, attrs in seen.tags:
        for name in ("src", "href", "action", "srcset"):
            if attrs.get(name):
                assert attrs[name].startswith(("data:image/jpeg;base64,", "#")), attrs[name][:60]
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", text)
    assert not list(trained.folder.glob(".*.part"))


def test_the_page_shows_the_log(trained):
    seen = page(trained)
    events = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [e for e in events if e["event"] == "evaluate"]
    best = min(evaluated, key=lambda e: e["scores"]["coat_distance"])
    assert seen.data["best"] == best["step"]
    assert f"at step {best['step']}, the best of {len(evaluated)} evaluations" in seen.text
    for event in evaluated:
        for score in event["scores"].values():
            assert f"{score:.4g}" in seen.text
    logged = [e["losses"] for e in events if e["event"] == "train"]
    assert seen.data["train"]["steps"] == [1, 2, 3, 4]
    assert seen.data["train"]["series"]["NCE"] == pytest.approx([e["NCE"] for e in logged], rel=1e-5)
    assert seen.steps() == [2, 4]
    shown = {name for chart in seen.data["charts"] for name in chart["names"]}
    assert {"NCE", "D_real", "images_per_second", "lr", "coat_distance", "tap_12/largest_probability"} <= shown
    assert shown <= seen.data["train"]["series"].keys() | seen.data["scores"]["series"].keys()
    bands = [chart for chart in seen.data["charts"] if chart["kind"] == "bands"]
    assert [len(chart["names"]) for chart in bands] == [5] * len(bands)
    for text in (
        "finished after 4 steps",
        "qsattn_global",
        "PyTorch",
        "threads",
        "every training picture could be read",
    ):
        assert text in seen.text


def test_maps_are_drawn_at_attentive_taps_of_every_evaluation(trained):
    taps = {
        name.split("/")[0] for name in page(trained).data["train"]["series"] if name.endswith("largest_probability")
    }
    expected = {f"step-{step:09d}-{tap.replace('_', '-')}.png" for step in (2, 4) for tap in taps}
    assert {path.name for path in trained.maps.iterdir()} == expected
    assert taps
    # One grid and the maps for each evaluation.
    assert len(page(trained).pictures) == 2 * (1 + len(taps))


def test_every_control_has_a_name_and_every_picture_a_text(trained):
    seen = page(trained)
    labelled = {attrs["for"] for tag, attrs in seen.tags if tag == "label" and "for" in attrs}
    sliders = [attrs for tag, attrs in seen.tags if tag == "input"]
    assert len(sliders) == 4
    assert all(s["id"] in labelled or s["id"] in ("smoothing", "logarithmic") for s in sliders)  # inside their labels
    assert all(attrs.get("alt") for tag, attrs in seen.tags if tag == "img")
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"][1:] for tag, attrs in seen.tags if tag == "a"}
    assert targets <= set(ids)


def test_what_comes_from_outside_stays_text(workplace):
    run = build(workplace / "run")
    with (run.folder / "recipe.yaml").open("a") as file:
        file.write(f"# {NASTY}\n")
    run.recipe = replace(run.recipe, name=NASTY)
    run.log("start", step=0, device=NASTY, resumed=True, damaged=[NASTY], images={"A": 1}, skipped=[[NASTY, NASTY]])
    run.log("train", step=1, losses={NASTY: 1.5, "NCE": float("nan"), "tap_0/nonfinite": True}, images_per_second=2.0)
    run.log("evaluate", step=1, scores={NASTY: 0.5}, grid=None)
    write_report(run)
    seen = page(run)
    assert len(seen.scripts) == 2
    assert not [attrs for tag, attrs in seen.tags if tag == "img" or any(name.startswith("on") for name in attrs)]
    assert seen.text.count(NASTY) >= 5
    assert seen.data["train"]["series"] == {NASTY: [1.5], "NCE": [None], "images_per_second": [2.0]}
    assert seen.data["scores"]["series"] == {NASTY: [0.5]}


def test_a_method_without_attention_has_no_maps(workplace):
    run = build(workplace / "run", "method=cyclegan", "train.steps=2")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReportWarning)
        fit(run)
    assert not run.maps.exists()
    sections = {chart["title"] for chart in page(run).data["charts"] if chart["section"] == "losses"}
    assert sections == {"Adversarial", "Cycle", "Identity"}


def test_a_failing_report_is_a_warning_and_no_more(workplace, monkeypatch):
    run = build(workplace / "run")

    def broken(*_):
        raise ZeroDivisionError("not today")

    monkeypatch.setattr(report_module, "render_page", broken)
    with pytest.warns(ReportWarning, match=r"report of .*run could not be written \(ZeroDivisionError: not today\)"):
        fit(run)
    assert run.checkpoints.steps() == [2, 4]
    assert not run.report.exists()


def test_the_report_leaves_the_training_alone(workplace, monkeypatch):
    whole, without = build(workplace / "whole"), build(workplace / "without")
    fit(whole)
    for name in ("refresh_maps", "refresh_report"):
        monkeypatch.setattr(f"qsattn_plugin.training.loop.{name}", lambda *_: None)
    fit(without)
    assert whole.checkpoints.path(4).read_bytes() == without.checkpoints.path(4).read_bytes()


def test_the_command_writes_it_anew(workplace, trained):
    shutil.copytree(trained.folder, workplace / "runs" / "mine")
    path = workplace / "runs" / "mine" / "report.html"
    path.unlink()
    log = CliRunner().invoke(main, ["report", "runs/mine/metrics.jsonl"])
    assert log.exit_code == 1 and "is the log of a training: qsattn report runs/mine draws" in log.output
    done = CliRunner().invoke(main, ["report", "mine"])
    assert done.exit_code == 0, done.output
    assert done.output == "runs/mine/report.html\n"
    assert Page(path.read_text(encoding="utf-8")).data == page(trained).data
