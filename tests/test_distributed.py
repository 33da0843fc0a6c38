"""Several processes: the gradients of one with the whole batch, one run folder, and an end when one of them ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from qsattn_plugin.cli import main
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.storage import load_tensors
from qsattn_plugin.training import distributed
from qsattn_plugin.training.distributed import World, check_distributable, world
from qsattn_plugin.training.distributed.launch import launch
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from tests.conftest import TINY
from tests.ranks import CASES, one_step
from tests.test_fit import build, events
from tests.test_gradients import TOLERANCE, assert_equal, double

__all__ = ["double"]

ROOT = Path(__file__).parents[1]
#: Seconds; on a busy machine a process takes ten to import torch.
SOON = 60


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """The folder in which two processes left what they found."""
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        assert launch([sys.executable, "-m", "tests.ranks", str(folder)], 2) == 0
    return folder


@pytest.fixture(scope="module")
def found(job) -> dict:
    return json.loads((job / "found.json").read_text())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_gradients_of_one_with_twice_the_batch(job, found, double, case, dtype):
    # They differ in the order of sums alone, within the batch and between ranks: TOLERANCE says what that may do.
    expected, losses = one_step(case, dtype, World())
    got, _ = load_tensors(job / f"{case} {dtype}.safetensors")
    assert_equal(got, expected, TOLERANCE[dtype])
    together = found["losses"][f"{case} {dtype}"]
    assert together.keys() == losses.keys()
    assert together == pytest.approx(losses, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])


def test_what_ranks_tell_each_other(found):
    words = found["words"]
    assert words["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert words["all_reduce_max"] == [15, 0]
    assert words["broadcast"] == "zero"
    assert words["all_reduce_mean"] == {"NCE": 0.5, "nonfinite": True, "only": 3.0}
    assert words["gather_tensors"] == [["image-0"], ["image-1"]]
    first, second = words["errors"]
    assert first == {
        "first": "UserError: the disk is full",
        "second": "UserError: process 1: the disk is full",
        "none": None,
    }
    assert second["first"] == "RemoteError: process 0: the disk is full"
    assert second["second"].startswith("RemoteError")
    assert second["none"] is None


def test_the_group_is_gone_before_the_interpreter_is(found):
    # Threads of gloo that outlive it abort the process, now and then: a training that went well would seem to fail.
    assert found["released"]


def test_gradients_that_one_rank_lacks_and_one_that_overflowed(found):
    uneven = found["uneven"]
    assert uneven["both"] == [[1.5], [1.5]]
    assert uneven["one"] == [[2.0], [2.0]]
    assert uneven["none"] == [True, True]
    # Both ranks passed over the step and halved the scale, though the overflow was on one.
    assert uneven["overflow"] == [[[1.0], 4.0], [[1.0], 4.0]]


def test_ranks_end_with_equal_weights_and_a_resumed_training_with_the_same_bytes(job, found):
    whole, parts = found["training"]["whole"], found["training"]["parts"]
    assert whole[0] == whole[1] == parts[0] == parts[1]
    runs = [Run.open(job / name) for name in ("whole", "parts")]
    last = [run.checkpoints.path(4) for run in runs]
    assert last[0].read_bytes() == last[1].read_bytes()
    # Each rank has images of its own to remember.
    tensors, _ = load_tensors(last[0])
    rooms = {name.split("/")[0] for name in tensors}
    assert rooms == {"model", "optimizer", "ema", "memory", "memory-1"}
    mine, other = (tensors[f"{room}/forward/0000"] for room in ("memory", "memory-1"))
    assert mine.shape == other.shape
    assert not torch.equal(mine, other)
    assert [e["step"] for e in events(runs[1], "train")] == [1, 2, 3, 4]


def python(*arguments: object, **more: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * SOON, **more)


def test_the_command_line_trains_in_two_processes_and_torchrun_carries_on(workplace):
    # Without draws that hang on the rank: no flips, places on a grid. Then two processes at 1 are one process at 2.
    fixed = ("method=cut", "sampler={type: grid, queries: 16}", "augmentations=[]")
    alone, run = build(workplace / "alone", *fixed), build(workplace / "run", *fixed, "train.batch_size=1")
    fit(alone)
    done = python("qsattn_plugin.cli", "fit", run.folder, "--nproc", "2", "--max-steps", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starting on 2 x cpu in fp32, 4 and 4 images") == 1
    assert done.stderr.count("step 2/4 ") == 1
    assert "stopped at step 2 of 4" in done.stderr
    assert run.checkpoints.steps() == [2]
    done = python("torch.distributed.run", "--nproc_per_node", "2", "-m", "qsattn_plugin.cli", "fit", run.folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("carrying on at step 2 on 2 x cpu") == 1
    assert "finished at step 4" in done.stderr
    assert [e["step"] for e in events(run, "train")] == [1, 2, 3, 4]
    assert [e["step"] for e in events(run, "evaluate")] == [2, 4]
    assert sorted(p.name for p in run.grids.iterdir()) == ["step-000000002.png", "step-000000004.png"]
    assert run.checkpoints.steps() == [2, 4]
    for mine, theirs in zip(events(run, "train"), events(alone, "train"), strict=True):
        # float32 sums in another order, passed through up to four steps of Adam.
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-3, abs=1e-4)


@pytest.fixture
def fitting(workplace) -> Iterator[Callable[[], tuple[Run, subprocess.Popen]]]:
    """Starts a long training in two processes, and returns when it has taken a few steps."""
    started: list[subprocess.Popen] = []

    def start() -> tuple[Run, subprocess.Popen]:
        run = build(workplace / "run", "train.steps=1000000", "checkpoint.every=1000000", "evaluate.every=1000000")
        command = [sys.executable, "-m", "qsattn_plugin.cli", "fit", str(run.folder), "--nproc", "2"]
        with open(workplace / "said", "w") as said:
            started.append(subprocess.Popen(command, stdout=said, stderr=said))
        until(lambda: (run.folder / "metrics.jsonl").is_file() and len(events(run, "train")) > 2)
        return run, started[0]

    yield start
    for process in started:
        for rank in ranks(process) if process.poll() is None else ():
            os.kill(rank, signal.SIGKILL)
        process.kill()
        process.wait()


def until(happened: Callable[[], bool], seconds: float = SOON) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def ranks(process: subprocess.Popen) -> list[int]:
    """The processes that a launcher started, in order."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")


