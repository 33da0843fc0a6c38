"""Every contrastive objective on the toy data, with random places and with query-selected attention.

    python -m benchmarks.family --runs runs/family --threads 1

trains the toy recipe, at its own length, with every row of :data:`CASES`, both samplers and three seeds, one after the
other. Every run adds a JSON line to docs/measured/family.jsonl, and docs/measured/family.md, the page, is written anew.
What has its line already is not trained again, and a run that was stopped is carried on with: start the same command
again. The 66 runs take some ten hours of a quiet core; ``--cases``, ``--samplers`` and ``--seeds`` take part of them.

Each run has a process of its own. Seconds are those of the CPU, medians of ten steps; memory is the process's resident
peak over these steps beyond what it held before them, the networks and their imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Line, add, count, folder_name, machine, read, run_module, spread, table
from benchmarks.train_step import resident
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.finite_guard import NonFiniteLossError
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session

HERE = Path(__file__).parents[1] / "docs" / "measured"
#: Row -> method, and ``nce`` with its authors' weights; half of the method's weight on all of it is the toy recipe's.
CASES = {
    "patchnce (CUT)": ("cut", "patchnce"),
    "hdce + src": ("cut", "[{type: hdce, weight: 0.1}, {type: src, weight: 0.05}]"),
    "hdce": ("cut", "hdce"),
    "monce": ("cut", "{type: monce, eps: 0.1}"),
    "negcut": ("cut", "negcut"),
    "lsesim, fixed": ("cut", "{type: lsesim, weight: 10}"),
    "lsesim, learned": ("cut", "{type: lsesim, weight: 10, learned: true}"),
    "patchnce + srunit": ("cut", "[patchnce, {type: srunit, weight: 2e-4}]"),
    "enco": ("cut", "enco"),
    "dclgan": ("dclgan", "patchnce"),
    "simdcl": ("simdcl", "patchnce"),
}
#: The toy recipe's own, with attention on its maps of 16 x 16, and CUT's.
SAMPLERS = {
    "random": "{type: random, queries: 128}",
    "qsattn_global": "{type: qsattn_global, queries: 128, positions: 256}",
}


def settings(case: str, sampler: str, seed: int, steps: int) -> list[str]:
    """Return what a run says over the recipe ``toy``: it is scored at its end alone."""
    method, nce = CASES[case]
    length = [f"train.steps={steps}", f"evaluate.every={steps}"]
    # As the toy recipe has it, which loses its objective with its method: no identity term, and half of the weight.
    own = load_recipe("toy").objective
    shared = [f"objective.{key}={own[key]}" for key in ("gan", "head_width")]
    weight = {"cut": ("identity=false", "nce_weight=0.5"), "dclgan": ("identity_l1=0", "nce_weight=1.0")}
    weight["simdcl"] = ("identity_l1=0", "nce_weight=0.5")
    losses = [*shared, *(f"objective.{key}" for key in (f"nce={nce}", *weight[method]))]
    looks = [f"sampler={SAMPLERS[sampler]}"]
    return [f"method={method}", *losses, *looks, f"train.seed={seed}", "train.device=cpu", *length]


def one(case: str, sampler: str, seed: int, steps: int, threads: int, folder: Path) -> Line:
    """Train one run, or carry on with it, and return its line."""
    torch.set_num_threads(threads)
    recipe = load_recipe("toy", settings(case, sampler, seed, steps))
    line: Line = {"case": case, "sampler": sampler, "seed": seed, "steps": recipe.train.steps}
    needed = cost(recipe, threads)  # first: what a training has freed stays with the process, and would hide the peak
    run = Run.open(folder) if (folder / "recipe.yaml").exists() else Run.create(recipe, folder)
    try:
        line |= fit(run)
    except NonFiniteLossError as error:
        line["failed"] = str(error).partition(". ")[0]
    return line | needed | machine()


def cost(recipe: Any, threads: int) -> Line:
    """Return the CPU seconds of a step, and the megabytes that it needs."""
    session = Session(recipe)
    size = recipe.data.crop
    batch = {letter: torch.rand(recipe.train.batch_size, 3, size, size) * 2 - 1 for letter in "AB"}
    session.method.progress = 0.5  # objectives that wait for their time are at work
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before, seconds = resident("VmRSS"), []
    session.method.step(batch, torch.Generator().manual_seed(0))
    for number in range(10):
        began = time.process_time()
        session.method.step(batch, torch.Generator().manual_seed(number))
        seconds.append(time.process_time() - began)
    peak = (resident("VmHWM") - before) / 2**20
    return {"seconds": round(statistics.median(seconds), 4), "megabytes": round(peak, 1), "threads": threads}


def rows(lines: list[Line]) -> list[tuple[str, ...]]:
    """Return the table's rows: means over the seeds, and their range."""
    made, timed = [], processor(lines)
    for case in CASES:
        for sampler in SAMPLERS:
            found = [line for line in lines if (line["case"], line["sampler"]) == (case, sampler)]
            if found:
                shown = (spread("coat_distance", found, 3), spread("background_change", found, 4))
                seconds = [line["seconds"] for line in found if line["cpu"] == timed]
                took = f"{statistics.median(seconds):.2f}" if seconds else "-"
                needed = f"{statistics.median(line['megabytes'] for line in found):.0f}"
                made.append((case, sampler, count(found), *shown, took, needed))
    return made


