"""Kill a training with SIGKILL again and again; it must end with the bytes of one that was never killed.

    python -m benchmarks.soak --kills 100
    python -m benchmarks.soak --operations --steps 3

With --operations a small run is killed at each of its file operations in turn: opening a file, fsync, renaming,
deleting, making a folder, locking. Those of safetensors, which Python does not see, are met by the other kind: every
second kill comes at any moment (building, reading the checkpoint, stepping, evaluating, writing), the others while a
checkpoint is being written. The run saves after every step. Each process is forked from one that has only imported what
it needs, so that most of its life is training and not the start of Python. One thread, CPU, float32.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
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


#: What Python tells an audit hook of before it does it to a file; fsync, of which it tells nothing, is wrapped.
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "fcntl.flock")


def die_at(operation: int, folder: Path, told: int) -> None:
    """Kill this process before its file operation of that number in a folder; write the number done to ``told``."""
    done, root = 0, str(folder.resolve())

    def count(event: str, arguments: tuple) -> None:
        nonlocal done
        if event not in OPERATIONS:
            return
        names = [os.path.abspath(os.fsdecode(a)) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        if event != "fcntl.flock" and not any(name.startswith(root) for name in names):
            return
        done += 1
        os.pwrite(told, done.to_bytes(4, "little"), 0)
        if done == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync
    os.fsync = lambda handle: (count("open", (root,)), fsync(handle))[1]
    sys.addaudithook(count)


def train(run: Run, operation: int | None = None, told: int = -1) -> int:
    """Train in a process of its own, which dies at a file operation if one is given; return its number."""
    process = os.fork()
    if process:
        return process
    try:
        if operation is not None:
            die_at(operation, run.folder, told)
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


def left_by(run: Run) -> tuple[set[str], set[str]]:
    """Return the names of a run's files, and what its report draws: the step of its last point and of each picture.

    Where a killed one was carried on with is left out: the report says so, rightly.
    """
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    drawn = re.sub(r"Resumed at step \d+", "", run.report.read_text(encoding="utf-8"))
    return names, set(re.findall(r"step[- ]0*\d+", drawn))


def at_operations(settings: argparse.Namespace, wanted: tuple, left: tuple, began: float) -> None:
    """Kill one run after another at its first file operation, its second, ...; each must end as the whole one did."""
    operation, kills = 1, 0
    with tempfile.TemporaryFile() as told:
        while True:
            run = build(Path(f"run-{operation}"), settings.steps)
            status = wait_for(train(run, operation, told.fileno()), _PATIENCE)
            if status is None or (os.WIFEXITED(status) and status):
                sys.exit(f"{run.folder} failed by itself at operation {operation}")
            killed = os.WIFSIGNALED(status)
            kills += killed
            if killed and wait_for(train(run), _PATIENCE) != 0:
                sys.exit(f"{run.folder} does not go on after a kill at operation {operation}")
            difference = compare(outcome(run), wanted)
            strange = [a ^ b for a, b in zip(left_by(run), left, strict=True)]
            if difference or any(strange):
                sys.exit(f"after a kill at operation {operation} {run.folder} ended otherwise: {difference} {strange}")
            shutil.rmtree(run.folder)
            if not killed:
                break
            operation += settings.every
    print(
        f"{kills} kills, one at every {settings.every}. file operation of a run of {settings.steps} steps "
        f"({time.monotonic() - began:.0f} s): every run ended with the bytes, the files and the report of the run that "
        f"was never killed."
    )


def main() -> None:
    """Kill as often as asked, compare every run that ends, and print the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=24, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--operations", action="store_true", help="kill at every file operation instead")
    parser.add_argument("--every", type=int, default=1, help="with --operations, at every so many of them")
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
        if settings.operations:
            at_operations(settings, wanted, left_by(whole), began)
            return
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
