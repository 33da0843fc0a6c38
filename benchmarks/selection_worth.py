"""What query selection is worth: QS-Attn's selections against CUT's random places, on horses and zebras.

    python -m benchmarks.selection_worth --root datasets/horse2zebra --runs runs/worth --classifier lite2.safetensors \\
        --discriminator lite1.safetensors --encoder lite0.safetensors --extractor-weights inception2015.safetensors

trains every cell from one common start, the published `horse2zebra_mobile`: each of :data:`LOOKS`, on taps of the
generator and on a frozen timm encoder's, with both weights of the contrastive loss, three seeds. Training sees random
crops of 128 pixels at the scale of 256: a quarter of the arithmetic. Whole pictures are scored, with the classifier's
activation maps for the animals (benchmarks.animals). Every cell adds a JSON line to
docs/measured/selection-worth.jsonl, and the page is written anew. What has its line is not trained again, and a run
that was stopped is carried on with: start the same command again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.animals import TARGET as TARGETS
from benchmarks.animals import Found, crops, find_animals, pictures, taken_for, translate
from benchmarks.cells import Line, add, count, folder_name, machine, read, run_module, spread, table
from benchmarks.inception2015 import Inception2015
from benchmarks.selection_lift import on_the_map
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.distances import kernel_distances
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


class Scored(NamedTuple):
    """What translations of a split are scored with."""

    source: Tensor
    animals: Found
    real_whole: Tensor
    real_crops: Tensor


class Judge:
    """The networks that score, and what they see in the real pictures."""

    def __init__(self, root: Path, classifier: Path, extractor: Path, count: int):
        self.classifier = timm.create_model("tf_efficientnet_lite2").eval()
        self.classifier.load_state_dict(load_file(classifier))
        self.inception = Inception2015({name: tensor.float() for name, tensor in load_file(extractor).items()})
        self.splits = {split: self._real(root, split, count) for split in ("train", "test")}

    def features(self, images: Tensor) -> Tensor:
        """Return the Inception's 1280 features of uint8 images."""
        return torch.cat([self.inception(chunk)["1280"] for chunk in images.split(16)])

    def _real(self, root: Path, split: str, count: int) -> Scored:
        source, real = (pictures(root / f"{split}{domain}", count) for domain in "AB")
        wanted = find_animals(real, self.classifier)
        whole, on_animals = self.features(real), self.features(crops(real, wanted.squares))
        return Scored(source, find_animals(source, self.classifier), whole, on_animals)

    def score(self, model: str) -> Line:
        """Return a model's scores on both splits; KIDs times 100, changes of 1."""
        line: Line = {}
        for split, there in self.splits.items():
            made, inside = translate(model, there.source), there.animals.masks
            change = (made.float() - there.source.float()).abs().mean(1, keepdim=True) / 255
            on_animals, size = crops(made, there.animals.squares), min(len(made), len(there.real_whole))
            line |= {
                f"{split}_kid": kid(self.features(made), there.real_whole, size),
                f"{split}_kid_animals": kid(self.features(on_animals), there.real_crops, size),
                f"{split}_taken": round(taken_for(on_animals, self.classifier, TARGETS["B"]), 4),
                f"{split}_beside": round(float((change * (1 - inside)).sum() / (1 - inside).sum()), 5),
                f"{split}_on": round(float((change * inside).sum() / inside.sum()), 5),
            }
        return line

    @torch.no_grad()
    def lift(self, run: Run) -> float:
        """Return the share of a run's queries that lie on animals over the share of chance: of the deepest tap."""
        session, there = Session(run.recipe), self.splits["test"]
        session.restore(run.checkpoints.newest()[0])
        method, chosen, chance = session.method, [], []
        side = CROP // 2  # the middle of each picture, at the size of the training
        for number, (image, mask) in enumerate(zip(there.source.split(8), there.animals.masks.split(8), strict=True)):
            middle = slice(128 - side, 128 + side)
            features = method.encoder.features(method.generator, to_float(image[..., middle, middle]))
            routes = method.sampler.choose(features, method.encoder.taps, torch.Generator().manual_seed(number))
            animal = on_the_map(mask[:, 0, middle, middle], features[-1].shape[-2:], method.encoder.strides[-1])
            chosen.append(animal.gather(1, routes[-1].queries.expand(len(animal), -1)).mean(1))
            chance.append(animal.mean(1))
        return round(float(torch.cat(chosen).mean() / torch.cat(chance).mean()), 3)