@linux
def test_a_killed_rank_ends_the_job_with_a_message(workplace, fitting):
    run, process = fitting()
    others = ranks(process)
    os.kill(others[1], signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    said = (workplace / "said").read_text()
    assert said.count("Error: ") == 1
    assert "process 1 of 2 was ended by SIGKILL" in said
    assert "Traceback" not in said
    with run.lock():  # nobody is left who trains it
        pass


@linux
def test_a_signal_ends_all_ranks_at_one_step_and_it_is_saved(workplace, fitting):
    run, process = fitting()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    said = (workplace / "said").read_text()
    assert said.count("SIGTERM stopped the training; step") == 1
    (step,) = run.checkpoints.steps()
    assert events(run, "end")[-1]["step"] == step
    assert f"step {step} of 1000000 is saved" in said


@linux
def test_ranks_whose_launcher_was_killed_save_and_end(fitting):
    run, process = fitting()
    orphans = ranks(process)
    process.kill()
    process.wait()
    # They are nobody's children now: gone, or waiting for somebody to read their exit code.
    until(lambda: all(not Path(f"/proc/{pid}").exists() or "Z" in state(pid) for pid in orphans))
    assert len(run.checkpoints.steps()) == 1
    assert events(run, "end")[-1]["signal"] == "SIGTERM"


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_launcher_says_what_another_rank_than_the_first_said(capfd):
    program = "import os, sys; r = os.environ['RANK']; r == '1' and sys.exit(f'Error: rank {r} has no disk')"
    assert launch([sys.executable, "-c", program], 2) == 1
    assert capfd.readouterr().err == "Error: rank 1 has no disk\n"


def test_threads_are_divided_unless_they_were_set(monkeypatch, tmp_path):
    program = f"import os; open(f'{tmp_path}/' + os.environ['RANK'], 'w').write(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)), raising=False)
    for setting, expected in ((None, "3"), ("5", "5")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if setting:
            monkeypatch.setenv("OMP_NUM_THREADS", setting)
        assert launch([sys.executable, "-c", program], 2) == 0
        assert {(tmp_path / rank).read_text() for rank in "01"} == {expected}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective.negatives=batch"], "objective.negatives=batch compares the images of one process"),
        (["discriminator.norm=batch"], "is a batch norm"),
    ],
)
def test_what_looks_at_the_whole_batch_is_refused(settings, message):
    method = Session(load_recipe("toy", (*TINY, *settings))).method
    check_distributable(method, World())
    with pytest.raises(UserError, match=message):
        check_distributable(method, World(0, 2))


@pytest.mark.parametrize(
    ("name", "picked", "there", "message"),
    [
        ("auto", "mps", 0, "not on mps"),
        ("cuda:1", "cuda:1", 2, "is one GPU, but 2 processes train"),
        ("auto", "cuda", 1, "2 processes on this machine need a GPU each, and it has 1"),
    ],
)
def test_devices_that_ranks_cannot_share(monkeypatch, name, picked, there, message):
    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device(picked))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: picked != "mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=message):
        World(1, 2).device(name)


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(distributed, "pick_device", lambda name: pytest.fail("would put something on the first GPU"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")  # of the second machine, say
    for name in ("auto", "cuda"):
        assert World(3, 4).device(name) == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")] * 2


def test_processes_are_not_started_by_one_of_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(main, ["fit", "--nproc", "2"])
    assert done.exit_code == 1
    assert "is one of several already" in done.output
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but RANK is not set"), world():
        pass