def processor(lines: list[Line]) -> str:
    """Return the processor of most runs: seconds that were measured on two of them do not compare."""
    return statistics.mode(line["cpu"] for line in lines)


def pairs(lines: list[Line]) -> str:
    """Return what attention changed, over all pairs of runs with one objective and seed, in a sentence."""
    runs = {(line["case"], line["seed"], line["sampler"]): line for line in lines if "failed" not in line}
    random, attention = SAMPLERS
    met = [(runs[c, n, random], line) for (c, n, s), line in runs.items() if s == attention and (c, n, random) in runs]
    if len(met) < 2:
        return ""
    told = []
    for name, words in (("coat_distance", "coat distance"), ("background_change", "background change")):
        gains = [there[name] - here[name] for here, there in met]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        told.append(f"{statistics.mean(gains):+.4f} of {words} (standard error {error:.4f})")
    return f"Attention less random places, over the {len(met)} pairs of one objective and seed: {', '.join(told)}."


HEAD = ("objective", "sampler", "runs", "coat distance", "background change", "CPU s a step", "MB")
PAGE = """# The CUT line's objectives on the toy data

Every contrastive objective and two-sided method, with CUT's random places and with query-selected attention on the maps
of 16 x 16, at the length of {steps} steps: {done} of the 66 runs. As in the toy recipe the generator paints on its
input, there is no identity term, and all contrastive losses have half of their authors' weight for photos of horses;
none was tuned here. Coat distance is 0 for the true stripes and 1 for no change, background change the mean difference
beside the animal: smaller is better for both. Means over the seeds, with their range; medians of the CPU seconds of a
step, of the runs on {cpu} alone, and of the memory it needs beyond networks and imports, {threads} thread, fp32. What
did not train is counted as failed. Raw numbers, machine and dates: [{raw}]({raw});
made by `python -m benchmarks.family`.

{pairs}

{table}"""


def write_page(raw: Path, lines: list[Line], steps: int, threads: int) -> None:
    """Write the page beside the raw numbers."""
    told = {"steps": steps, "done": len(lines), "cpu": processor(lines), "threads": threads, "raw": raw.name}
    raw.with_suffix(".md").write_text(PAGE.format(**told, pairs=pairs(lines), table=table(HEAD, rows(lines))))


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/family"), help="where the runs' folders go")
    parser.add_argument("--out", type=Path, default=HERE / "family.jsonl", help="the raw numbers; the page lies beside")
    parser.add_argument("--steps", type=int, help="another length than the recipe's, to try the command")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(**json.loads(args.one), threads=args.threads, folder=args.runs)))
        return
    steps = load_recipe("toy").train.steps if args.steps is None else args.steps
    wanted = [(c, s, n) for n in args.seeds for c in args.cases for s in args.samplers]
    done = {(line["case"], line["sampler"], line["seed"], line["steps"]) for line in read(args.out)}
    for case, sampler, seed in wanted:
        if (case, sampler, seed, steps) in done:
            continue
        what = json.dumps({"case": case, "sampler": sampler, "seed": seed, "steps": steps})
        folder = args.runs / folder_name(case, sampler, seed, steps)
        command = ("benchmarks.family", "--one", what, "--threads", str(args.threads), "--runs", str(folder))
        add(args.out, json.loads(run_module(*command)))
        lines = [each for each in read(args.out) if each["steps"] == steps]
        write_page(args.out, lines, steps, args.threads)


if __name__ == "__main__":
    main()