def kid(made: Tensor, real: Tensor, size: int) -> float:
    """Return a kernel distance times 100."""
    return round(100 * float(kernel_distances(made, real, 1, size)[0]), 4)


def settings(args: argparse.Namespace, look: str, encoder: str, weight: float, seed: int) -> list[str]:
    """Return what a cell says over the recipe ``horse2zebra_mobile``."""
    sampler = LOOKS[look] | {"queries": QUERIES} | ({} if look == "random" else {"positions": POSITIONS})
    frozen = {"type": "timm", "model": "tf_efficientnet_lite0", "pretrained": False, "weights": str(args.encoder)}
    encoders = {"generator": {"type": "generator"}, "timm": frozen}
    given = {
        "sampler": sampler,
        "encoder": encoders[encoder],
        "discriminator.weights": str(args.discriminator),
        "discriminator.pretrained": None,
        "data.root": str(args.root),
        "data.crop": CROP,
        "objective.nce_weight": weight,
        "train.init_from": str(HERE.parents[1] / "registry" / "weights" / "horse2zebra_mobile.safetensors"),
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
    "KID, train": ("train_kid", 2),
    "KID, test": ("test_kid", 2),
    "taken, train": ("train_taken", 2),
    "on the animals": ("train_on", 3),
    "beside them": ("train_beside", 4),
    "lift": ("lift", 2),
}


def rows(lines: list[Line]) -> list[tuple[str, ...]]:
    """Return the table's rows: means over the seeds, and their range."""
    made = []
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

QS-Attn's selections against CUT's random places, from one common start, the published `horse2zebra_mobile`: {steps}
steps of its recipe with a rate that falls to zero, on random crops of {crop} pixels of pictures of 286, {queries}
queries a map of 256 positions, float32, one thread. `norm` is `qsattn_global` with the norm of the features for its
entropy; features are the generator's own at its default taps, or those of a frozen EfficientNet-Lite0 that timm has.
Means over the seeds, with their range. Scores are of whole pictures of 256 pixels: KID times 100 on the 1280 features
of FID's Inception, between squares around the animals and between whole pictures, the share of the squares that a
classifier takes for zebras, and the mean change of a pixel, of 1, on the animals and beside them, as its activation
maps find them. Lift is the share of the deepest map's queries that lie on animals over the share that chance gives,
at the end.

{start}

Raw numbers, machine and dates: [{raw}]({raw}); made by `python -m benchmarks.selection_worth`.

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
    judge = Judge(args.root, args.classifier, args.extractor_weights, args.count)
    start = ("start", "-", 0.0, 0)
    for cell in (start, *wanted):
        if (*cell, args.steps) in done:
            continue
        line: Line = dict(zip(("look", "encoder", "weight", "seed", "steps"), (*cell, args.steps), strict=True))
        if cell == start:
            line |= judge.score("horse2zebra_mobile")
        else:
            line |= json.loads(run_module("benchmarks.selection_worth", *sys.argv[1:], "--one", json.dumps(cell)))
            if "failed" not in line:
                folder = args.runs / folder_name(*cell, args.steps)
                line |= judge.score(str(folder)) | {"lift": judge.lift(Run.open(folder))}
        add(args.out, line | machine())
        write_page(args)


def write_page(args: argparse.Namespace) -> None:
    """Write the page of the lines that are there."""
    lines = [line for line in read(args.out) if line["steps"] == args.steps]
    scores = next(line for line in lines if line["look"] == "start")
    start = ", ".join(f"{title} {scores[n]:.{d}f}" for title, (n, d) in COLUMNS.items() if n in scores)
    told = {"steps": args.steps, "crop": CROP, "queries": QUERIES, "raw": args.out.name}
    shown = table(("looks", "features", "weight", "runs", *COLUMNS), rows(lines))
    args.out.with_suffix(".md").write_text(PAGE.format(**told, start=f"The start: {start}.", table=shown))


if __name__ == "__main__":
    main()
