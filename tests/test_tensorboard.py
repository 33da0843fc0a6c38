"""TensorBoard as a listener of the loop; a stand-in takes what its writer would."""

from __future__ import annotations

import sys
import types
from typing import ClassVar

import pytest
from click.testing import CliRunner

from qsattn_plugin.cli import main
from qsattn_plugin.errors import UserError
from qsattn_plugin.training.loop import TrainingEvent, fit
from qsattn_plugin.training.report import ReportWarning
from qsattn_plugin.training.tensorboard import TensorBoard
from tests.report_page import build


class Writer:
    """Stands in for TensorBoard's SummaryWriter, and takes what that takes."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, log_dir=None, purge_step=None):
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, tuple[int, ...], int]] = []
        self.closed = False
        Writer.made.append(self)

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.scalars.append((tag, float(scalar_value), global_step))

    def add_image(self, tag, img_tensor, global_step=None, dataformats="CHW"):
        assert dataformats == "HWC"
        self.images.append((tag, img_tensor.shape, global_step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_tensorboard_gets_losses_scores_and_grids(workplace, monkeypatch):
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    run = build(workplace / "run")
    fit(run, max_steps=2, on_event=TensorBoard(run.folder / "tensorboard"))
    done = CliRunner().invoke(main, ["fit", "run", "--tensorboard"])
    assert done.exit_code == 0, done.output
    assert "report: run/report.html" in done.output
    first, second = Writer.made
    assert (first.purge_step, second.purge_step) == (1, 3)
    assert second.log_dir == "run/tensorboard"
    for writer, steps in ((first, [1, 2]), (second, [3, 4])):
        assert [step for tag, _, step in writer.scalars if tag == "loss/NCE"] == steps
        assert [step for tag, _, step in writer.scalars if tag == "score/coat_distance"] == steps[1:]
        assert {"training/lr", "training/images_per_second"} <= {tag for tag, _, _ in writer.scalars}
        assert [(tag, shape[-1], step) for tag, shape, step in writer.images] == [("grid", 3, steps[1])]
        assert writer.closed


def test_a_training_goes_on_without_the_folder_of_tensorboard(workplace, monkeypatch):
    class Full(Writer):
        def add_scalar(self, tag, scalar_value, global_step=None):
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Full))
    run = build(workplace / "run")
    with pytest.warns(
        ReportWarning, match=r"tensorboard cannot be written \(No space left on device\); the training"
    ) as said:
        fit(run, on_event=TensorBoard(run.folder / "tensorboard"))
    assert run.checkpoints.steps()[-1] == 4 and sum(one.category is ReportWarning for one in said) == 1


def test_tensorboard_that_is_not_there_is_named_before_training(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoard(workplace)
    build(workplace / "run")
    done = CliRunner().invoke(main, ["fit", "run", "--tensorboard"])
    assert done.exit_code == 1
    assert "TensorBoard is not installed" in done.output
    assert not (workplace / "run" / "metrics.jsonl").exists()


def test_events_that_tensorboard_has_no_use_for_do_nothing(workplace, monkeypatch):
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    board = TensorBoard(workplace)
    for kind in ("decode", "step", "done", "end"):
        board(TrainingEvent(kind, 3, 4, {}))
    assert Writer.made == []
