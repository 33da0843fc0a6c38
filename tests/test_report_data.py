"""What a report is made of: a log of any length, pictures within a budget, and pieces that are missing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from qsattn_plugin.training.report import write_report
from qsattn_plugin.training.report.history import FEWEST, NUMBERS, charts, read_history
from qsattn_plugin.training.report.pictures import MOST, choose_evenly
from tests.report_page import build, made_up, page


def test_skipped_pictures_are_listed_up_to_a_number(workplace):
    run = build(workplace / "run")
    skipped = [[f"{i}.jpg", "cut short"] for i in range(250)]
    run.log("start", step=0, device="cpu", resumed=False, damaged=[], images={"A": 4, "B": 4}, skipped=skipped)
    write_report(run)
    text = page(run).text
    assert "250 training pictures could not be read" in text
    assert "199.jpg" in text
    assert "200.jpg" not in text
    assert "And 50 more." in text


def test_many_evaluations_stay_within_the_budget(workplace):
    run = made_up(workplace / "run", 120)
    write_report(run)
    seen = page(run)
    steps = seen.steps()
    assert MOST // 2 <= len(steps) <= MOST
    assert {1, 48, 120} <= set(steps)  # the first, the best, the last
    assert max(b - a for a, b in pairwise(steps)) <= 3  # every second would be 60
    assert f"{len(steps)} of 120 evaluations are shown" in seen.text
    assert seen.text.count("(best)") == 1
    assert "the best of 120 evaluations" in seen.text


@pytest.mark.parametrize("budget", [800_000, 200_000, 40_000])
def test_large_pictures_stay_within_the_budget(workplace, budget):
    # Noise is what compresses worst; 60 grids of 30 kB or so each do not fit into any of the budgets.
    run = made_up(workplace / "run", 60, (400, 100), noise=True)
    write_report(run, budget)
    seen = page(run)
    assert 0 < sum(map(len, seen.pictures)) <= budget
    if budget >= 200_000:
        assert {1, 24, 60} <= set(seen.steps())
    if budget >= 800_000:
        assert len(seen.steps()) >= 12


@pytest.mark.parametrize(
    ("count", "most", "always"), [(1, 5, []), (5, 5, [2]), (1000, 12, [7]), (30, 2, [9]), (0, 3, [])]
)
def test_evenly_chosen_evaluations_hold_first_last_and_best(count, most, always):
    kept = choose_evenly(count, most, always)
    musts = {*always, *([0, count - 1] if count else [])}
    assert kept == sorted(set(kept))
    assert musts <= set(kept)
    assert len(kept) <= max(most, len(musts))
    assert set(kept) <= set(range(count))


def test_a_long_log_is_averaged_to_a_bounded_length(workplace):
    lines = [
        json.dumps({"event": "train", "step": i, "losses": {f"l{k}": i for k in range(19)}, "images_per_second": 4})
        for i in range(1, 9001)
    ]
    path = workplace / "metrics.jsonl"
    path.write_text("\n".join([*lines, '{"event": "train", "st', "[]", '{"event": 3, "step": 1}']))
    history = read_history(path, batch_size=2)
    assert FEWEST < len(history.steps) <= NUMBERS // 20
    assert history.averaged == 3
    assert history.steps[-1] == 9000
    assert history.series["l0"][0] == 2.0  # the mean of 1, 2, 3
    assert history.seconds == pytest.approx(9000 * 2 / 4)
    assert history.speed == 4


def test_time_is_of_the_batches_that_were_trained_with(workplace):
    path = workplace / "metrics.jsonl"
    line = {"event": "train", "step": 100, "losses": {}, "images_per_second": 4}
    path.write_text("\n".join(map(json.dumps, [{"event": "start", "step": 0, "batch": 8}, line])))
    assert read_history(path, batch_size=1).seconds == pytest.approx(100 * 8 / 4)


def test_values_that_no_report_can_show_are_left_out(workplace):
    path = workplace / "metrics.jsonl"
    lines = [
        {"event": "train", "step": 1, "losses": {"NCE": 10**400, "GAN": 0.5}},
        {"event": "start", "step": 1, "damaged": 3},
        {"event": "evaluate", "step": 1, "scores": {"kid": 10**400}},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    history = read_history(path)
    assert history.series["NCE"] == [None]
    assert history.series["GAN"] == [0.5]
    assert not history.starts
    assert not history.evaluations


def test_time_counts_the_processes_of_each_start(workplace):
    run = build(workplace / "run")
    for processes, step in ((2, 10), (1, 20)):
        run.log("start", step=step - 10, device="cpu", processes=processes)
        run.log("train", step=step, losses={"NCE": 1.0}, images_per_second=5.0)
    # Ten steps of 2 x 3 images, then ten of 3, at five images a second.
    assert read_history(run.folder / "metrics.jsonl", 3).seconds == pytest.approx(12 + 6)


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([("start", 0), ("train", 2)], "at step 2 of 4"),
        ([("start", 0), ("train", 2), ("end", 2)], "stopped at step 2 of 4; it can be resumed"),
        ([("start", 0), ("train", 2), ("end", 2), ("start", 2), ("train", 3)], "at step 3 of 4"),
        ([("start", 0), ("train", 4), ("end", 4)], "finished after 4 steps"),
    ],
)
def test_the_page_says_how_far_the_training_is(workplace, events, sentence):
    run = build(workplace / "run")
    for event, step in events:
        run.log(event, step=step, device="cpu", losses={"NCE": 1.0})
    write_report(run)
    assert f"AtoB; {sentence}." in page(run).text


@pytest.mark.parametrize(
    "case", ["nothing", "no test images", "no grid file", "damaged grid", "no start", "other scores later"]
)
def test_missing_pieces_do_not_break_it(workplace, case):
    run = build(workplace / "run")
    if case == "no test images":
        run.log("start", step=0, device="cpu", resumed=False, damaged=[], images={"A": 4, "B": 4}, skipped=[])
        run.log("evaluate", step=2, scores={}, grid=None)
    elif case == "no grid file":
        run.log("evaluate", step=2, scores={"kid": 0.5}, grid="elsewhere/step-000000002.png")
    elif case == "damaged grid":
        run = made_up(workplace / "run2", 3, noise=True)
        grid = run.grids / "step-000000002.png"
        grid.write_bytes(grid.read_bytes()[:200])
    elif case == "no start":
        run.log("train", step=1, losses={"NCE": 1.0})
        run.log("end", step=1)
    elif case == "other scores later":
        run.log("evaluate", step=2, scores={"coat_distance": 0.5}, grid=None)
        run.log("evaluate", step=4, scores={"kid": 0.7, "coat_distance": 0.1}, grid=None)
    write_report(run)
    seen = page(run)
    if case == "damaged grid":
        assert seen.steps() == [1, 3]
    elif case == "other scores later":
        assert (seen.data["leading"], seen.data["best"]) == ("kid", 4)
        assert "picked from 1;" in seen.text
        assert seen.data["scores"]["series"]["kid"] == [None, 0.7]
    elif case != "no grid file":
        assert seen.pictures == []
        assert "There are no scores" in seen.text


def test_charts_of_an_empty_log():
    assert charts(read_history(Path("nowhere.jsonl"))) == []
