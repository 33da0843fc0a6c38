"""What query selection is worth: QS-Attn's selections against CUT's random places, on horses and zebras.

    python -m benchmarks.selection_worth --root datasets/horse2zebra --runs runs/worth --classifier lite2.safetensors \\
        --discriminator lite1.safetensors --encoder lite0.safetensors --extractor-weights inception2015.safetensors

trains every cell from one common start (`--start`, else the published model): each of :data:`LOOKS`, on taps of the
generator and on a frozen timm encoder's, with both weights of the contrastive loss, three seeds. Training sees random
crops of 128 pixels of pictures of 286: a quarter of the arithmetic. Whole pictures are scored, with the classifier's
activation maps for the animals (benchmarks.animals). Every cell adds a JSON line to
docs/measured/selection-worth.jsonl, and the page is written anew. What has its line is not trained again, and a run
that was stopped is carried on with: start the same command again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.animals import Judge
from benchmarks.cells import Line, add, count, folder_name, machine, read, run_module, spread, table
from benchmarks.selection_lift import on_the_map
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.finite_guard import NonFiniteLossError
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session

HERE = Path(__file__).parents[1] / "docs" / "measured"
#: Of the maps' 256 positions a quarter are queries; attention on all maps of that size.
CROP, QUERIES, POSITIONS = 128, 64, 256
#: Where the loss looks -> the sampler.
LOOKS = {
    "random": {"type": "random"},
    "qsattn_global": {"type": "qsattn_global"},
    "qsattn_local": {"type": "qsattn_local"},
    "qsattn_local_global": {"type": "qsattn_local_global"},
    "mixture": {"type": "mixture"},
    "norm": {"type": "qsattn_global", "significance": "norm"},
}
WEIGHTS = (0.5, 1.0)
ENCODERS = ("generator", "timm")


@torch.no_grad()
def lift(run: Run, judge: Judge) -> float:
    """Return the share of a run's queries that lie on animals over the share of chance: of the deepest tap."""
    session = Session(run.recipe)
    session.restore(run.checkpoints.newest()[0])
    method, chosen, chance = session.method, [], []
    side = CROP // 2  # the middle of each picture, at the size of the training
    middle = slice(128 - side, 128 + side)
    for number, (image, mask) in enumerate(zip(judge.source.split(8), judge.there.masks.split(8), strict=True)):
        features = method.encoder.features(method.generator, to_float(image[..., middle, middle]))
        routes = method.sampler.choose(features, method.encoder.taps, torch.Generator().manual_seed(number))
        animal = on_the_map(mask[:, 0, middle, middle], features[-1].shape[-2:], method.encoder.strides[-1])
        chosen.append(animal.gather(1, routes[-1].queries.expand(len(animal), -1)).mean(1))
        chance.append(animal.mean(1))
    return float(torch.cat(chosen).mean() / torch.cat(chance).mean())


def settings(args: argparse.Namespace, look: str, encoder: str, weight: float, seed: int) -> list[str]:
    """Return what a cell says over the recipe ``horse2zebra_mobile``."""
    sampler = LOOKS[look] | {"queries": QUERIES} | ({} if look == "random" else {"positions": POSITIONS})
    # Strides 4 and 8: the deeper maps of such crops have fewer positions than there are queries.
    frozen = {"type": "timm", "model": "tf_efficientnet_lite0", "taps": [1, 2], "pretrained": False}
    frozen["weights"] = str(args.encoder)
    encoders = {"generator": {"type": "generator"}, "timm": frozen}
    given = {
        "sampler": sampler,
        "encoder": encoders[encoder],
        "discriminator.weights": str(args.discriminator),
        "discriminator.pretrained": None,
        "data.root": str(args.root),
        "data.crop": CROP,
        "objective.nce_weight": weight,
        "train.init_from": args.start,
        "train.steps": args.steps,
        "train.seed": seed,
        "train.precision": "fp32",
        "train.device": "cpu",
        "evaluate.every": args.steps,
        "checkpoint.every": args.steps,
    }
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def train(folder: Path, told: list[str]) -> Line:
    """Train a cell, or carry on with it, and return what came of it."""
    known = (folder / "recipe.yaml").exists()
    run = Run.open(folder) if known else Run.create(load_recipe("horse2zebra_mobile", told), folder)
    try:
        fit(run)
    except NonFiniteLossError as error:
        return {"failed": str(error).partition(". ")[0]}
    return {}


#: A column's title -> the score, and its digits.
COLUMNS = {
    "KID animals, train": ("train_kid_animals", 2),
    "less random's": ("gain", 2),
    "KID, train": ("train_kid", 2),
    "KID, test": ("test_kid", 2),
    "taken, train": ("train_taken", 2),
    "on the animals": ("train_inside", 3),
    "beside them": ("train_outside", 4),
    "lift": ("lift", 2),
}


