"""Kill a training with SIGKILL again and again; it must end with the bytes of one that was never killed.

    python -m benchmarks.soak --kills 100

Every second kill comes at any moment (building, reading the checkpoint, stepping, evaluating, writing), the others
while a checkpoint is being written. The run saves after every step. Each process is forked from one that has only
imported what it needs, so that most of its life is training and not the start of Python. One thread, CPU, float32.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # making an optimizer imports it: here once, not in every process
from PIL import Image

from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from tests.conftest import TINY

#: A whole training takes no longer than this.
_PATIENCE = 120.0


def outcome(run: Run) -> tuple:
    """Return all that a run ends with but times: checkpoints, best weights, losses and scores."""
    files = {path.name: path.read_bytes() for path in run.checkpoints.folder.iterdir()}
    losses = [(event["step"], event["losses"]) for event in run.events("train")]
    return files, losses, [(event["step"], event["scores"], event["best"]) for event in run.events("evaluate")]


def compare(found: tuple, wanted: tuple) -> str:
    """Return in what two runs differ; nothing where they do not."""
    files = [name for name in {**found[0], **wanted[0]} if found[0].get(name) != wanted[0].get(name)]
    return ", ".join(files + [what for i, what in ((1, "losses"), (2, "scores")) if found[i] != wanted[i]])


def build(folder: Path, steps: int) -> Run:
    """Return a new run: small, with an average, scored every third step."""
    more = (f"train.steps={steps}", "train.ema=0.9", "checkpoint={every: 1, keep: 2}", "evaluate={every: 3, grid: 2}")
    return Run.create(load_recipe("toy", (*TINY, *more)), folder)


def train(run: Run) -> int:
    """Train in a process of its own; return its number."""
    process = os.fork()
    if process:
        return process
    try:
        fit(Run.open(run.folder))
    except BaseException:  # noqa: BLE001 - a forked child prints it and ends
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def half_written(run: Run) -> set[str]:
    """Return the names of the temporary files that there are now."""
    return {path.name for pattern in (".*.part", ".tmp*") for path in run.folder.rglob(pattern)}


def wait_for(process: int, seconds: float, until=lambda: False) -> int | None:
    """Wait for a process to end by itself; return its status, or None once the time is over or ``until`` says so."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() >= end or until():
            return None
        time.sleep(0.0003)


def kill(process: int) -> int:
    """Send SIGKILL; return the process's status, which says whether that is what ended it."""
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def attempt(run: Run, span: float, draws: random.Random, writing: bool) -> int:
    """Train and kill; return the process's status.

    Args:
        run: is trained, from its newest checkpoint.
        span: seconds within which the process is killed, or with ``writing``, in which it begins to wait for a write.
        draws: choose the moment.
        writing: kill while a checkpoint is being written.
    """
    before = half_written(run)
    process = train(run)
    status = wait_for(process, draws.uniform(0, span))
    if status is None and writing:
        status = wait_for(process, _PATIENCE, lambda: any("safetensors" in name for name in half_written(run) - before))
        if status is None:
            status = wait_for(process, draws.uniform(0, 0.004))
    return kill(process) if status is None else status


def main() -> None:
    """Kill as often as asked, compare every run that ends, and print the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=24, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    Image.init()
    draws = random.Random(settings.seed)
    began = time.monotonic()
    kills = runs = resumed = 0
    halves = {"weights": 0, "other": 0}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        whole = build(Path("whole"), settings.steps)
        if wait_for(train(whole), _PATIENCE) != 0:
            sys.exit("the run that is not killed does not end well")
        wanted, span = outcome(whole), (time.monotonic() - began) / 8
        while kills < settings.kills:
            run = build(Path(f"run-{runs}"), settings.steps)
            status = None
            while status != 0:
                before, steps = half_written(run), run.checkpoints.steps()
                resumed += bool(steps)
                if kills < settings.kills:
                    status = attempt(run, span, draws, writing=bool(kills % 2))
                else:
                    status = wait_for(train(run), _PATIENCE)
                if status is None or (os.WIFEXITED(status) and status):
                    sys.exit(f"{run.folder} failed by itself after {kills} kills")
                if os.WIFSIGNALED(status):
                    kills += 1
                    left = half_written(run) - before
                    weights = any("safetensors" in name or name.startswith(".tmp") for name in left)
                    halves["weights" if weights else "other"] += bool(left)
                # However busy the machine is: some kills before the first step, most after a few.
                if status == 0:
                    span *= 0.7
                elif run.checkpoints.steps() == steps:
                    span *= 1.2
            runs += 1
            if difference := compare(outcome(run), wanted):
                sys.exit(
                    f"after {kills} kills {run.folder} ended otherwise than the run that was never killed: {difference}"
                )
    print(
        f"{kills} kills in {runs} runs of {settings.steps} steps (seed {settings.seed}, "
        f"{time.monotonic() - began:.0f} s): {resumed} processes carried on from a checkpoint. "
        f"{halves['weights']} kills left a half-written checkpoint, {halves['other']} another half-written file. Every "
        f"run ended with the bytes of the run that was never killed."
    )


if __name__ == "__main__":
    main()
