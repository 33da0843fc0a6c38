"""Run folders: logs, recipes and checkpoints that were damaged, and what `fit` and the report make of them."""

from __future__ import annotations

import copy
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.storage import load_tensors, read_document, save_tensors
from qsattn_plugin.training.best import BestWeights
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.report import write_report
from qsattn_plugin.training.resuming import check_architecture, rate_note
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from tests.conftest import TINY
from tests.fuzz import Case, damage, meddle


@functools.cache
def _base() -> tuple[Path, Session]:
    """A run of two steps, and its session, which the cases share: a restore replaces all of it."""
    folder = Path(tempfile.mkdtemp(prefix="qsattn-fuzz-"))
    run = Run.create(load_recipe("toy", (*TINY, "train.steps=2", "train.ema=0.9", "evaluate.every=1")), folder)
    fit(run)
    return folder, Session(run.recipe)


def make(draw: random.Random, folder: Path) -> Case:
    base, session = _base()
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)
    run = Run(place, session.recipe)
    path = draw.choice((run.checkpoints.path(2), run.checkpoints.path(2), run.checkpoints.best))
    match draw.randrange(5):
        case 0:
            _change_checkpoint(draw, path)
        case 1:
            path.write_bytes(damage(draw, path.read_bytes()))
        case 2:
            lines = [json.loads(line) for line in run.log_file.read_text().splitlines()]
            meddle(draw, lines)
            text = "\n".join(map(json.dumps, lines)).encode()
            run.log_file.write_bytes(damage(draw, text) if draw.random() < 0.5 else text)
        case 3:
            file = draw.choice((run.report, place / "recipe.yaml", next(run.grids.glob("*"))))
            file.write_bytes(damage(draw, file.read_bytes()))
        case _:
            file = draw.choice((run.report, place / ".lock", path, run.log_file, next(run.grids.glob("*"))))
            file.unlink()
            if draw.random() < 0.3:
                file.mkdir()

    def go_on() -> None:
        found = Run.open(place)
        found.last("evaluate").get("scores")
        BestWeights(found, 0)
        write_report(found)
        newest, _ = found.checkpoints.newest()
        if newest is not None:
            document = read_document(newest)
            check_architecture(found.recipe, document, newest)
            rate_note(found.recipe.train, document, document["step"])
            session.restore(newest)
            found.tidy(session.step)

    return go_on


def _change_checkpoint(draw: random.Random, path: Path) -> None:
    tensors, document = copy.deepcopy(load_tensors(path))
    if draw.random() < 0.5:
        meddle(draw, document)
    for name in draw.sample(list(tensors), draw.choice((0, 1, 2))):
        changes: tuple[Any, ...] = (None, tensors[name].flatten(), tensors[name].to(torch.int8), torch.zeros(()))
        changed = draw.choice(changes)
        tensors.pop(name)
        if changed is not None:
            tensors[name] = changed
    save_tensors(path, tensors, document)