def rows(lines: list[Line]) -> list[tuple[str, ...]]:
    """Return the table's rows: means over the seeds, and their range."""
    made, name = [], "train_kid_animals"
    chance = {(x["encoder"], x["weight"], x["seed"]): x[name] for x in lines if x["look"] == "random" and name in x}
    for line in lines:
        other = chance.get((line["encoder"], line["weight"], line["seed"]))
        if other is not None and line["look"] != "random" and name in line:
            line["gain"] = line[name] - other
    for encoder in ENCODERS:
        for weight in WEIGHTS:
            for look in LOOKS:
                cell = (look, encoder, weight)
                found = [line for line in lines if (line["look"], line["encoder"], line["weight"]) == cell]
                if found:
                    scores = [spread(name, found, digits) for name, digits in COLUMNS.values()]
                    made.append((look, encoder, f"{weight:g}", count(found), *scores))
    return made


PAGE = """# What the selection is worth

QS-Attn's selections against CUT's random places, from one common start, the `horse2zebra_mobile` of commit 3df94d8 (its
file by `git show 3df94d8:registry/weights/horse2zebra_mobile.safetensors`, named by `--start`): {steps}
steps of its recipe with a rate that falls to zero, on random crops of {crop} pixels of pictures of 286, {queries}
queries a map of 256 positions, float32, one thread. `norm` is `qsattn_global` with the norm of the features for its
entropy; features are the generator's own at its default taps, or a frozen EfficientNet-Lite0's, of timm, at strides 4
and 8. Means over the seeds, with their range. Scores are of whole pictures of 256 pixels: KID times 100 on the 1280
features of FID's Inception, between squares around the animals and between whole pictures (`less random's`: less that
of `random` with the same seed, which gives both the same pictures in the same order), the share of the squares that a
classifier takes for zebras, and the mean change of a pixel, of 1, on the animals and beside them, as its activation
maps find them. Lift is the share of the deepest map's queries that lie on animals over the share that
chance gives, at the end.

{start}

{there} of its 72 runs are done. Raw numbers, machine and dates: [{raw}]({raw}); made by
`python -m benchmarks.selection_worth`.

{table}"""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="horse2zebra, with trainA to testB")
    parser.add_argument("--runs", type=Path, default=Path("runs/worth"), help="where the runs' folders go")
    parser.add_argument("--out", type=Path, default=HERE / "selection-worth.jsonl", help="the page lies beside it")
    parser.add_argument("--classifier", type=Path, required=True, help="weights of tf_efficientnet_lite2")
    parser.add_argument("--discriminator", type=Path, required=True, help="weights of tf_efficientnet_lite1")
    parser.add_argument("--encoder", type=Path, required=True, help="weights of tf_efficientnet_lite0")
    parser.add_argument("--start", default="horse2zebra_mobile", help="model or weights file from which all begin")
    parser.add_argument("--extractor-weights", type=Path, required=True)
    parser.add_argument("--count", type=int, default=160, help="pictures of a domain and split that are scored")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--looks", nargs="+", choices=list(LOOKS), default=list(LOOKS))
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        look, encoder, weight, seed = json.loads(args.one)
        name = folder_name(look, encoder, weight, seed, args.steps)
        print(json.dumps(train(args.runs / name, settings(args, look, encoder, weight, seed))))
        return
    wanted = [(c, e, w, n) for n in args.seeds for e in args.encoders for w in args.weights for c in args.looks]
    done = {(x["look"], x["encoder"], x["weight"], x["seed"], x["steps"]) for x in read(args.out)}
    networks = (args.classifier, args.extractor_weights)
    judges = {split: Judge(args.root, split, *networks, count=args.count) for split in ("train", "test")}
    start = ("start", "-", 0.0, 0)
    for cell in (start, *wanted):
        if (*cell, args.steps) in done:
            continue
        line: Line = dict(zip(("look", "encoder", "weight", "seed", "steps"), (*cell, args.steps), strict=True))
        model = args.start
        if cell != start:
            line |= json.loads(run_module("benchmarks.selection_worth", *sys.argv[1:], "--one", json.dumps(cell)))
            model = str(args.runs / folder_name(*cell, args.steps))
        if "failed" not in line:
            scores = {f"{s}_{name}": value for s, judge in judges.items() for name, value in judge.score(model).items()}
            scores |= {} if cell == start else {"lift": lift(Run.open(Path(model)), judges["test"])}
            line |= {name: round(value, 5) for name, value in scores.items()}
        add(args.out, line | machine())
        write_page(args)


def write_page(args: argparse.Namespace) -> None:
    """Write the page of the lines that are there."""
    lines = [line for line in read(args.out) if line["steps"] == args.steps]
    scores = next(line for line in lines if line["look"] == "start")
    start = ", ".join(f"{title} {scores[n]:.{d}f}" for title, (n, d) in COLUMNS.items() if n in scores)
    told = {"steps": args.steps, "crop": CROP, "queries": QUERIES, "raw": args.out.name, "there": len(lines) - 1}
    shown = table(("looks", "features", "weight", "runs", *COLUMNS), rows(lines))
    args.out.with_suffix(".md").write_text(PAGE.format(**told, start=f"The start: {start}.", table=shown))


if __name__ == "__main__":
    main()
