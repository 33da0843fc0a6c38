"""Time of decoding, keeping and batching pictures of 8 bits: this checkout against an earlier commit, by turns.

    python benchmarks/decoding.py PICTURES [--before 7b49787] [--count 30] [--pairs 4] [--rounds 4]

PICTURES is a folder of JPEGs, of which those without a colour profile are taken (others may be converted to sRGB, which
the earlier commit did not do); they are also written as PNGs. Each checkout runs in a process of its own, with one
thread for PyTorch; both are asked in turn, so that what else the machine does meets both, and after some rounds another
pair begins: where a process's memory lies makes a difference of its own. The first round of a pair warms up. Printed
are the median of the clock's seconds and the least of the processor's, which a busy machine changes less: of a store
of all pictures, resized to 286 x 286, and of 100 batches of one random 256 x 256 crop a domain from it. 7b49787 is the
last commit that reads every picture with Pillow alone, in 8 bits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
#: What each process runs: it times the folder that a line names.
WORK = """
import json, sys, time
import torch
import qsattn_plugin
from qsattn_plugin.data.batches import UnpairedBatches
from qsattn_plugin.data.folders import Folders
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.preprocess import Preprocess
from qsattn_plugin.data.store import Store

torch.set_num_threads(1)
assert qsattn_plugin.__file__.startswith(sys.argv[1]), qsattn_plugin.__file__

def seconds(work):
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return [time.perf_counter() - clock, time.process_time() - processor], result

for line in sys.stdin:
    dataset = Folders(line.strip())
    decoding, store = seconds(lambda: Store(dataset.split("trainA"), Preprocess()))
    batches = UnpairedBatches(store, store, 1, 256, 0)
    batching, _ = seconds(lambda: [to_float(batches.batch(step)["A"]).sum() for step in range(100)])
    print(json.dumps([decoding, batching]), flush=True)
"""


def started(tree: Path) -> subprocess.Popen[str]:
    """Return a process that works with the code of a checkout, folder by folder; see :func:`asked`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORK, str(tree)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tree, env=environment, **pipes)


def asked(process: subprocess.Popen[str], folder: Path) -> list[float]:
    """Return the seconds of decoding and of batching, each by the clock and of the processor."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    return [value for pair in json.loads(process.stdout.readline()) for value in pair]


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--before", default="7b49787", help="the commit to compare with")
    parser.add_argument("--count", type=int, default=30, help="of pictures")
    parser.add_argument("--pairs", type=int, default=4, help="of processes")
    parser.add_argument("--rounds", type=int, default=4, help="that a pair is asked and counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="decoding-") as work:
        trees = {"before": Path(work) / "before", "now": ROOT}
        trees["before"].mkdir()
        archive = subprocess.run(["git", "archive", args.before], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(trees["before"])], input=archive, check=True)
        folders = {ending: Path(work) / ending / "trainA" for ending in ("jpg", "png")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        taken = 0
        for path in sorted(args.pictures.glob("*.jpg")):
            with Image.open(path) as image:
                if taken < args.count and "icc_profile" not in image.info:
                    shutil.copyfile(path, folders["jpg"] / path.name)
                    image.save(folders["png"] / f"{path.stem}.png")
                    taken += 1
        found: dict[tuple[str, str], list[list[float]]] = {}
        for _ in range(args.pairs):
            processes = {name: started(tree) for name, tree in trees.items()}
            for number in range(args.rounds + 1):
                for ending, folder in folders.items():
                    for name in sorted(processes, reverse=bool(number % 2)):
                        values = asked(processes[name], folder.parent)
                        if number:
                            found.setdefault((ending, name), []).append(values)
            for process in processes.values():
                process.communicate()
    columns = ("store, s", "least of the processor, s", "100 batches, s", "least of the processor, s")
    print(f"| pictures | checkout | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for (ending, name), rounds in found.items():
        each = zip((statistics.median, min) * 2, zip(*rounds, strict=True), strict=True)
        print(f"| {taken} x .{ending} | {name} | {' | '.join(f'{of(column):.3f}' for of, column in each)} |")


if __name__ == "__main__":
    main()
